"""Fitting as rows arrive: the state that `partial_fit` carries from call to call.

The triangular factor of all rows so far is enough for coefficients, covariance, path and
generalised cross-validation; what is said about single rows needs the rows, which are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._fitted import FittedLinear
from sknn_resid.linear_model._least_squares import prepare_stream, solve, stream
from sknn_resid.linear_model._refined import refined_covariance
from sknn_resid.linear_model._training import Outcome, TrainingRows


@dataclass(frozen=True, eq=False)
class RowsSoFar:
    """All rows of a stream so far, in the size of one triangular factor.

    Parameters
    ----------
    state : object
        The kernels' state.
    fit_intercept : bool
        Whether the model has an intercept.
    repetitions : bool
        Whether weights count repetitions.
    n_targets : int
        Number of targets.
    single_target : bool
        Whether y had one axis.
    n_obs, sum_log_weights : float
        As in `TrainingRows`.
    """

    state: Any
    fit_intercept: bool
    repetitions: bool
    n_targets: int
    single_target: bool
    n_obs: float
    sum_log_weights: float


def extend(so_far: RowsSoFar | None, rows: TrainingRows, fit_intercept: bool) -> RowsSoFar:
    """The stream with more rows.

    Parameters
    ----------
    so_far : RowsSoFar or None
        None starts a stream.
    rows : TrainingRows
        What arrived.
    fit_intercept : bool
        Whether the model has an intercept.

    Returns
    -------
    RowsSoFar

    Raises
    ------
    ValueError
        If something changed within the stream that all of its rows must share.
    """
    if so_far is not None:
        _refuse("fit_intercept", so_far.fit_intercept, bool(fit_intercept))
        _refuse("the number of targets in y", so_far.n_targets, rows.Y.shape[1])
        _refuse("whether y has one axis", so_far.single_target, rows.single_target)
        _refuse("weight_type='frequency'", so_far.repetitions, rows.repetitions)
    return RowsSoFar(
        state=stream(
            None if so_far is None else so_far.state,
            rows.X,
            rows.Y,
            sample_weight=rows.sample_weight,
            fit_intercept=bool(fit_intercept),
        ),
        fit_intercept=bool(fit_intercept),
        repetitions=rows.repetitions,
        n_targets=rows.Y.shape[1],
        single_target=rows.single_target,
        n_obs=rows.n_obs + (0.0 if so_far is None else so_far.n_obs),
        sum_log_weights=rows.sum_log_weights + (0.0 if so_far is None else so_far.sum_log_weights),
    )


def continued(fitted: FittedLinear, repetitions: bool, single_target: bool) -> RowsSoFar:
    """The stream that a fit would have left, so that `partial_fit` can go on after `fit`.

    The rows are gone, but a few others say the same: with ``sqrt(w) (A - mean) = U M``, the rows
    ``mean +- m_k / sqrt(2 v)``, each of weight v, have the means and the products of columns of the
    rows of the fit, and so have the targets ``mean +- z_k / sqrt(2 v)``. Two rows more, at the mean
    of X, carry what no coefficients explain.

    Parameters
    ----------
    fitted : FittedLinear
        State of the fit.
    repetitions : bool
        Whether weights count repetitions.
    single_target : bool
        Whether y had one axis.

    Returns
    -------
    RowsSoFar
    """
    factor = fitted.factor
    first = int(factor.fit_intercept)
    M = _inverse_basis(factor)
    z = factor.z[first:]
    mean, target_mean = np.zeros(fitted.n_features), np.zeros(fitted.n_targets)
    if factor.fit_intercept:
        mean = factor.shift - factor.basis[0, first:] @ M
        if fitted.mean is not None:
            # The part across the row space, which no direction sees but further rows may.
            across = fitted.mean - mean
            inside = np.linalg.qr(M.T)[0]
            mean = mean + (across - inside @ (inside.T @ across))
        target_mean = factor.y_shift + factor.z[0] / np.sqrt(factor.sum_weights)
    X = np.vstack([M, np.zeros((1, fitted.n_features))])
    Y = np.vstack([z, np.sqrt(factor.rss_outside)])
    weight = factor.sum_weights / (2 * len(X))
    X, Y = X / np.sqrt(2.0 * weight), Y / np.sqrt(2.0 * weight)
    state = stream(
        None,
        np.vstack([mean + X, mean - X]),
        np.vstack([target_mean + Y, target_mean - Y]),
        sample_weight=np.full(2 * len(X), weight),
        fit_intercept=factor.fit_intercept,
    )
    return RowsSoFar(
        state=state,
        fit_intercept=factor.fit_intercept,
        repetitions=repetitions,
        n_targets=fitted.n_targets,
        single_target=single_target,
        n_obs=fitted.n_obs,
        sum_log_weights=fitted.sum_log_weights,
    )


def _inverse_basis(factor: Factor) -> np.ndarray:
    """``M`` with ``sqrt(w) (A - mean) = U M``, shape (rank, n_features).

    In the metric P of the penalty, ``B' P B = diag(1 / d^2)``, so ``m_k = d_k^2 P b_k``. Where
    features are free of penalty that holds for the others only, and B is inverted instead.
    """
    first = int(factor.fit_intercept)
    basis, d = factor.basis[1:, first:], factor.singular_values[first:]
    if np.isfinite(d).all():
        scaled = (basis * d) * d
        return (scaled if factor.penalty is None else factor.penalty[:, None] * scaled).T
    if basis.shape[0] != basis.shape[1]:
        raise ValueError(
            "partial_fit after fit: with penalty_weights of 0 and a rank-deficient X the fit did "
            "not keep enough to add rows. Start with partial_fit on a new estimator."
        )
    size = np.sqrt(factor.column_squares)
    return np.linalg.inv(basis * size[:, None]) * size


def _refuse(what: str, before: Any, now: Any) -> None:
    if before != now:
        raise ValueError(
            f"partial_fit: {what} was {before} in earlier calls and is {now} now; all rows must "
            "share it. Start again with a new estimator, or call fit on all rows."
        )


def fit_so_far(
    so_far: RowsSoFar, alpha: np.ndarray, penalty: np.ndarray | None, refine: bool | str
) -> Outcome:
    """Fit to all rows of a stream so far.

    Parameters
    ----------
    so_far : RowsSoFar
        The stream.
    alpha : ndarray of shape (n_targets,)
        Penalty of each target.
    penalty : ndarray of shape (n_features,) or None
        Penalty of each feature relative to alpha.
    refine : bool or 'auto'
        As in the estimators.

    Returns
    -------
    Outcome
        Without statistics of rows.
    """
    problem = prepare_stream(so_far.state, penalty=penalty, refine=refine)
    solution = solve(problem, alpha)
    fitted = FittedLinear(
        factor=problem.factor,
        alpha=alpha,
        rss=solution.rss,
        n_obs=so_far.n_obs,
        sum_log_weights=so_far.sum_log_weights,
        refined=refined_covariance(problem, alpha),
    )
    return Outcome(solution, fitted, None)
