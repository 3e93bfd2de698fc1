"""Constructor parameters -> engine specs: pure functions, no defaults of their own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from sknn_resid.engine.activations import (
    SELU_ALPHA,
    SELU_SCALE,
    Activation,
    Elu,
    Gelu,
    Identity,
    LeakyRelu,
    Logistic,
    Mish,
    Relu,
    Silu,
    Softplus,
    Tanh,
)
from sknn_resid.engine.losses import (
    AbsoluteError,
    CallableLoss,
    Huber,
    Loss,
    Pinball,
    Poisson,
    SquaredError,
)
from sknn_resid.engine.schedules import Adaptive, Cosine, InverseScaling, OneCycle, Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec

ACTIVATIONS: dict[str, Activation] = {
    "identity": Identity(),
    "logistic": Logistic(),
    "tanh": Tanh(),
    "relu": Relu(),
    "gelu": Gelu(),
    "silu": Silu(),
    "elu": Elu(),
    "selu": Elu(SELU_ALPHA, SELU_SCALE),
    "leaky_relu": LeakyRelu(),
    "softplus": Softplus(),
    "mish": Mish(),
}
REGRESSION_LOSSES = ("squared_error", "poisson", "absolute_error", "huber", "quantile")
AUTO_BATCH_SIZE = 200


def activation_layers(activation: str | Sequence[str], n_hidden: int) -> tuple[Activation, ...]:
    """One activation per hidden layer, from one name or one name per layer."""
    if isinstance(activation, str):
        return (ACTIVATIONS[activation],) * n_hidden
    names = tuple(activation)
    unknown = [name for name in names if name not in ACTIVATIONS]
    if unknown:
        raise ValueError(
            f"activation: unknown name {unknown[0]!r} in {names}. "
            f"Known are {', '.join(sorted(ACTIVATIONS))}."
        )
    if len(names) != n_hidden:
        raise ValueError(
            f"activation: a tuple needs one name per hidden layer, got {len(names)} names for "
            f"{n_hidden} hidden layers. Give {n_hidden} names, or one name for all."
        )
    return tuple(ACTIVATIONS[name] for name in names)


def activation_name(activation: Activation) -> str:
    """The name that gives this activation."""
    return next(name for name, known in ACTIVATIONS.items() if known == activation)


def regression_loss(est: Any) -> Loss:
    """The engine's loss for a regressor's ``loss``, ``quantile`` and ``huber_delta``."""
    if callable(est.loss):
        return CallableLoss(est.loss)
    if est.loss == "poisson":
        return Poisson()
    if est.loss == "absolute_error":
        return AbsoluteError()
    if est.loss == "huber":
        return Huber(float(est.huber_delta))
    if est.loss == "quantile":
        return Pinball(float(est.quantile))
    return SquaredError()


def schedule(est: Any) -> Schedule:
    """Learning-rate schedule. scikit-learn's own ones act on "sgd" only, as there."""
    warmup = float(est.warmup_fraction)
    if est.learning_rate == "cosine":
        return Cosine(warmup)
    if est.learning_rate == "one_cycle":
        return OneCycle(warmup)
    if est.solver == "sgd" and est.learning_rate == "invscaling":
        return InverseScaling(warmup, float(est.power_t))
    if est.solver == "sgd" and est.learning_rate == "adaptive":
        return Adaptive(warmup)
    return Schedule(warmup)


def train_spec(
    est: Any,
    *,
    one_epoch: bool,
    watch_validation: bool,
    label_smoothing: float,
    break_ties_by_loss: bool,
) -> TrainSpec:
    """How the network is trained.

    Parameters
    ----------
    est : estimator
    one_epoch : bool
        ``partial_fit``: one epoch that counts but never stops.
    watch_validation : bool
        Early stopping on a validation part.
    label_smoothing : float
    break_ties_by_loss : bool
    """
    batch_size = AUTO_BATCH_SIZE if est.batch_size == "auto" else int(est.batch_size)
    return TrainSpec(
        optimizer=OptimizerSpec(
            kind=OptimizerKind(est.solver),
            learning_rate=float(est.learning_rate_init),
            momentum=float(est.momentum),
            nesterov=bool(est.nesterovs_momentum) and est.momentum > 0,
            beta_1=float(est.beta_1),
            beta_2=float(est.beta_2),
            epsilon=float(est.epsilon),
        ),
        schedule=schedule(est),
        penalty=float(est.alpha),
        batch_size=batch_size,
        max_epochs=1 if one_epoch else int(est.max_iter),
        tolerance=float(est.tol),
        patience=float(est.n_iter_no_change),
        watch_validation=watch_validation,
        break_ties_by_loss=break_ties_by_loss,
        stop_on_plateau=not one_epoch,
        shuffle=bool(est.shuffle),
        dropout=float(est.dropout),
        clip_norm=None if est.clip_norm is None else float(est.clip_norm),
        label_smoothing=label_smoothing,
        max_seconds=None if est.max_time is None else float(est.max_time),
        max_evaluations=int(est.max_fun),
        record_flow=bool(est.record_gradients),
    )


def random_generator(random_state: Any) -> np.random.RandomState:
    """What a fit draws from.

    None draws one seed from numpy's global state: the only global touch.
    """
    if random_state is None:
        seed = np.random.mtrand._rand.randint(np.iinfo(np.int32).max)
        return np.random.RandomState(seed)
    return check_random_state(random_state)


def working_dtypes(dtype: str | None, data_dtype: np.dtype) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the weights, dtype of the matrix products)."""
    if dtype == "bfloat16":
        return torch.float32, torch.bfloat16
    name = dtype or ("float32" if data_dtype == np.float32 else "float64")
    own = torch.float32 if name == "float32" else torch.float64
    return own, own


def initial_weights(
    rng: np.random.RandomState, sizes: Sequence[int], activation: str | Sequence[str], dtype: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Glorot-uniform weights and biases, draw for draw as scikit-learn makes them.

    The bound is sqrt(6 / (fan_in + fan_out)), or sqrt(2 / ...) in every layer where the activation
    is logistic (Glorot and Bengio 2010). Drawn in float64, then cast.
    """
    names = (activation,) if isinstance(activation, str) else tuple(activation)
    factor = 2.0 if names and all(name == "logistic" for name in names) else 6.0
    coefs, intercepts = [], []
    for fan_in, fan_out in pairwise(sizes):
        bound = np.sqrt(factor / (fan_in + fan_out))
        coefs.append(rng.uniform(-bound, bound, (fan_in, fan_out)).astype(dtype, copy=False))
        intercepts.append(rng.uniform(-bound, bound, fan_out).astype(dtype, copy=False))
    return coefs, intercepts
