"""`InferenceMixin`: what every fitted least squares estimator can say about its uncertainty."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sknn_resid._sklearn_compat import validate_data
from sknn_resid.linear_model._fitted import FittedLinear
from sknn_resid.linear_model._inference import (
    InformationCriteria,
    information_criteria,
    r2_from_sums,
    ratio,
    t_quantile,
    two_sided_p_value,
)
from sknn_resid.linear_model._rows import RowStatistics


class InferenceMixin:
    """Standard errors, tests, intervals and criteria, from the state that a fit left behind.

    All of it is computed when it is asked for. A one-dimensional y gives numbers and arrays without
    an axis of targets; a two-dimensional y puts that axis first.
    """

    _fitted: FittedLinear
    _row_statistics: RowStatistics | None
    _single_target: bool
    _covariance_needs_rows: bool
    cov_type: str
    coef_: np.ndarray
    intercept_: Any

    # Helpers

    def _state(self) -> FittedLinear:
        fitted = getattr(self, "_fitted", None)
        if fitted is None:
            check_is_fitted(self)
        return self._fitted

    def _certain_state(self) -> FittedLinear:
        """The state for the covariance: after a warning where there are no degrees of freedom."""
        fitted = self._state()
        if self._covariance_needs_rows:
            raise AttributeError(
                f"cov_type={self.cov_type!r} needs the rows, which partial_fit does not keep. Use "
                "cov_type='nonrobust', or fit on all rows."
            )
        self._warn_without_df(fitted, stacklevel=4)
        return fitted

    def _warn_without_df(self, fitted: FittedLinear, stacklevel: int = 3) -> None:
        if not fitted.can_estimate:
            plus = " plus an intercept" if fitted.factor.fit_intercept else ""
            warnings.warn(
                f"No residual degrees of freedom: {fitted.n_obs:g} observations, rank "
                f"{fitted.factor.rank}{plus}. The noise cannot be estimated, so variances, "
                "standard errors, tests and intervals are NaN. Use more rows or fewer columns.",
                RuntimeWarning,
                stacklevel=stacklevel,
            )

    def _shaped(self, per_target: np.ndarray) -> Any:
        """Without the axis of targets for a one-dimensional y; numbers as Python floats."""
        if not self._single_target:
            return per_target
        return per_target[0] if per_target.ndim > 1 else float(per_target[0])

    # Noise and degrees of freedom

    @property
    def df_fit_(self) -> Any:
        """Degrees of freedom of the fit, ``tr(H)``, the intercept counted."""
        return self._shaped(self._state().df_fit)

    @property
    def df_resid_(self) -> Any:
        """Residual degrees of freedom, ``n - tr(2H - HH')``, the intercept counted."""
        return self._shaped(self._state().df_resid.copy())

    @property
    def sigma2_(self) -> Any:
        """Residual variance ``rss / df_resid``; NaN with a warning where no df are left."""
        fitted = self._state()
        self._warn_without_df(fitted)
        return self._shaped(fitted.sigma2.copy())

    @property
    def rss_(self) -> Any:
        """Weighted residual sum of squares."""
        return self._shaped(self._state().rss.copy())

    # Covariance and standard errors

    @property
    def coef_covariance_(self) -> np.ndarray:
        """Covariance of `coef_`, (n_features, n_features) or (n_targets, ...).

        Computed at each access: for many targets it is large.
        """
        return self._shaped(self._certain_state().covariance())

    @property
    def standard_errors_(self) -> np.ndarray:
        """Standard errors of `coef_`, in its shape."""
        return self._shaped(self._certain_state().standard_errors())

    @property
    def intercept_variance_(self) -> Any:
        """Variance of `intercept_`, ``s^2 / sum w + mean' Cov mean``; 0 without an intercept."""
        return self._shaped(self._certain_state().intercept_variance())

    @property
    def intercept_standard_error_(self) -> Any:
        """Standard error of `intercept_`; 0 without an intercept."""
        return self._shaped(np.sqrt(self._certain_state().intercept_variance()))

    @property
    def intercept_covariance_(self) -> np.ndarray:
        """Covariance of `intercept_` with each of `coef_`, in the shape of `coef_`."""
        return self._shaped(self._certain_state().intercept_covariance())

    # Tests

    @property
    def t_values_(self) -> np.ndarray:
        """``coef_ / standard_errors_``."""
        errors = self._shaped(self._certain_state().standard_errors())
        return ratio(self.coef_, errors)

    @property
    def p_values_(self) -> np.ndarray:
        """Two-sided p values of `t_values_` (Student's t), in the shape of `coef_`."""
        fitted = self._certain_state()
        t = ratio(np.atleast_2d(self.coef_), fitted.standard_errors())
        return self._shaped(two_sided_p_value(t, fitted.df_resid[:, None]))

    @property
    def intercept_t_value_(self) -> Any:
        """``intercept_ / intercept_standard_error_``."""
        return self._shaped(self._intercept_t(self._certain_state()))

    def _intercept_t(self, fitted: FittedLinear) -> np.ndarray:
        return ratio(np.atleast_1d(self.intercept_), np.sqrt(fitted.intercept_variance()))

    @property
    def intercept_p_value_(self) -> Any:
        """Two-sided p value of `intercept_t_value_`."""
        fitted = self._certain_state()
        return self._shaped(two_sided_p_value(self._intercept_t(fitted), fitted.df_resid))

    def confidence_interval(self, level: float = 0.95) -> np.ndarray:
        """Confidence intervals of the coefficients.

        Parameters
        ----------
        level : float, default=0.95
            Coverage, strictly between 0 and 1.

        Returns
        -------
        ndarray of shape (n_features, 2) or (n_targets, n_features, 2)
            Lower and upper ends, ``coef_ -+ t standard_errors_``.
        """
        fitted = self._certain_state()
        half = t_quantile(level, fitted.df_resid)[:, None] * fitted.standard_errors()
        coef = np.atleast_2d(self.coef_)
        return self._shaped(np.stack([coef - half, coef + half], axis=-1))

    def intercept_confidence_interval(self, level: float = 0.95) -> np.ndarray:
        """Confidence interval of the intercept.

        Parameters
        ----------
        level : float, default=0.95
            Coverage, strictly between 0 and 1.

        Returns
        -------
        ndarray of shape (2,) or (n_targets, 2)
            Lower and upper end.
        """
        fitted = self._certain_state()
        half = t_quantile(level, fitted.df_resid) * np.sqrt(fitted.intercept_variance())
        intercept = np.atleast_1d(self.intercept_)
        return self._shaped(np.stack([intercept - half, intercept + half], axis=-1))

    # Predictions

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predict.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        return_std : bool, default=False
            Whether to give the standard deviation of a new observation too: that of the noise and
            of the fitted value together, as :class:`sklearn.linear_model.BayesianRidge` does. That
            of the fitted value alone is behind ``predict_interval(X, kind="mean")``.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions.
        std : ndarray of the same shape
            Only with ``return_std=True``.
        """
        check_is_fitted(self)
        X = self._checked_rows(X)
        predicted = X @ self.coef_.T + self.intercept_
        if not return_std:
            return predicted
        fitted = self._certain_state()
        std = np.sqrt(fitted.sigma2 + fitted.mean_variance(X))
        return predicted, std[:, 0] if self._single_target else std

    def predict_interval(self, X: Any, level: float = 0.95, kind: str = "observation") -> Any:
        """Intervals around predictions.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        level : float, default=0.95
            Coverage, strictly between 0 and 1.
        kind : {'observation', 'mean'}, default='observation'
            Whether the interval is to hold a new observation (a prediction interval) or the
            expected value (a confidence interval).

        Returns
        -------
        ndarray of shape (n_samples, 2) or (n_samples, n_targets, 2)
            Lower and upper ends, from Student's t.
        """
        if kind not in ("observation", "mean"):
            raise ValueError(f"kind: must be 'observation' or 'mean', got {kind!r}.")
        check_is_fitted(self)
        X = self._checked_rows(X)
        fitted = self._certain_state()
        noise = fitted.sigma2 if kind == "observation" else 0.0
        half = t_quantile(level, fitted.df_resid) * np.sqrt(noise + fitted.mean_variance(X))
        predicted = X @ np.atleast_2d(self.coef_).T + self.intercept_
        interval = np.stack([predicted - half, predicted + half], axis=-1)
        return interval[:, 0] if self._single_target else interval

    def _checked_rows(self, X: Any) -> np.ndarray:
        return validate_data(self, X, dtype=np.float64, reset=False)

    # Rows of the training data

    @property
    def leverage_(self) -> np.ndarray:
        """Diagonal of the hat matrix, (n_samples,), or (n_samples, n_targets) where alphas differ.

        Its sum is `df_fit_`. A row of weight 0 has leverage 0.
        """
        h = self._of_rows("leverage_").leverage
        if h.shape[1] == 1:
            return h[:, 0]
        return h[:, np.unique(self._fitted.alpha, return_inverse=True)[1]]

    @property
    def loo_residuals_(self) -> np.ndarray:
        """What each row's residual is when the model is fitted without it, in the shape of y.

        ``e_i / (1 - h_i)``, exact for any alpha. A weighted row is left out as a whole. inf where
        the other rows leave a direction undetermined that the row needs (a leverage of 1).
        """
        errors = self._of_rows("loo_residuals_").loo_residuals
        return errors[:, 0] if self._single_target else errors

    def _of_rows(self, name: str) -> RowStatistics:
        check_is_fitted(self)
        if self._row_statistics is None:
            raise AttributeError(
                f"{name} needs the rows, which partial_fit does not keep: only their triangular "
                "factor is. Use fit on all rows instead."
            )
        return self._row_statistics

    # Goodness of fit

    @property
    def r2_(self) -> Any:
        """``1 - rss / tss`` on the training rows, around the mean if there is an intercept."""
        fitted = self._state()
        return self._shaped(r2_from_sums(fitted.rss, fitted.factor.tss))

    @property
    def adjusted_r2_(self) -> Any:
        """``1 - (rss / df_resid) / (tss / (n - 1))`` (n without an intercept)."""
        fitted = self._state()
        self._warn_without_df(fitted)
        return self._shaped(fitted.adjusted_r2)

    @property
    def log_likelihood_(self) -> Any:
        """Gaussian log-likelihood at its maximum over the noise."""
        return self._shaped(self._criteria().log_likelihood)

    @property
    def aic_(self) -> Any:
        """``-2 log L + 2 df_fit_``."""
        return self._shaped(self._criteria().aic)

    @property
    def bic_(self) -> Any:
        """``-2 log L + log(n) df_fit_``."""
        return self._shaped(self._criteria().bic)

    def _criteria(self) -> InformationCriteria:
        fitted = self._state()
        return information_criteria(fitted.rss, fitted.n_obs, fitted.df_fit, fitted.sum_log_weights)

    # The design

    @property
    def vif_(self) -> np.ndarray:
        """Variance inflation factors, (n_features,): inf for a column that others determine."""
        return self._state().variance_inflation()

    @property
    def condition_number_(self) -> float:
        """Largest by smallest singular value of the (centred) columns scaled to unit length.

        Belsley, Kuh and Welsch (1980): above 30 the columns are nearly collinear. The scaling makes
        it independent of units. inf at deficient rank.
        """
        return self._state().condition_number()
