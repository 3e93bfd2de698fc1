"""`RidgeCV`: ridge regression that chooses its penalty."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.metrics import get_scorer_names
from sklearn.model_selection import check_cv
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.validation import check_is_fitted

from sknn_resid._sklearn_compat import StrOptions, fit_context, raise_for_params
from sknn_resid.linear_model._accelerator import resolve
from sknn_resid.linear_model._base import LeastSquaresBase
from sknn_resid.linear_model._checks import (
    check_penalty_weights,
    check_rows,
    feature_names,
    warn_deficient_rank,
)
from sknn_resid.linear_model._filters import distinct
from sknn_resid.linear_model._jackknife import LeaveOneOutFits, jackknife_plus, leave_one_out_fits
from sknn_resid.linear_model._least_squares import Problem
from sknn_resid.linear_model._loo import Squares
from sknn_resid.linear_model._path import check_grid
from sknn_resid.linear_model._penalised import PenalisedMixin
from sknn_resid.linear_model._scoring import PredictionScorer, prediction_scorer, routed
from sknn_resid.linear_model._selection import (
    automatic_alphas,
    fold_scores,
    gcv_scores,
    information_scores,
    loo_predictions_of,
    loo_scores_and_squares,
    loo_scores_by,
)
from sknn_resid.linear_model._training import TrainingRows, fit_problem, prepare_rows


class RidgeCV(PenalisedMixin, LeastSquaresBase):
    """Ridge regression with its penalty chosen among many, from one factorisation.

    By exact leave-one-out (of every row, for every alpha, without a refit), generalised
    cross-validation, AIC, BIC, or any cross-validation splitter and scorer.

    Takes the place of :class:`sklearn.linear_model.RidgeCV` for dense data. Inference is
    conditional on the chosen alpha, as in :class:`Ridge`: that the same rows chose it is not
    accounted for.

    Parameters
    ----------
    alphas : 'auto' or array-like of shape (n_alphas,), default='auto'
        Penalties to choose from, not negative; 0 is allowed. 'auto' takes 100, log-spaced between
        nearly none and nearly everything shrunk, from the singular values of X.
    fit_intercept : bool, default=True
        Whether the model has an intercept.
    scoring : str, callable or None, default=None
        A scorer of scikit-learn. None is the negative mean squared error for leave-one-out, and R2
        if ``cv`` is given. Leave-one-out scores all held-out predictions at once.
    cv : int, splitter, iterable or None, default=None
        None uses ``criterion``; anything else is scikit-learn's cross-validation.
    store_cv_results : bool, default=False
        Whether to keep `cv_results_`.
    alpha_per_target : bool, default=False
        Whether each target gets its own alpha, with any ``cv``, ``scoring`` and ``criterion``.
    criterion : {'loo', 'gcv', 'aic', 'bic'}, default='loo'
        What chooses alpha where ``cv`` is None. 'aic' and 'bic' count ``tr(H)`` degrees of freedom;
        they and 'gcv' need clearly more rows than effective coefficients.
    penalty_weights : array-like of shape (n_features,), default=None
        Penalty of each feature relative to alpha, not negative; 0 leaves a feature unpenalised.
    keep_rows : bool, default=False
        Whether to keep what `jackknife_plus_interval` needs: n_samples x rank numbers.
    refine : bool or 'auto', default='auto'
        Whether to refine the chosen fit in twice the precision; 'auto' does where the size allows.
    device : {'auto', 'cpu', 'cuda'}, default='auto'
        Where the pass over the rows is computed. 'auto' takes CUDA for large problems (more rows
        than columns, 1e10 multiplications) in programs that have imported torch already; it
        imports nothing by itself. Always in float64, which is why 'mps' is refused; results do
        not depend on the device.
    cov_type : {'nonrobust', 'HC0', 'HC1', 'HC2', 'HC3'}, default='nonrobust'
        Covariance that standard errors, tests and intervals are based on.
    weight_type : {'frequency', 'precision'}, default='frequency'
        What ``sample_weight`` means to the degrees of freedom; see :class:`OLS`. Leave-one-out
        leaves a weighted row out as a whole, and weights its squared error.

    Attributes
    ----------
    alpha_ : float or ndarray of shape (n_targets,)
        The chosen penalty; an array with ``alpha_per_target=True``.
    best_score_ : float or ndarray of shape (n_targets,)
        Its score; greater is better.
    alphas_ : ndarray of shape (n_alphas,)
        The penalties that were compared.
    scores_ : ndarray of shape (n_alphas,) or (n_alphas, n_targets)
        Scores of all penalties, averaged over folds; greater is better.
    cv_results_ : ndarray of shape (n_samples, n_alphas) or (n_samples, n_targets, n_alphas)
        With ``store_cv_results=True``: the squared leave-one-out error of each row for each alpha,
        not weighted, whatever chose alpha; with ``scoring``, the leave-one-out predictions.
    coef_ : ndarray of shape (n_features,) or (n_targets, n_features)
        Coefficients.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercept; 0.0 with ``fit_intercept=False``.
    shrinkage_ : ndarray of shape (rank,) or (n_targets, rank)
        Factor ``d^2 / (d^2 + alpha_)`` of each direction, in the order of `singular_values_`.
    rank_ : int
        Rank of X (centred, if there is an intercept), decided on columns scaled to equal length.
    rank_gap_ : float
        By what factor the smallest singular value kept exceeds the largest one dropped, of columns
        scaled to equal length; inf if none is dropped.
    singular_values_ : ndarray of shape (rank,)
        Singular values of X; see :class:`Ridge`.
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
        The two effective degrees of freedom; see :class:`Ridge`.
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
        Leave-one-out residuals at `alpha_`.

    See Also
    --------
    Ridge : With a given penalty.
    ridge_path : The path itself.

    References
    ----------
    Allen (1974), The relationship between variable selection and data augmentation and a method
    for prediction. Golub, Heath and Wahba (1979), Generalized cross-validation as a method for
    choosing a good ridge parameter.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknn_resid import RidgeCV
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = RidgeCV().fit(X, y)
    >>> len(model.alphas_)
    100
    >>> bool(model.best_score_ == model.scores_.max())
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **LeastSquaresBase._parameter_constraints,
        "alphas": [StrOptions({"auto"}), "array-like"],
        "scoring": [StrOptions(set(get_scorer_names())), callable, None],
        "cv": ["cv_object"],
        "store_cv_results": ["boolean"],
        "alpha_per_target": ["boolean"],
        "criterion": [StrOptions({"loo", "gcv", "aic", "bic"})],
        "penalty_weights": ["array-like", None],
        "keep_rows": ["boolean"],
    }
    _loo_fits: LeaveOneOutFits | None

    def __init__(
        self,
        alphas="auto",
        *,
        fit_intercept=True,
        scoring=None,
        cv=None,
        store_cv_results=False,
        alpha_per_target=False,
        criterion="loo",
        penalty_weights=None,
        keep_rows=False,
        refine="auto",
        device="auto",
        cov_type="nonrobust",
        weight_type="frequency",
    ):
        self.alphas = alphas
        self.fit_intercept = fit_intercept
        self.scoring = scoring
        self.cv = cv
        self.store_cv_results = store_cv_results
        self.alpha_per_target = alpha_per_target
        self.criterion = criterion
        self.penalty_weights = penalty_weights
        self.keep_rows = keep_rows
        self.refine = refine
        self.device = device
        self.cov_type = cov_type
        self.weight_type = weight_type

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, **params):
        """Choose alpha, and fit to all rows with it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; a weight of 0 is no row. Scores are weighted too, where the scorer
            takes weights.
        **params : dict
            For the scorer and the splitter, by scikit-learn's metadata routing, if that is enabled.

        Returns
        -------
        self : RidgeCV
            Fitted.
        """
        raise_for_params(params, self, "fit")
        self._check_combination()
        rows = check_rows(self, X, y, sample_weight, self.weight_type)
        penalty = check_penalty_weights(self.penalty_weights, rows.X.shape[1])
        device = resolve(self.device, *rows.X.shape)
        problem = prepare_rows(rows, self.fit_intercept, penalty, self.refine, device)
        if isinstance(self.alphas, str):
            self.alphas_ = automatic_alphas(problem.factor)
        else:
            self.alphas_ = check_grid(self.alphas)
        to_scorer, to_splitter = routed(self, params, sample_weight)
        scorer, squares = None, None
        if self.cv is not None or self.scoring is not None:
            scorer = prediction_scorer(self, to_scorer, rows.sample_weight)
        if self.cv is None:
            scores, squares = self._scores_of_all_rows(problem, rows, scorer)
        else:
            assert scorer is not None
            splits = check_cv(self.cv).split(rows.X, rows.Y, **to_splitter)
            scores = fold_scores(
                rows,
                self.alphas_,
                splits,
                scorer,
                fit_intercept=self.fit_intercept,
                penalty=penalty,
                per_target=self.alpha_per_target,
            ).mean(axis=0)
        alpha = self._choose(scores, rows.Y.shape[1])
        if self.store_cv_results:
            self.cv_results_ = self._leave_one_out_table(problem, rows)
        leverages = None
        if squares is not None:  # the leave-one-out pass has made what the leverages follow from
            chosen = distinct(alpha)[0]
            leverages = squares.leverage((self.alphas_ == chosen[:, None]).argmax(axis=1))
        outcome = fit_problem(problem, alpha, rows, self.cov_type, leverages)
        self._adopt(outcome, rows, device)
        self._loo_fits = None
        if self.keep_rows and outcome.row_statistics is not None:
            errors = outcome.row_statistics.loo_residuals
            self._loo_fits = leave_one_out_fits(problem.factor, rows.X, errors, rows.sample_weight)
        if self._undetermined():
            warn_deficient_rank(problem.factor, feature_names(self))
        return self

    def _check_combination(self) -> None:
        """Refuse parameters that contradict each other."""
        if self.cv is None and self.scoring is not None and self.criterion != "loo":
            raise ValueError(
                f"scoring={self.scoring!r} and criterion={self.criterion!r} are incompatible: a "
                "scorer judges held-out predictions. Use criterion='loo' or scoring=None."
            )

    def _scores_of_all_rows(
        self, problem: Problem, rows: TrainingRows, scorer: PredictionScorer | None
    ) -> tuple[np.ndarray, Squares | None]:
        """Scores without folds, shape (n_alphas, n_targets) or (n_alphas, 1), and for leverages."""
        factor, squares = problem.factor, None
        if self.criterion == "loo" and factor.n_rows < 2 and len(self.alphas_) > 1:
            raise ValueError(
                f"n_samples = {factor.n_rows}: leave-one-out needs at least 2 samples with a "
                "positive weight to choose among alphas. Use Ridge, or give one alpha."
            )
        if scorer is not None:
            per_target = self.alpha_per_target
            return loo_scores_by(factor, rows, self.alphas_, scorer, per_target), None
        if self.criterion == "loo":
            scores, squares = loo_scores_and_squares(factor, rows, self.alphas_)
        elif self.criterion == "gcv":
            scores = gcv_scores(factor, rows.n_obs, self.alphas_)
        else:
            scores = information_scores(
                factor, rows.n_obs, rows.sum_log_weights, self.alphas_, self.criterion
            )
        if self.alpha_per_target:
            return scores, squares
        # Criteria are log-likelihoods, which add up over targets; errors are averaged.
        together = np.sum if self.criterion in ("aic", "bic") else np.mean
        return together(scores, axis=1, keepdims=True), squares

    def _choose(self, scores: np.ndarray, n_targets: int) -> np.ndarray:
        """Set what the choice results in; alpha of each target."""
        usable = np.where(np.isnan(scores), -np.inf, scores)
        if len(self.alphas_) > 1 and np.isneginf(usable).all(axis=0).any():
            raise ValueError(
                "No alpha has a finite score, so none can be chosen. Scores on test parts of one "
                "row need scoring='neg_mean_squared_error' instead of R2; 'gcv', 'aic' and 'bic' "
                "need more rows than effective coefficients."
            )
        best = usable.argmax(axis=0)
        self.scores_ = scores if self.alpha_per_target else scores[:, 0]
        if self.alpha_per_target:
            self.alpha_ = self.alphas_[best]
            self.best_score_ = np.take_along_axis(scores, best[None], axis=0)[0]
            return self.alpha_.copy()
        self.alpha_ = float(self.alphas_[best[0]])
        self.best_score_ = float(scores[best[0], 0])
        return np.full(n_targets, self.alpha_)

    def _leave_one_out_table(self, problem: Problem, rows: TrainingRows) -> np.ndarray:
        """`cv_results_`: the axis of penalties comes last, as in scikit-learn."""
        table = np.empty((*rows.Y.shape, len(self.alphas_)))
        for start, predictions in loo_predictions_of(problem.factor, rows, self.alphas_):
            if self.scoring is None:
                predictions = (rows.Y - predictions) ** 2
            table[:, :, start : start + len(predictions)] = np.moveaxis(predictions, 0, -1)
        return table[:, 0] if rows.single_target else table

    def jackknife_plus_interval(self, X: Any, level: float = 0.9) -> np.ndarray:
        """Prediction intervals from leave-one-out predictions, without a normal distribution.

        For exchangeable rows and a fixed alpha the coverage is at least ``2 level - 1``, whatever
        the distribution, and about ``level`` in practice (Barber, Candes, Ramdas and Tibshirani
        2021). That the same rows chose alpha is not accounted for. Needs ``keep_rows=True``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.
        level : float, default=0.9
            Nominal coverage, strictly between 0 and 1.

        Returns
        -------
        ndarray of shape (n_samples, 2) or (n_samples, n_targets, 2)
            Lower and upper ends; infinite where there are too few training rows for the level.
        """
        check_is_fitted(self)
        if self._loo_fits is None:
            raise AttributeError(
                "jackknife_plus_interval needs the rows, which are not kept. Fit with "
                "keep_rows=True."
            )
        if not 0.0 < level < 1.0:
            raise ValueError(f"level: must be strictly between 0 and 1, got {level!r}.")
        X = self._checked_rows(X)
        predicted = X @ np.atleast_2d(self.coef_).T + self.intercept_
        interval = jackknife_plus(
            self._loo_fits, self._fitted.factor, self._fitted.alpha, X, predicted, level
        )
        return interval[:, 0] if self._single_target else interval

    def get_metadata_routing(self):
        """Which metadata this estimator routes, and where.

        Returns
        -------
        sklearn.utils.metadata_routing.MetadataRouter
        """
        router = MetadataRouter(owner=self).add_self_request(self)
        if self.scoring is not None:
            router.add(
                scorer=prediction_scorer(self, {}, None).scorer,
                method_mapping=MethodMapping().add(caller="fit", callee="score"),
            )
        if hasattr(self.cv, "get_metadata_routing"):
            router.add(
                splitter=self.cv,
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
        return router
