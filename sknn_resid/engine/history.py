"""What happened to one model, epoch by epoch, and what it decides: improve, wait, stop.

The counting rules are scikit-learn's (facts of its ``_fit_stochastic``): without a validation part
an epoch counts as no improvement when loss > best - tol, with one when score < best + tol; the fit
stops when more than ``patience`` such epochs came in a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from torch import Tensor

from sknn_resid.engine.kept import Copies, KeptWeights
from sknn_resid.engine.optimizers import OptimizerState
from sknn_resid.engine.spec import TrainSpec

# What `Progress` counts, as plain numbers and lists of them.
_COUNTED = (
    "rate",
    "loss_curve",
    "validation_scores",
    "validation_losses",
    "best_loss",
    "best_score",
    "no_improvement",
    "rows_seen",
    "n_epochs",
    "_lowest",
    "_best_score_loss",
)


class StopReason(Enum):
    """Why training ended."""

    MAX_EPOCHS = "max_epochs"
    PLATEAU = "plateau"
    DIVERGED = "diverged"
    CALLBACK = "callback"
    MAX_TIME = "max_time"
    INTERRUPTED = "interrupted"
    CONVERGED = "converged"  # L-BFGS only


@dataclass(frozen=True)
class Resume:
    """Where a model goes on from (warm start, partial fit); the defaults are a fresh start."""

    best_loss: float = math.inf
    best_score: float = -math.inf
    no_improvement: int = 0
    rows_seen: int = 0
    optimizer: OptimizerState | None = None


@dataclass(frozen=True)
class EpochView:
    """Read-only view of a model after an epoch, for callbacks.

    Attributes
    ----------
    epoch : int
        1 for the first epoch of this call.
    loss : float
        Training loss of the epoch, as reported.
    validation_score, validation_loss : float or None
    learning_rate : float
        Rate the epoch was run with (before per-step factors).
    reason : StopReason or None
        Set if training ends with this epoch anyway.
    lowered_rate : float or None
        The new learning rate, where a plateau lowered it.
    weights : callable
        Gives fresh copies: (coefs, intercepts) in scikit-learn's shapes, or the named arrays of a
        residual network.
    parameters : callable
        Gives a fresh copy of the flat parameters that were judged (averages, where they are kept).
    """

    epoch: int
    loss: float
    validation_score: float | None
    validation_loss: float | None
    learning_rate: float
    reason: StopReason | None
    lowered_rate: float | None
    weights: Callable[[], Any]
    parameters: Callable[[], np.ndarray]


@dataclass(frozen=True)
class ValidationView:
    """What a validation score is computed from.

    Attributes
    ----------
    logits : ndarray of shape (n, K)
        Raw outputs of the validation rows; finite.
    loss : float
        Validation loss as reported.
    weights : callable
        As in `EpochView`.
    """

    logits: np.ndarray
    loss: float
    weights: Callable[[], Any]


@dataclass
class Progress:
    """Running state of one model's training."""

    spec: TrainSpec
    resume: Resume
    rate: float
    params_P: Tensor
    loss_curve: list[float] = field(default_factory=list)
    validation_scores: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    best_loss: float = math.inf
    best_score: float = -math.inf
    no_improvement: int = 0
    rows_seen: int = 0
    n_epochs: int = 0
    reason: StopReason | None = None
    lowered_rate: float | None = None
    flow: list[np.ndarray] = field(default_factory=list)
    copies: Copies | None = None

    def __post_init__(self) -> None:
        self.best_loss = self.resume.best_loss
        self.best_score = self.resume.best_score
        self.no_improvement = self.resume.no_improvement
        self.rows_seen = self.resume.rows_seen
        self._kept = KeptWeights(self.params_P, self.copies)
        self._lowest = math.inf
        self._best_score_loss = math.inf

    def record_loss(self, loss: float, n_rows: int, params_P: Tensor) -> bool:
        """Note an epoch's loss; False if it is not finite (then nothing else is kept)."""
        self.n_epochs += 1
        self.rows_seen += n_rows
        self.loss_curve.append(loss)
        if not math.isfinite(loss):
            return False
        if not self.spec.watch_validation:
            if loss > self.best_loss - self.spec.tolerance:
                self.no_improvement += 1
            else:
                self.no_improvement = 0
            self.best_loss = min(self.best_loss, loss)
        lowest = loss < self._lowest
        self._kept.end_epoch(params_P, lowest=lowest, keep=not self.spec.watch_validation)
        if lowest:
            self._lowest = loss
        return True

    def record_score(self, score: float, loss: float, params_P: Tensor) -> None:
        """Note an epoch's validation score and loss."""
        self.validation_scores.append(score)
        self.validation_losses.append(loss)
        if not self.spec.watch_validation:
            self.best_score = max(self.best_score, score)
            return
        better = score > self.best_score
        # A score that is not a number compares False: it resets the count, as in scikit-learn.
        stalled = score < self.best_score + self.spec.tolerance
        near = abs(score - self.best_score) <= self.spec.tolerance
        if self.spec.break_ties_by_loss and near:
            better = loss < self._best_score_loss
            stalled = loss > self._best_score_loss - self.spec.tolerance
        self.no_improvement = self.no_improvement + 1 if stalled else 0
        if better:
            self.best_score = max(self.best_score, score)
            self._best_score_loss = loss
            self._kept.keep(params_P)

    def best_params(self, *, diverged: bool) -> Tensor:
        """The best weights so far: by validation score if it is watched, else by training loss.

        An epoch's loss is measured on the weights it starts from and passes through, not on those
        it ends with. As a rule the end is better still; but when training has diverged, the end of
        the best epoch is where the trouble began, and its start is what the loss was measured on.
        """
        if self.spec.watch_validation:
            return self._kept.best
        trusted = not diverged and bool(self._kept.best.isfinite().all())
        return self._kept.best if trusted else self._kept.best_start

    def has_finite_epoch(self) -> bool:
        """Whether any epoch of this call had a finite loss."""
        return math.isfinite(self._lowest)

    def snapshot(self) -> tuple[dict[str, Any], np.ndarray]:
        """Numbers and kept weights after an epoch, from which `restore` goes on."""
        positions, kept = self._kept.snapshot()
        numbers = {name: getattr(self, name) for name in _COUNTED}
        return numbers | {"kept": positions}, kept

    def restore(self, numbers: dict[str, Any], kept: np.ndarray) -> None:
        """Go on from a `snapshot`."""
        for name in _COUNTED:
            setattr(self, name, numbers[name])
        self._kept.restore(numbers["kept"], kept)

    def end_epoch(self, learning_rate: float) -> None:
        """Schedule and stopping, in scikit-learn's order."""
        self.lowered_rate = None
        self.rate = self.spec.schedule.after_epoch(self.rate, learning_rate, self.rows_seen)
        if self.no_improvement > self.spec.patience:
            lower = self.spec.schedule.on_plateau(self.rate)
            if lower is not None:
                self.rate = self.lowered_rate = lower
                self.no_improvement = 0
            elif self.spec.stop_on_plateau:
                self.reason = StopReason.PLATEAU
        if self.reason is None and self.n_epochs >= self.spec.max_epochs:
            self.reason = StopReason.MAX_EPOCHS
