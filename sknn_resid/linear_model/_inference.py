"""What follows from coefficients, their covariance and the degrees of freedom: plain formulas.

Nothing here knows of estimators or of how the numbers came about. Degrees of freedom that are not
positive give NaN, never a number that looks like an answer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


class InformationCriteria(NamedTuple):
    """Gaussian log-likelihood and the two criteria, each an array of shape (n_targets,)."""

    log_likelihood: np.ndarray
    aic: np.ndarray
    bic: np.ndarray


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """``numerator / denominator`` without numpy's warnings: 0/0 is NaN, x/0 is inf.

    Parameters
    ----------
    numerator, denominator : array-like
        Any shapes that broadcast.

    Returns
    -------
    ndarray

    Examples
    --------
    >>> ratio([1.0, 0.0, 3.0], [2.0, 0.0, 0.0])
    array([0.5, nan, inf])
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.divide(numerator, denominator)


def row_norms(matrix: np.ndarray) -> np.ndarray:
    """Euclidean norm of each row, safe from overflow and underflow.

    Parameters
    ----------
    matrix : ndarray of shape (n_rows, n_columns)
        Any real matrix; without columns all norms are 0.

    Returns
    -------
    ndarray of shape (n_rows,)

    Examples
    --------
    >>> row_norms(np.array([[3e200, 4e200], [0.0, 0.0]]))
    array([5.e+200, 0.e+000])
    """
    largest = np.abs(matrix).max(axis=1, initial=0.0, keepdims=True)
    # A power of two, so that scaling rounds nothing. NaN and inf pass through unscaled.
    usable = np.isfinite(largest) & (largest > 0)
    scale = np.ldexp(1.0, np.frexp(np.where(usable, largest, 1.0))[1] - 1)
    return scale[:, 0] * np.sqrt(np.sum((matrix / scale) ** 2, axis=1))


def two_sided_p_value(t: np.ndarray, df: np.ndarray | float) -> np.ndarray:
    """``P(|T| >= |t|)`` for Student's T with ``df`` degrees of freedom.

    Parameters
    ----------
    t : array-like
        t values.
    df : array-like or float
        Degrees of freedom; NaN results where they are not positive.

    Returns
    -------
    ndarray

    Notes
    -----
    Taken from the lower tail, which keeps its relative precision far out; ``1 - cdf`` would be
    exactly 0 from about t = 9 on.

    Examples
    --------
    >>> two_sided_p_value([0.0, 2.0, 40.0], 10.0).round(6)
    array([1.      , 0.073388, 0.      ])
    >>> bool(two_sided_p_value(40.0, 100.0) > 0)
    True
    """
    t = np.asarray(t, dtype=np.float64)
    df = np.where(np.asarray(df) > 0, df, np.nan)
    return 2.0 * special.stdtr(df, -np.abs(t))


def t_quantile(level: float, df: np.ndarray | float) -> np.ndarray:
    """Factor of a two-sided interval at ``level``: the (1 + level) / 2 quantile of Student's t.

    Parameters
    ----------
    level : float
        Coverage, strictly between 0 and 1.
    df : array-like or float
        Degrees of freedom; NaN results where they are not positive.

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        If the level is outside (0, 1).

    Examples
    --------
    >>> float(t_quantile(0.95, 10).round(4))
    2.2281
    """
    if not 0.0 < level < 1.0:
        raise ValueError(
            f"level: must be strictly between 0 and 1, got {level!r}. Use level=0.95 for 95 %."
        )
    df = np.where(np.asarray(df) > 0, df, np.nan)
    # From the lower tail: (1 - level) / 2 is exact to more digits than (1 + level) / 2.
    return -special.stdtrit(df, (1.0 - level) / 2.0)


def r2_from_sums(rss: np.ndarray, tss: np.ndarray) -> np.ndarray:
    """``1 - rss / tss``; for a constant target 1.0 where the fit is exact, else 0.0.

    The convention for a constant target is that of :func:`sklearn.metrics.r2_score`.

    Parameters
    ----------
    rss, tss : array-like of shape (n_targets,)
        Residual sum of squares and total sum of squares around the mean (around 0 without an
        intercept), both weighted.

    Returns
    -------
    ndarray of shape (n_targets,)

    Examples
    --------
    >>> r2_from_sums([1.0, 0.0, 1.0], [4.0, 0.0, 0.0])
    array([0.75, 1.  , 0.  ])
    """
    rss, tss = np.asarray(rss, dtype=np.float64), np.asarray(tss, dtype=np.float64)
    usual = 1.0 - ratio(rss, tss)
    return np.where(tss > 0, usual, np.where(rss > 0, 0.0, 1.0))


def information_criteria(
    rss: np.ndarray, n_obs: float, df_fit: np.ndarray, sum_log_weights: float = 0.0
) -> InformationCriteria:
    """Gaussian log-likelihood at its maximum over the variance, AIC and BIC.

    ``log L = -n/2 (log(2 pi rss / n) + 1) + 1/2 sum_i log w_i``, ``AIC = -2 log L + 2 df``,
    ``BIC = -2 log L + log(n) df``, where df counts coefficients and intercept but not the variance,
    as statsmodels does (Akaike 1974; Schwarz 1978).

    Parameters
    ----------
    rss : ndarray of shape (n_targets,)
        Residual sums of squares, weighted. 0 gives an infinite likelihood.
    n_obs : float
        Number of observations.
    df_fit : ndarray of shape (n_targets,) or float
        Degrees of freedom of the fit, with the intercept's.
    sum_log_weights : float
        Of precision weights; 0 for repetitions.

    Returns
    -------
    InformationCriteria

    Examples
    --------
    >>> information_criteria(np.array([8.0]), 4, 2).aic.round(4)
    array([18.1241])
    """
    with np.errstate(divide="ignore"):
        log_likelihood = -0.5 * n_obs * (np.log(2.0 * np.pi * rss / n_obs) + 1.0)
    log_likelihood = log_likelihood + 0.5 * sum_log_weights
    return InformationCriteria(
        log_likelihood,
        -2.0 * log_likelihood + 2.0 * df_fit,
        -2.0 * log_likelihood + np.log(n_obs) * df_fit,
    )
