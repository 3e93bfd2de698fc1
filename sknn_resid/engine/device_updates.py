"""Update rules on an accelerator: all models in one call each, every number read from memory.

The rules and their state are those of `optimizers`. There a number of a step (rate, bias
correction, whether the model takes part) is an argument of a call, and models that share all of
them are updated by one; here it lies in a tensor that is filled for many steps at once, so that a
step is the same sequence of operations on the same memory every time (`graphs`), and as few of
them for models that differ as for models that do not.

A model that takes no step has numbers that leave it as it is: moments are multiplied by 1 or moved
by 0, parameters too. Its gradient is set to 0 before, since 0 times infinity is no number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.kernels import Op
from sknn_resid.engine.newton_schulz import orthogonalize
from sknn_resid.engine.optimizers import (
    StackOptimizer,
    Trainable,
    by_sides,
    matrices_in,
    muon_scale,
)
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec


class Moments:
    """What updates work on.

    Attributes
    ----------
    params_MP, grads_MP, scratch_MP : Tensor
    moments : list of Tensor of shape (M, P)
    """

    def __init__(self, network: Trainable, moments: Sequence[Tensor]) -> None:
        self.params_MP, self.grads_MP = network.params_MP, network.grads_MP
        self.moments = list(moments)
        self.scratch_MP = torch.zeros_like(network.params_MP)


class Rule(ABC):
    """One update rule: which numbers it needs, and its operations.

    Attributes
    ----------
    n_numbers : int
        How many numbers a step has for each model.
    """

    n_numbers: int

    @abstractmethod
    def numbers(self, rate_GM: np.ndarray, live_GM: np.ndarray, t_GM: np.ndarray) -> np.ndarray:
        """Numbers of G steps, shape (G, n_numbers, M).

        Parameters
        ----------
        rate_GM : ndarray
            Learning rates.
        live_GM : ndarray of bool
            Which models take part.
        t_GM : ndarray of int
            Which of its steps this is for each model, counted from 1; 1 or more everywhere.
        """

    @abstractmethod
    def bind(self, numbers_xM: Tensor) -> list[Op]:
        """The operations of a step whose numbers will lie here."""


class SGDRule(Rule):
    """v = mu v - rate g; p += v, or with Nesterov momentum p += mu v - rate g."""

    n_numbers = 3

    def __init__(self, memory: Moments, specs: Sequence[OptimizerSpec]) -> None:
        self._memory = memory
        self._momentum_M = np.array([spec.momentum for spec in specs])
        self._nesterov = specs[0].nesterov  # one for the whole stack

    def numbers(self, rate_GM: np.ndarray, live_GM: np.ndarray, t_GM: np.ndarray) -> np.ndarray:
        del t_GM
        kept = np.where(live_GM, self._momentum_M, 1.0)
        into = np.where(live_GM, self._momentum_M if self._nesterov else 1.0, 0.0)
        return np.stack([kept, into, np.where(live_GM, rate_GM, 0.0)], axis=1)

    def bind(self, numbers_xM: Tensor) -> list[Op]:
        p, g, v = self._memory.params_MP, self._memory.grads_MP, self._memory.moments[0]
        kept, into, rate = numbers_xM.unsqueeze(2)
        ops: list[Op] = [partial(v.mul_, kept), partial(v.addcmul_, g, rate, value=-1)]
        ops.append(partial(p.addcmul_, v, into))
        if self._nesterov:
            ops.append(partial(p.addcmul_, g, rate, value=-1))
        return ops


class AdamRule(Rule):
    """Adam on the columns from ``first`` on; those before ``n_weights`` decay (AdamW)."""

    n_numbers = 4

    def __init__(
        self,
        memory: Moments,
        specs: Sequence[OptimizerSpec],
        decays: Sequence[float],
        first: int,
        n_weights: int,
    ) -> None:
        buffers = (memory.params_MP, memory.grads_MP, *memory.moments, memory.scratch_MP)
        self._buffers = [buffer[:, first:] for buffer in buffers]
        self._weights_MP = memory.params_MP[:, first : max(first, n_weights)]
        self._decay_M = np.array(decays)
        self._beta_1_M = np.array([spec.beta_1 for spec in specs])
        self._beta_2_M = np.array([spec.beta_2 for spec in specs])
        dtype, device = memory.params_MP.dtype, memory.params_MP.device
        epsilon_M = torch.tensor([spec.epsilon for spec in specs], dtype=dtype)
        self._epsilon_M1 = epsilon_M[:, None].to(device)

    def numbers(self, rate_GM: np.ndarray, live_GM: np.ndarray, t_GM: np.ndarray) -> np.ndarray:
        step = rate_GM * np.sqrt(1 - self._beta_2_M**t_GM) / (1 - self._beta_1_M**t_GM)
        keep = np.where(live_GM, 1 - rate_GM * self._decay_M, 1.0)
        parts = [1 - self._beta_1_M, 1 - self._beta_2_M, step]
        return np.stack([keep, *(np.where(live_GM, part, 0.0) for part in parts)], axis=1)

    def bind(self, numbers_xM: Tensor) -> list[Op]:
        p, g, m, v, scratch = self._buffers
        keep, new_1, new_2, step = numbers_xM.unsqueeze(2)
        ops: list[Op] = []
        if (self._decay_M > 0).any():
            ops.append(partial(self._weights_MP.mul_, keep))
        # Slices of columns as out= are filled in place: they have the right shape already.
        return [
            *ops,
            partial(m.lerp_, g, new_1),
            partial(torch.mul, g, g, out=scratch),
            partial(v.lerp_, scratch, new_2),
            partial(torch.sqrt, v, out=scratch),
            partial(scratch.add_, self._epsilon_M1),
            partial(torch.div, m, scratch, out=scratch),
            partial(p.addcmul_, scratch, step, value=-1),
        ]


class MuonRule(Rule):
    """Muon on the matrices inside blocks (`optimizers`), AdamW on what follows them."""

    n_numbers = AdamRule.n_numbers + 3

    def __init__(
        self,
        memory: Moments,
        specs: Sequence[OptimizerSpec],
        decays: Sequence[float],
        network: Trainable,
    ) -> None:
        layout = network.layout
        self._memory = memory
        self._runs, self._n_hidden = layout.runs, layout.n_matrices
        self._rest = AdamRule(memory, specs, decays, self._n_hidden, layout.n_weights)
        self._momentum_M = np.array([spec.hidden_momentum for spec in specs])
        self._decay_M = np.array([spec.hidden_decay for spec in specs])
        self._share_M = np.array([o.hidden_learning_rate / o.learning_rate for o in specs])
        self._ahead_MN = memory.scratch_MP[:, : self._n_hidden]  # what directions are made of
        self._directions, self._pieces = self._bind_directions()

    def _bind_directions(self) -> tuple[list[Op], list[tuple[Tensor, Tensor, float]]]:
        """Operations that leave a direction beside the matrices it belongs to, and the pairs."""
        ops: list[Op] = []
        pieces = []
        params = self._memory.params_MP
        for (i, j), runs in by_sides(self._runs).items():
            sizes = [len(params) * run.count for run in runs]
            stacked = params.new_zeros((sum(sizes), i, j))
            for run, part in zip(runs, stacked.split(sizes), strict=True):
                ahead = matrices_in(self._ahead_MN, run)
                ops.append(partial(part.view(ahead.shape).copy_, ahead))
            rounds, result = orthogonalize(stacked)
            ops += rounds
            for run, part in zip(runs, result.split(sizes), strict=True):
                place = matrices_in(params, run)
                pieces.append((place, part.view(place.shape), muon_scale(run)))
        return ops, pieces

    def numbers(self, rate_GM: np.ndarray, live_GM: np.ndarray, t_GM: np.ndarray) -> np.ndarray:
        rate = np.where(live_GM, self._share_M * rate_GM, 0.0)
        kept = np.where(live_GM, self._momentum_M, 1.0)
        own = np.stack([kept, 1 - rate * self._decay_M, rate], axis=1)
        return np.concatenate([self._rest.numbers(rate_GM, live_GM, t_GM), own], axis=1)

    def bind(self, numbers_xM: Tensor) -> list[Op]:
        ops = self._rest.bind(numbers_xM[: self._rest.n_numbers])
        if self._n_hidden == 0:
            return ops
        kept, keep, rate = numbers_xM[self._rest.n_numbers :].unsqueeze(2)
        memory, ahead = self._memory, self._ahead_MN
        buffers = (memory.params_MP, memory.grads_MP, memory.moments[0])
        p, g, v = (buffer[:, : self._n_hidden] for buffer in buffers)
        ops += [partial(v.mul_, kept), partial(v.add_, g)]
        ops += [partial(torch.addcmul, g, v, kept, out=ahead), *self._directions]
        if (self._decay_M != 0).any():
            ops.append(partial(p.mul_, keep))
        rate_M111 = rate[:, :, None, None]
        for place, direction, scale in self._pieces:
            ops.append(partial(place.addcmul_, direction, rate_M111, value=-scale))
        return ops


def make_rule(network: Trainable, optimizer: StackOptimizer) -> Rule:
    """The rule of this optimizer, on its state."""
    memory = Moments(network, optimizer.moments)
    specs, decays = optimizer.specs, optimizer.decays
    kind = specs[0].kind
    if kind is OptimizerKind.MUON:
        return MuonRule(memory, specs, decays, network)
    if kind is OptimizerKind.SGD:
        return SGDRule(memory, specs)
    return AdamRule(memory, specs, decays, 0, network.layout.n_weights)
