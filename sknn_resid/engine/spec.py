"""What is to be trained and how: frozen values, no behaviour, nothing of scikit-learn.

The fields of `NetworkSpec` and the structural fields of `TrainSpec` decide which jobs can share one
stack (`stack_key`); all other numbers may differ from model to model within it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import torch

from sknn_resid.engine.activations import Activation
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.residual_spec import ResidualSpec
from sknn_resid.engine.schedules import Schedule
from sknn_resid.engine.ties import Ties


class OptimizerKind(Enum):
    """Which update rule; the formulas stand in `optimizers`."""

    SGD = "sgd"
    ADAM = "adam"
    ADAMW = "adamw"
    MUON = "muon"
    LBFGS = "lbfgs"


@dataclass(frozen=True)
class NetworkSpec:
    """Structure of a dense network.

    Attributes
    ----------
    layer_sizes : tuple of int
        n_features, hidden widths, n_outputs: at least two numbers.
    activations : tuple of Activation
        One per hidden layer: ``len(layer_sizes) - 2`` of them.
    loss : Loss
    dtype : torch.dtype
        Of the master weights, the loss and the optimizer: float32 or float64.
    product_dtype : torch.dtype
        Of the matrix products: ``dtype``, or bfloat16 with float32 master weights.
    ties : Ties or None
        Weights that stand in several places.
    """

    layer_sizes: tuple[int, ...]
    activations: tuple[Activation, ...]
    loss: Loss
    dtype: torch.dtype
    product_dtype: torch.dtype
    ties: Ties | None = None

    @property
    def n_outputs(self) -> int:
        return self.layer_sizes[-1]

    @property
    def n_hidden(self) -> int:
        """Number of hidden layers."""
        return len(self.layer_sizes) - 2


@dataclass(frozen=True)
class OptimizerSpec:
    """An update rule and its numbers.

    Attributes
    ----------
    kind : OptimizerKind
    learning_rate : float
        Before any schedule.
    momentum, nesterov : float, bool
        For SGD.
    beta_1, beta_2, epsilon : float
        For Adam and AdamW. Epsilon is scikit-learn's: not bias-corrected.
    hidden_learning_rate, hidden_momentum, hidden_decay : float
        For Muon's own part, the matrices inside the blocks of a residual network; the rate follows
        the same schedule, and the decay is decoupled. All other parameters are AdamW's.
    """

    kind: OptimizerKind
    learning_rate: float
    momentum: float = 0.9
    nesterov: bool = True
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    hidden_learning_rate: float = 0.02
    hidden_momentum: float = 0.95
    hidden_decay: float = 0.0


@dataclass(frozen=True)
class TrainSpec:
    """How one network is trained.

    Attributes
    ----------
    optimizer : OptimizerSpec
    schedule : Schedule
    penalty : float
        L2 penalty alpha: 1/2 alpha |W|^2 / (sum of weights of the batch) is added to the objective;
        biases are free. With AdamW and Muon it is decoupled from the gradient.
    batch_size : int
        At most the number of rows.
    max_epochs : int
    tolerance : float
    patience : float
        Epochs in a row without improvement by ``tolerance`` that are let pass; may be infinite.
    watch_validation : bool
        Early stopping on the validation score instead of the training loss, best weights kept.
    break_ties_by_loss : bool
        Among validation scores within ``tolerance`` the lower validation loss counts as better.
    stop_on_plateau : bool
        False only counts (scikit-learn's ``partial_fit``).
    shuffle : bool
    dropout : float
        Probability that a hidden unit is dropped: for each row by itself in a dense network; in a
        residual one for all rows of a step alike, so that a weight of two stays a row twice.
    drop_path : float
        Residual networks: probability that the last block's branch is left out of a step; block l
        of L has l / L times as much (Huang et al. 2016).
    clip_norm : float or None
        Largest norm of a model's whole gradient.
    label_smoothing : float
    max_seconds : float or None
        No epoch starts later than this.
    max_evaluations : int
        For L-BFGS.
    max_steps : int or None
        No epoch begins after so many steps: the budget is the smaller of the two.
    drop_last : bool
        A short last batch is left out of each epoch, unless it is the only one. Batch statistics of
        a handful of rows are worth nothing.
    average_horizon : float
        Fraction of all planned steps over which weights are averaged exponentially; 0 does not.
        Where it is not 0, the averages are judged, kept and returned.
    judge_every : int
        Epochs between two looks at the validation part; the last epoch always has one. Where the
        part is watched, ``patience`` counts looks.
    record_flow : bool
        Whether the numbers of `gradient_flow` are kept of each epoch.
    """

    optimizer: OptimizerSpec
    schedule: Schedule
    penalty: float
    batch_size: int
    max_epochs: int
    tolerance: float
    patience: float
    watch_validation: bool = False
    break_ties_by_loss: bool = False
    stop_on_plateau: bool = True
    shuffle: bool = True
    dropout: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    max_seconds: float | None = None
    max_evaluations: int = 15000
    drop_path: float = 0.0
    max_steps: int | None = None
    drop_last: bool = False
    average_horizon: float = 0.0
    judge_every: int = 1
    record_flow: bool = False


AnySpec: TypeAlias = NetworkSpec | ResidualSpec


def stack_key(network: AnySpec, train: TrainSpec) -> tuple[object, ...]:
    """What two jobs must share to be trained in one stack."""
    return (
        network,
        train.optimizer.kind,
        train.optimizer.nesterov,
        train.batch_size,
        train.dropout > 0,
        train.drop_path > 0,
        train.drop_last,
        train.average_horizon > 0,
        train.clip_norm is not None,
        train.record_flow,
    )
