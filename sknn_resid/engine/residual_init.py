"""Initial parameters of a residual network."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from sknn_resid.engine.data import Features
from sknn_resid.engine.residual_spec import ResidualSpec


class Init(Enum):
    """How the entries of a matrix of shape (in, out) are drawn."""

    HE = "he"
    GLOROT = "glorot"
    LECUN = "lecun"
    ORTHOGONAL = "orthogonal"
    NORMAL = "normal"


@dataclass(frozen=True)
class InitSpec:
    """How a residual network begins.

    Attributes
    ----------
    kind : Init
        Of the matrices inside the blocks, and of the input projection unless ``unit_inputs``.
    scale : float
        Standard deviation, for ``Init.NORMAL``.
    branch_gain : float
        Factor of the last matrix of each branch; 0 begins with branches that add nothing.
    unit_inputs : bool
        Input projection from the data: standard normal entries, and each unit divided by the
        (weighted) standard deviation of what it gives on the training rows.
    input_bias : float
        Standard deviation of the biases of the input projection.
    head_gain : float
        The head's entries have standard deviation ``head_gain / sqrt(width)``.
    gate_bias : float
        Of gated blocks: negative values begin near the identity.
    frequency : float
        Standard deviation of the frequencies of a periodic embedding.
    """

    kind: Init = Init.HE
    scale: float = 0.01
    branch_gain: float = 1.0
    unit_inputs: bool = False
    input_bias: float = 0.0
    head_gain: float = 1.0
    gate_bias: float = -2.0
    frequency: float = 0.1


def initial_parameters(
    spec: ResidualSpec,
    init: InitSpec,
    rng: np.random.RandomState,
    *,
    X: Features | None = None,
    weight: np.ndarray | None = None,
    input_scale: np.ndarray | None = None,
    column_gain: np.ndarray | None = None,
    head_bias: np.ndarray | None = None,
) -> np.ndarray:
    """Flat initial parameters, in the order of `ResidualLayout` and of numpy's ``spec.dtype``.

    Parameters
    ----------
    spec : ResidualSpec
    init : InitSpec
    rng : RandomState
    X : array or CSR matrix of shape (n, D), optional
        Training rows; needed where ``init.unit_inputs``.
    weight : ndarray of shape (n,), optional
    input_scale : ndarray of shape (D,), optional
        As in `TrainJob`.
    column_gain : ndarray of shape (D,), optional
        Factor of the initial weights of each column (before units are made equal).
    head_bias : ndarray of shape (K,), optional
        As log class frequencies; 0 by default.
    """
    raise NotImplementedError
