"""What a step says about the flow of gradients through a network: a few numbers a layer.

For the weight matrix W of a layer, its gradient g = dL/dW (the data term of the objective: without
the penalty, before clipping) and the step's change of it, D:

    gradient_norm = |g|      gradient_rms = |g| / sqrt(number of entries)
    weight_norm   = |W|      update_ratio = |D| / |W|   (before the step; about 1e-3 is usual)

|.| is the Frobenius norm (the squares of 1e-23 do not exist in float32: `frobenius`). For the
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
    Identity,
    LeakyRelu,
    Logistic,
    Mish,
    Relu,
    Silu,
    Softplus,
    Tanh,
)
from sknn_resid.engine.structure import AnyNetwork

FLAT = 0.05  # of the largest derivative
SAFE_NORM = (1e-10, 1e15)  # float32 norms between these are right to its own precision
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


class Scratch:
    """Memory for one tensor of each size, used again and again."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.Size, torch.dtype], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        """Memory of the size of this one; its content is whatever was there."""
        key = (other.shape, other.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(other, memory_format=torch.contiguous_format)
        return self._buffers[key]


class Rows:
    """The rows of a batch, and which of them count.

    Parameters
    ----------
    r_M1B : Tensor of shape (M, 1, B)
        Weights of the rows, of sum 1; 0 leaves a row out.
    scratch : Scratch
    """

    def __init__(self, r_M1B: Tensor, scratch: Scratch) -> None:
        self.r_M1B, self.scratch = r_M1B, scratch
        off_MB1 = (r_M1B <= 0).mT
        self.off_MB1 = off_MB1 if bool(off_MB1.any()) else None
        self.weightless_M1 = off_MB1.all(1)

    def mean(self, parts: Sequence[Tensor]) -> Tensor:
        """Mean over rows by weight, units and parts of equal size: shape (M, 1)."""
        means = [torch.matmul(self.r_M1B, part).mean(2) for part in parts]
        return means[0] if len(means) == 1 else torch.stack(means).mean(0)


def activation_numbers(parts: Sequence[Activated], rows: Rows) -> Tensor:
    """The numbers `ACTIVATIONS` of each model, shape (M, 4), float64.

    Parameters
    ----------
    parts : sequence of Activated
        Of one function; several are taken together as if each held rows of its own, as the uses of
        a layer that blocks share.
    rows : Rows
    """
    function = parts[0].function
    threshold = FLAT * steepest(function)
    values = [part.h.to(rows.r_M1B.dtype) for part in parts]
    mean_M1 = rows.mean(values)
    # the one use of the common memory ends before the next begins
    squares = [rows.mean([_squares(h, mean_M1, rows.scratch.like(h))]) for h in values]
    std_M1 = torch.stack(squares).mean(0).sqrt_()
    tops, flats = [], []
    for part in parts:
        top_MH, slope = _steepest_by_unit(part, rows)
        tops.append(top_MH)
        if slope is not None:
            flats.append(rows.mean([slope.lt_(threshold).to(rows.r_M1B.dtype)]))
    top_MH = tops[0] if len(tops) == 1 else torch.stack(tops).amax(0)
    dead_M1 = _share(top_MH == 0)
    saturated_M1 = torch.stack(flats).mean(0) if flats else _share(top_MH < threshold)
    columns = [mean_M1.double(), std_M1.double(), saturated_M1.double(), dead_M1]
    return torch.cat(columns, dim=1).masked_fill_(rows.weightless_M1, math.nan)


def _squares(h: Tensor, mean_M1: Tensor, out: Tensor) -> Tensor:
    return torch.sub(h, mean_M1.unsqueeze(2), out=out).square_()


def _share(found_MH: Tensor) -> Tensor:
    return found_MH.double().mean(1, keepdim=True)


def _steepest_by_unit(part: Activated, rows: Rows) -> tuple[Tensor, Tensor | None]:
    """Largest |f'(z)| of each unit over the rows that count, (M, H), and |f'| itself or None.

    |f'| by the function's own backward pass from a delta of 1. Where f and f' both rise with z, or
    f' is far from flat beyond its peak, one row will do: that of the largest h. The second is given
    for functions that are flat on both sides; it is 0 on rows that do not count.
    """
    function, off = part.function, rows.off_MB1
    if isinstance(function, Relu | LeakyRelu | Elu | Softplus | Identity):
        h = part.h if off is None else part.h.masked_fill(off, -math.inf)
        return _slope(part.function, *[h.amax(1, keepdim=True)] * 2).squeeze(1), None
    slope = _slope(function, part.z, part.h, rows.scratch.like(part.h))
    if off is not None:
        slope.masked_fill_(off, 0.0)
    return slope.amax(1), slope if flat_on_both_sides(function) else None


def _slope(function: Activation, z: Tensor, h: Tensor, out: Tensor | None = None) -> Tensor:
    slope = torch.ones_like(h) if out is None else out.fill_(1.0)
    for op in function.bind_backward(z, h, slope):
        op()
    return slope.abs_() if isinstance(function, Gelu | Silu | Mish) else slope


def frobenius(matrices: Sequence[Tensor]) -> Tensor:
    """Norm of each of L matrices (M, i, j), shape (M, L), float64.

    Summed in float64 where float32 would lose it: squares end below 1e-38 and above 1e38.
    """
    norms_ML = torch.stack([torch.linalg.vector_norm(W, dim=(1, 2)) for W in matrices], dim=1)
    if norms_ML.dtype == torch.float64:
        return norms_ML
    if bool(((norms_ML > SAFE_NORM[0]) & (norms_ML < SAFE_NORM[1])).all()):
        return norms_ML.double()
    norms = [torch.linalg.vector_norm(W, dim=(1, 2), dtype=torch.float64) for W in matrices]
    return torch.stack(norms, dim=1)


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
        weights = self._matrices(network.params_MP)
        self._names = list(network.matrices(network.params_MP))
        self._before = [torch.empty_like(W) for W in weights]
        roots = [math.sqrt(W[0].numel()) for W in weights]
        due = [max(0, int(n) // batch - 1) for n in n_rows_M]
        self._models = {b: [m for m, at in enumerate(due) if at == b] for b in due}
        self.batches = set(due)
        shape = (network.n_models, len(weights), len(COLUMNS))
        device = network.params_MP.device
        self._step_MLC = torch.full(shape, math.nan, dtype=torch.float64, device=device)
        self._flow_MLC = torch.full_like(self._step_MLC, math.nan)
        self._scratch = Scratch()
        self._nothing_M4 = self._step_MLC[:, 0, len(WEIGHTS) :].clone()
        self._roots_L = torch.tensor(roots, dtype=torch.float64, device=device)
        self.epoch_MLC = self._flow_MLC.cpu().numpy()

    def _matrices(self, flat_MP: Tensor) -> list[Tensor]:
        """As they are now: those of tied weights are copies."""
        return list(self._network.matrices(flat_MP).values())

    def before_update(self, r_M1B: Tensor) -> None:
        """Measure all but the update, when the gradient of a batch with these weights is there."""
        activated = self._network.activations(r_M1B.shape[2])
        rows = Rows(r_M1B, self._scratch)
        numbers = [
            activation_numbers(activated[name], rows) if activated[name] else self._nothing_M4
            for name in self._names
        ]
        gradient_ML = frobenius(self._matrices(self._network.grads_MP))
        weights = self._matrices(self._network.params_MP)
        weight_ML = frobenius(weights)
        for before, W in zip(self._before, weights, strict=True):
            before.copy_(W)
        norms = torch.stack([gradient_ML, gradient_ML / self._roots_L, weight_ML], dim=2)
        self._step_MLC[:, :, : norms.shape[2]] = norms
        self._step_MLC[:, :, len(WEIGHTS) :] = torch.stack(numbers, dim=1)

    def after_update(self, batch: int) -> None:
        """Measure how far the step of this batch has moved the weights, if it is one to measure."""
        if batch not in self.batches:
            return
        weights = self._matrices(self._network.params_MP)
        for before, W in zip(self._before, weights, strict=True):
            before.sub_(W)
        moved_ML = frobenius(self._before)
        ratio_ML = moved_ML / self._step_MLC[:, :, 2]
        # matrices that begin with zeros and stay there have not moved
        self._step_MLC[:, :, 3] = ratio_ML.masked_fill_(moved_ML == 0, 0.0)
        models = self._models[batch]
        self._flow_MLC[models] = self._step_MLC[models]

    def end_epoch(self) -> None:
        """Bring the numbers of the epoch to the host."""
        self.epoch_MLC = self._flow_MLC.cpu().numpy().copy()
