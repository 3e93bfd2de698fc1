"""What happens after each epoch on the estimator's side: score, print, call back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import check_scoring

from sknn_resid._r2 import r2_of_checked
from sknn_resid.engine.history import EpochView, StopReason, ValidationView
from sknn_resid.engine.losses import Loss
from sknn_resid.neural_network._targets import LabelCodec

Score = Callable[[ValidationView], float]


def accuracy(codec: LabelCodec, y: np.ndarray, weight: np.ndarray | None) -> Score:
    """Weighted accuracy of the predicted codes (all targets of a row must be right)."""
    truth = y.astype(np.intp)
    if codec.kind in ("binary", "multiclass"):
        truth = truth[:, 0]

    def score(view: ValidationView) -> float:
        right = codec.codes_from_logits(view.logits) == truth
        if right.ndim == 2:
            right = right.all(1)
        return float(np.average(right, weights=weight))

    return score


def r2(loss: Loss, y: np.ndarray, weight: np.ndarray | None) -> Score:
    """R^2 of the predictions, averaged over targets."""

    def score(view: ValidationView) -> float:
        predicted = loss.link_(torch.from_numpy(view.logits.T.copy())).numpy().T
        if not np.isfinite(predicted).all():
            return float("nan")
        return r2_of_checked(y, predicted, weight)

    return score


def negative_loss(view: ValidationView) -> float:
    """The validation loss, turned so that more is better."""
    return -view.loss


def user_scorer(est: Any, scoring: Any, X: Any, y: Any, weight: np.ndarray | None) -> Score:
    """A scikit-learn scorer on the estimator as it is after the epoch."""
    scorer = check_scoring(est, scoring)

    def score(view: ValidationView) -> float:
        now = copy.copy(est)
        now.coefs_, now.intercepts_ = view.weights()
        if weight is None:
            return float(scorer(now, X, y))
        return float(scorer(now, X, y, sample_weight=weight))

    return score


def print_epoch(view: EpochView, est: Any, *, validated: bool) -> None:
    """scikit-learn's lines of ``verbose=True``."""
    print(f"Iteration {view.epoch}, loss = {view.loss:.8f}")
    if view.validation_score is not None:
        print(f"Validation score: {view.validation_score:f}")
    if view.reason is StopReason.PLATEAU or view.lowered_rate is not None:
        watched = "Validation score" if validated else "Training loss"
        message = (
            f"{watched} did not improve more than tol={est.tol:f} for {est.n_iter_no_change} "
            "consecutive epochs."
        )
        if view.lowered_rate is None:
            small = " Learning rate too small." if est.learning_rate == "adaptive" else ""
            print(f"{message}{small} Stopping.")
        else:
            print(f"{message} Setting learning rate to {view.lowered_rate:f}")


def epoch_attributes(view: EpochView, state: dict[str, Any]) -> dict[str, Any]:
    """Fitted attributes of an MLP as it is after this epoch."""
    coefs, intercepts = view.weights()
    return state | {"coefs_": coefs, "intercepts_": intercepts, "n_iter_": view.epoch}


class CallbackBridge:
    """scikit-learn's callback protocol, one task an epoch.

    The protocol wants a task opened before the epoch and closed after it; the engine reports after
    each epoch. So the bridge opens the first task itself, and each following one when it has closed
    the one before and training goes on.
    """

    def __init__(self, est: Any, X: Any, y: Any, weight: Any, max_epochs: int | None) -> None:
        self._est, self._X, self._y = est, X, y
        self._metadata = None if weight is None else {"sample_weight": weight}
        self._context = est._init_callback_context(max_subtasks=max_epochs)
        self._context.call_on_fit_task_begin(estimator=est, X=X, y=y, metadata=self._metadata)
        self._task: Any = None
        self.active = bool(self._context._callbacks)

    def begin(self) -> None:
        """Open the first epoch's task."""
        if self.active:
            self._open()

    def _open(self) -> None:
        self._task = self._context.subcontext(task_name="epoch")
        self._task.call_on_fit_task_begin(
            estimator=self._est, X=self._X, y=self._y, metadata=self._metadata
        )

    def end_epoch(self, attributes: Callable[[], dict[str, Any]], *, last: bool) -> bool:
        """Close the epoch's task; True if a callback asks to stop.

        Parameters
        ----------
        attributes : callable
            Gives the fitted attributes of the estimator as it is after this epoch.
        last : bool
            Whether training ends with this epoch anyway.
        """
        if not self.active:
            return False
        if self._task is None:
            self._open()
        stop = self._task.call_on_fit_task_end(
            estimator=self._est,
            X=self._X,
            y=self._y,
            metadata=self._metadata,
            reconstruction_attributes=attributes,
        )
        self._task = None
        if not stop and not last:
            self._open()
        return bool(stop)

    def end(self) -> None:
        """Close the fit's own task."""
        self._context.call_on_fit_task_end(
            estimator=self._est,
            X=self._X,
            y=self._y,
            metadata=self._metadata,
            reconstruction_attributes=dict,
        )
