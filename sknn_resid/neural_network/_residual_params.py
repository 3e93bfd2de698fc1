"""Parameters of the residual estimators -> engine specs, and the rules behind "auto".

Pure functions with no defaults of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch

from sknn_resid._device import resolve_device
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.meeting import preferred_device
from sknn_resid.engine.residual_init import Init, InitSpec
from sknn_resid.engine.residual_spec import Normalization, Periodic, ResidualSpec, Skip
from sknn_resid.engine.schedules import Cosine, FlatCosine, OneCycle, Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec
from sknn_resid.neural_network._params import ACTIVATIONS, working_dtypes

# Tables of no more distinct rows are one batch: then a row of weight two is exactly a row twice.
FULL_BATCH_ROWS = 64
LOOKS = 16  # how often held-out rows are looked at in the whole budget
# Of He's sqrt(2 / fan_in): the last matrix of a branch begins with 1 / sqrt(fan_in).
AUTO_BRANCH_SCALE = math.sqrt(0.5)
PIECEWISE_GAIN = 0.5  # initial weights of piecewise columns beside those of the scaled value


@dataclass(frozen=True)
class Budget:
    """How long and in what portions an ensemble is trained.

    Attributes
    ----------
    batch_size : int
    n_batches : int
        Steps of an epoch.
    max_epochs : int
    judge_every : int
        Epochs between two looks at held-out rows.
    patience : float
        Epochs.
    """

    batch_size: int
    n_batches: int
    max_epochs: int
    judge_every: int
    patience: float


def budget(est: Any, n_rows: int, n_distinct: int) -> Budget:
    """Batches and epochs.

    The rules look at the number of distinct rows, so that they are the same for a weight of two
    and a row twice, and for weights in any unit.

    Parameters
    ----------
    est : estimator
        With ``batch_size``, ``max_iter``, ``n_iter_no_change``.
    n_rows : int
        Rows that a member trains on.
    n_distinct : int
        Distinct rows of the whole table.

    Notes
    -----
    batch_size="auto": all rows up to 64 distinct ones, else 2^round(log2(n / 16)) within 64 and
    256. Rows are split evenly into batches of about that size (a given size is the largest): a
    last batch of a few rows would have no batch statistics worth the name.

    Held-out rows are looked at 16 times in the whole budget, and at least once in each span of
    ``n_iter_no_change`` epochs.
    """
    if est.batch_size == "auto":
        if n_distinct <= FULL_BATCH_ROWS:
            n_batches = 1
        else:
            target = min(256, max(64, 2 ** round(math.log2(n_distinct / 16))))
            n_batches = max(1, round(n_rows / target))
    else:
        n_batches = math.ceil(n_rows / est.batch_size)
    max_epochs, patience = int(est.max_iter), float(est.n_iter_no_change)
    judge_every = max(1, max_epochs // LOOKS) if est.early_stopping else 1
    judge_every = int(max(1, min(judge_every, patience)))
    return Budget(math.ceil(n_rows / n_batches), n_batches, max_epochs, judge_every, patience)


def residual_spec(
    est: Any,
    *,
    n_features: int,
    n_numeric: int,
    piecewise: tuple[tuple[int, int], ...],
    n_outputs: int,
    loss: Loss,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> ResidualSpec:
    """Structure of a member.

    Parameters
    ----------
    est : estimator
    n_features : int
        Columns of the encoded table.
    n_numeric : int
        Leading columns that hold scaled numbers.
    piecewise : tuple of (int, int)
        Runs of columns that hold one number in pieces (`piecewise_runs`).
    n_outputs : int
    loss : Loss
    dtypes : (dtype of the weights, dtype of the matrix products)
    """
    periodic = None
    if est.numeric_embedding == "periodic" and n_numeric:
        periodic = Periodic(n_numeric, int(est.n_frequencies))
    own, products = dtypes
    return ResidualSpec(
        n_features=n_features,
        width=int(est.width),
        hidden=max(1, round(est.hidden_factor * est.width)),
        n_blocks=int(est.n_blocks),
        n_outputs=n_outputs,
        activation=ACTIVATIONS[est.activation],
        loss=loss,
        dtype=own,
        product_dtype=products,
        n_layers_per_block=int(est.n_layers_per_block),
        normalization=Normalization(est.normalization or "none"),
        skip=Skip(est.skip),
        preactivate=bool(est.preactivation),
        normalize_inner=bool(est.preactivation),
        tie_blocks=bool(est.tie_blocks),
        periodic=periodic,
        piecewise=piecewise,
    )


def piecewise_runs(kinds: np.ndarray, source: np.ndarray) -> tuple[tuple[int, int], ...]:
    """First column and last but one of each number's pieces, from `kinds_` and `source_`.

    Examples
    --------
    >>> kinds = np.array(["numeric", "numeric", "piecewise", "piecewise", "piecewise", "onehot"])
    >>> piecewise_runs(kinds, np.array([0, 1, 0, 0, 1, 2]))
    ((2, 4), (4, 5))
    """
    columns = np.flatnonzero(kinds == "piecewise")
    starts = columns[np.diff(source[columns], prepend=-1) != 0]
    ends = [*starts[1:], columns[-1] + 1] if len(columns) else []
    return tuple((int(a), int(b)) for a, b in zip(starts, ends, strict=True))


def branch_scale(est: Any) -> float:
    """``branch_scale``; "auto" is 0 where nothing else keeps a deep sum of blocks in bounds."""
    if est.branch_scale != "auto":
        return float(est.branch_scale)
    unbounded = est.normalization is None and est.skip in ("identity", "gated")
    return 0.0 if unbounded else AUTO_BRANCH_SCALE


def init_spec(est: Any) -> InitSpec:
    """How a member begins: from the data by default, else all matrices as ``init`` says."""
    gain = branch_scale(est)
    if est.init == "auto":
        return InitSpec(
            Init.HE,
            branch_gain=gain,
            unit_inputs=True,
            input_bias=0.5,
            head_gain=0.1,
            frequency=float(est.frequency_scale),
        )
    if est.branch_scale == "auto" and gain > 0:
        gain = 1.0  # what the name says
    return InitSpec(
        Init(est.init),
        scale=float(est.init_scale),
        branch_gain=gain,
        frequency=float(est.frequency_scale),
    )


def schedule(est: Any) -> Schedule:
    """Learning-rate schedule with its warm-up."""
    warmup = float(est.warmup_fraction)
    if est.learning_rate == "one_cycle":
        return OneCycle(peak_at=warmup, end=0.0)
    if est.learning_rate == "cosine":
        return Cosine(warmup)
    if est.learning_rate == "flat_cosine":
        return FlatCosine(warmup)
    return Schedule(warmup)


def train_spec(
    est: Any, plan: Budget, *, judged: bool, label_smoothing: float, batch_weight: float
) -> TrainSpec:
    """How a member is trained.

    Parameters
    ----------
    est : estimator
    plan : Budget
    judged : bool
        Whether there are rows to judge it by.
    label_smoothing : float
    batch_weight : float
        Sum of the weights of an average batch. SGD and Adam add ``weight_decay`` times the weights
        to the gradient; the engine divides its penalty by the weight of the batch.
    """
    kind = OptimizerKind(est.solver)
    decoupled = kind in (OptimizerKind.ADAMW, OptimizerKind.MUON)
    decay = float(est.weight_decay)
    return TrainSpec(
        optimizer=OptimizerSpec(
            kind=kind,
            learning_rate=float(est.learning_rate_init),
            momentum=float(est.momentum),
            nesterov=kind is OptimizerKind.SGD and est.momentum > 0,
            beta_1=float(est.beta_1),
            beta_2=float(est.beta_2),
            epsilon=float(est.epsilon),
            hidden_learning_rate=float(est.hidden_learning_rate),
            hidden_momentum=float(est.momentum),
            hidden_decay=float(est.hidden_weight_decay),
        ),
        schedule=schedule(est),
        penalty=decay if decoupled else decay * batch_weight,
        batch_size=plan.batch_size,
        max_epochs=plan.max_epochs,
        tolerance=0.0,
        patience=math.inf,  # the committee decides
        stop_on_plateau=False,
        dropout=float(est.dropout),
        drop_path=float(est.drop_path),
        clip_norm=None if est.clip_norm is None else float(est.clip_norm),
        label_smoothing=label_smoothing,
        max_seconds=None if est.max_time is None else float(est.max_time),
        average_horizon=float(est.average_fraction),
        judge_every=plan.judge_every if judged else 1,
        record_flow=bool(est.record_gradients),
    )


def check_parameters(est: Any) -> None:
    """Rules between parameters, and what a table of values cannot say.

    Raises
    ------
    ValueError
        If a scale is not positive, or Muon has no matrix to work on.
    """
    scales = _scales(est)
    if not scales or not all(isinstance(s, Real) and s > 0 and math.isfinite(s) for s in scales):
        raise ValueError(
            "embedding_scale: must be a positive number or a tuple of them, one for each group of "
            f"members, got {est.embedding_scale!r}."
        )
    if est.learning_rate == "one_cycle" and est.warmup_fraction == 0:
        raise ValueError(
            "warmup_fraction=0 leaves learning_rate='one_cycle' without its rise: one_cycle is a "
            "rise and a fall. Use learning_rate='cosine', or a warmup_fraction above 0."
        )


def _scales(est: Any) -> tuple[float, ...]:
    scale = est.embedding_scale
    return tuple(scale) if isinstance(scale, tuple | list) else (scale,)


def embedding_scales(est: Any, kinds: np.ndarray) -> list[np.ndarray | None]:
    """Factor of each encoded column for each group of members; one group where all are alike.

    Parameters
    ----------
    est : estimator
    kinds : ndarray of shape (D,)
        `kinds_` of the encoder.
    """
    piecewise = kinds == "piecewise"
    if not piecewise.any():
        return [None]
    return [np.where(piecewise, float(scale), 1.0) for scale in _scales(est)]


def column_gain(kinds: np.ndarray) -> np.ndarray | None:
    """Factor of the initial weights of each encoded column."""
    piecewise = kinds == "piecewise"
    return np.where(piecewise, PIECEWISE_GAIN, 1.0) if piecewise.any() else None


@dataclass(frozen=True)
class Placement:
    """Where and in what precision an ensemble is trained."""

    device: torch.device
    dtypes: tuple[torch.dtype, torch.dtype]


def placement(est: Any, X: np.ndarray, n_distinct: int) -> Placement:
    """Device and precision from the parameters and the encoded rows.

    dtype="auto" is float32 for more than 64 distinct rows: minibatches are noisier than its
    rounding by far, and it takes half the time. A table that is one batch follows its own dtype,
    so that a weight of two is a row twice to the last digits of float64.

    Raises
    ------
    ValueError
        If the device is not there, or cannot compute in the precision that was asked for.
    """
    hidden = est.hidden_factor * est.width
    per_row = est.width * (X.shape[1] + est.n_blocks * est.n_layers_per_block * hidden)
    rows = min(X.shape[0], 256 if est.batch_size == "auto" else est.batch_size)
    device = resolve_device(
        preferred_device() or est.device, float(est.n_estimators * rows * per_row)
    )
    small = est.dtype is None or n_distinct <= FULL_BATCH_ROWS
    follows = device.type == "cpu" and small
    data_dtype = X.dtype if follows else np.dtype(np.float32)
    dtypes = working_dtypes(None if est.dtype == "auto" else est.dtype, data_dtype)
    if device.type == "mps" and dtypes[0] == torch.float64:
        raise ValueError(
            "device='mps' has no float64, which dtype='float64' needs. Use dtype='float32', or "
            "device='cpu'."
        )
    return Placement(device, dtypes)
