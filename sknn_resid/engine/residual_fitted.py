"""Trained residual networks that predict: plain arrays, many members at once, bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sknn_resid.engine.data import Features
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.residual_spec import ResidualSpec


@dataclass(frozen=True, eq=False)
class FittedResidual:
    """M trained residual networks of one structure.

    Attributes
    ----------
    spec : ResidualSpec
    params : ndarray of shape (M, P)
    statistics : ndarray of shape (M, S)
        From `training_statistics`; S = 0 without batch normalization.
    input_scale : ndarray of shape (M, D) or None
    """

    spec: ResidualSpec
    params: np.ndarray
    statistics: np.ndarray
    input_scale: np.ndarray | None = None

    def outputs(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Predictions of each member on the scale of the target (after the link): (M, n, K)."""
        raise NotImplementedError

    def logits(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Raw outputs of each member, shape (M, n, K)."""
        raise NotImplementedError

    def hidden(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """What each member's head reads, shape (M, n, width)."""
        raise NotImplementedError


def training_statistics(job: TrainJob, params: np.ndarray) -> np.ndarray:
    """Statistics of the normalizations at these weights, shape (S,).

    Weighted means and variances over the job's own training rows, made in one pass over them; not
    running averages of a training that used other weights at each step.
    """
    raise NotImplementedError
