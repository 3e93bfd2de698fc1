"""What values the parameters of `ResNetClassifier` may take, checked in fit."""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.metrics import get_scorer_names

from sknn_resid._sklearn_compat import Interval, Options, StrOptions

_POSITIVE_INT = Interval(Integral, 1, None, closed="left")
_COUNT = Interval(Integral, 0, None, closed="left")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_POSITIVE = Interval(Real, 0, None, closed="neither")
_PART = Interval(Real, 0, 1, closed="left")

AUGMENTATIONS = ("crop", "crop_flip", "crop_alternating_flip", "flip", "alternating_flip")
LEARNING_RATES = ("one_cycle", "milestones", "cosine", "constant")

CONSTRAINTS: dict[str, list[Any]] = {
    "depth": [_POSITIVE_INT],
    "width": [_POSITIVE_INT, None],
    "stem": [StrOptions({"auto", "cifar", "imagenet", "imagenet_3x3"})],
    "shortcut": [StrOptions({"auto", "A", "B", "C"}), None],
    "option_a_padding": [StrOptions({"both", "end"})],
    "stride_in_1x1": ["boolean"],
    "zero_init_residual": ["boolean"],
    "drop_path": [_PART],
    "preactivation": ["boolean"],
    "image_shape": [tuple, list, None],
    "channels": [StrOptions({"auto", "first", "last"})],
    "pixel_mean": ["array-like", Real, None],
    "pixel_std": ["array-like", _POSITIVE, None],
    "augmentation": [StrOptions({"auto", *AUGMENTATIONS}), None],
    "crop_padding": [_COUNT, StrOptions({"auto"})],
    "cutout": [_COUNT],
    "mixup": [_NOT_NEGATIVE],
    "solver": [StrOptions({"sgd", "adamw"})],
    "learning_rate": [StrOptions(set(LEARNING_RATES))],
    "learning_rate_init": [_POSITIVE],
    "milestones": ["array-like"],
    "weight_decay": [_NOT_NEGATIVE],
    "momentum": [_PART],
    "nesterovs_momentum": ["boolean"],
    "warmup_fraction": [_PART],
    "average_fraction": [_PART],
    "label_smoothing": [_PART],
    "clip_norm": [_POSITIVE, None],
    "batch_size": [Interval(Integral, 2, None, closed="left")],
    "accumulate_steps": [_POSITIVE_INT],
    "max_iter": [_POSITIVE_INT],
    "shuffle": ["boolean"],
    "early_stopping": ["boolean"],
    "early_stopping_metric": [StrOptions({"score", "loss", *get_scorer_names()}), callable],
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "n_iter_no_change": [_POSITIVE_INT, Options(Real, {np.inf})],
    "tol": [_NOT_NEGATIVE],
    "max_time": [_POSITIVE, None],
    "class_weight": [dict, list, StrOptions({"balanced"}), None],
    "warm_start": ["boolean"],
    "checkpoint_dir": [str, os.PathLike, None],
    "weights": [str, os.PathLike, None],
    "freeze": [str, None],
    "body_lr_factor": [_NOT_NEGATIVE],
    "test_augmentation": [StrOptions({"flip", "ten_crop"}), None],
    "features": [str],
    "record_gradients": ["boolean"],
    "device": [str],
    "dtype": [StrOptions({"auto", "float32", "float64", "bfloat16", "float16"})],
    "data_parallel": ["boolean"],
    "compile": ["boolean"],
    "deterministic": ["boolean"],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}
