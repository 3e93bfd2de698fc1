"""`compare_variance`: the variance of ridge beside that of OLS, for a design or a fitted model."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sknn_resid._sklearn_compat import validate_data
from sknn_resid._validation import check_weights
from sknn_resid.linear_model._checks import check_penalties, check_penalty_weights, feature_names
from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._filters import coefficients
from sknn_resid.linear_model._least_squares import (
    Problem,
    covariance,
    prepare,
    variance_difference,
)
from sknn_resid.linear_model._refined import MAX_KEPT
from sknn_resid.linear_model._variance_comparison import VarianceComparison


def compare_variance(
    X: Any,
    alpha: float,
    sigma2: float,
    *,
    coef: Any = None,
    sample_weight: Any = None,
    fit_intercept: bool = True,
    penalty_weights: Any = None,
) -> VarianceComparison:
    """Compare the variance of ridge with that of OLS, for a design and a noise variance.

    ``Delta = Var[w_ols] - Var[w_ridge]`` is positive semi-definite for every ``alpha >= 0``: the
    result holds it in a factored form that proves it, with bias and mean squared error where the
    coefficients are given.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows.
    alpha : float
        Penalty, not negative, in scikit-learn's convention.
    sigma2 : float
        Variance of the noise of a row of weight 1, not negative.
    coef : array-like of shape (n_features,), default=None
        True coefficients, for bias and mean squared error.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    fit_intercept : bool, default=True
        Whether the model has an intercept; X is centred then.
    penalty_weights : array-like of shape (n_features,), default=None
        Penalty of each feature relative to alpha. At deficient rank OLS means its limit for
        ``alpha -> 0`` then.

    Returns
    -------
    VarianceComparison

    Raises
    ------
    ValueError
        If an argument is not finite, negative, or of the wrong length.

    See Also
    --------
    compare_variance_of : The same for a fitted estimator.

    References
    ----------
    Theobald (1974), Generalizations of mean square error applied to ridge regression. Farebrother
    (1976), Further results on the mean square error of ridge regression.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknn_resid.linear_model import compare_variance
    >>> X, _ = load_diabetes(return_X_y=True)
    >>> comparison = compare_variance(X, alpha=0.01, sigma2=2900.0)
    >>> comparison.eigenvalues.min() >= 0
    np.True_
    >>> print(comparison.certificate)
    Delta = L L' with a real factor L of shape (10, 10): ...
    """
    model = _Columns()
    X = validate_data(model, X, dtype=np.float64)
    problem = prepare(
        X,
        np.zeros((len(X), 1)),
        sample_weight=check_weights(sample_weight, X),
        fit_intercept=bool(fit_intercept),
        penalty=check_penalty_weights(penalty_weights, X.shape[1]),
    )
    penalty = _number(alpha, "alpha")
    return _comparison(
        problem.factor,
        penalty,
        _number(sigma2, "sigma2"),
        _coefficients_given(coef, X.shape[1]),
        feature_names(model),
        plug_in=False,
        refined=_refined(problem, penalty),
    )


def compare_variance_of(
    estimator: BaseEstimator,
    *,
    alpha: float | None = None,
    sigma2: float | None = None,
    coef: Any = None,
    target: int = 0,
) -> VarianceComparison:
    """Compare the variance of ridge with that of OLS on the rows of a fitted estimator.

    Parameters
    ----------
    estimator : OLS, Ridge or RidgeCV
        Fitted.
    alpha : float, default=None
        Penalty; None takes the estimator's, for `OLS` it has to be given.
    sigma2 : float, default=None
        Variance of the noise; None takes the residual variance of OLS on these rows.
    coef : array-like of shape (n_features,), default=None
        Coefficients for bias and mean squared error; None puts the OLS estimate in their place,
        which overstates them where OLS varies much.
    target : int, default=0
        Which target, of several.

    Returns
    -------
    VarianceComparison

    Raises
    ------
    ValueError
        If alpha has to be given, or sigma2, because no residual degrees of freedom are left.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknn_resid import Ridge
    >>> from sknn_resid.linear_model import compare_variance_of
    >>> model = Ridge(alpha=0.003).fit(*load_diabetes(return_X_y=True))
    >>> comparison = compare_variance_of(model)
    >>> comparison.total_mse_ridge < comparison.total_mse_ols
    True
    """
    check_is_fitted(estimator)
    fitted = estimator._fitted
    if not 0 <= target < fitted.n_targets:
        raise ValueError(
            f"target: must be from 0 to {fitted.n_targets - 1}, got {target!r}: the estimator has "
            f"{fitted.n_targets} targets."
        )
    factor = fitted.factor
    if alpha is None:
        if not hasattr(estimator, "shrinkage_"):
            raise ValueError("alpha: has to be given, because OLS has no penalty of its own.")
        alpha = float(fitted.alpha[target])
    if sigma2 is None:
        df = fitted.n_obs - factor.singular_values.size
        if not df > 0:
            raise ValueError(
                f"sigma2: has to be given, because OLS leaves no residual degrees of freedom "
                f"({fitted.n_obs:g} observations, {factor.singular_values.size} coefficients)."
            )
        sigma2 = float(factor.rss_outside[target]) / df
    plug_in = coef is None
    known = _coefficients_given(coef, fitted.n_features)
    if known is None:
        known = coefficients(factor, 0.0)[0][target]
    return _comparison(
        factor,
        _number(alpha, "alpha"),
        _number(sigma2, "sigma2"),
        known,
        feature_names(estimator),
        plug_in=plug_in,
        refined=None,
    )


class _Columns(BaseEstimator):
    """What scikit-learn's validation sets the names of columns on."""


def _comparison(
    factor: Factor,
    alpha: float,
    sigma2: float,
    coef: np.ndarray | None,
    names: list[str],
    *,
    plug_in: bool,
    refined: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> VarianceComparison:
    first = int(factor.fit_intercept)
    return VarianceComparison(
        alpha=alpha,
        sigma2=sigma2,
        basis=factor.basis[1:, first:],
        singular_values=factor.singular_values[first:],
        penalty=factor.penalty,
        coef=coef,
        feature_names=tuple(names),
        plug_in=plug_in,
        refined=refined,
    )


def _refined(problem: Problem, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The three matrices beyond plain float64, where the kernels have them and they are small."""
    n_features = problem.factor.n_features
    if not problem.refined or n_features**2 > MAX_KEPT:
        return None
    return (
        covariance(problem, 0.0).coef,
        covariance(problem, alpha).coef,
        variance_difference(problem, alpha).coef,
    )


def _number(value: Any, name: str) -> float:
    found = check_penalties(value, name)
    if found.ndim:
        raise ValueError(f"{name}: must be one number, got an array of shape {found.shape}.")
    return float(found)


def _coefficients_given(coef: Any, n_features: int) -> np.ndarray | None:
    if coef is None:
        return None
    found = np.array(coef, dtype=np.float64)
    if found.shape != (n_features,) or not np.isfinite(found).all():
        raise ValueError(
            f"coef: must be {n_features} finite numbers, one per feature, got shape {found.shape}"
            f"{'' if np.isfinite(found).all() else ' with NaN or inf'}."
        )
    return found
