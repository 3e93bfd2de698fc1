"""`Ridge`: ridge regression with inference that says what it is conditional on."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

from sknn_resid._sklearn_compat import Interval, StrOptions, fit_context
from sknn_resid.linear_model._accelerator import resolve
from sknn_resid.linear_model._base import LeastSquaresBase
from sknn_resid.linear_model._checks import (
    check_alpha,
    check_penalty_weights,
    check_rows,
    feature_names,
    warn_deficient_rank,
)
from sknn_resid.linear_model._incremental import fit_so_far
from sknn_resid.linear_model._penalised import PenalisedMixin
from sknn_resid.linear_model._training import fit_problem, prepare_rows


class Ridge(PenalisedMixin, LeastSquaresBase):
    """Ridge regression by singular value decomposition, with inference.

    Minimises ``sum_i w_i (y_i - c - x_i b)^2 + alpha sum_j penalty_weights_j b_j^2``; the intercept
    is not penalised. ``alpha`` is scikit-learn's: the sum of squares is not divided by the number
    of rows.

    Takes the place of :class:`sklearn.linear_model.Ridge` for dense data. Standard errors, tests
    and intervals are conditional on alpha and do not account for the bias: they say how much the
    estimate varies, and the intervals cover the expectation of the ridge estimate.

    Parameters
    ----------
    alpha : float or array-like of shape (n_targets,), default=1.0
        Strength of the penalty, not negative; one number for all targets or one for each. 0 is
        ordinary least squares (of minimum norm at deficient rank, with a warning).
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    copy_X : bool, default=True
        For the sake of scikit-learn's signature: X is never overwritten.
    solver : {'auto', 'svd'}, default='auto'
        Both are the singular value decomposition; scikit-learn's other solvers are ways to less of
        what it gives.
    penalty_weights : array-like of shape (n_features,), default=None
        Penalty of each feature relative to alpha, not negative; 0 leaves a feature unpenalised.
        None means 1 for all.
    refine : bool or 'auto', default='auto'
        Whether to refine in twice the precision; 'auto' does where the size allows it.
    device : {'auto', 'cpu', 'cuda'}, default='auto'
        Where the pass over the rows is computed. 'auto' takes CUDA for large problems (more rows
        than columns, 1e10 multiplications) in programs that have imported torch already; it
        imports nothing by itself. Always in float64, which is why 'mps' is refused; results do
        not depend on the device.
    cov_type : {'nonrobust', 'HC0', 'HC1', 'HC2', 'HC3'}, default='nonrobust'
        Covariance that standard errors, tests and intervals are based on.
    weight_type : {'frequency', 'precision'}, default='frequency'
        What ``sample_weight`` means to the degrees of freedom; see :class:`OLS`.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 with ``fit_intercept=False``.
    solver_ : str
        'svd'.
    shrinkage_ : ndarray of shape (rank,) or (n_targets, rank)
        Factor ``d^2 / (d^2 + alpha)`` of each direction, in the order of `singular_values_`; 1 for
        unpenalised directions.
    rank_ : int
        Rank of X (centred, if there is an intercept), decided on columns scaled to equal length.
    rank_gap_ : float
        By what factor the smallest singular value kept exceeds the largest one dropped, of columns
        scaled to equal length; inf if none is dropped.
    singular_values_ : ndarray of shape (rank,)
        Singular values of X (centred, if there is an intercept), rows times the square roots of
        their weights; descending. With ``penalty_weights``, those of the columns divided by the
        square roots of these, unpenalised directions first with inf.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had string names.
    device_ : str
        Where it was computed.
    n_targets_ : int
        Number of targets.
    standard_errors_, t_values_, p_values_ : ndarray
        Of the coefficients, in the shape of `coef_`: conditional on alpha, without the bias.
    intercept_standard_error_, intercept_t_value_, intercept_p_value_ : float or ndarray
        Of the intercept.
    coef_covariance_ : ndarray of shape (n_features, n_features) or (n_targets, ...)
        ``s^2 S^-1 X'X S^-1`` with ``S = X'X + alpha I``, computed at each access.
    intercept_variance_ : float or ndarray of shape (n_targets,)
        Variance of the intercept.
    intercept_covariance_ : ndarray
        Covariance of the intercept with each coefficient, in the shape of `coef_`.
    sigma2_ : float or ndarray of shape (n_targets,)
        Estimated variance of the errors, ``rss_ / df_resid_``.
    rss_ : float or ndarray of shape (n_targets,)
        Weighted residual sum of squares.
    df_fit_, df_resid_ : float or ndarray of shape (n_targets,)
        The two effective degrees of freedom: ``tr(H)`` of the fit and ``n - tr(2H - HH')`` of the
        residuals, both with the intercept counted.
    r2_, adjusted_r2_ : float or ndarray of shape (n_targets,)
        Coefficient of determination on the training rows.
    log_likelihood_, aic_, bic_ : float or ndarray of shape (n_targets,)
        Gaussian log-likelihood and information criteria, with ``df_fit_``.
    vif_ : ndarray of shape (n_features,)
        Variance inflation factors of X, without the penalty.
    condition_number_ : float
        Of the (centred) columns at unit length.
    leverage_ : ndarray of shape (n_samples,) or (n_samples, n_targets)
        Diagonal of the hat matrix; with an axis of targets where their alphas differ.
    loo_residuals_ : ndarray in the shape of y
        Leave-one-out residuals.

    See Also
    --------
    OLS : Without a penalty.
    RidgeCV : Chooses alpha.
    ridge_path : Many alphas at once.

    References
    ----------
    Hoerl and Kennard (1970), Ridge regression: biased estimation for nonorthogonal problems.
    Hastie, Tibshirani and Friedman (2009), The Elements of Statistical Learning, section 3.4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid import Ridge
    >>> X = np.array([[1.0, 1.0], [1.0, 1.1], [2.0, 1.9], [3.0, 3.2]])
    >>> y = np.array([2.0, 2.2, 3.8, 6.3])
    >>> model = Ridge(alpha=0.1).fit(X, y)
    >>> model.coef_.round(3)
    array([0.825, 1.146])
    >>> model.shrinkage_.round(3)
    array([0.983, 0.165])
    >>> round(model.df_fit_, 3)
    2.148
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LeastSquaresBase._parameter_constraints,
        "alpha": [Interval(Real, 0, None, closed="left"), "array-like"],
        "copy_X": ["boolean"],
        "solver": [StrOptions({"auto", "svd"})],
        "penalty_weights": ["array-like", None],
    }

    def __init__(
        self,
        alpha=1.0,
        *,
        fit_intercept=True,
        copy_X=True,
        solver="auto",
        penalty_weights=None,
        refine="auto",
        device="auto",
        cov_type="nonrobust",
        weight_type="frequency",
    ):
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.copy_X = copy_X
        self.solver = solver
        self.penalty_weights = penalty_weights
        self.refine = refine
        self.device = device
        self.cov_type = cov_type
        self.weight_type = weight_type

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Fit to rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; a weight of 0 is no row.

        Returns
        -------
        self : Ridge
            Fitted.
        """
        rows = check_rows(self, X, y, sample_weight, self.weight_type)
        alpha = check_alpha(self.alpha, rows.Y.shape[1])
        penalty = check_penalty_weights(self.penalty_weights, rows.X.shape[1])
        device = resolve(self.device, *rows.X.shape)
        problem = prepare_rows(rows, self.fit_intercept, penalty, self.refine, device)
        self._adopt(fit_problem(problem, alpha, rows, self.cov_type), rows, device)
        self.solver_ = "svd"
        if self._undetermined():
            warn_deficient_rank(problem.factor, feature_names(self))
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Add rows, and fit to all rows so far.

        The result is that of ``fit`` on all rows stacked, to about the condition number times the
        float64 precision, whatever the batches were. Only the triangular factor of the rows is
        kept, so what is said about single rows (`leverage_`, `loo_residuals_`, robust
        covariances) is not available. ``alpha`` may change from call to call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Further rows; fewer than there are columns will do.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Their targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights.

        Returns
        -------
        self : Ridge
            Fitted to all rows so far.
        """
        so_far = self._checked_rows_so_far(X, y, sample_weight)
        resolve(self.device, 0, self.n_features_in_)  # refuses what does not exist
        alpha = check_alpha(self.alpha, so_far.n_targets)
        penalty = check_penalty_weights(self.penalty_weights, self.n_features_in_)
        self._adopt(fit_so_far(so_far, alpha, penalty, self.refine), so_far)
        self.solver_ = "svd"
        if self._undetermined():
            warn_deficient_rank(self._fitted.factor, feature_names(self))
        return self
