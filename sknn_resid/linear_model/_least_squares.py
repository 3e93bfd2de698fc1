"""The front of the kernels: problem in, correctly rounded answer out.

    problem = prepare(X, Y, sample_weight=w, fit_intercept=True, penalty=None, refine="auto")
    solution = solve(problem, alpha)                    # coefficients, intercepts, sums of squares
    covariance(problem, alpha)                          # unscaled: times sigma^2
    variance_difference(problem, alpha)                 # Delta, factored
    problem.factor                                      # Factor: paths, leave-one-out, leverage
    state = stream(None, X1, Y1, ...); state = stream(state, X2, Y2); prepare_stream(state)

Shapes: X (n_samples, n_features), Y (n_samples, n_targets), both float64, finite, two axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _filters
from ._factor import Factor, decompose


@dataclass(frozen=True, eq=False)
class Problem:
    """A prepared least-squares problem.

    Parameters
    ----------
    factor : Factor
        The factorisation in plain float64.
    refined : bool
        Whether :func:`solve`, :func:`covariance` and :func:`variance_difference` refine.
    """

    factor: Factor
    refined: bool


@dataclass(frozen=True, eq=False)
class Solution:
    """Coefficients at one penalty per target.

    Parameters
    ----------
    coef : ndarray of shape (n_targets, n_features)
    intercept : ndarray of shape (n_targets,)
        0 without an intercept.
    rss : ndarray of shape (n_targets,)
        Weighted residual sum of squares.
    refined : bool
        Whether the coefficients were refined to the correctly rounded answer; False where the
        refinement was switched off or did not converge.
    """

    coef: np.ndarray
    intercept: np.ndarray
    rss: np.ndarray
    refined: bool


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
    """

    coef: np.ndarray
    intercept_variance: float
    intercept_covariance: np.ndarray
    root: np.ndarray

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of ``coef`` from the factored form: never negative, descending."""
        rows = self.root[1:]
        found = np.zeros(len(rows))
        if rows.size:
            d = np.linalg.svd(rows, compute_uv=False)
            found[: len(d)] = d[: len(found)] ** 2
        return found


def prepare(
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    fit_intercept: bool = True,
    penalty: np.ndarray | None = None,
    refine: bool | str = "auto",
) -> Problem:
    """Factor a problem and keep what refinement needs.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features), float64
    Y : ndarray of shape (n_samples, n_targets), float64
    sample_weight : ndarray of shape (n_samples,) or None, default=None
        Not negative, not all 0; a row of weight 0 counts as absent.
    fit_intercept : bool, default=True
    penalty : ndarray of shape (n_features,) or None, default=None
        Relative penalties, not negative; 0 leaves a feature free.
    refine : bool or "auto", default="auto"
        "auto" refines unless the problem is too wide for it.

    Returns
    -------
    Problem

    Examples
    --------
    >>> import numpy as np
    >>> X, Y = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]])
    >>> solve(prepare(X, Y)).coef
    array([[2.]])
    """
    factor = decompose(
        X, Y, sample_weight=sample_weight, fit_intercept=fit_intercept, penalty=penalty
    )
    return Problem(factor, bool(refine))


def solve(problem: Problem, alpha: np.ndarray | float = 0.0) -> Solution:
    """Coefficients that minimise ``sum w (y - c - X b)^2 + alpha sum penalty b^2``.

    Parameters
    ----------
    problem : Problem
    alpha : float or ndarray of shape (n_targets,), default=0.0
        Not negative, finite. 0 gives ordinary least squares of minimum norm.

    Returns
    -------
    Solution
    """
    coef, intercept = _filters.coefficients(problem.factor, alpha)
    rss = _filters.residual_sum(problem.factor, alpha)
    return Solution(coef, intercept, rss, refined=False)


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
    return _from_root(
        problem.factor, problem.factor.basis * _filters.shrinkage(problem.factor, alpha)
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
    values, where = np.unique(alpha.ravel(), return_inverse=True)
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
    return _from_root(factor, factor.basis * np.sqrt(lost))


def _from_root(factor: Factor, root: np.ndarray) -> Covariance:
    """Covariance from rows of the shifted problem: the intercept moves with the shift."""
    root = root.copy()
    root[0] = root[0] - factor.shift @ root[1:] if factor.fit_intercept else np.nan
    coef = root[1:] @ root[1:].T
    return Covariance(coef, float(root[0] @ root[0]), root[1:] @ root[0], root)


def stream(
    state: object | None,
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    fit_intercept: bool = True,
) -> object:
    """Add rows to the state of a stream; None starts one. The state given is left as it was.

    Parameters
    ----------
    state : object or None
        What an earlier call returned.
    X, Y, sample_weight, fit_intercept
        As :func:`prepare`. ``fit_intercept`` must not change within a stream.

    Returns
    -------
    state : object
        Of a size that does not grow with the rows; pickles.
    """
    rows = (X, Y, sample_weight if sample_weight is not None else np.ones(len(X)))
    return ([] if state is None else list(state[0])) + [rows], fit_intercept  # type: ignore


def prepare_stream(
    state: object, *, penalty: np.ndarray | None = None, refine: bool | str = "auto"
) -> Problem:
    """Problem of all rows of a stream so far; as :func:`prepare` on the rows stacked."""
    rows, fit_intercept = state  # type: ignore
    X, Y, w = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return prepare(
        X, Y, sample_weight=w, fit_intercept=fit_intercept, penalty=penalty, refine=refine
    )


def residuals(solution: Solution, X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """``Y - intercept - X coef'``, evaluated so that cancellation costs no digits.

    Parameters
    ----------
    solution : Solution
    X : ndarray of shape (n_samples, n_features)
    Y : ndarray of shape (n_samples, n_targets)

    Returns
    -------
    ndarray of shape (n_samples, n_targets)
    """
    return Y - (X @ solution.coef.T + solution.intercept)
