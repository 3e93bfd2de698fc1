"""Initial parameters of a residual network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch

from sknn_resid.engine.data import Features
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import ResidualSpec, Skip

SPREAD_ROWS = 10_000  # most rows that the spread of a unit is measured on


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
    layout = ResidualLayout(spec)
    flat = np.zeros(layout.n_params)
    p = layout.unpack(flat)
    for name, array in p.items():
        if name.endswith((".gamma", "gate.b")):
            array[:] = 1.0 if name.endswith(".gamma") else init.gate_bias
    if spec.periodic is not None:
        p["periodic.w"][:] = init.frequency * rng.standard_normal(p["periodic.w"].shape)
        p["periodic.b"][:] = rng.uniform(0, 2 * math.pi, p["periodic.b"].shape)
    _begin_inputs(spec, init, rng, p, X, weight, input_scale, column_gain)
    for s in range(spec.n_sets):
        for l in range(1, spec.n_layers_per_block + 1):
            W = p[f"block{s}.W{l}"]
            gain = init.branch_gain if l == spec.n_layers_per_block else 1.0
            W[:] = gain * _draw(init, rng, W.shape)
        if spec.skip is Skip.GATED:
            W = p[f"block{s}.gate.W"]
            W[:] = _draw(init, rng, W.shape)
    head = p["head.W"]
    head[:] = init.head_gain / math.sqrt(spec.width) * rng.standard_normal(head.shape)
    if head_bias is not None:
        p["head.b"][:] = head_bias
    return flat.astype(np.float32 if spec.dtype == torch.float32 else np.float64)


def _draw(init: InitSpec, rng: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """A matrix (in, out).

    he: N(0, 2 / in); lecun: N(0, 1 / in); glorot: N(0, 2 / (in + out)); normal: N(0, scale^2).
    orthogonal: Q of the QR factorisation of a normal matrix, its columns' signs made uniform
    (Saxe, McClelland and Ganguli 2014), so that singular values are 1.
    """
    fan_in, fan_out = shape
    noise = rng.standard_normal(shape)
    if init.kind is Init.ORTHOGONAL:
        tall = noise if fan_in >= fan_out else noise.T
        q, r = np.linalg.qr(tall)
        q = q * np.sign(np.diag(r))
        return q if fan_in >= fan_out else q.T
    if init.kind is Init.HE:
        return noise * math.sqrt(2 / fan_in)
    if init.kind is Init.LECUN:
        return noise * math.sqrt(1 / fan_in)
    if init.kind is Init.GLOROT:
        return noise * math.sqrt(2 / (fan_in + fan_out))
    return noise * init.scale


def _begin_inputs(
    spec: ResidualSpec,
    init: InitSpec,
    rng: np.random.RandomState,
    p: dict[str, np.ndarray],
    X: Features | None,
    weight: np.ndarray | None,
    input_scale: np.ndarray | None,
    column_gain: np.ndarray | None,
) -> None:
    """The input projection."""
    W, D = p["input.W"], spec.n_features
    W[:] = rng.standard_normal(W.shape) if init.unit_inputs else _draw(init, rng, W.shape)
    if column_gain is not None:
        W[:D] *= np.asarray(column_gain)[:, None]
    if init.unit_inputs:
        if X is None:
            raise ValueError(
                "init: an input projection with equal units is made from the training rows; give X."
            )
        spread = _unit_spread(spec, p, X, weight, input_scale)
        W /= np.where(spread > 0, spread, 1.0)  # columns that are constant give no spread
    p["input.b"][:] = init.input_bias * rng.standard_normal(spec.width)


def _unit_spread(
    spec: ResidualSpec,
    p: dict[str, np.ndarray],
    X: Features,
    weight: np.ndarray | None,
    input_scale: np.ndarray | None,
) -> np.ndarray:
    """Weighted standard deviation of each unit's pre-activation over the rows.

    All rows up to `SPREAD_ROWS`, beyond that every k-th: taking the first thousand, as is usual,
    would make a weight of two something else than the row twice.
    """
    W, D = p["input.W"], spec.n_features
    step = max(1, -(-int(X.shape[0]) // SPREAD_ROWS))
    part: Any = X[::step]
    if isinstance(part, torch.Tensor):
        part = part.cpu().numpy()
    raw = W[:D] if input_scale is None else W[:D] * np.asarray(input_scale)[:, None]
    z = np.asarray(part @ raw, dtype=np.float64)
    if spec.periodic is not None:
        columns = np.asarray(part[:, : spec.periodic.n_columns], dtype=np.float64)
        angle = 2 * math.pi * columns[:, :, None] * p["periodic.w"] + p["periodic.b"]
        z = z + np.cos(angle).reshape(len(z), -1) @ W[D:]
    w = np.ones(len(z)) if weight is None else np.asarray(weight, dtype=np.float64)[::step]
    w = w / w.sum()
    mean = w @ z
    return np.sqrt(w @ (z - mean) ** 2)
