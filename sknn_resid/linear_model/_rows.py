"""What has to be said about each training row: leverage, leave-one-out residual, and the sandwich.

All of it is computed once, block by block, while the rows are there; nothing of size n x n, and no
copy of X, is kept.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from sknn_resid.linear_model import _compiled
from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._filters import complement, distinct, shrinkage, training_rows
from sknn_resid.linear_model._inference import ratio
from sknn_resid.linear_model._least_squares import Solution, residuals

# 1 - h below this is rounding: the row determines its own fit.
MIN_SLACK = 16 * np.finfo(np.float64).eps
COVARIANCES = ("nonrobust", "HC0", "HC1", "HC2", "HC3")


@dataclass(frozen=True, eq=False)
class RowStatistics:
    """Statistics of the training rows.

    Parameters
    ----------
    leverage : ndarray of shape (n_samples, n_alphas)
        Diagonals of the hat matrices, one per distinct penalty.
    loo_residuals : ndarray of shape (n_samples, n_targets)
        Residuals of fits without the row; inf where the leverage is 1.
    """

    leverage: np.ndarray
    loo_residuals: np.ndarray


def residuals_and_statistics(
    solution: Solution,
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alpha: np.ndarray,
    sample_weight: np.ndarray | None,
    leverages: np.ndarray | None = None,
) -> tuple[np.ndarray, RowStatistics]:
    """Residuals of the training rows, and what is said about them.

    Parameters
    ----------
    solution : Solution
        At these penalties.
    factor, X, alpha, sample_weight, leverages
        As :func:`row_statistics`.
    Y : ndarray of shape (n_samples, n_targets)
        Targets.
    """
    if leverages is None and isinstance(factor.directions, np.ndarray):
        values, _ = distinct(alpha)
        found = None
        if len(values) == 1:
            f = shrinkage(factor, values)[0]
            parts = solution.coef, solution.intercept, factor.directions, factor.shift, f
            found = _compiled.rows(X, Y, *parts, solution.reach, sample_weight)
        if found is not None:
            well, errors, leverages, without = found
            if well:
                return errors, RowStatistics(leverages, without)
    errors = residuals(solution, X, Y)
    return errors, row_statistics(factor, X, errors, alpha, sample_weight, leverages)


def row_statistics(
    factor: Factor,
    X: np.ndarray,
    residuals: np.ndarray,
    alpha: np.ndarray,
    sample_weight: np.ndarray | None,
    leverages: np.ndarray | None = None,
) -> RowStatistics:
    """Leverages and leave-one-out residuals of the training rows.

    ``h_i = w_i sum_k U_ik^2 f_k`` and ``e_i / (1 - h_i)`` (Allen 1974), which is exact for every
    penalty. A row of weight 0 has leverage 0 and its plain residual.

    Parameters
    ----------
    factor : Factor
        Of these rows.
    X : ndarray of shape (n_samples, n_features)
        The rows.
    residuals : ndarray of shape (n_samples, n_targets)
        Plain residuals.
    alpha : ndarray of shape (n_targets,)
        Penalty of each target.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights.
    leverages : ndarray of shape (n_samples, n_distinct_alphas) or None, default=None
        One column for each of ``np.unique(alpha)``, where a pass over the rows has made them.

    Returns
    -------
    RowStatistics
    """
    values, group = distinct(alpha)
    h = leverages
    if h is None:
        f = shrinkage(factor, values)
        h = np.empty((X.shape[0], values.size))
        for part, U in _blocks(factor, X):
            h[part] = (U * U) @ f.T
        if sample_weight is not None:
            h *= sample_weight[:, None]
    # Rounding may leave a leverage just outside of [0, 1].
    np.clip(h, 0.0, 1.0, out=h)
    slack = 1.0 - h
    slack[slack <= MIN_SLACK] = 0.0
    slack = slack[:, group]
    # A row that nothing but itself determines has no prediction without it; the sign of its
    # residual is rounding.
    return RowStatistics(h, np.where(slack > 0, ratio(residuals, slack), np.inf))


def sandwich(
    factor: Factor,
    X: np.ndarray,
    residuals: np.ndarray,
    alpha: np.ndarray,
    sample_weight: np.ndarray | None,
    kind: str,
    n_obs: float,
    repetitions: bool,
) -> np.ndarray:
    """Heteroscedasticity-consistent covariance of (intercept of shifted columns, coefficients).

    ``B diag(f) [sum_i omega_i u_i u_i'] diag(f) B'`` with the rows ``u_i`` of ``A B`` and

    - HC0 (White 1980): ``omega_i = e_i^2``
    - HC1 (Hinkley 1977): ``e_i^2 n / (n - tr H)``
    - HC2 (Horn, Horn and Duncan 1975): ``e_i^2 / (1 - h_i)``
    - HC3 (MacKinnon and White 1985): ``e_i^2 / (1 - h_i)^2``

    times ``w_i`` where weights count repetitions (h_i is then that of one of the copies), and
    times ``w_i^2`` where they are precisions.

    Parameters
    ----------
    factor, X, residuals, alpha, sample_weight
        As :func:`row_statistics`.
    kind : {'HC0', 'HC1', 'HC2', 'HC3'}
        Which.
    n_obs : float
        Number of observations, for HC1.
    repetitions : bool
        Whether weights count repetitions.

    Returns
    -------
    ndarray of shape (n_targets, n_features + 1, n_features + 1)
        NaN where a leverage of 1 leaves HC2 or HC3 undefined, and for HC1 without residual degrees
        of freedom.
    """
    f = shrinkage(factor, alpha)
    n_targets, n_directions = f.shape
    meat = np.zeros((n_targets, n_directions, n_directions))
    for part, U in _blocks(factor, X):
        w = np.ones(len(U)) if sample_weight is None else sample_weight[part]
        own = (U * U) @ f.T  # leverage of one copy
        h = own if repetitions else w[:, None] * own
        omega = residuals[part] ** 2
        if kind in ("HC2", "HC3"):
            slack = np.where(1.0 - h > MIN_SLACK, 1.0 - h, np.nan)
            omega = omega / (slack if kind == "HC2" else slack**2)
        omega = omega * (w if repetitions else w**2)[:, None]
        omega[w == 0] = 0.0
        for target in range(n_targets):
            meat[target] += (U * omega[:, target, None]).T @ U
    if kind == "HC1":
        left = n_obs - f.sum(axis=1)
        meat *= np.where(left > 0, ratio(n_obs, left), np.nan)[:, None, None]
    root = factor.basis * f[:, None, :]
    # Without residual degrees of freedom there are no residuals: 0 would claim to know.
    left = n_obs - n_directions + np.sum(complement(factor, alpha) ** 2, axis=1)
    meat[~(left > 0)] = np.nan
    found = root @ meat @ root.transpose(0, 2, 1)
    return (found + found.transpose(0, 2, 1)) / 2.0


def warn_full_leverage(
    statistics: RowStatistics, sample_weight: np.ndarray | None, kind: str
) -> None:
    """Warn of rows that leave HC2 and HC3 undefined."""
    full = 1.0 - statistics.leverage.max(axis=1) <= MIN_SLACK
    if sample_weight is not None:
        full &= sample_weight > 0
    if full.any():
        warnings.warn(
            f"cov_type={kind!r} is not defined, because row {int(np.argmax(full))} has a leverage "
            "of 1 (it alone determines a coefficient, and has no residual): standard errors are "
            "NaN. Use cov_type='HC1', or leave the row and its coefficient out.",
            RuntimeWarning,
            stacklevel=5,
        )


def _blocks(factor: Factor, X: np.ndarray):
    """Slices of rows, and their orthonormal rows without the root of the weight."""
    step = max(1, 2**18 // max(1, factor.singular_values.size))
    for start in range(0, X.shape[0], step):
        part = slice(start, start + step)
        yield part, training_rows(factor, X, part)
