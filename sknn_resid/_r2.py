"""R2 of predictions, for callers that ask hundreds of times in one fit.

:func:`sklearn.metrics.r2_score` looks at its arguments for half a millisecond before it computes,
which was nine tenths of ``RidgeCV(cv=3)`` on small tables and half of a network's early stopping.
Here the arguments come from within the package and were looked at before; the sums are the same.
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import r2_score


def r2_of_checked(
    y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None = None
) -> float:
    """What `sklearn.metrics.r2_score` gives, to the last bit.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n,) or (n, n_targets)
        Finite numbers.
    sample_weight : ndarray of shape (n,) or None
        Weights, not all of them zero.

    Returns
    -------
    float
        The mean over targets. A constant target gives 1.0 where it is met exactly, else 0.0.

    Examples
    --------
    >>> round(r2_of_checked(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 2.0])), 3)
    0.5
    """
    if len(y_true) < 2:  # not defined: the warning is scikit-learn's too
        return float(r2_score(y_true, y_pred, sample_weight=sample_weight))
    y_true, y_pred = (a.reshape(len(a), -1) for a in _floating(y_true, y_pred, sample_weight))
    weight: float | np.ndarray = 1.0
    if sample_weight is not None:
        sample_weight = sample_weight.astype(y_true.dtype, copy=False)
        weight = sample_weight[:, None]
    mean = np.average(y_true, axis=0, weights=sample_weight)
    unexplained = np.sum(weight * (y_true - y_pred) ** 2, axis=0)
    total = np.sum(weight * (y_true - mean) ** 2, axis=0)
    scores = np.ones(len(total), dtype=total.dtype)
    usual = (unexplained != 0) & (total != 0)
    scores[usual] = 1 - unexplained[usual] / total[usual]
    scores[(unexplained != 0) & (total == 0)] = 0.0
    return float(np.average(scores))


def _floating(
    y_true: np.ndarray, y_pred: np.ndarray, sample_weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions in the widest floating type of the three, as scikit-learn has it."""
    given = [a.dtype for a in (y_true, y_pred, sample_weight) if a is not None]
    floating = [dtype for dtype in given if dtype.kind == "f"]
    dtype = np.result_type(*floating) if floating else np.dtype(np.float64)
    return y_true.astype(dtype, copy=False), y_pred.astype(dtype, copy=False)
