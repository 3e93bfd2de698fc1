"""`FittedLinear`: what a fit leaves behind, and the uncertainties that follow from it.

Plain arrays: no rows, no estimator, no device memory. With the basis B of the factorisation,
``U = sqrt(w) A B`` orthonormal, ``f_k = d_k^2 / (d_k^2 + lambda)`` and the noise variance s^2,

- the covariance of (intercept, coefficients) is ``s^2 B diag(f^2) B'``: conditional on lambda, and
  the usual one for lambda = 0. ``s^2 (X'X + lambda I)^-1``, which some packages report for ridge,
  ignores that the penalty is no data;
- ``tr(H) = sum f`` and ``tr(2H - HH') = sum f (2 - f)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._filters import complement, distinct, leverage, shrinkage
from sknn_resid.linear_model._inference import ratio, row_norms
from sknn_resid.linear_model._refined import Refined


@dataclass(frozen=True, eq=False)
class FittedLinear:
    """State of a fitted linear model; every array is float64 on the host.

    Parameters
    ----------
    factor : Factor
        The factorisation.
    alpha : ndarray of shape (n_targets,)
        lambda of each target.
    rss : ndarray of shape (n_targets,)
        Weighted residual sums of squares.
    n_obs : float
        Number of observations that degrees of freedom count from.
    sum_log_weights : float, default=0.0
        Of precision weights, else 0.
    refined : Refined or None, default=None
        Covariances beyond plain float64; None derives them from the factorisation.
    robust : ndarray of shape (n_targets, n_features + 1, n_features + 1) or None, default=None
        Covariance of (intercept of the shifted columns, coefficients) that is robust to unequal
        variances; None for the classical one.
    mean : ndarray of shape (n_features,) or None, default=None
        Weighted means of the columns where the rank is deficient: the part of them that the
        factorisation does not see. None at full rank.
    """

    factor: Factor
    alpha: np.ndarray
    rss: np.ndarray
    n_obs: float
    sum_log_weights: float = 0.0
    refined: Refined | None = None
    robust: np.ndarray | None = None
    mean: np.ndarray | None = None

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return self.alpha.size

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.factor.n_features

    @property
    def shrinkage(self) -> np.ndarray:
        """``f`` of the directions without the intercept's, shape (n_targets, rank)."""
        return shrinkage(self.factor, self.alpha)[:, int(self.factor.fit_intercept) :]

    # Degrees of freedom

    @property
    def df_fit(self) -> np.ndarray:
        """``tr(H)`` with the intercept's 1, shape (n_targets,)."""
        return shrinkage(self.factor, self.alpha).sum(axis=1)

    @cached_property
    def df_resid(self) -> np.ndarray:
        """``n - tr(2H - HH')``, shape (n_targets,).

        As ``n - n_directions + sum (1 - f)^2``: at ``alpha = 0`` the whole number, at ``n <= p``
        and a small alpha no difference of nearly equal numbers.
        """
        left = self.n_obs - self.factor.singular_values.size
        return left + np.sum(complement(self.factor, self.alpha) ** 2, axis=1)

    @cached_property
    def sigma2(self) -> np.ndarray:
        """Noise variance ``rss / df_resid``, shape (n_targets,); NaN where no df are left."""
        df = self.df_resid
        return np.where(df > 0, ratio(self.rss, np.where(df > 0, df, 1.0)), np.nan)

    @property
    def adjusted_r2(self) -> np.ndarray:
        """``1 - s^2 / (tss / (n - 1))`` (n without an intercept), shape (n_targets,)."""
        df_total = self.n_obs - float(self.factor.fit_intercept)
        total = np.where(df_total > 0, self.factor.tss, np.nan) / max(df_total, 1.0)
        return 1.0 - ratio(self.sigma2, total)

    # Covariance of the coefficients

    def _roots(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Targets that share a penalty, and a root of their unscaled covariance.

        Rows of the root: the intercept of the shifted columns, then the coefficients.
        """
        values, group = distinct(self.alpha)
        for number, alpha in enumerate(values):
            root = self.factor.basis * shrinkage(self.factor, alpha)
            yield np.flatnonzero(group == number), root

    def covariance(self) -> np.ndarray:
        """Covariance of the coefficients, shape (n_targets, n_features, n_features)."""
        if self.robust is not None:
            return self.robust[:, 1:, 1:].copy()
        found = np.empty((self.n_targets, self.n_features, self.n_features))
        sigma2 = self.sigma2
        refined = None if self.refined is None else self.refined.found
        if refined is not None and refined.covariances is not None:
            for target, number in enumerate(refined.which):
                found[target] = sigma2[target] * refined.covariances[number]
            return found
        for targets, root in self._roots():
            product = root[1:] @ root[1:].T
            for target in targets:
                found[target] = sigma2[target] * product
        return found

    @cached_property
    def can_estimate(self) -> bool:
        """Whether there are residual degrees of freedom for every target."""
        return bool((self.df_resid > 0).all())

    def standard_errors(self) -> np.ndarray:
        """Standard errors of the coefficients, shape (n_targets, n_features)."""
        return self._standard_errors.copy()

    @cached_property
    def _standard_errors(self) -> np.ndarray:
        if self.robust is not None:
            return np.sqrt(np.diagonal(self.robust, axis1=1, axis2=2)[:, 1:])
        sigma = np.sqrt(self.sigma2)[:, None]
        if self.refined is not None:
            return sigma * np.sqrt(self.refined.found.variances)
        norms = np.empty((self.n_targets, self.n_features))
        for targets, root in self._roots():
            norms[targets] = row_norms(root[1:])
        return sigma * norms

    # The intercept

    def intercept_variance(self) -> np.ndarray:
        """Variance of the intercept, shape (n_targets,); 0 without one.

        ``s^2 / sum w + mean' Cov mean``: that of the fitted value at the row 0.
        """
        if not self.factor.fit_intercept:
            return np.zeros(self.n_targets)
        if self.robust is None and self.refined is not None:
            return self.sigma2 * self.refined.found.intercept_variances
        return self.mean_variance(np.zeros((1, self.n_features)))[0]

    def intercept_covariance(self) -> np.ndarray:
        """Covariance of the intercept with the coefficients, shape (n_targets, n_features)."""
        found = np.zeros((self.n_targets, self.n_features))
        if not self.factor.fit_intercept:
            return found
        if self.robust is not None:
            return self.robust[:, 0, 1:] - self.robust[:, 1:, 1:] @ self.factor.shift
        sigma2 = self.sigma2[:, None]
        refined = None if self.refined is None else self.refined.found
        if refined is not None and refined.intercept_covariances is not None:
            return sigma2 * np.stack(refined.intercept_covariances)[refined.which]
        for targets, root in self._roots():
            found[targets] = root[1:] @ (root[0] - self.factor.shift @ root[1:])
        return sigma2 * found

    # Predictions

    def mean_variance(self, X: np.ndarray) -> np.ndarray:
        """Variance of the fitted value at rows, shape (n_rows, n_targets).

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_features)
            Rows.
        """
        found = np.empty((X.shape[0], self.n_targets))
        if self.robust is None:
            values, group = distinct(self.alpha)
            for number, alpha in enumerate(values):
                unscaled = leverage(self.factor, X, None, float(alpha), power=2)
                found[:, group == number] = unscaled[:, None]
            return found * self.sigma2
        step = max(1, 2**18 // (self.n_features + 1))
        for start in range(0, X.shape[0], step):
            part = slice(start, start + step)
            shifted = X[part] - self.factor.shift
            ones = np.full(len(shifted), float(self.factor.fit_intercept))
            rows = np.column_stack([ones, shifted])
            found[part] = np.stack([np.sum((rows @ K) * rows, axis=1) for K in self.robust], axis=1)
        return found

    # The design

    def variance_inflation(self) -> np.ndarray:
        """``[(X'X)^-1]_jj sum (x_j - mean_j)^2``, shape (n_features,).

        It is ``1 / (1 - R_j^2)`` for the regression of column j on the others; inf for a column
        that the others (or the intercept) determine.
        """
        inverse = row_norms(self.factor.basis[1:])
        inflation = (inverse * np.sqrt(self.factor.column_squares)) ** 2
        missing = self.n_features - self.factor.rank
        if missing and not self.factor.dependent.size:
            return np.full(self.n_features, np.inf)  # fewer rows than columns
        inflation[self.factor.dependent] = np.inf
        return inflation

    def condition_number(self) -> float:
        """Condition number of the (centred) columns at unit length; inf at deficient rank.

        The columns are ``U B^-1 / norm``, so ``norm B`` has the inverses of their singular values.
        """
        if self.factor.rank < self.n_features:
            return float("inf")
        directions = self.factor.basis[1:, int(self.factor.fit_intercept) :]
        inverse = np.sqrt(self.factor.column_squares)[:, None] * directions
        values = np.linalg.svd(inverse, compute_uv=False)
        return float(values[0] / values[-1])
