"""What a step says about the flow of gradients through a network: a few numbers a layer.

For the weight matrix W of a layer, its gradient g = dL/dW (the data term of the objective: without
the penalty, before clipping) and the step's change of it, D:

    gradient_norm = |g|      gradient_rms = |g| / sqrt(number of entries)
    weight_norm   = |W|      update_ratio = |D| / |W|   (before the step; about 1e-3 is usual)

|.| is the Frobenius norm, summed in float64: in float32 squares vanish below 1e-23. For the
activations h = f(z) that follow the layer, over the rows of a batch (weights r, sum 1) and the
units:

    activation_mean, activation_std     of h
    saturated_fraction                  where |f'(z)| < 0.05 max |f'|
    dead_fraction                       units with f'(z) = 0 on every row

The rule by derivative is one for all functions: for the logistic it is |z| > 4.36, for tanh
|h| > 0.975. Those two are flat on both sides, and their fraction is one of numbers. The others are
flat on one side by intention (half of the numbers behind a ReLU are 0): of them a unit counts as
saturated if it is flat on every row. No consensus exists for ReLU on single numbers.

Whatever is not defined is not-a-number: activations behind the output layer or behind a matrix that
no function follows, and everything of a batch without weight.

References
----------
Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural networks
(activations and gradients by layer). Karpathy (2022), Neural networks: zero to hero, part 3 (tanh
beyond 0.97; updates of 1e-3 of the weights).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sknn_resid.engine.activations import (
    Activated,
    Activation,
    Elu,
    Gelu,
    Logistic,
    Mish,
    Silu,
    Tanh,
)
from sknn_resid.engine.structure import AnyNetwork

FLAT = 0.05  # of the largest derivative
WEIGHTS = ("gradient_norm", "gradient_rms", "weight_norm", "update_ratio")
ACTIVATIONS = ("activation_mean", "activation_std", "saturated_fraction", "dead_fraction")
COLUMNS = (*WEIGHTS, *ACTIVATIONS)

# Largest |f'|, found on a grid of 1e-4 and rounded; only a share of it matters.
_STEEPEST: dict[type[Activation], float] = {
    Logistic: 0.25,
    Gelu: 1.1289,
    Silu: 1.0998,
    Mish: 1.0885,
}


def steepest(function: Activation) -> float:
    """Largest |f'| of an activation function."""
    if isinstance(function, Elu):
        return function.scale * max(1.0, function.alpha)
    return _STEEPEST.get(type(function), 1.0)


def flat_on_both_sides(function: Activation) -> bool:
    """Whether every function value far from 0 is saturated."""
    return isinstance(function, Logistic | Tanh)


def activation_numbers(parts: Sequence[Activated], r_M1B: Tensor) -> Tensor:
    """The numbers `ACTIVATIONS` of each model, shape (M, 4), float64.

    Parameters
    ----------
    parts : sequence of Activated
        Of one function; several are taken together as if each held rows of its own, as the uses of
        a layer that blocks share.
    r_M1B : Tensor of shape (M, 1, B)
        Weights of the rows, of sum 1; 0 leaves a row out.
    """
    function = parts[0].function
    threshold, share = FLAT * steepest(function), 1.0 / len(parts)
    live_MB1 = (r_M1B > 0).mT
    values = [part.h.to(r_M1B.dtype) for part in parts]
    mean_M11 = sum(torch.matmul(r_M1B, h).mean(2, keepdim=True) for h in values) * share
    squares = (torch.matmul(r_M1B, (h - mean_M11).square_()).mean((1, 2)) for h in values)
    std_M = (sum(squares) * share).sqrt_()  # type: ignore[union-attr]
    slopes = [_slope(part) for part in parts]
    top_MH = torch.stack([(slope * live_MB1).amax(1) for slope in slopes]).amax(0)
    if flat_on_both_sides(function):
        flat = [(slope < threshold).to(r_M1B.dtype) for slope in slopes]
        saturated_M = sum(torch.matmul(r_M1B, part).mean((1, 2)) for part in flat) * share
    else:
        saturated_M = (top_MH < threshold).double().mean(1)
    dead_M = (top_MH == 0).double().mean(1)
    columns = [mean_M11.flatten(), std_M, saturated_M, dead_M]
    numbers = torch.stack([column.double() for column in columns], dim=1)  # type: ignore[union-attr]
    weightless = ~live_MB1.any(1)
    return numbers.masked_fill_(weightless, math.nan)


def _slope(part: Activated) -> Tensor:
    """|f'(z)|, by the function's own backward pass from a delta of 1."""
    slope = torch.ones_like(part.h, memory_format=torch.contiguous_format)
    for op in part.function.bind_backward(part.z, part.h, slope):
        op()
    return slope.abs_()


def frobenius(matrix_Mij: Tensor) -> Tensor:
    """Norm of each model's matrix, shape (M,), float64."""
    return torch.linalg.vector_norm(matrix_Mij, dim=(1, 2), dtype=torch.float64)


class FlowRecorder:
    """Measures the flow once an epoch: between the gradient of a step and its update, and after.

    Each model is measured at the last full batch of its epoch (at the only one, if that is not
    full). It reads the network's memory and writes nothing there, so that training goes the same
    way, bit for bit.

    Parameters
    ----------
    network : StackedNetwork or StackedResidualNetwork
    n_rows_M : sequence of int
        Rows of each model that take part in an epoch.
    batch : int
        Rows of a full batch.

    Attributes
    ----------
    batches : set of int
        The batches of an epoch at which `before_update` and `after_update` have to be called.
    epoch_MLC : ndarray of shape (M, L, 8)
        The numbers `COLUMNS` of each layer in the last epoch, once `end_epoch` was called. A fresh
        array each time.
    """

    def __init__(self, network: AnyNetwork, n_rows_M: Sequence[int], batch: int) -> None:
        self._network = network
        self._weights = network.matrices(network.params_MP)
        self._gradients = network.matrices(network.grads_MP)
        self._before = {name: torch.empty_like(W) for name, W in self._weights.items()}
        due = [max(0, int(n) // batch - 1) for n in n_rows_M]
        self._models = {b: [m for m, at in enumerate(due) if at == b] for b in due}
        self.batches = set(due)
        shape = (network.n_models, len(self._weights), len(COLUMNS))
        device = network.params_MP.device
        self._step_MLC = torch.full(shape, math.nan, dtype=torch.float64, device=device)
        self._flow_MLC = torch.full_like(self._step_MLC, math.nan)
        self.epoch_MLC = self._flow_MLC.cpu().numpy()

    def before_update(self, r_M1B: Tensor) -> None:
        """Measure all but the update, when the gradient of a batch with these weights is there."""
        activated = self._network.activations(r_M1B.shape[2])
        for l, (name, W) in enumerate(self._weights.items()):
            row_MC = self._step_MLC[:, l]
            self._before[name].copy_(W)
            row_MC[:, 0] = frobenius(self._gradients[name])
            row_MC[:, 1] = row_MC[:, 0] / math.sqrt(W[0].numel())
            row_MC[:, 2] = frobenius(W)
            if activated[name]:
                row_MC[:, len(WEIGHTS) :] = activation_numbers(activated[name], r_M1B)

    def after_update(self, batch: int) -> None:
        """Measure how far the step of this batch has moved the weights, if it is one to measure."""
        if batch not in self.batches:
            return
        for l, (name, W) in enumerate(self._weights.items()):
            moved_M = frobenius(W - self._before[name])
            ratio_M = moved_M / self._step_MLC[:, l, 2]
            # matrices that begin with zeros and stay there have not moved
            self._step_MLC[:, l, 3] = ratio_M.masked_fill_(moved_M == 0, 0.0)
        models = self._models[batch]
        self._flow_MLC[models] = self._step_MLC[models]

    def end_epoch(self) -> None:
        """Bring the numbers of the epoch to the host."""
        self.epoch_MLC = self._flow_MLC.cpu().numpy().copy()
