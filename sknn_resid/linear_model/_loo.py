"""Leave-one-out errors for every penalty without a hat matrix.

``e_i(alpha) / (1 - h_i(alpha))`` with ``h_i = sum_k U_ik^2 f_k(alpha)``: one product of the squared
orthonormal rows with the table of factors gives the leverages of a block of rows for all penalties
at once; nothing of size n x n, or n x n_alphas x n_targets, is stored.

Allen (1974), Technometrics 16(1); Golub, Heath & Wahba (1979), Technometrics 21(2).
"""

from __future__ import annotations

import numpy as np

from ._factor import Factor
from ._filters import orthonormal_rows, shrinkage


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
    for rows, errors in loo_blocks(factor, X, Y, alphas, sample_weight):
        square = errors**2
        plain += square.sum(axis=1)
        w = None if sample_weight is None else sample_weight[rows]
        weighted += square.sum(axis=1) if w is None else np.einsum("i,ait->at", w, square)
    return weighted, plain


def loo_blocks(factor, X, Y, alphas, sample_weight=None):
    """Yield ``(rows, errors)``: indices of a block, errors of shape (n_alphas, n_rows, n_targets).

    Parameters as :func:`loo_squared_errors`. Rows of weight 0 are left out.
    """
    f = shrinkage(factor, alphas)  # (n_alphas, n_directions)
    fz = f[:, :, None] * factor.z  # (n_alphas, n_directions, n_targets)
    index = np.arange(len(X)) if sample_weight is None else np.flatnonzero(sample_weight > 0)
    step = max(1, 2**20 // max(1, len(alphas) * Y.shape[1] + f.shape[1]))
    for start in range(0, len(index), step):
        rows = index[start : start + step]
        U = orthonormal_rows(factor, X[rows])
        w = np.ones(len(rows)) if sample_weight is None else sample_weight[rows]
        slack = 1.0 - w * (f @ (U * U).T)  # (n_alphas, n_rows)
        errors = (Y[rows] - factor.y_shift) - U @ fz
        with np.errstate(divide="ignore", invalid="ignore"):
            errors /= np.where(slack > 16 * np.finfo(float).eps, slack, 0.0)[:, :, None]
        yield rows, np.where(np.isnan(errors), np.inf, errors)


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
        U = orthonormal_rows(factor, X[rows])
        w = 1.0 if sample_weight is None else sample_weight[rows, None]
        slack = 1.0 - w * ((U * U) @ f.T)
        errors = (Y[rows] - factor.y_shift) - U @ (f.T * factor.z)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors /= np.where(slack > 16 * np.finfo(float).eps, slack, 0.0)
        out[rows] = Y[rows] - np.where(np.isnan(errors), np.inf, errors)
    return out
