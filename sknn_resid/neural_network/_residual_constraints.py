"""What values the parameters of the residual estimators may take, checked in fit."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from sknn_resid._sklearn_compat import Interval, Options, StrOptions
from sknn_resid.neural_network._params import ACTIVATIONS

_POSITIVE_INT = Interval(Integral, 1, None, closed="left")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_POSITIVE = Interval(Real, 0, None, closed="neither")
_PART = Interval(Real, 0, 1, closed="left")

SHARED_CONSTRAINTS: dict[str, list[Any]] = {
    "n_estimators": [_POSITIVE_INT],
    "n_blocks": [Interval(Integral, 0, None, closed="left")],
    "width": [_POSITIVE_INT],
    "hidden_factor": [_POSITIVE],
    "n_layers_per_block": [_POSITIVE_INT],
    "activation": [StrOptions(set(ACTIVATIONS))],
    "normalization": [StrOptions({"batch", "layer"}), None],
    "skip": [StrOptions({"identity", "none", "gated", "rezero"})],
    "preactivation": ["boolean"],
    "tie_blocks": ["boolean"],
    "dropout": [_PART],
    "drop_path": [_PART],
    "init": [StrOptions({"auto", "he", "glorot", "lecun", "orthogonal", "normal"})],
    "init_scale": [_POSITIVE],
    "branch_scale": [StrOptions({"auto"}), _NOT_NEGATIVE],
    "categorical_features": ["array-like", StrOptions({"from_dtype"}), None],
    "numeric_embedding": [StrOptions({"piecewise", "periodic"}), None],
    "n_bins": [Interval(Integral, 2, None, closed="left")],
    "embedding_scale": [_POSITIVE, tuple, list],
    "n_frequencies": [_POSITIVE_INT],
    "frequency_scale": [_POSITIVE],
    "solver": [StrOptions({"muon", "adamw", "adam", "sgd"})],
    "learning_rate": [StrOptions({"one_cycle", "cosine", "flat_cosine", "constant"})],
    "learning_rate_init": [_POSITIVE],
    "hidden_learning_rate": [_POSITIVE],
    "weight_decay": [_NOT_NEGATIVE],
    "hidden_weight_decay": [_NOT_NEGATIVE],
    "momentum": [_PART],
    "beta_1": [_PART],
    "beta_2": [_PART],
    "epsilon": [_POSITIVE],
    "warmup_fraction": [_PART],
    "batch_size": [StrOptions({"auto"}), _POSITIVE_INT],
    "max_iter": [_POSITIVE_INT],
    "average_fraction": [_PART],
    "clip_norm": [_POSITIVE, None],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [_POSITIVE_INT, Options(Real, {np.inf})],
    "max_time": [_POSITIVE, None],
    "device": [str],
    "dtype": [StrOptions({"auto", "float32", "float64", "bfloat16"}), None],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
    "record_gradients": ["boolean"],
}
