"""Checks that scikit-learn has no words for: messages name parameter, rule, value and fix."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from sknn_resid._sklearn_compat import check_sample_weight


def check_weights(sample_weight: Any, X: Any, name: str = "sample_weight") -> np.ndarray | None:
    """Weights as a float64 array of shape (n_samples,), or None.

    Raises
    ------
    ValueError
        If a weight is negative, not finite, if all are zero, or if their number is not that of
        the rows of ``X``.
    """
    if sample_weight is None:
        return None
    try:
        weights = check_sample_weight(sample_weight, X, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if (weights < 0).any():
        worst = int(np.argmin(weights))
        raise ValueError(
            f"{name}: weights must not be negative, got Negative values in data passed to "
            f"`sample_weight`: {weights[worst]:g} for row {worst}. Use 0 to leave a row out."
        )
    return weights


def hidden_widths(
    hidden_layer_sizes: int | Sequence[int], n_layers: int | None, width: int | None
) -> tuple[int, ...]:
    """Widths of the hidden layers; the scalars win over the tuple where they are not None.

    ``width`` alone gives every layer of the tuple that width; ``n_layers`` alone repeats the first
    width of the tuple.
    """
    if isinstance(hidden_layer_sizes, Sequence | np.ndarray):
        sizes = list(hidden_layer_sizes)
    else:
        sizes = [hidden_layer_sizes]
    if n_layers is not None or width is not None:
        count = len(sizes) if n_layers is None else int(n_layers)
        if width is None and not sizes and count:
            raise ValueError(
                f"n_layers={n_layers} needs a width: hidden_layer_sizes is empty. Set width=."
            )
        sizes = [int(width) if width is not None else sizes[0]] * count
    for size in sizes:
        if not isinstance(size, Integral) or size <= 0:
            raise ValueError(
                f"hidden_layer_sizes must be > 0, got {list(sizes)}: every hidden layer needs a "
                "whole number of units, at least 1."
            )
    return tuple(int(size) for size in sizes)


def check_validation_arguments(X_val: Any, y_val: Any, sample_weight_val: Any) -> None:
    """Refuse half a validation set."""
    if (X_val is None) != (y_val is None):
        given, missing = ("X_val", "y_val") if y_val is None else ("y_val", "X_val")
        raise ValueError(
            f"{given} was given without {missing}: a validation set needs both. "
            f"Pass {missing} too, or neither (then early_stopping=True splits the training rows)."
        )
    if sample_weight_val is not None and X_val is None:
        raise ValueError(
            "sample_weight_val was given without X_val and y_val: it weighs the rows of X_val. "
            "Pass X_val and y_val too."
        )
