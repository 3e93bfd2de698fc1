"""Leave-one-out errors for every penalty without a hat matrix.

``e_i(alpha) / (1 - h_i(alpha))`` with ``h_i = sum_k U_ik^2 f_k(alpha)``: one product of the squared
orthonormal rows with the table of factors gives the leverages of a block of rows for all penalties
at once; nothing of size n x n, or n x n_alphas x n_targets, is stored.

Allen (1974), Technometrics 16(1); Golub, Heath & Wahba (1979), Technometrics 21(2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ._factor import Factor
from ._filters import shrinkage, training_rows

MIN_SLACK = 16 * float(np.finfo(float).eps)  # 1 - h below this is 0 but for rounding


def loo_squared_errors(
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alphas: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over rows of squared leave-one-out errors, for each penalty and target.

    Parameters
    ----------
    factor : Factor
        Of the same X, Y and sample_weight.
    X : ndarray of shape (n_samples, n_features)
    Y : ndarray of shape (n_samples, n_targets)
    alphas : ndarray of shape (n_alphas,)
    sample_weight : ndarray of shape (n_samples,) or None, default=None

    Returns
    -------
    weighted : ndarray of shape (n_alphas, n_targets)
        ``sum_i w_i e_(i)^2``, what the choice of a penalty minimises.
    plain : ndarray of shape (n_alphas, n_targets)
        ``sum_i e_(i)^2`` over rows of positive weight.

    Notes
    -----
    A row that nothing but itself determines (leverage 1) has no leave-one-out prediction by this
    formula; its error is taken as infinite, so that such a penalty is never chosen.
    """
    weighted = np.zeros((len(alphas), Y.shape[1]))
    plain = np.zeros_like(weighted)
    for rows, errors in _blocks(factor, X, Y, alphas, sample_weight):
        plain += _infinite(np.einsum("iat,iat->at", errors, errors))
        if sample_weight is not None:
            w = sample_weight[rows]
            weighted += _infinite(np.einsum("iat,iat,i->at", errors, errors, w))
    return (plain.copy() if sample_weight is None else weighted), plain


def _infinite(sums: np.ndarray) -> np.ndarray:
    """Without predictions (0 / 0): infinite."""
    return np.where(np.isnan(sums), np.inf, sums)


def loo_blocks(
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alphas: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Leave-one-out errors, block of rows by block; parameters as :func:`loo_squared_errors`.

    Yields
    ------
    rows : ndarray of int
        Rows of positive weight.
    errors : ndarray of shape (n_alphas, len(rows), n_targets)
    """
    for rows, errors in _blocks(factor, X, Y, alphas, sample_weight):
        yield rows, _infinite(errors).transpose(1, 0, 2)


def _blocks(factor, X, Y, alphas, sample_weight):
    """Yield rows and errors (n_rows, n_alphas, n_targets), NaN for 0 / 0."""
    targets = Y.shape[1]
    f = shrinkage(factor, alphas)  # (n_alphas, n_directions)
    fz = (f.T[:, :, None] * factor.z[:, None]).reshape(f.shape[1], -1)
    index = None if sample_weight is None else np.flatnonzero(sample_weight > 0)
    n = len(X) if index is None else len(index)
    step = int(np.clip(2**18 // max(1, len(alphas) * targets), 64, 4096))
    for start in range(0, n, step):
        stop = min(n, start + step)
        rows = np.arange(start, stop) if index is None else index[start:stop]
        part = slice(start, stop) if index is None else rows
        U = training_rows(factor, X, part)
        errors = (U @ fz).reshape(len(rows), len(alphas), targets)
        np.subtract((Y[part] - factor.y_shift)[:, None], errors, out=errors)
        U *= U
        h = U @ f.T
        if index is not None:
            h *= sample_weight[rows, None]
        np.subtract(1.0, h, out=h)
        if h.min(initial=1.0) > MIN_SLACK:
            errors /= h[:, :, None]
        else:
            h[h <= MIN_SLACK] = 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                errors /= h[:, :, None]
        yield rows, errors


def loo_predictions(
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alpha: np.ndarray | float,
    sample_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Prediction for each row from a fit without it, at one penalty per target.

    Parameters
    ----------
    factor, X, Y, sample_weight
        As :func:`loo_squared_errors`.
    alpha : float or ndarray of shape (n_targets,)

    Returns
    -------
    ndarray of shape (n_samples, n_targets)
        ``-inf`` or ``inf`` where the leverage is 1. A row of weight 0 gets the plain prediction.
    """
    targets = Y.shape[1]
    alpha = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (targets,))
    f = shrinkage(factor, alpha)  # (n_targets, n_directions)
    out = np.empty((len(X), targets))
    step = max(1, 2**18 // max(1, f.shape[1]))
    for start in range(0, len(X), step):
        rows = slice(start, start + step)
        U = training_rows(factor, X, rows)
        w = 1.0 if sample_weight is None else sample_weight[rows, None]
        slack = 1.0 - w * ((U * U) @ f.T)
        errors = (Y[rows] - factor.y_shift) - U @ (f.T * factor.z)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors /= np.where(slack > MIN_SLACK, slack, 0.0)
        out[rows] = Y[rows] - np.where(np.isnan(errors), np.inf, errors)
    return out
