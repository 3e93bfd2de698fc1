"""Jackknife+ prediction intervals from leave-one-out predictions in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._filters import orthonormal_rows, shrinkage


@dataclass(frozen=True, eq=False)
class LeaveOneOutFits:
    """All n fits that leave one row out, in the size of the training rows.

    With ``u(x)`` the row x in the directions of the factorisation, the fit without row i predicts
    ``prediction(x) - w_i u(x)' diag(f) u_i e_i / (1 - h_i)``.

    Parameters
    ----------
    directions : ndarray of shape (n_rows, n_directions)
        Rows ``u_i``; only rows of positive weight.
    loo_residuals : ndarray of shape (n_rows, n_targets)
        ``e_i / (1 - h_i)``.
    weights : ndarray of shape (n_rows,)
        Weights; ones without any.
    """

    directions: np.ndarray
    loo_residuals: np.ndarray
    weights: np.ndarray


def leave_one_out_fits(
    factor: Factor, X: np.ndarray, loo_residuals: np.ndarray, sample_weight: np.ndarray | None
) -> LeaveOneOutFits:
    """Keep what the n fits need.

    Parameters
    ----------
    factor : Factor
        The factorisation.
    X : ndarray of shape (n_samples, n_features)
        Training rows.
    loo_residuals : ndarray of shape (n_samples, n_targets)
        Leave-one-out residuals at the penalty of the fit.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights.

    Returns
    -------
    LeaveOneOutFits
    """
    if sample_weight is None:
        return LeaveOneOutFits(orthonormal_rows(factor, X), loo_residuals, np.ones(len(X)))
    keep = sample_weight > 0
    rows = orthonormal_rows(factor, X[keep])
    return LeaveOneOutFits(rows, loo_residuals[keep], sample_weight[keep])


def jackknife_plus(
    fits: LeaveOneOutFits,
    factor: Factor,
    alpha: np.ndarray,
    X: np.ndarray,
    predicted: np.ndarray,
    level: float,
) -> np.ndarray:
    """Jackknife+ intervals (Barber, Candes, Ramdas and Tibshirani 2021, Annals of Statistics 49).

    With the n predictions ``m_i(x)`` of fits without row i and the errors ``R_i`` these make on
    their row: from the ``floor((1 - level)(n + 1))``-th smallest of ``m_i(x) - |R_i|`` to the
    ``ceil(level (n + 1))``-th smallest of ``m_i(x) + |R_i|``. With weights, ranks are sums of
    weights.

    Parameters
    ----------
    fits : LeaveOneOutFits
        The n fits.
    factor : Factor
        The factorisation.
    alpha : ndarray of shape (n_targets,)
        Penalties.
    X : ndarray of shape (n_rows, n_features)
        Where to predict.
    predicted : ndarray of shape (n_rows, n_targets)
        Predictions there.
    level : float
        Nominal coverage.

    Returns
    -------
    ndarray of shape (n_rows, n_targets, 2)
        -inf and inf where there are too few rows for the level.
    """
    found = np.empty((*predicted.shape, 2))
    f = shrinkage(factor, alpha)
    size = np.abs(fits.loo_residuals)
    step = max(1, 2**22 // max(1, len(fits.weights)))
    for start in range(0, len(X), step):
        part = slice(start, start + step)
        u = orthonormal_rows(factor, X[part])
        for target in range(len(alpha)):
            influence = (u * f[target]) @ fits.directions.T
            change = fits.weights * fits.loo_residuals[:, target]
            with np.errstate(invalid="ignore"):
                without = predicted[part, target, None] - influence * change
                low, high = without - size[:, target], without + size[:, target]
            # A row of leverage 1 has no fit without it: it bounds nothing.
            undefined = np.isinf(size[:, target])
            low[:, undefined], high[:, undefined] = -np.inf, np.inf
            found[part, target, 0] = -_order_statistic(-low, fits.weights, level)
            found[part, target, 1] = _order_statistic(high, fits.weights, level)
    return found


def _order_statistic(values: np.ndarray, weights: np.ndarray, level: float) -> np.ndarray:
    """Smallest value of each row that, with all below it, weighs ``level (n + 1)``; inf if none."""
    order = np.argsort(values, axis=1, kind="stable")
    reached = np.cumsum(weights[order], axis=1)
    wanted = level * (weights.sum() + 1.0)
    # (1 - 1e-12): level (n + 1) is a whole number up to rounding in the case that matters most.
    position = np.sum(reached < wanted * (1.0 - 1e-12), axis=1)
    enough = position < values.shape[1]
    position = np.minimum(position, values.shape[1] - 1)
    chosen = np.take_along_axis(order, position[:, None], axis=1)
    found = np.take_along_axis(values, chosen, axis=1)[:, 0]
    return np.where(enough, found, np.inf)
