"""What one network's training starts from (`TrainJob`) and leaves behind (`TrainResult`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import scipy.optimize
import torch

from sknn_resid.engine import fused
from sknn_resid.engine.data import Features, TrainingData, ValidationData, as_tensor, is_mapped
from sknn_resid.engine.history import EpochView, Resume, StopReason, ValidationView
from sknn_resid.engine.optimizers import OptimizerState
from sknn_resid.engine.pieces import Pieces
from sknn_resid.engine.residual_spec import ResidualSpec
from sknn_resid.engine.spec import AnySpec, TrainSpec
from sknn_resid.engine.structure import input_dtype

EpochWeights = Callable[[], Any]


@dataclass(frozen=True, eq=False)
class TrainJob:
    """Everything that one network's training depends on.

    Attributes
    ----------
    network : NetworkSpec or ResidualSpec
    train : TrainSpec
    data : TrainingData
    params : ndarray of shape (P,)
        Initial parameters in the order of `layout.Layout` or `residual_layout.ResidualLayout`.
    rng : RandomState
        Draws the permutation of each epoch.
    rng_is_shared : bool
        Whether someone else goes on drawing from ``rng``. Where one batch holds all rows their
        order cannot matter, so the draws of a private generator are left out.
    dropout_seed : int or None
        Seed of the job's own dropout generator.
    validation : ValidationData or None
    score : callable or None
        ``score(view) -> float`` judges the validation part after each epoch; more is better.
    on_epoch : callable or None
        ``on_epoch(view) -> bool``: True stops this model.
    resume : Resume
    device : torch.device
    input_scale : ndarray of shape (D,) or None
        Residual networks: factor of each column of X, so that the members of a committee may see
        the same rows at different strength. None for 1.
    team : object or None
        Jobs that hold the same object are trained in one stack whatever its size, in lockstep: what
        is decided for an ensemble as a whole, in ``on_epoch``, needs all members at one epoch.
    """

    network: AnySpec
    train: TrainSpec
    data: TrainingData
    params: np.ndarray
    rng: np.random.RandomState
    rng_is_shared: bool = False
    dropout_seed: int | None = None
    validation: ValidationData | None = None
    score: Callable[[ValidationView], float] | None = None
    on_epoch: Callable[[EpochView], bool] | None = None
    resume: Resume = field(default_factory=Resume)
    device: torch.device = torch.device("cpu")
    input_scale: np.ndarray | None = None
    team: object | None = None


@dataclass(frozen=True, eq=False)
class TrainResult:
    """What training leaves behind, in host memory.

    Attributes
    ----------
    params : ndarray of shape (P,)
        Last weights, or the best ones where the spec watches a validation part or the fit ended
        by an interrupt or by divergence.
    loss_curve, validation_scores, validation_losses : list of float
        Of this call only. Not-a-number stays visible.
    loss : float
        Last epoch's loss (L-BFGS: the minimum found).
    best_loss, best_score : float
        Over all calls that were resumed.
    n_epochs, rows_seen, no_improvement : int
    reason : StopReason
    has_finite_epoch : bool
        False if not one epoch had a finite loss.
    optimizer : OptimizerState or None
    minimizer : OptimizeResult or None
        scipy's own result, for L-BFGS.
    flow : ndarray of shape (n_epochs, n_layers, 8) or None
        The numbers of `gradient_flow` of each epoch of this call, where they were asked for.
    """

    params: np.ndarray
    loss_curve: list[float]
    validation_scores: list[float]
    validation_losses: list[float]
    loss: float
    best_loss: float
    best_score: float
    n_epochs: int
    rows_seen: int
    no_improvement: int
    reason: StopReason
    has_finite_epoch: bool = True
    optimizer: OptimizerState | None = None
    minimizer: scipy.optimize.OptimizeResult | None = None
    flow: np.ndarray | None = None


# What becomes of a job: its result, or what its own callback or score raised.
Outcome: TypeAlias = "TrainResult | Exception"


def target_tensor(job: TrainJob) -> torch.Tensor:
    """The job's targets on its device, in the dtype that its loss works with."""
    dtype = torch.int64 if job.network.loss.codes else job.network.dtype
    return as_tensor(np.asarray(job.data.y)).to(device=job.device, dtype=dtype)


def pieces_of(jobs: Sequence[TrainJob], batch_size: int) -> Pieces | None:
    """Columns that the steps of these jobs look up; None where X is used as it is."""
    spec, like = jobs[0].network, torch.ones(1, dtype=jobs[0].network.dtype)
    if jobs[0].device.type != "cpu" or any(job.train.drop_path for job in jobs):
        return None
    if not isinstance(spec, ResidualSpec) or not fused.step_suits(spec, batch_size, like):
        return None
    if not all(isinstance(job.data.X, np.ndarray) and not is_mapped(job.data.X) for job in jobs):
        return None
    return Pieces.of(spec)


def features_on_device(jobs: Sequence[TrainJob], pieces: Pieces | None = None) -> list[Features]:
    """X of each job where its rows are gathered from: each distinct X once, packed by ``pieces``.

    A memory map and a sparse matrix stay on the host; their batches are sent one by one.
    """
    sent: dict[int, Features] = {}
    for job in jobs:
        X = job.data.X
        if id(X) in sent:
            continue
        if pieces is not None:
            sent[id(X)] = pieces.pack(np.asarray(X))
            continue
        send = job.device.type != "cpu" and isinstance(X, np.ndarray) and not is_mapped(X)
        tensor = as_tensor(np.asarray(X)) if send else None
        sent[id(X)] = X if tensor is None else tensor.to(job.device, input_dtype(job.network))
    return [sent[id(job.data.X)] for job in jobs]
