"""What a trained ensemble becomes on the estimator: fitted attributes, and due warnings."""

from __future__ import annotations

import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from sknn_resid.engine.history import StopReason
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.neural_network._committee import EpochReport
from sknn_resid.neural_network._ensemble_training import Trained
from sknn_resid.neural_network._gradient_history import record_members
from sknn_resid.neural_network._residual_task import Task


def adopt(est: Any, task: Task, trained: Trained) -> None:
    """Set the fitted attributes that both estimators have."""
    for name, value in task.attributes().items():
        setattr(est, name, value)
    ensemble = trained.ensemble
    est._ensemble = ensemble
    est.member_weights_ = ensemble.weights
    est.best_iteration_ = trained.chosen_epochs
    est.n_iter_ = trained.n_epochs
    est.n_parameters_ = len(ensemble.weights) * ResidualLayout(ensemble.members.spec).n_params
    est.loss_curve_ = trained.loss_curve
    est.loss_ = trained.loss_curve[-1] if trained.loss_curve else float("nan")
    est.gradient_history_ = record_members(ensemble.members.spec, trained.flows, trained.n_epochs)
    judged = bool(trained.judged_epochs)
    est.validation_loss_curve_ = trained.validation_curve if judged else None
    est.validation_iterations_ = trained.judged_epochs if judged else None


def non_finite(est: Any) -> str:
    """Message where no member ended one epoch with finite numbers."""
    return (
        "Training diverged: not one member ended an epoch with a finite loss and finite weights. "
        f"Lower learning_rate_init (now {est.learning_rate_init:g}) or hidden_learning_rate (now "
        f"{est.hidden_learning_rate:g}), set clip_norm, or keep a normalization."
    )


def warn_of(est: Any, trained: Trained) -> None:
    """Say how the fit ended, if it did not end by itself."""
    if trained.reason is StopReason.INTERRUPTED:
        warnings.warn("Training interrupted by user.", UserWarning, stacklevel=3)
    elif trained.reason is StopReason.MAX_TIME:
        warnings.warn(
            f"Training stopped after {trained.n_epochs} epochs because max_time={est.max_time:g} "
            "seconds had passed. The best weights so far are kept; raise max_time for more.",
            ConvergenceWarning,
            stacklevel=3,
        )
    if trained.n_diverged:
        warnings.warn(
            f"{trained.n_diverged} of {est.n_estimators} members diverged (their loss or a weight "
            "is no longer finite). Their best weights before that are used, or none. Lower "
            f"learning_rate_init (now {est.learning_rate_init:g}) or hidden_learning_rate (now "
            f"{est.hidden_learning_rate:g}), or set clip_norm.",
            ConvergenceWarning,
            stacklevel=3,
        )


def print_report(report: EpochReport) -> None:
    """One line of ``verbose=True``."""
    line = f"Iteration {report.epoch}, loss = {report.loss:.8f}"
    if report.validation_loss is not None:
        line += f", held-out loss = {report.validation_loss:.8f}"
    print(line)
