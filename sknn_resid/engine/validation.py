"""Judging a model on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.data import as_tensor
from sknn_resid.engine.fitted import FittedNetwork
from sknn_resid.engine.fused_judge import FusedJudge
from sknn_resid.engine.history import EpochView, Progress, ValidationView
from sknn_resid.engine.job import EpochWeights, TrainJob
from sknn_resid.engine.layout import dense_layout
from sknn_resid.engine.residual_fitted import FittedResidual, training_statistics
from sknn_resid.engine.residual_spec import ResidualSpec


def judge(
    job: TrainJob, params_P: Tensor, weights: EpochWeights, fused: FusedJudge
) -> tuple[float, float]:
    """Validation score (not a number where an output is not finite) and validation loss.

    ``fused`` is one for all that are trained together.
    """
    assert job.validation is not None
    logits = fused.logits(job, params_P)
    if logits is None:
        logits = _validation_logits(job, params_P)
    loss = _validation_loss(job, logits)
    score = math.nan
    if job.score is not None and np.isfinite(logits).all():
        score = float(job.score(ValidationView(logits, loss, weights)))
    return score, loss


def _validation_logits(job: TrainJob, params_P: Tensor) -> np.ndarray:
    """Raw outputs on the validation rows, shape (n, K), at these very weights.

    The statistics of a batch normalization are those of the job's own training rows, measured with
    the same weights.
    """
    assert job.validation is not None
    spec, flat_P = job.network, params_P.cpu().numpy()
    if not isinstance(spec, ResidualSpec):
        coefs, intercepts = dense_layout(spec.layer_sizes, spec.ties).unpack(flat_P)
        network = FittedNetwork(coefs, intercepts, spec.activations, spec.loss)
        return network.logits(job.validation.X, job.device)
    scale = None if job.input_scale is None else np.asarray(job.input_scale)[None]
    statistics = training_statistics(job, flat_P)
    fitted = FittedResidual(spec, flat_P[None], statistics[None], scale)
    return fitted.logits(job.validation.X, job.device)[0]


def epoch_view(
    progress: Progress,
    loss: float,
    learning_rate: float,
    weights: EpochWeights,
    parameters: Callable[[], np.ndarray],
    *,
    judged: bool = True,
) -> EpochView:
    """What callbacks see of an epoch that has just ended; ``judged`` if it had a validation."""
    scores = progress.validation_scores if judged else []
    losses = progress.validation_losses if judged else []
    return EpochView(
        epoch=progress.n_epochs,
        loss=loss,
        validation_score=scores[-1] if scores else None,
        validation_loss=losses[-1] if losses else None,
        learning_rate=learning_rate,
        reason=progress.reason,
        lowered_rate=progress.lowered_rate,
        weights=weights,
        parameters=parameters,
    )


def _validation_loss(job: TrainJob, logits_NK: np.ndarray) -> float:
    """Data term of the objective on the validation rows, as reported (no penalty)."""
    part, loss = job.validation, job.network.loss
    assert part is not None
    weight = np.ones(len(logits_NK)) if part.weight is None else np.asarray(part.weight)
    dtype = job.network.dtype
    r = torch.as_tensor(weight / weight.sum(), dtype=dtype)[None, None, None]
    z = torch.as_tensor(logits_NK.T.copy(), dtype=dtype)[None, None]
    y_dtype = torch.int64 if loss.codes else dtype
    y = as_tensor(np.asarray(part.y)).to(y_dtype)[None, None]
    targets = torch.zeros_like(z)
    loss.load_targets(targets, y, r, None)
    return float(loss.value(z, targets, r)[0, 0]) * loss.reported_scale(job.network.n_outputs)
