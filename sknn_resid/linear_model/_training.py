"""From checked rows to a fitted state: the one path that all estimators of this package take.

*Checked rows -> prepared problem -> coefficients at the penalties -> fitted state.* What differs
between the estimators, how the penalties are chosen, happens between the second and the third step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sknn_resid.linear_model._accelerator import prepare_on
from sknn_resid.linear_model._factor import Factor, WideBasis
from sknn_resid.linear_model._fitted import FittedLinear
from sknn_resid.linear_model._least_squares import (
    Problem,
    Solution,
    prepare,
    solve,
)
from sknn_resid.linear_model._refined import refined_covariance
from sknn_resid.linear_model._rows import (
    RowStatistics,
    residuals_and_statistics,
    sandwich,
    warn_full_leverage,
)


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Checked rows.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Rows.
    Y : ndarray of shape (n_samples, n_targets)
        Targets, always with two axes.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights.
    repetitions : bool
        Whether weights count repetitions; otherwise they are precisions.
    single_target : bool
        Whether y had one axis.
    target_names : tuple of str
        Names of the targets.
    """

    X: np.ndarray
    Y: np.ndarray
    sample_weight: np.ndarray | None
    repetitions: bool
    single_target: bool
    target_names: tuple[str, ...]

    def present(self) -> np.ndarray:
        """Indices of the rows of positive weight."""
        if self.sample_weight is None:
            return np.arange(len(self.X))
        return np.flatnonzero(self.sample_weight > 0)

    def take(self, index: np.ndarray) -> TrainingRows:
        """Some of the rows."""
        weights = None if self.sample_weight is None else self.sample_weight[index]
        return replace(self, X=self.X[index], Y=self.Y[index], sample_weight=weights)

    @property
    def n_obs(self) -> float:
        """Observations that degrees of freedom count from."""
        if self.sample_weight is None:
            return float(len(self.X))
        if self.repetitions:
            return float(self.sample_weight.sum())
        return float(np.count_nonzero(self.sample_weight))

    @property
    def sum_log_weights(self) -> float:
        """What precision weights add to twice the log-likelihood."""
        if self.sample_weight is None or self.repetitions:
            return 0.0
        return float(np.log(self.sample_weight[self.sample_weight > 0]).sum())


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a fit results in."""

    solution: Solution
    fitted: FittedLinear
    row_statistics: RowStatistics | None


def prepare_rows(
    rows: TrainingRows,
    fit_intercept: bool,
    penalty: np.ndarray | None,
    refine: bool | str,
    device: str = "cpu",
) -> Problem:
    """Factor the problem of the rows.

    Parameters
    ----------
    rows : TrainingRows
        The rows.
    fit_intercept, penalty, refine
        As :func:`~sknn_resid.linear_model._least_squares.prepare`.
    device : str, default='cpu'
        Where to take the sums over the rows: 'cpu', or what
        :func:`~sknn_resid.linear_model._accelerator.resolve` says.

    Returns
    -------
    Problem
    """
    if device != "cpu":
        return prepare_on(
            device,
            rows.X,
            rows.Y,
            sample_weight=rows.sample_weight,
            fit_intercept=bool(fit_intercept),
            penalty=penalty,
            refine=refine,
        )
    return prepare(
        rows.X,
        rows.Y,
        sample_weight=rows.sample_weight,
        fit_intercept=fit_intercept,
        penalty=penalty,
        refine=refine,
    )


def fit_problem(
    problem: Problem,
    alpha: np.ndarray,
    rows: TrainingRows,
    cov_type: str = "nonrobust",
    leverages: np.ndarray | None = None,
) -> Outcome:
    """Coefficients at the penalties, with everything that is said about the fit.

    Parameters
    ----------
    problem : Problem
        Of these rows.
    alpha : ndarray of shape (n_targets,)
        Penalty of each target.
    rows : TrainingRows
        The rows.
    cov_type : str
        One of `COVARIANCES`.
    leverages : ndarray of shape (n_samples, n_distinct_alphas) or None, default=None
        Of the rows, one column for each of ``np.unique(alpha)``, where they are known already.

    Returns
    -------
    Outcome
    """
    solution = solve(problem, alpha)
    errors, statistics = residuals_and_statistics(
        solution, problem.factor, rows.X, rows.Y, alpha, rows.sample_weight, leverages
    )
    robust = None
    if cov_type != "nonrobust":
        n_coefficients = problem.factor.singular_values.size
        if cov_type in ("HC2", "HC3") and rows.n_obs > n_coefficients:
            warn_full_leverage(statistics, rows.sample_weight, cov_type)
        robust = sandwich(
            problem.factor,
            rows.X,
            errors,
            alpha,
            rows.sample_weight,
            cov_type,
            rows.n_obs,
            rows.repetitions,
        )
    fitted = FittedLinear(
        factor=_own(problem.factor),
        alpha=alpha,
        rss=solution.rss,
        n_obs=rows.n_obs,
        sum_log_weights=rows.sum_log_weights,
        refined=refined_covariance(problem, alpha),
        robust=robust,
        mean=_mean_at_deficient_rank(problem, rows),
    )
    return Outcome(solution, fitted, statistics)


def _own(factor: Factor) -> Factor:
    """The factorisation without references to the user's X, which may change after the fit."""
    if not isinstance(factor.directions, WideBasis):
        return factor
    # A copy is as large as the basis that it stands for, and much sooner made.
    return replace(factor, directions=replace(factor.directions, X=factor.directions.X.copy()))


def _mean_at_deficient_rank(problem: Problem, rows: TrainingRows) -> np.ndarray | None:
    """Weighted means of the columns, which only a stream that goes on after the fit needs."""
    factor = problem.factor
    if not factor.fit_intercept or factor.rank == rows.X.shape[1]:
        return None
    if isinstance(factor.directions, WideBasis):
        return factor.directions.mean
    return factor.shift + np.average(rows.X - factor.shift, axis=0, weights=rows.sample_weight)
