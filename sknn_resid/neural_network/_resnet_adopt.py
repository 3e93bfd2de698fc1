"""What a trained image network becomes on the estimator: fitted attributes, and due warnings."""

from __future__ import annotations

import math
import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning

from sknn_resid.engine.history import Resume, StopReason
from sknn_resid.engine.image_loop import ImageJob, ImageResult
from sknn_resid.engine.resnet import layers_of
from sknn_resid.engine.spec import OptimizerKind
from sknn_resid.neural_network._gradient_history import record

_CURVES = ("loss_curve_", "validation_scores_", "validation_loss_curve_")
# What an earlier fit leaves and a new one need not set again.
_LEFT = (
    *_CURVES,
    "best_loss_",
    "best_validation_score_",
    "gradient_history_",
    "_no_improvement",
    "_optimizer",
)


def forget(est: Any) -> None:
    """Drop what an earlier fit left, so that nothing of it shows through a new one."""
    for name in (*_LEFT, "_streaming", "_n_epochs", "t_"):
        est.__dict__.pop(name, None)


def resume_from(est: Any, *, incremental: bool) -> Resume:
    """Where a warm start (a new optimizer) or a ``partial_fit`` (the old one) goes on."""
    best_loss = getattr(est, "best_loss_", None)
    best_score = getattr(est, "best_validation_score_", None)
    state = getattr(est, "_optimizer", None) if incremental else None
    if state is not None and state.kind is not OptimizerKind(est.solver):
        state = None
    return Resume(
        best_loss=math.inf if best_loss is None else best_loss,
        best_score=-math.inf if best_score is None else best_score,
        no_improvement=getattr(est, "_no_improvement", 0),
        rows_seen=getattr(est, "t_", 0),
        optimizer=state,
    )


def network_attributes(job: ImageJob) -> dict[str, Any]:
    """What prediction needs beside weights and classes, and is known before training."""
    dtype = job.train.autocast or job.train.dtype
    return {
        "_spec": job.network,
        "pixel_mean_": job.scaling.mean,
        "pixel_std_": job.scaling.std,
        "n_parameters_": job.network.n_parameters,
        "device_": str(job.device),
        "dtype_": str(dtype).removeprefix("torch."),
    }


def adopt(
    est: Any, job: ImageJob, result: ImageResult, *, resumed: bool, incremental: bool
) -> None:
    """Set the fitted attributes.

    Raises
    ------
    ValueError
        If not one epoch of the call ended with finite numbers. Then nothing is set.
    """
    if result.reason is StopReason.DIVERGED and not result.has_finite_epoch:
        raise ValueError(
            "Solver produced non-finite parameter weights: not one epoch ended with a finite loss. "
            f"Lower learning_rate_init (now {est.learning_rate_init:g}), scale X, or set clip_norm."
        )
    est.state_dict_ = result.arrays
    for name, value in network_attributes(job).items():
        setattr(est, name, value)
    est.n_iter_ = result.n_epochs
    est.t_ = result.rows_seen
    est.loss_ = result.loss_curve[-1] if result.loss_curve else math.nan
    values = (result.loss_curve, result.validation_scores, result.validation_losses)
    for name, curve in zip(_CURVES, values, strict=True):
        _extend(est, name, curve, resumed=resumed, there=name == "loss_curve_" or bool(curve))
    history = getattr(est, "gradient_history_", None)  # of earlier calls: fit forgets it
    names = layers_of(result.arrays)
    est.gradient_history_ = record(names, result.flow, history, job.first_epoch)
    watched = job.train.train.watch_validation
    est.best_loss_ = None if watched else result.best_loss
    judged = job.validation is not None
    if judged or not resumed or not hasattr(est, "best_validation_score_"):
        est.best_validation_score_ = result.best_score if judged else None
    est._no_improvement = result.no_improvement
    est._n_epochs = job.first_epoch + result.n_epochs
    est._seed = job.seed
    est._optimizer = result.optimizer
    est._streaming = incremental


def _extend(est: Any, name: str, values: list[float], *, resumed: bool, there: bool) -> None:
    """Append to a curve of earlier calls, or begin it; None where there never was one."""
    old = getattr(est, name, None) if resumed else None
    if there:
        setattr(est, name, (old or []) + list(values))
    else:
        setattr(est, name, old)


def warn_of(est: Any, result: ImageResult) -> None:
    """Say how the fit ended, if it did not end by itself."""
    reason = result.reason
    if reason is StopReason.INTERRUPTED:
        go_on = "" if est.checkpoint_dir is None else " The same call of fit goes on from there."
        warnings.warn(f"Training interrupted by user.{go_on}", UserWarning, stacklevel=3)
    elif reason is StopReason.DIVERGED:
        warnings.warn(
            f"Training diverged in epoch {result.n_epochs}: the loss or a weight is no longer "
            "finite. The weights of the best epoch before were restored. Lower learning_rate_init "
            f"(now {est.learning_rate_init:g}), scale X, or set clip_norm.",
            ConvergenceWarning,
            stacklevel=3,
        )
    elif reason is StopReason.MAX_TIME:
        warnings.warn(
            f"Training stopped after {result.n_epochs} of {est.max_iter} epochs because "
            f"max_time={est.max_time:g} seconds had passed. Raise max_time.",
            ConvergenceWarning,
            stacklevel=3,
        )
