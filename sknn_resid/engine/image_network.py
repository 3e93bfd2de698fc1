"""A convolutional network in the engine's form: one flat buffer of parameters, one of gradients.

So update rules, averages and kept weights are those of every other network. Derivatives come from
autograd, whose convolutions are the libraries' own; there is one model, M = 1. Weights come first,
then what is never decayed: normalizations and biases. A convolution's weights lie in the buffer as
(out, height, width, in), which is what torch calls ``channels_last``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.resnet import ResNet, load_arrays, to_arrays
from sknn_resid.engine.resnet_spec import ResNetSpec


@dataclass(frozen=True)
class FlatLayout:
    """How many of the flat parameters are weights, which decay, and how many there are."""

    n_weights: int
    n_params: int


class FlatNetwork:
    """A module whose parameters are views of ``params_MP``, and their gradients of ``grads_MP``.

    Parameters
    ----------
    module : ResNet
        Its parameters are moved into the buffer.
    body_factor : float
        Factor of the updates of everything but the head.

    Attributes
    ----------
    module : ResNet
    params_MP, grads_MP : Tensor of shape (1, P)
    layout : FlatLayout
    factors_MP : Tensor of shape (1, P) or None
        Factors of updates: 0 for frozen parameters; None where all are 1.
    """

    def __init__(self, module: ResNet, body_factor: float = 1.0) -> None:
        self.module = module
        named = sorted(module.named_parameters(), key=lambda item: item[1].ndim == 1)
        n_weights = sum(p.numel() for _, p in named if p.ndim > 1)
        n_params = sum(p.numel() for _, p in named)
        self.layout = FlatLayout(n_weights, n_params)
        first = named[0][1]
        self.params_MP = torch.zeros((1, n_params), dtype=first.dtype, device=first.device)
        self.grads_MP = torch.zeros_like(self.params_MP)
        factors_MP = torch.ones_like(self.params_MP)
        start = 0
        self._places: dict[str, tuple[int, int, int]] = {}
        for name, parameter in named:
            stop = start + parameter.numel()
            if not name.startswith("fc."):
                factors_MP[0, start:stop] = body_factor
            if not parameter.requires_grad:
                factors_MP[0, start:stop] = 0.0
            view = _shaped(self.params_MP[0, start:stop], parameter)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = _shaped(self.grads_MP[0, start:stop], parameter)
            if parameter.ndim > 1:
                place = (start, stop, parameter.shape[0])
                self._places[name.removesuffix(".weight")] = place
            start = stop
        self.factors_MP = None if bool((factors_MP == 1).all()) else factors_MP

    @property
    def device(self) -> torch.device:
        return self.params_MP.device

    @property
    def dtype(self) -> torch.dtype:
        return self.params_MP.dtype

    def matrices(self, flat_MP: Tensor) -> dict[str, Tensor]:
        """Weights, or gradients, of each convolution and the head in flat memory: (1, out, rest).

        In the order of the network, by torchvision's names.
        """
        return {
            name: flat_MP[:, start:stop].unflatten(1, (n_out, -1))
            for name, (start, stop, n_out) in self._places.items()
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters and statistics by torchvision's names, as arrays of their own."""
        return to_arrays(self.module)

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Copy parameters and statistics in."""
        load_arrays(self.module, arrays)


def _shaped(flat_P: Tensor, parameter: Tensor) -> Tensor:
    """A view of flat memory in the shape of a parameter, convolutions in ``channels_last``."""
    if parameter.ndim != 4:
        return flat_P.view(parameter.shape)
    out, c, h, w = parameter.shape
    return flat_P.view(out, h, w, c).permute(0, 3, 1, 2)


def flops_per_step(spec: ResNetSpec, shape: tuple[int, int, int], n_rows: int) -> float:
    """Operations of a step: forward and twice as many backward, two a multiplication."""
    height, width, _ = shape
    return 6.0 * n_rows * spec.multiplications(height, width)
