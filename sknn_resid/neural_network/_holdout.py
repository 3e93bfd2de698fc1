"""The validation part of a fit: split off, or handed in."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from sknn_resid.engine.data import Features

FEWEST_TO_FALL_BACK = 5  # rows: below this scikit-learn's own split and errors apply
FEWEST_VALIDATION_ROWS = 5


@dataclass(frozen=True, eq=False)
class Holdout:
    """Rows to train on and rows to be judged by.

    Attributes
    ----------
    train_rows : ndarray of int64 or None
        None for all rows.
    validation_rows : ndarray of int64 or None
        Where the validation rows were split off; None if all rows serve as both, or were given.
    X, y, weight : validation rows in the engine's form
    """

    train_rows: np.ndarray | None
    validation_rows: np.ndarray | None
    X: Features
    y: np.ndarray
    weight: np.ndarray | None


def split_rows(
    X: Features,
    y: np.ndarray,
    weight: np.ndarray | None,
    *,
    fraction: float,
    rng: np.random.RandomState,
    stratify: bool,
) -> Holdout:
    """Split off a validation part, draw for draw as scikit-learn's MLP does.

    From 5 rows on, where fewer than 5 rows would be left to validate on, all rows serve as both
    (with a RuntimeWarning): the score of one or two rows says nothing.
    """
    n = int(X.shape[0])
    n_validation = math.ceil(fraction * n)
    if n >= FEWEST_TO_FALL_BACK and 0 < n_validation < FEWEST_VALIDATION_ROWS:
        warnings.warn(
            f"early_stopping: validation_fraction={fraction:g} of {n} rows would leave "
            f"{n_validation} validation rows, fewer than {FEWEST_VALIDATION_ROWS}; all rows are "
            "used for training and for validation. Raise validation_fraction, or pass X_val and "
            "y_val.",
            RuntimeWarning,
            stacklevel=2,
        )
        return Holdout(None, None, X, y, weight)
    train, validation = train_test_split(
        np.arange(n),
        random_state=rng,
        test_size=fraction,
        stratify=y.astype(bool) if stratify else None,
    )
    if len(validation) < 2:
        raise ValueError(
            "The validation set is too small. Increase 'validation_fraction' "
            "or the size of your dataset."
        )
    weight_validation = None if weight is None else weight[validation]
    if weight_validation is not None and not weight_validation.any():
        raise ValueError(
            "sample_weight: all rows that were split off for validation have weight zero. "
            "Raise validation_fraction, or pass X_val and y_val."
        )
    return Holdout(train, validation, X[validation], y[validation], weight_validation)
