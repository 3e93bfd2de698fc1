"""Judging a model on held-out rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.fitted import FittedNetwork
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.network import Layout


def validation_logits(job: TrainJob, params_P: Tensor) -> np.ndarray:
    """Raw outputs (n, K) of the validation rows under these parameters."""
    assert job.validation is not None
    coefs, intercepts = Layout(job.network.layer_sizes).unpack(params_P.cpu().numpy())
    network = FittedNetwork(coefs, intercepts, job.network.activations, job.network.loss)
    return network.logits(job.validation.X, job.device)


def validation_loss(job: TrainJob, logits_NK: np.ndarray) -> float:
    """Data term of the objective on the validation rows, as reported (no penalty)."""
    part, loss = job.validation, job.network.loss
    assert part is not None
    weight = np.ones(len(logits_NK)) if part.weight is None else np.asarray(part.weight)
    dtype = job.network.dtype
    r = torch.as_tensor(weight / weight.sum(), dtype=dtype)[None, None, None]
    z = torch.as_tensor(logits_NK.T.copy(), dtype=dtype)[None, None]
    y_dtype = torch.int64 if loss.codes else dtype
    y = torch.as_tensor(np.asarray(part.y), dtype=y_dtype)[None, None]
    targets = torch.zeros_like(z)
    loss.load_targets(targets, y, r, None)
    return float(loss.value(z, targets, r)) * loss.reported_scale(job.network.n_outputs)
