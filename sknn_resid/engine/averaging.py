"""Exponential averages of weights, one a model (Polyak and Juditsky 1992, in exponential form).

    a <- c a + (1 - c) p,   c = min(1 - 1 / max(5, h T), (1 + t) / (10 + t))

with T the planned number of steps, h the horizon as a fraction of them and t the steps made. The
second term is a warm-up: without it the first weights would count for as long as the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sknn_resid.engine import bound
from sknn_resid.engine.kernels import Op

SHORTEST_HORIZON = 5.0


@dataclass(frozen=True, eq=False)
class AverageState:
    """One model's average, and the steps that have gone into it."""

    params_P: Tensor
    steps: int


class StackAverage:
    """Averages of a stack, updated after each step.

    Parameters
    ----------
    params_MP : Tensor of shape (M, P)
        The weights as they are trained.
    horizons : sequence of float
        h T of each model.
    states : sequence of (AverageState or None)
        Where each model goes on from.
    """

    def __init__(
        self,
        params_MP: Tensor,
        horizons: Sequence[float],
        states: Sequence[AverageState | None],
    ) -> None:
        self._live_MP = params_MP
        self.params_MP = params_MP.clone()
        self._longest = [1 - 1 / max(SHORTEST_HORIZON, horizon) for horizon in horizons]
        self._steps = [0] * len(horizons)
        for m, state in enumerate(states):
            if state is not None:
                self.restore(m, state)
        self._weights_M1 = torch.zeros_like(params_MP[:, :1])
        self._compiled = bound.bind("average", [self.params_MP, params_MP])

    def update(self, active: Sequence[bool] | None) -> None:
        """After a step of these models; None for all."""
        weights = self.next_weights(active)
        if len(set(weights)) == 1 and self._compiled is not None:
            self._compiled(weights[0])
        elif len(set(weights)) == 1:
            self.params_MP.lerp_(self._live_MP, weights[0])
        else:
            self._weights_M1.copy_(torch.tensor(weights, dtype=torch.float64)[:, None])
            self.params_MP.lerp_(self._live_MP, self._weights_M1)

    def next_weights(self, active: Sequence[bool] | None) -> list[float]:
        """1 - c of each model at its next step, which is counted; 0 for those that take none."""
        weights = []
        for m, longest in enumerate(self._longest):
            if active is not None and not active[m]:
                weights.append(0.0)
                continue
            t = self._steps[m] = self._steps[m] + 1
            weights.append(1 - min(longest, (1 + t) / (10 + t)))
        return weights

    def bind(self, weight_M: Tensor) -> Op:
        """The update as an operation that reads `next_weights` from memory."""
        return partial(self.params_MP.lerp_, self._live_MP, weight_M[:, None])

    def export(self, m: int) -> AverageState:
        """The average of one model, copied."""
        return AverageState(self.params_MP[m].clone(), self._steps[m])

    def restore(self, m: int, state: AverageState) -> None:
        """Go on from an average that was exported."""
        self.params_MP[m].copy_(state.params_P)
        self._steps[m] = state.steps
