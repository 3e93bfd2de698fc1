"""`ridge_path`: ridge regression for many penalties from one factorisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from sknn_resid.linear_model._checks import (
    check_penalties,
    check_penalty_weights,
    check_rows,
    feature_names,
)
from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._filters import (
    coefficients,
    degrees_of_freedom,
    residual_sum,
    shrinkage,
)
from sknn_resid.linear_model._selection import automatic_alphas, gcv_scores, loo_scores
from sknn_resid.linear_model._training import prepare_rows


@dataclass(frozen=True, eq=False)
class RidgePath:
    """Ridge regression along a grid of penalties; the axis of penalties comes first.

    Made by :func:`ridge_path`, or by :meth:`from_estimator`.

    Attributes
    ----------
    alphas : ndarray of shape (n_alphas,)
        Penalties.
    coefs : ndarray of shape (n_alphas, n_features) or (n_alphas, n_targets, n_features)
        Coefficients.
    intercepts : ndarray of shape (n_alphas,) or (n_alphas, n_targets)
        Intercepts; zeros without one.
    shrinkage : ndarray of shape (n_alphas, rank)
        Factors ``d^2 / (d^2 + alpha)`` of the directions.
    singular_values : ndarray of shape (rank,)
        ``d``.
    df_fit, df_resid : ndarray of shape (n_alphas,)
        ``tr(H)`` and ``n - tr(2H - HH')``, the intercept counted.
    rss : ndarray of shape (n_alphas,) or (n_alphas, n_targets)
        Weighted residual sums of squares.
    gcv : ndarray in the shape of ``rss``
        Generalised cross-validation, ``(rss / n) / (1 - tr(H) / n)^2``.
    loo : ndarray in the shape of ``rss``, or None
        Weighted mean of the squared leave-one-out errors; None where the rows are not at hand.
    feature_names : tuple of str
        Names of the features.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid.linear_model import ridge_path
    >>> X = np.array([[1.0, 1.0], [1.0, 1.1], [2.0, 1.9], [3.0, 3.2]])
    >>> path = ridge_path(X, [2.0, 2.2, 3.8, 6.3], alphas=[0.0, 0.1])
    >>> path.coefs.round(3)
    array([[0.161, 1.804],
           [0.825, 1.146]])
    >>> path.df_fit.round(3)
    array([3.   , 2.148])
    """

    alphas: np.ndarray
    coefs: np.ndarray = field(repr=False)
    intercepts: np.ndarray = field(repr=False)
    shrinkage: np.ndarray = field(repr=False)
    singular_values: np.ndarray = field(repr=False)
    df_fit: np.ndarray = field(repr=False)
    df_resid: np.ndarray = field(repr=False)
    rss: np.ndarray = field(repr=False)
    gcv: np.ndarray = field(repr=False)
    loo: np.ndarray | None = field(repr=False)
    feature_names: tuple[str, ...] = field(repr=False)

    @classmethod
    def from_estimator(cls, estimator: BaseEstimator, alphas: Any = "auto") -> RidgePath:
        """Path from the factorisation that a fitted estimator holds, without the rows.

        Parameters
        ----------
        estimator : OLS, Ridge or RidgeCV
            Fitted, by ``fit`` or by ``partial_fit``.
        alphas : 'auto' or array-like of shape (n_alphas,), default='auto'
            Penalties.

        Returns
        -------
        RidgePath
            Without ``loo``.
        """
        check_is_fitted(estimator)
        fitted = estimator._fitted
        return _path(
            fitted.factor,
            _grid(alphas, fitted.factor),
            fitted.n_obs,
            None,
            estimator._single_target,
            feature_names(estimator),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per penalty, one column per coefficient.

        Returns
        -------
        pandas.DataFrame
            Columns: the intercept and the features; several targets give pairs (target, feature).
        """
        names = ["(intercept)", *self.feature_names]
        table = np.concatenate([self.intercepts[..., None], self.coefs], axis=-1)
        columns: pd.Index = pd.Index(names, name="feature")
        if self.coefs.ndim == 3:
            targets = range(self.coefs.shape[1])
            columns = pd.MultiIndex.from_product([targets, names], names=["target", "feature"])
        return pd.DataFrame(
            table.reshape(len(self.alphas), -1),
            index=pd.Index(self.alphas, name="alpha"),
            columns=columns,
        )


def ridge_path(
    X: Any,
    y: Any,
    alphas: Any = "auto",
    *,
    sample_weight: Any = None,
    fit_intercept: bool = True,
    penalty_weights: Any = None,
) -> RidgePath:
    """Ridge regression for many penalties at the cost of one.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Targets.
    alphas : 'auto' or array-like of shape (n_alphas,), default='auto'
        Penalties, not negative, in any order; 'auto' takes 100, from nearly none to nearly
        everything shrunk.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    fit_intercept : bool, default=True
        Whether there is an intercept.
    penalty_weights : array-like of shape (n_features,), default=None
        Penalty of each feature relative to alpha.

    Returns
    -------
    RidgePath
        In plain float64: the refinement that :class:`Ridge` adds for one alpha is left out.

    Raises
    ------
    ValueError
        If an argument is not finite, negative, or of the wrong length.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknn_resid.linear_model import ridge_path
    >>> path = ridge_path(*load_diabetes(return_X_y=True))
    >>> path.coefs.shape
    (100, 10)
    >>> bool((path.df_fit[1:] > path.df_fit[:-1]).all())  # descending alphas
    True
    """
    model = _Rows()
    rows = check_rows(model, X, y, sample_weight, "frequency")
    penalty = check_penalty_weights(penalty_weights, rows.X.shape[1])
    factor = prepare_rows(rows, bool(fit_intercept), penalty, False).factor
    grid = _grid(alphas, factor)
    loo = -loo_scores(factor, rows, grid)
    return _path(factor, grid, rows.n_obs, loo, rows.single_target, feature_names(model))


class _Rows(BaseEstimator):
    """What scikit-learn's validation sets the names of columns on."""


def check_grid(alphas: Any) -> np.ndarray:
    """Penalties as an array of shape (n_alphas,).

    Raises
    ------
    ValueError
        If there is none, or one is negative or not finite.
    """
    grid = np.atleast_1d(check_penalties(alphas, "alphas"))
    if grid.ndim != 1 or not grid.size:
        raise ValueError(
            f"alphas: must be 'auto' or a list of at least one number, got shape {grid.shape}."
        )
    return grid


def _grid(alphas: Any, factor: Factor) -> np.ndarray:
    if isinstance(alphas, str) and alphas == "auto":
        return automatic_alphas(factor)
    return check_grid(alphas)


def _path(
    factor: Factor,
    alphas: np.ndarray,
    n_obs: float,
    loo: np.ndarray | None,
    single: bool,
    names: list[str],
) -> RidgePath:
    coefs, intercepts = coefficients(factor, alphas[:, None])
    df_fit, lost = degrees_of_freedom(factor, alphas)

    def shaped(values: np.ndarray) -> np.ndarray:
        return values[:, 0] if single else values

    return RidgePath(
        alphas=alphas,
        coefs=shaped(coefs),
        intercepts=shaped(intercepts),
        shrinkage=shrinkage(factor, alphas)[:, int(factor.fit_intercept) :],
        singular_values=factor.singular_values[int(factor.fit_intercept) :],
        df_fit=df_fit,
        df_resid=n_obs - lost,
        rss=shaped(residual_sum(factor, alphas[:, None])),
        gcv=shaped(-gcv_scores(factor, n_obs, alphas)),
        loo=None if loo is None else shaped(loo),
        feature_names=tuple(names),
    )
