"""Learning-rate schedules: plain functions of how far training has come.

A schedule answers three questions. Which factors does each step of this epoch get (cosine,
one-cycle and warm-up move per step)? What is the rate after an epoch (inverse scaling)? What
happens on a plateau (adaptive)? State, the current rate, lives in the loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# scikit-learn's rule for learning_rate="adaptive": divide by this, stop once the floor is reached.
ADAPTIVE_DIVISOR = 5.0
ADAPTIVE_FLOOR = 1e-6


@dataclass(frozen=True)
class Schedule:
    """The constant schedule, and the answers the others start from.

    Attributes
    ----------
    warmup_fraction : float
        The factor rises linearly over this part of all steps: step k of w gets (k + 1) / w.
    """

    warmup_fraction: float = 0.0

    @property
    def steady(self) -> bool:
        """Whether the rate stays as it is within an epoch (`factors` gives None)."""
        return self.factors(0, 1, 1) is None

    @property
    def watches_progress(self) -> bool:
        """Whether the rate depends on how the loss or the score goes (`on_plateau`)."""
        return False

    def factors(self, first_step: int, n_steps: int, horizon: int) -> np.ndarray | None:
        """Factors of steps ``first_step ... first_step + n_steps - 1`` out of ``horizon``.

        None means 1 for all, so that a constant rate costs nothing.
        """
        if self.warmup_fraction <= 0:
            return self._shape(first_step, n_steps, horizon)
        steps = np.arange(first_step, first_step + n_steps)
        n_warm = max(1, round(self.warmup_fraction * horizon))
        shape = self._shape(first_step, n_steps, horizon)
        ramp = np.minimum(1.0, (steps + 1) / n_warm)
        return ramp if shape is None else ramp * shape

    def _shape(self, first_step: int, n_steps: int, horizon: int) -> np.ndarray | None:
        return None

    def after_epoch(self, rate: float, base_rate: float, rows_seen: int) -> float:
        """Rate for the next epoch; ``rows_seen`` counts all rows of all epochs so far."""
        return rate

    def on_plateau(self, rate: float) -> float | None:
        """Rate to go on with when progress has stopped, or None to stop."""
        return None


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """rate = base / (t + 1)^power, t = rows seen, changed at the end of an epoch (scikit-learn)."""

    power: float = 0.5

    def after_epoch(self, rate: float, base_rate: float, rows_seen: int) -> float:
        return float(base_rate / (rows_seen + 1) ** self.power)


@dataclass(frozen=True)
class Adaptive(Schedule):
    """The rate is divided by 5 on each plateau, until it is at most 1e-6 (scikit-learn)."""

    @property
    def watches_progress(self) -> bool:
        return True

    def on_plateau(self, rate: float) -> float | None:
        return None if rate <= ADAPTIVE_FLOOR else rate / ADAPTIVE_DIVISOR


@dataclass(frozen=True)
class Cosine(Schedule):
    """factor = (1 + cos(pi k / K)) / 2 at step k of K (Loshchilov and Hutter 2017, no restarts)."""

    def _shape(self, first_step: int, n_steps: int, horizon: int) -> np.ndarray | None:
        steps = np.arange(first_step, first_step + n_steps)
        return 0.5 * (1 + np.cos(math.pi * np.minimum(1.0, steps / horizon)))


@dataclass(frozen=True)
class FlatCosine(Schedule):
    """factor = 1 for the first half, then (1 + cos(pi u)) / 2, u from 0 to 1 over the second.

    The "flat_cos" of Holzmueller et al. (2024), Better by default.
    """

    flat: float = 0.5

    def _shape(self, first_step: int, n_steps: int, horizon: int) -> np.ndarray | None:
        steps = np.arange(first_step, first_step + n_steps)
        part = (steps / horizon - self.flat) / (1 - self.flat)
        return 0.5 * (1 + np.cos(math.pi * np.clip(part, 0.0, 1.0)))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Half a cosine up from 1/25 to 1 over the first 30 %, then half a cosine down to 1e-4 / 25.

    Smith and Topin (2018), with the shape and constants of fast.ai that torch uses.
    """

    start: float = 1 / 25
    end: float = 1e-4 / 25
    peak_at: float = 0.3

    def _shape(self, first_step: int, n_steps: int, horizon: int) -> np.ndarray | None:
        last = max(1, horizon - 1)
        peak = max(1e-12, self.peak_at * horizon - 1)
        steps = np.minimum(np.arange(first_step, first_step + n_steps), last)

        def half_cosine(low: float, high: float, part: np.ndarray) -> np.ndarray:
            return high + (low - high) * 0.5 * (1 + np.cos(np.pi * np.clip(part, 0, 1)))

        rise = half_cosine(self.start, 1.0, steps / peak)
        fall = half_cosine(1.0, self.end, (steps - peak) / max(1e-12, last - peak))
        return np.where(steps <= peak, rise, fall)


@dataclass(frozen=True)
class Milestones(Schedule):
    """factor = drop^m at step k of K, m the number of fractions f with k >= f K.

    The defaults are those of He et al. (2015), section 4.2: a tenth of the rate from 32,000 of
    64,000 steps on, a hundredth from 48,000 on.
    """

    fractions: tuple[float, ...] = (0.5, 0.75)
    drop: float = 0.1

    def _shape(self, first_step: int, n_steps: int, horizon: int) -> np.ndarray | None:
        steps = np.arange(first_step, first_step + n_steps)
        passed = [steps >= fraction * horizon for fraction in self.fractions]
        return self.drop ** np.sum(passed, axis=0, dtype=float) if passed else np.ones(n_steps)
