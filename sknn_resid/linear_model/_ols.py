"""`OLS`: ordinary least squares with inference."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from sknn_resid._sklearn_compat import fit_context
from sknn_resid.linear_model._accelerator import resolve
from sknn_resid.linear_model._base import LeastSquaresBase
from sknn_resid.linear_model._checks import check_rows, feature_names, warn_deficient_rank
from sknn_resid.linear_model._incremental import fit_so_far
from sknn_resid.linear_model._training import fit_problem, prepare_rows


class OLS(LeastSquaresBase):
    """Ordinary least squares by singular value decomposition, with inference.

    Minimises ``sum_i w_i (y_i - c - x_i b)^2``. Where that leaves the coefficients undetermined,
    they are the ones of minimum norm in the units of X, and a warning names the columns.

    Columns are centred without rounding errors and scaled, the rank is decided on columns of equal
    length, and the solution is refined with residuals in twice the precision, so that coefficients
    are as a rule the correctly rounded solution for the float64 data.

    Parameters
    ----------
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    refine : bool or 'auto', default='auto'
        Whether to refine in twice the precision; 'auto' does where the size allows it. False is
        faster and as accurate as a good SVD.
    device : {'auto', 'cpu', 'cuda'}, default='auto'
        Where the pass over the rows is computed. 'auto' takes CUDA for large problems (more rows
        than columns, 1e10 multiplications) in programs that have imported torch already; it
        imports nothing by itself. Always in float64, which is why 'mps' is refused; results do
        not depend on the device.
    cov_type : {'nonrobust', 'HC0', 'HC1', 'HC2', 'HC3'}, default='nonrobust'
        Covariance that standard errors, tests and intervals are based on: for equal variances of
        the errors, or consistent without that assumption (White 1980; MacKinnon and White 1985).
    weight_type : {'frequency', 'precision'}, default='frequency'
        What ``sample_weight`` means to the degrees of freedom: a weight of 2 is the row twice (the
        number of observations is the sum of the weights), or the row measured with half the
        variance (the number of observations is that of the rows with a positive weight, as in R
        and in statsmodels' WLS). The coefficients are the same.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 with ``fit_intercept=False``.
    rank_ : int
        Rank of X (centred, if there is an intercept), decided on columns scaled to equal length.
    rank_gap_ : float
        By what factor the smallest singular value kept exceeds the largest one dropped, of columns
        scaled to equal length; inf if none is dropped. Near 1 the rank is a matter of taste.
    singular_values_ : ndarray of shape (rank,)
        Singular values of X (centred, if there is an intercept), rows times the square roots of
        their weights; descending.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X had string names.
    device_ : str
        Where it was computed.
    n_targets_ : int
        Number of targets.
    standard_errors_, t_values_, p_values_ : ndarray
        Of the coefficients, in the shape of `coef_`. NaN, with a warning, where no residual degrees
        of freedom are left.
    intercept_standard_error_, intercept_t_value_, intercept_p_value_ : float or ndarray
        Of the intercept.
    coef_covariance_ : ndarray of shape (n_features, n_features) or (n_targets, ...)
        Covariance of the coefficients, computed at each access.
    intercept_variance_ : float or ndarray of shape (n_targets,)
        Variance of the intercept.
    intercept_covariance_ : ndarray
        Covariance of the intercept with each coefficient, in the shape of `coef_`.
    sigma2_ : float or ndarray of shape (n_targets,)
        Estimated variance of the errors, ``rss_ / df_resid_``.
    rss_ : float or ndarray of shape (n_targets,)
        Weighted residual sum of squares.
    df_fit_, df_resid_ : float or ndarray of shape (n_targets,)
        Degrees of freedom of the fit (with the intercept) and of the residuals.
    r2_, adjusted_r2_ : float or ndarray of shape (n_targets,)
        Coefficient of determination on the training rows.
    log_likelihood_, aic_, bic_ : float or ndarray of shape (n_targets,)
        Gaussian log-likelihood and information criteria.
    vif_ : ndarray of shape (n_features,)
        Variance inflation factors.
    condition_number_ : float
        Of the (centred) columns at unit length.
    leverage_ : ndarray of shape (n_samples,)
        Diagonal of the hat matrix.
    loo_residuals_ : ndarray in the shape of y
        Leave-one-out residuals.

    See Also
    --------
    Ridge : The same with a penalty.
    RidgeCV : Chooses the penalty.

    References
    ----------
    Golub and Van Loan (2013), Matrix Computations, chapter 5. Belsley, Kuh and Welsch (1980),
    Regression Diagnostics.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid import OLS
    >>> X = np.array([[1.0], [2.0], [3.0], [4.0]])
    >>> y = np.array([1.0, 3.0, 4.0, 8.0])
    >>> model = OLS().fit(X, y)
    >>> model.coef_, round(model.intercept_, 12)
    (array([2.2]), -1.5)
    >>> model.standard_errors_.round(4)
    array([0.4243])
    >>> model.predict_interval([[5.0]]).round(2)
    array([[ 3.05, 15.95]])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LeastSquaresBase._parameter_constraints
    }

    def __init__(
        self,
        *,
        fit_intercept=True,
        refine="auto",
        device="auto",
        cov_type="nonrobust",
        weight_type="frequency",
    ):
        self.fit_intercept = fit_intercept
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
        self : OLS
            Fitted.
        """
        rows = check_rows(self, X, y, sample_weight, self.weight_type)
        device = resolve(self.device, *rows.X.shape)
        problem = prepare_rows(rows, self.fit_intercept, None, self.refine, device)
        outcome = fit_problem(problem, np.zeros(rows.Y.shape[1]), rows, self.cov_type)
        self._adopt(outcome, rows, device)
        warn_deficient_rank(problem.factor, feature_names(self))
        return self

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Add rows, and fit to all rows so far.

        The result is that of ``fit`` on all rows stacked, to about the condition number times the
        float64 precision, whatever the batches were. Only the triangular factor of the rows is
        kept, so what is said about single rows (`leverage_`, `loo_residuals_`, robust
        covariances) is not available.

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
        self : OLS
            Fitted to all rows so far.
        """
        so_far = self._checked_rows_so_far(X, y, sample_weight)
        resolve(self.device, 0, self.n_features_in_)  # refuses what does not exist
        outcome = fit_so_far(so_far, np.zeros(so_far.n_targets), None, self.refine)
        self._adopt(outcome, so_far)
        warn_deficient_rank(outcome.fitted.factor, feature_names(self))
        return self

    def _summary_notes(self) -> list[str]:
        notes = []
        if self._fitted.robust is not None:
            notes.append(
                f"standard errors are robust to unequal variances ({self.cov_type}); tests and "
                "intervals use Student's t with the residual degrees of freedom"
            )
        if self._fitted.factor.rank < self._fitted.n_features:
            notes.append(
                "the rank is deficient: coefficients are those of minimum norm, and their standard "
                "errors refer to these, not to the undetermined true ones"
            )
        return notes
