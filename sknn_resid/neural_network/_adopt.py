"""What a training result becomes on the estimator: fitted attributes, and due warnings."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sknn_resid._sklearn_compat import check_optimize_result
from sknn_resid.engine.history import Resume, StopReason
from sknn_resid.engine.job import TrainJob, TrainResult
from sknn_resid.engine.layout import dense_layout
from sknn_resid.engine.spec import NetworkSpec, OptimizerKind
from sknn_resid.engine.structure import layout_of
from sknn_resid.neural_network._gradient_history import record

_NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and "
    "need to be preprocessed."
)
# Fitted attributes that not every solver or setting leaves behind.
_OPTIONAL = (
    "loss_curve_",
    "validation_scores_",
    "validation_loss_curve_",
    "best_loss_",
    "best_validation_score_",
    "_no_improvement_count",
    "_optimizer",
    "_streaming",
    "t_",
    "gradient_history_",
)


def forget(est: Any) -> None:
    """Drop what an earlier fit left, so that nothing of it shows through a new one."""
    for name in _OPTIONAL:
        est.__dict__.pop(name, None)


def resume_from(est: Any, network: NetworkSpec, *, incremental: bool) -> Resume:
    """Where a warm start or a ``partial_fit`` goes on.

    As in scikit-learn, a warm start gets a new optimizer while the counters go on, and
    ``partial_fit`` keeps the optimizer as well.
    """
    best_loss = getattr(est, "best_loss_", None)
    best_score = getattr(est, "best_validation_score_", None)
    state = getattr(est, "_optimizer", None) if incremental else None
    n_params = dense_layout(network.layer_sizes, network.ties).n_params
    if state is not None and (
        state.kind is not OptimizerKind(est.solver) or len(state.moments[0]) != n_params
    ):
        state = None
    return Resume(
        best_loss=math.inf if best_loss is None else best_loss,
        best_score=-math.inf if best_score is None else best_score,
        no_improvement=getattr(est, "_no_improvement_count", 0),
        rows_seen=getattr(est, "t_", 0),
        optimizer=state,
    )


def check_same_shape(coefs: Sequence[np.ndarray], sizes: Sequence[int]) -> None:
    """Refuse to go on with weights of another network."""
    have = [coefs[0].shape[0], *(w.shape[1] for w in coefs)]
    if have != list(sizes):
        raise ValueError(
            f"The layers of the fitted model are {have}, but the parameters and data now ask for "
            f"{list(sizes)}. warm_start and partial_fit go on with the weights at hand: set "
            "warm_start=False and call fit, or restore hidden_layer_sizes, n_layers and width."
        )


def network_attributes(network: NetworkSpec, est: Any, probe: Any) -> dict[str, Any]:
    """What prediction needs beside the weights."""
    return {
        "n_layers_": len(network.layer_sizes),
        "n_outputs_": network.n_outputs,
        "n_parameters_": dense_layout(network.layer_sizes, network.ties).n_params,
        "out_activation_": est._out_activation(),
        "_fitted_activations": network.activations,
        "_fitted_loss": network.loss,
        "_fitted_ties": network.ties,
        "_namespace_probe": probe,
    }


def adopt(
    est: Any,
    job: TrainJob,
    result: TrainResult,
    probe: Any,
    *,
    resumed: bool,
    incremental: bool,
) -> None:
    """Set the fitted attributes.

    Raises
    ------
    ValueError
        If not one epoch of the call ended with finite numbers. Then nothing is set: a model that
        was fitted before stays as it was.
    """
    if result.reason is StopReason.DIVERGED and not result.has_finite_epoch:
        raise ValueError(_NON_FINITE)
    assert isinstance(job.network, NetworkSpec)
    dtype = np.float32 if est.dtype_ != "float64" else np.float64
    layout = dense_layout(job.network.layer_sizes, job.network.ties)
    est.coefs_, est.intercepts_ = layout.unpack(result.params.astype(dtype, copy=False))
    for name, value in network_attributes(job.network, est, probe).items():
        setattr(est, name, value)
    est.n_iter_, est.loss_ = result.n_epochs, result.loss
    est.t_ = result.rows_seen
    lbfgs = job.train.optimizer.kind is OptimizerKind.LBFGS
    if job.validation is not None or not lbfgs:
        _adopt_validation(est, job, result, resumed=resumed)
    before = len(getattr(est, "loss_curve_", None) or ()) if resumed else 0
    history = getattr(est, "gradient_history_", None) if resumed else None
    est.gradient_history_ = record(layout_of(job.network).layers(), result.flow, history, before)
    if lbfgs:
        return  # no loss_curve_ and no best_loss_, as in scikit-learn
    _extend(est, "loss_curve_", result.loss_curve, resumed)
    est._no_improvement_count = result.no_improvement
    est._optimizer = result.optimizer
    est._streaming = incremental
    est.best_loss_ = None if job.train.watch_validation else result.best_loss


def _adopt_validation(est: Any, job: TrainJob, result: TrainResult, *, resumed: bool) -> None:
    if job.validation is None:
        for name in ("validation_scores_", "validation_loss_curve_", "best_validation_score_"):
            if not resumed or not hasattr(est, name):
                setattr(est, name, None)
        return
    _extend(est, "validation_scores_", result.validation_scores, resumed)
    _extend(est, "validation_loss_curve_", result.validation_losses, resumed)
    est.best_validation_score_ = result.best_score


def _extend(est: Any, name: str, values: list[float], resumed: bool) -> None:
    """Append to a curve of earlier calls, or begin it."""
    old = getattr(est, name, None) if resumed else None
    if old is None:
        setattr(est, name, list(values))
    else:
        old.extend(values)


def warn_of_batch_size(est: Any, n_rows: int) -> None:
    """scikit-learn's warning of a batch size above the number of rows."""
    if est.solver != "lbfgs" and est.batch_size != "auto" and est.batch_size > n_rows:
        warnings.warn(
            "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped",
            UserWarning,
            stacklevel=2,
        )


def warn_of(est: Any, result: TrainResult, *, incremental: bool) -> None:
    """Say how the fit ended, if it did not end by itself."""
    reason = result.reason
    if result.minimizer is not None and reason in (StopReason.MAX_EPOCHS, StopReason.CONVERGED):
        est.n_iter_ = check_optimize_result("lbfgs", result.minimizer, est.max_iter)
    elif reason is StopReason.INTERRUPTED:
        warnings.warn("Training interrupted by user.", UserWarning, stacklevel=2)
    elif reason is StopReason.DIVERGED:
        _converge_warning(
            f"Training diverged in epoch {result.n_epochs}: the loss or a weight is no longer "
            "finite. The weights of the best epoch before were restored. Lower learning_rate_init "
            f"(now {est.learning_rate_init:g}), scale X, or set clip_norm."
        )
    elif reason is StopReason.MAX_TIME:
        _converge_warning(
            f"Training stopped after {result.n_epochs} epochs because max_time={est.max_time:g} "
            "seconds had passed, and the optimization hasn't converged yet. Raise max_time."
        )
    elif reason is StopReason.MAX_EPOCHS and not incremental:
        _converge_warning(
            f"Stochastic Optimizer: Maximum iterations ({est.max_iter}) reached and the "
            "optimization hasn't converged yet."
        )


def _converge_warning(message: str) -> None:
    warnings.warn(message, ConvergenceWarning, stacklevel=3)
