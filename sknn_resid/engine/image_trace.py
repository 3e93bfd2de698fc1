"""One forward and backward pass of an image network, and what it makes, by autograd.

The pass is that of a training step without what is random (augmentation, drop path) and without
decay: batch statistics, weighted rows. Activations are seen through a `TorchFunctionMode`, which
watches torch's functions while the pass runs and is gone with it. A module hook would have to be
taken off again, does not see a relu that is a function, and disturbs operations in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sknn_resid.engine.image_data import Scaling
from sknn_resid.engine.resnet import ResNet, initialize, load_arrays
from sknn_resid.engine.resnet_spec import ResNetSpec


@dataclass(frozen=True, eq=False)
class ImageSubject:
    """An image network and the rows it is looked at with.

    Attributes
    ----------
    spec : ResNetSpec
    arrays : mapping of str to ndarray, or None
        Weights; None draws them from ``seed``, as training does.
    seed : int
    scaling : Scaling
    pixels : ndarray of shape (n, H, W, C)
    codes : ndarray of shape (n,), int64
    weight : ndarray of shape (n,) or None
    label_smoothing : float
    fitted : bool
    """

    spec: ResNetSpec
    arrays: Mapping[str, np.ndarray] | None
    seed: int
    scaling: Scaling
    pixels: np.ndarray
    codes: np.ndarray
    weight: np.ndarray | None
    label_smoothing: float
    fitted: bool

    @property
    def row_weights(self) -> np.ndarray:
        """r = w / sum w."""
        n = len(self.codes)
        return np.full(n, 1 / n) if self.weight is None else self.weight / self.weight.sum()


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """What one pass has made, by layer: convolutions and the head, by torchvision's names.

    Attributes
    ----------
    weights, gradients : dict of str to ndarray
        W and dJ/dW.
    activations : dict of str to list of Tensor (B, C, H, W)
        The first that what a layer gives goes through; empty behind the head.
    """

    weights: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    activations: dict[str, list[Tensor]]


@dataclass(eq=False)
class _Seen(TorchFunctionMode):
    """Keeps each relu's result under the names of the convolutions since the one before."""

    layer_of: dict[int, str]
    found: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._waiting: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.conv2d:
            self._waiting.append(self.layer_of[id(args[1])])
        elif func is F.relu:
            for layer in self._waiting:
                self.found.setdefault(layer, []).append(result.detach())
            self._waiting = []
        return result


def trace_images(subject: ImageSubject) -> ImageTrace:
    """One pass over all rows as one batch, in float64 on the CPU."""
    module, r_B = _module(subject), torch.from_numpy(subject.row_weights)
    layers = {
        name.removesuffix(".weight"): parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1
    }
    seen = _Seen({id(parameter): name for name, parameter in layers.items()})
    with seen:
        loss = r_B @ _losses(module, subject, _scaled(subject))
    gradients = torch.autograd.grad(loss, list(layers.values()))
    return ImageTrace(
        {name: parameter.detach().numpy() for name, parameter in layers.items()},
        {name: g.numpy() for name, g in zip(layers, gradients, strict=True)},
        {name: seen.found.get(name, []) for name in layers},
    )


def pixel_gradients(subject: ImageSubject) -> np.ndarray:
    """Gradient of sum_i l_i by the scaled pixels, (n, H W C): each row's own where BN ties none."""
    x_BCHW = _scaled(subject).requires_grad_()
    loss = _losses(_module(subject), subject, x_BCHW).sum()
    (gradient,) = torch.autograd.grad(loss, x_BCHW)
    return gradient.flatten(1).numpy()


def _module(subject: ImageSubject) -> ResNet:
    module = ResNet(subject.spec, torch.float64)
    if subject.arrays is None:
        initialize(module, torch.Generator().manual_seed(subject.seed))
    else:
        load_arrays(module, subject.arrays)
    return module.train()


def _scaled(subject: ImageSubject) -> Tensor:
    scale = subject.scaling.bind(torch.float64, torch.device("cpu"))
    return scale(torch.from_numpy(subject.pixels)).permute(0, 3, 1, 2)


def _losses(module: ResNet, subject: ImageSubject, x_BCHW: Tensor) -> Tensor:
    """Loss of each row."""
    r_B = torch.from_numpy(subject.row_weights)
    weights_B = None if bool((r_B == r_B[0]).all()) else r_B
    z_BK = module(x_BCHW, weights_B, module.keep_all(len(r_B)))
    codes_B = torch.from_numpy(subject.codes)
    smoothing = subject.label_smoothing
    return F.cross_entropy(z_BK, codes_B, reduction="none", label_smoothing=smoothing)
