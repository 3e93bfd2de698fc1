"""Unscaled covariances of the coefficients, and the difference that a penalty makes.

``S^+ X'WX S^+`` with ``S = X'WX + alpha P``, in words where the problem is refined, and always in a
factored form in plain float64, which is positive semi-definite whatever the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _filters
from ._factor import Factor
from ._problem import Problem
from ._quick import covariance_quickly
from ._refine import GOAL
from ._words import add, dot, matmul, multiply, two_prod

FIRST = 2.0**-20  # least entries of the first of two solutions in turn


@dataclass(frozen=True, eq=False)
class Covariance:
    """Unscaled covariance (times sigma^2 gives the covariance), or a difference of two.

    Parameters
    ----------
    coef : ndarray of shape (n_features, n_features)
        Symmetric.
    intercept_variance : float
        NaN without an intercept.
    intercept_covariance : ndarray of shape (n_features,)
        Of the intercept with the coefficients; NaN without an intercept.
    root : ndarray of shape (1 + n_features, n_directions)
        ``root @ root.T`` is the covariance of [intercept, coefficients] in plain float64, positive
        semi-definite by construction; row 0 is NaN without an intercept.
    refined : bool, default=False
        Whether the entries were refined to the correctly rounded answer.
    """

    coef: np.ndarray
    intercept_variance: float
    intercept_covariance: np.ndarray
    root: np.ndarray
    refined: bool = False

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of ``coef`` from the factored form: never negative, descending."""
        rows = self.root[1:]
        found = np.zeros(len(rows))
        if rows.size:
            d = np.linalg.svd(rows, compute_uv=False)
            found[: len(d)] = d[: len(found)] ** 2
        return found


def covariance(problem: Problem, alpha: float = 0.0) -> Covariance:
    """Unscaled covariance ``S^+ X'WX S^+`` of the coefficients, S = X'WX + alpha penalty.

    Parameters
    ----------
    problem : Problem
    alpha : float, default=0.0

    Returns
    -------
    Covariance
    """
    factor = problem.factor
    root = factor.basis * _filters.shrinkage(factor, alpha)
    if not problem.refined:
        return _from_root(factor, root)
    if problem.quick is not None and alpha == 0:
        quickly = covariance_quickly(problem.quick)
        if quickly is not None:
            return _whole(factor, quickly, root)
    refiner = problem.refiner
    goal, same = _variance_goal(problem, root), np.full(len(refiner.P), float(alpha))
    if alpha > 0 and np.all(_filters.shrinkage(factor, alpha) >= 0.5):
        # Close to the covariance at alpha = 0: less a small difference, not a product of two
        # matrices close to the identity, whose small entries no precision holds.
        C, first = refiner.solve(refiner.projector(), 0.0 * same, goal)
        D, second = _difference_words(problem, alpha, C, goal)
        C = add(C, -D, len(C))
        return _from_words(
            problem, C, root, first and second and problem.enough(0.0), constant=True
        )
    rhs, converged = refiner.projector(), True
    if alpha > 0:
        half, converged = refiner.solve(refiner.G, same, min(goal, refiner.first_goal), FIRST)
        rhs = half.transpose(0, 2, 1)
    C, again = refiner.solve(rhs, same, goal)
    C = np.ldexp(C, -2 * refiner.exponent(alpha))
    return _from_words(
        problem, C, root, converged and again and problem.enough(alpha), constant=True
    )


def standard_variances(
    problem: Problem, alpha: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Diagonals of :func:`covariance` only: what standard errors need.

    Parameters
    ----------
    problem : Problem
    alpha : float or ndarray of shape (n_targets,), default=0.0

    Returns
    -------
    coef : ndarray of shape alpha.shape + (n_features,)
    intercept : ndarray of shape alpha.shape
    """
    alpha = np.asarray(alpha, dtype=np.float64)
    values, where = _filters.distinct(alpha.ravel())
    found = [covariance(problem, value) for value in values]
    coef = np.stack([np.diag(c.coef) for c in found])[where].reshape(*alpha.shape, -1)
    return coef, np.array([c.intercept_variance for c in found])[where].reshape(alpha.shape)


def variance_difference(problem: Problem, alpha: float) -> Covariance:
    """``Delta = Cov(alpha = 0) - Cov(alpha)`` in the factored form, which cannot cancel.

    ``B diag((1 - f)(1 + f)) B'``; for equal penalties ``V diag(alpha (2 + alpha / d^2) /
    (d^2 + alpha)^2) V'``, times sigma^2.

    Parameters
    ----------
    problem : Problem
    alpha : float

    Returns
    -------
    Covariance
    """
    factor = problem.factor
    lost = _filters.complement(factor, alpha) * (1.0 + _filters.shrinkage(factor, alpha))
    root = factor.basis * np.sqrt(lost)
    if not problem.refined or alpha == 0:
        return _from_root(factor, root)
    refiner = problem.refiner
    goal = _variance_goal(problem, root)
    C, converged = refiner.solve(refiner.projector(), np.zeros(len(refiner.P)), goal)
    D, done = _difference_words(problem, alpha, C, goal)
    return _from_words(problem, D, root, converged and done and problem.enough(0.0), constant=False)


def _difference_words(
    problem: Problem, alpha: float, C: np.ndarray, goal: float
) -> tuple[np.ndarray, bool]:
    """``S^+ (2 alpha P + alpha^2 P C P) S^+`` with C the covariance at alpha = 0, in words."""
    refiner = problem.refiner
    p = len(refiner.P)
    same, exponent = np.full(p, float(alpha)), refiner.exponent(alpha)
    # Both factors 2^-exponent of the solutions belong to the penalties.
    pen = np.stack(two_prod(refiner.P, np.ldexp(np.float64(alpha), -exponent)))
    inner = multiply(multiply(C, pen[:, :, None], len(C)), pen[:, None, :], len(C))
    diagonal = np.arange(p)
    inner[:, diagonal, diagonal] = add(
        inner[:, diagonal, diagonal], np.ldexp(pen, 1 - exponent), len(C)
    )
    half, first = refiner.solve(inner, same, min(goal, refiner.first_goal), FIRST)
    D, second = refiner.solve(half.transpose(0, 2, 1), same, goal)
    return D, first and second


def _variance_goal(problem: Problem, root: np.ndarray) -> float:
    """Error of the covariance's entries that leaves the intercept's variance its digits."""
    system = problem.equations.system
    if not system.fit_intercept:
        return GOAL
    mean = system.full_mean[0]
    terms = ((np.abs(mean) @ np.abs(root[1:])) ** 2).sum()
    total = ((mean @ root[1:]) ** 2).sum() + 1.0 / system.sum_weights[0]
    return max(GOAL / max(1.0, terms / total), 2.0**-130)


def _from_words(
    problem: Problem, C: np.ndarray, root: np.ndarray, refined: bool, constant: bool
) -> Covariance:
    """Covariance from words in the refiner's scaled coordinates."""
    system, scale = problem.equations.system, problem.refiner.scale
    C = C / scale / scale[:, None]
    root = _user_root(problem.factor, root)
    coef = C[0]
    # The correctly rounded entry of a symmetric matrix: both halves agree but for the last words.
    coef = np.triu(coef) + np.triu(coef, 1).T
    if not system.fit_intercept:
        nothing = np.full(len(coef), np.nan)
        return Covariance(coef, np.nan, nothing, root, refined)
    mean, count = system.full_mean, len(system.mean) + 1
    if len(coef) <= 16:
        cross = dot(C, mean[:, None, :], count)
    else:
        cross = matmul(C, mean[:, :, None], system.slices + 1, count)[:, :, 0]
    variance = dot(cross, mean, count)
    if constant:
        variance = add(variance, system.inverse_weights, count)
    return Covariance(coef, float(variance[0]), -cross[0], root, refined)


def _whole(factor: Factor, C: np.ndarray, root: np.ndarray) -> Covariance:
    """Covariance from that of [intercept, coefficients], or of coefficients alone."""
    root = _user_root(factor, root)
    if not factor.fit_intercept:
        return Covariance(C, np.nan, np.full(len(C), np.nan), root, True)
    return Covariance(C[1:, 1:], float(C[0, 0]), C[0, 1:], root, True)


def _from_root(factor: Factor, root: np.ndarray) -> Covariance:
    """Covariance in plain float64."""
    root = _user_root(factor, root)
    coef = root[1:] @ root[1:].T
    return Covariance(coef, float(root[0] @ root[0]), root[1:] @ root[0], root)


def _user_root(factor: Factor, root: np.ndarray) -> np.ndarray:
    """Rows of the shifted problem as those of the user's: the intercept moves with the shift."""
    root = root.copy()
    root[0] = root[0] - factor.shift @ root[1:] if factor.fit_intercept else np.nan
    return root
