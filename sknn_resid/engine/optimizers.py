"""Update rules for a stack: a few in-place operations on flat buffers, every number per model.

Models that share every number of a step (rate, betas, step count) and lie side by side are updated
by one call on a slice of the flat buffers; a model that takes no part in a step is in no slice, so
it is frozen without a mask. Epsilon is scikit-learn's, outside the bias correction; torch's fused
kernel adds it inside, so it gets eps / sqrt(1 - beta_2^t) (equal to rounding).

References
----------
SGD with momentum: Polyak (1964), Nesterov (1983), in the form of Sutskever et al. (2013).
Adam: Kingma and Ba (2015), algorithm 1. AdamW: Loshchilov and Hutter (2019), algorithm 2.
Muon: Jordan et al. (2024).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine import bound, native
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.native import Code
from sknn_resid.engine.newton_schulz import bind_steps, orthogonalize
from sknn_resid.engine.residual_layout import MatrixRun
from sknn_resid.engine.residual_network import StackedResidualNetwork
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec

_ALL = slice(0, None)
# Views of parameters, the direction they step along, and a factor of the rate.
_Piece = tuple[Tensor, Tensor, float]


@dataclass(frozen=True, eq=False)
class OptimizerState:
    """What one model's optimizer needs to go on: plain numbers and flat arrays.

    Attributes
    ----------
    kind : OptimizerKind
    learning_rate : float
        Current rate, as the schedule left it.
    steps : int
        Updates made so far.
    moments : tuple of ndarray of shape (P,)
        (velocity,) for SGD, (first, second) for Adam; Muon's velocity lies in the first.
    """

    kind: OptimizerKind
    learning_rate: float
    steps: int
    moments: tuple[np.ndarray, ...]


class Trainable(Protocol):
    """What an update rule needs of a network: flat parameters and gradients.

    Attributes
    ----------
    params_MP, grads_MP : Tensor of shape (M, P)
    layout : object
        With ``n_weights``: the first so many parameters are weights, which decay.
    """

    params_MP: Tensor
    grads_MP: Tensor
    layout: Any


class StackOptimizer(ABC):
    """Updates the parameters of a stack in place.

    Parameters
    ----------
    network : Trainable
    specs : sequence of OptimizerSpec
        One per model, all of one kind.
    decays : sequence of float
        Decoupled weight decay of each model (AdamW, and AdamW's part in Muon).
    states : sequence of (OptimizerState or None)
        Where each model goes on from.
    """

    n_moments: int

    def __init__(
        self,
        network: Trainable,
        specs: Sequence[OptimizerSpec],
        decays: Sequence[float],
        states: Sequence[OptimizerState | None],
    ) -> None:
        self.specs = list(specs)
        self.decays = list(decays)
        self._params, self._grads = network.params_MP, network.grads_MP
        self._n_weights = network.layout.n_weights
        self.moments = [torch.zeros_like(self._params) for _ in range(self.n_moments)]
        self.steps = np.zeros(len(self.specs), dtype=np.int64)
        # The runs of neighbours stay the same as long as every model takes every step.
        self._neighbours: list[slice] = []
        self._neighbours_of: Sequence[float] | None = None
        for m, state in enumerate(states):
            if state is not None and len(state.moments) == self.n_moments:
                self.steps[m] = state.steps
                for buffer, moment in zip(self.moments, state.moments, strict=True):
                    buffer[m] = torch.from_numpy(moment)

    def export(self, model: int, learning_rate: float) -> OptimizerState:
        """The state of one model, copied to host memory."""
        moments = tuple(buffer[model].cpu().numpy().copy() for buffer in self.moments)
        kind = self.specs[model].kind
        return OptimizerState(kind, learning_rate, int(self.steps[model]), moments)

    def step(self, rates: Sequence[float], active: Sequence[bool] | None) -> None:
        """One update.

        Parameters
        ----------
        rates : sequence of float
            Learning rate of each model at this step.
        active : sequence of bool or None
            Which models take part; None for all.
        """
        if len(self.specs) == 1:  # the common case, without the search for neighbours
            if active is None or active[0]:
                self.steps[0] += 1
                self._update(_ALL, self.specs[0], self.decays[0], rates[0], int(self.steps[0]))
            return
        for rows in self._neighbours_for(rates, active):
            m = rows.start
            t = int(self.steps[m]) + 1
            self._update(rows, self.specs[m], self.decays[m], rates[m], t)
            self.steps[rows] = t

    def _neighbours_for(self, rates: Sequence[float], active: Sequence[bool] | None) -> list[slice]:
        if active is not None:
            self._neighbours_of = None
            return list(self._slices(rates, active))
        if rates != self._neighbours_of:
            self._neighbours, self._neighbours_of = list(self._slices(rates, None)), rates
        return self._neighbours

    def _slices(self, rates: Sequence[float], active: Sequence[bool] | None) -> Iterator[slice]:
        """Runs of neighbours that share every number of this step."""
        start, key = 0, self._step_key(0, rates, active)
        for m in range(1, len(self.specs) + 1):
            following = self._step_key(m, rates, active) if m < len(self.specs) else None
            if following != key or key is None:
                if key is not None:
                    yield slice(start, m)
                start, key = m, following

    def _step_key(
        self, m: int, rates: Sequence[float], active: Sequence[bool] | None
    ) -> Hashable | None:
        if active is not None and not active[m]:
            return None
        return (rates[m], self.decays[m], int(self.steps[m]), self.specs[m])

    def compiled_step(self, rate_M: np.ndarray, live_M: np.ndarray) -> Op:
        """One update as a native operation.

        ``rate_M`` (float64) and ``live_M`` (uint8) are read whenever it is carried out: the rate of
        each model, and whether it takes part.
        """
        raise NotImplementedError(f"{type(self).__name__} is not compiled")

    def _compiled(
        self, code: Code, numbers_Mx: np.ndarray, rate_M: np.ndarray, live_M: np.ndarray
    ) -> Op:
        first, second = self.moments[0], self.moments[-1]
        return native.bind_mixed(
            code,
            [self._params, self._grads, first, second, numbers_Mx, rate_M, live_M, self.steps],
            (self._params.shape[1], self._n_weights),
        )

    @abstractmethod
    def _update(self, rows: slice, spec: OptimizerSpec, decay: float, rate: float, t: int) -> None:
        """Update the models ``rows``; t counts this step."""


class _SGD(StackOptimizer):
    """v = mu v - rate g; p += v, or with Nesterov momentum p += mu v - rate g."""

    n_moments = 1

    def _update(self, rows: slice, spec: OptimizerSpec, decay: float, rate: float, t: int) -> None:
        p, g, v = self._params[rows], self._grads[rows], self.moments[0][rows]
        v.mul_(spec.momentum).add_(g, alpha=-rate)
        if spec.nesterov:
            p.add_(v, alpha=spec.momentum).add_(g, alpha=-rate)
        else:
            p.add_(v)

    def compiled_step(self, rate_M: np.ndarray, live_M: np.ndarray) -> Op:
        numbers = np.array([(o.momentum, o.nesterov) for o in self.specs], dtype=np.float64)
        return self._compiled(Code.SGD, numbers, rate_M, live_M)


class _Adam(StackOptimizer):
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; p -= c m / (sqrt v + eps).

    c = rate sqrt(1 - b2^t) / (1 - b1^t). AdamW first shrinks the weights by 1 - rate * decay;
    biases are not decayed.
    """

    n_moments = 2

    def __init__(
        self,
        network: Trainable,
        specs: Sequence[OptimizerSpec],
        decays: Sequence[float],
        states: Sequence[OptimizerState | None],
    ) -> None:
        super().__init__(network, specs, decays, states)
        self._rule = _AdamRule(self._params, self._grads, self.moments, 0, self._n_weights)

    def _update(self, rows: slice, spec: OptimizerSpec, decay: float, rate: float, t: int) -> None:
        self._rule.update(rows, spec, decay, rate, t)

    def compiled_step(self, rate_M: np.ndarray, live_M: np.ndarray) -> Op:
        numbers = np.array(
            [
                (o.beta_1, o.beta_2, o.epsilon, decay)
                for o, decay in zip(self.specs, self.decays, strict=True)
            ]
        )
        return self._compiled(Code.ADAM, numbers, rate_M, live_M)


class _AdamRule:
    """Adam's update of the columns from ``first`` on; those before ``n_weights`` decay."""

    def __init__(
        self, params: Tensor, grads: Tensor, moments: Sequence[Tensor], first: int, n_weights: int
    ) -> None:
        self._buffers = (params, grads, *moments)
        self._params, self._first, self._n_weights = params, first, n_weights
        # A private kernel of torch, twice as fast as the public operations below on small nets.
        self._fused = getattr(torch, "_fused_adam_", None)
        if self._params.device.type not in ("cpu", "cuda"):
            self._fused = None
        # The kernel reads the step count from a tensor; on a CPU it is written through numpy, at a
        # tenth of the cost of a torch call.
        self._t = torch.zeros((), dtype=torch.float32, device=self._params.device)
        on_cpu = self._params.device.type == "cpu"
        self._set_t = self._t.numpy().fill if on_cpu else self._t.fill_
        self._kernels: dict[tuple[int | None, int | None], Callable[..., object]] = {}
        self._compiled: dict[
            tuple[int | None, int | None], Callable[[float, float], object] | None
        ] = {}

    def _bind_compiled(
        self, rows: slice, spec: OptimizerSpec
    ) -> Callable[[float, float], object] | None:
        """The same as one compiled call for all rows, of the step and of what decay leaves.

        Only where others' columns lie in between: elsewhere torch's kernel is as fast.
        """
        if self._first == 0:
            return None
        arrays = [buffer[rows, self._first :] for buffer in self._buffers]
        numbers = [spec.beta_1, spec.beta_2, spec.epsilon, max(0, self._n_weights - self._first)]
        return bound.bind("adam", arrays, numbers)

    def update(self, rows: slice, spec: OptimizerSpec, decay: float, rate: float, t: int) -> None:
        """Update the models ``rows``; t counts this step."""
        root = math.sqrt(1 - spec.beta_2**t)
        if (rows.start, rows.stop) not in self._compiled:
            self._compiled[rows.start, rows.stop] = self._bind_compiled(rows, spec)
        compiled = self._compiled[rows.start, rows.stop]
        if compiled is not None:
            compiled(rate * root / (1 - spec.beta_1**t), 1 - rate * decay)
            return
        if decay > 0:
            self._params[rows, self._first : self._n_weights].mul_(1 - rate * decay)
        if self._fused is not None:
            self._set_t(t)
            self._bound_kernel(rows, spec)(lr=rate, eps=spec.epsilon / root)
            return
        step = rate * root / (1 - spec.beta_1**t)
        for p, g, m, v in zip(*self._slice_views(rows), strict=True):
            m.lerp_(g, 1 - spec.beta_1)
            v.mul_(spec.beta_2).addcmul_(g, g, value=1 - spec.beta_2)
            p.addcdiv_(m, v.sqrt().add_(spec.epsilon), value=-step)

    def _bound_kernel(self, rows: slice, spec: OptimizerSpec) -> Callable[..., object]:
        """The fused kernel with everything that stays the same for these models."""
        key = (rows.start, rows.stop)
        if key not in self._kernels:
            assert self._fused is not None
            p, g, m, v = self._slice_views(rows)
            self._kernels[key] = partial(
                self._fused,
                p,
                g,
                m,
                v,
                [],
                [self._t] * len(p),
                beta1=spec.beta_1,
                beta2=spec.beta_2,
                weight_decay=0.0,
                amsgrad=False,
                maximize=False,
            )
        return self._kernels[key]

    def _slice_views(self, rows: slice) -> list[list[Tensor]]:
        """Contiguous pieces of each buffer (the kernel takes no strides): one, or one a model."""
        if self._first == 0:
            return [[buffer[rows]] for buffer in self._buffers]
        return [[row[self._first :] for row in buffer[rows]] for buffer in self._buffers]


class _Muon(StackOptimizer):
    """Matrices inside blocks: v = mu v + g; W -= rate s N(g + mu v), N from `newton_schulz`.

    s = sqrt(max(1, out / in)) for a matrix (in, out); the weights are first shrunk by
    1 - rate * decay. The rate is ``hidden_learning_rate`` times the factor of the schedule; all
    other parameters are AdamW's.
    """

    n_moments = 2

    def __init__(
        self,
        network: Trainable,
        specs: Sequence[OptimizerSpec],
        decays: Sequence[float],
        states: Sequence[OptimizerState | None],
    ) -> None:
        super().__init__(network, specs, decays, states)
        if not isinstance(network, StackedResidualNetwork):
            raise TypeError("Muon updates the blocks of residual networks; this one has none.")
        self._runs, self._n_hidden = network.layout.runs, network.layout.n_matrices
        self._rule = _AdamRule(
            self._params, self._grads, self.moments, self._n_hidden, self._n_weights
        )
        self._programs: dict[tuple[int | None, int | None], Callable[[float, float], object]] = {}

    def _update(self, rows: slice, spec: OptimizerSpec, decay: float, rate: float, t: int) -> None:
        self._rule.update(rows, spec, decay, rate, t)
        if self._n_hidden == 0:
            return
        key = (rows.start, rows.stop)
        if key not in self._programs:
            self._programs[key] = self._bind(rows, spec.hidden_momentum)
        hidden_rate = spec.hidden_learning_rate * rate / spec.learning_rate
        self._programs[key](hidden_rate, 1 - hidden_rate * spec.hidden_decay)

    def _bind(self, rows: slice, momentum: float) -> Callable[[float, float], object]:
        """A step of these models' matrices: a function of the rate and of what stays of them."""
        params, g, v = (
            buffer[rows, : self._n_hidden]
            for buffer in (self._params, self._grads, self.moments[0])
        )
        places = [(run.start, run.count, *run.shape) for run in self._runs]
        compiled = bind_steps(params, g, v, places, momentum)
        if compiled is not None:
            return compiled
        ops, pieces = self._bind_directions(params, g, v, momentum)

        def step(rate: float, keep: float) -> None:
            for op in ops:
                op()
            if keep != 1:
                params.mul_(keep)
            for p, direction, scale in pieces:
                p.add_(direction, alpha=-rate * scale)

        return step

    def _bind_directions(
        self, params: Tensor, g: Tensor, v: Tensor, momentum: float
    ) -> tuple[list[Op], list[_Piece]]:
        """Operations that leave the directions of a step beside the matrices they belong to."""
        ops: list[Op] = [partial(torch.add, g, v, alpha=momentum, out=v)]
        pieces: list[_Piece] = []
        for (i, j), runs in by_sides(self._runs).items():
            p_views, g_views, v_views = (
                [matrices_in(buffer, run) for run in runs] for buffer in (params, g, v)
            )
            sizes = [len(g) * run.count for run in runs]
            stacked = g.new_zeros((sum(sizes), i, j))
            for g_view, v_view, part in zip(g_views, v_views, stacked.split(sizes), strict=True):
                out = part.view(g_view.shape)
                ops.append(partial(torch.add, g_view, v_view, alpha=momentum, out=out))
            rounds, result = orthogonalize(stacked)
            ops += rounds
            for run, p_view, part in zip(runs, p_views, result.split(sizes), strict=True):
                pieces.append((p_view, part.view(p_view.shape), muon_scale(run)))
        return ops, pieces


def muon_scale(run: MatrixRun) -> float:
    """Factor of Muon's rate for matrices of this shape (in, out)."""
    rows_in, out = run.shape
    return math.sqrt(max(1.0, out / rows_in))


def by_sides(runs: Sequence[MatrixRun]) -> dict[tuple[int, int], list[MatrixRun]]:
    """Runs of matrices by their (short, long) side: those of equal sides are one batch."""
    batches: dict[tuple[int, int], list[MatrixRun]] = {}
    for run in runs:
        batches.setdefault((min(run.shape), max(run.shape)), []).append(run)
    return batches


def matrices_in(buffer: Tensor, run: MatrixRun) -> Tensor:
    """A run's matrices (M, count, i, j), i <= j.

    A matrix and its transpose have the same rounds, so each lies on its long side.
    """
    rows_in, out = run.shape
    flat = buffer[:, run.start : run.start + run.count * rows_in * out]
    view = flat.unflatten(1, (run.count, rows_in, out))
    return view if rows_in <= out else view.mT


def make_optimizer(
    network: Trainable,
    specs: Sequence[OptimizerSpec],
    decays: Sequence[float],
    states: Sequence[OptimizerState | None],
) -> StackOptimizer:
    """The update rule that the specs name (one kind for the whole stack)."""
    if specs[0].kind is OptimizerKind.MUON:
        return _Muon(network, specs, decays, states)
    if specs[0].kind is OptimizerKind.ADAMW:
        return _Adam(network, specs, decays, states)
    make = _SGD if specs[0].kind is OptimizerKind.SGD else _Adam
    return make(network, specs, [0.0] * len(specs), states)
