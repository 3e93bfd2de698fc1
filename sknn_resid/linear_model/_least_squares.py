"""The front of the kernels: problem in, correctly rounded answer out.

    problem = prepare(X, Y, sample_weight=w, fit_intercept=True, penalty=None, refine="auto")
    solution = solve(problem, alpha)                    # coefficients, intercepts, sums of squares
    covariance(problem, alpha)                          # unscaled: times sigma^2
    variance_difference(problem, alpha)                 # Delta, factored
    problem.factor                                      # Factor: paths, leave-one-out, leverage
    state = stream(None, X1, Y1); state = stream(state, X2, Y2); prepare_stream(state)

Shapes: X (n_samples, n_features), Y (n_samples, n_targets), both float64, finite, two axes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from . import _filters
from ._decompose import EXACT_BITS, Decomposition, from_sums, normal_equations
from ._factor import Factor
from ._gram import Gram, choose_shift, gram, merge
from ._refine import GOAL, Refiner
from ._wide import factorise_wide
from ._words import add, dot, matmul, multiply, two_prod

# Columns up to which "auto" refines: the matrices of words stay small. Fewer where the rows are
# fewer than the columns: products of rows are smaller then, but serve plain float64 only.
WIDEST, WIDEST_SHORT = 2048, 256
SMALLEST_WIDE = 64  # columns from which products of rows are worth it
FIRST = 2.0**-20  # least entries of the first of two solutions in turn
STREAM_SLICES = 4  # correctly rounded up to condition numbers near 1e7, before any row is known


@dataclass(frozen=True, eq=False)
class Problem:
    """A prepared least-squares problem.

    Parameters
    ----------
    factor : Factor
        The factorisation, plain float64.
    decomposition : Decomposition or None
        Normal equations in words; None for a wide problem that is not refined.
    refined : bool
        Whether :func:`solve`, :func:`covariance` and :func:`variance_difference` refine.
    rows : tuple of (X, Y, sample_weight), or None
        The rows, by reference; None for a stream.
    """

    factor: Factor
    decomposition: Decomposition | None
    refined: bool
    rows: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None

    @property
    def equations(self) -> Decomposition:
        """Normal equations of a refined problem."""
        assert self.decomposition is not None
        return self.decomposition

    @cached_property
    def refiner(self) -> Refiner:
        """Solver of the normal equations."""
        found = self.equations
        return Refiner(found.system, found.factor, found.found)


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
        refinement was switched off, did not converge, or the precision of the sums of products
        was not enough for it (condition numbers beyond about 1e14).
    coef_words : ndarray of shape (n_words, n_targets, n_features)
        The coefficients with the digits that ``coef`` rounds off.
    intercept_words : ndarray of shape (n_words, n_targets)
    reach : ndarray of shape (n_targets,)
        Size of the terms that a fitted value is the sum of: rounding errors are relative to it.
    """

    coef: np.ndarray
    intercept: np.ndarray
    rss: np.ndarray
    refined: bool
    coef_words: np.ndarray
    intercept_words: np.ndarray
    reach: np.ndarray


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


@dataclass(frozen=True, eq=False)
class Stream:
    """Sums of products of all rows of a stream so far.

    Parameters
    ----------
    sums : Gram
    fit_intercept : bool
    """

    sums: Gram
    fit_intercept: bool


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
        "auto" refines up to `WIDEST` columns.

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
    n, p = X.shape
    wanted = bool(refine)
    if refine == "auto":
        wanted = p <= (WIDEST if p <= n else WIDEST_SHORT)
    rows = (X, Y, sample_weight)
    if not wanted and p > n and p > SMALLEST_WIDE and (penalty is None or np.all(penalty > 0)):
        wide = factorise_wide(
            X, Y, sample_weight=sample_weight, fit_intercept=fit_intercept, penalty=penalty
        )
        return Problem(wide, None, False, rows)
    found = normal_equations(
        X,
        Y,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
        penalty=penalty,
        refine=wanted,
    )
    return Problem(found.factor, found, wanted, rows)


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
    factor = problem.factor
    targets = factor.z.shape[1]
    alpha = np.ascontiguousarray(np.broadcast_to(np.asarray(alpha, dtype=np.float64), targets))
    if not problem.refined:
        coef, intercept = _filters.coefficients(factor, alpha)
        rss = _filters.residual_sum(factor, alpha)
        reach = _reach(problem, coef, intercept)
        plain = Solution(coef, intercept, rss, False, coef[None], intercept[None], reach)
        return _with_rss(problem, plain, rss <= 2.0**-36 * factor.tss)
    refiner, system = problem.refiner, problem.equations.system
    rhs = system.xy / refiner.scale[:, None]
    exponent = refiner.exponent(alpha)
    x, converged = refiner.solve(rhs, alpha)
    x = np.ldexp(x, -exponent)
    b, c = _user_words(problem, x)
    lost = _cancellation(problem, b[0], c[0])
    if lost > 64.0:
        x, converged = refiner.solve(rhs, alpha, max(GOAL / lost, 2.0**-110))
        x = np.ldexp(x, -exponent)
        b, c = _user_words(problem, x)
    count = len(rhs)
    doubled = add(rhs, add(rhs, -refiner.times(x), count), count)
    rss = add(system.yy, -dot(x.transpose(0, 2, 1), doubled.transpose(0, 2, 1), count), count).sum(
        axis=0
    )
    size = np.abs(x[0]).T @ (system.norms / refiner.scale) + system.y_norms
    done = converged and problem.equations.enough
    reach = _reach(problem, b[0], c[0])
    found = Solution(b[0], c[0], np.maximum(rss, 0.0), done, b, c, reach)
    return _with_rss(problem, found, rss <= 2.0 ** (54.0 - system.precision) * size**2)


def _user_words(problem: Problem, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and intercepts in words from the refiner's coordinates."""
    b = np.ascontiguousarray((x / problem.refiner.scale[:, None]).transpose(0, 2, 1))
    return b, _intercept_words(problem, b)


def _cancellation(problem: Problem, b: np.ndarray, c: np.ndarray) -> float:
    """How much larger the terms of an intercept are than the intercept."""
    system = problem.equations.system
    if not system.fit_intercept:
        return 1.0
    terms = np.abs(b) @ np.abs(system.full_mean[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(terms > 0, terms / np.abs(c), 1.0), initial=1.0))


def _reach(problem: Problem, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    """Size of the terms of a fitted value, shape (n_targets,)."""
    factor = problem.factor
    typical = np.sqrt(factor.column_squares / factor.sum_weights) + np.abs(factor.shift)
    if problem.decomposition is not None:  # means of the shifted columns
        typical = typical + np.abs(problem.equations.system.mean[0])
    return np.abs(coef) @ typical + np.abs(intercept)


def _intercept_words(problem: Problem, b: np.ndarray) -> np.ndarray:
    """``y_mean + y_shift - (mean + shift)' b`` in words, shape (n_words, n_targets)."""
    system = problem.equations.system
    if not system.fit_intercept:
        return np.zeros((1, b.shape[1]))
    mean, count = system.full_mean, len(system.mean) + 1
    return add(system.full_y_mean, -dot(b, mean[:, None, :], count), count)


def _with_rss(problem: Problem, found: Solution, doubtful: np.ndarray) -> Solution:
    """Residual sums from the residuals of the rows, where sums of products cannot tell them."""
    if problem.rows is None or not doubtful.any():
        return found
    which = np.flatnonzero(doubtful)
    # Bits for 2^-57 of the residuals, which are at least as large as what made the sum doubtful.
    factor = problem.factor
    typical = np.sqrt(np.maximum(found.rss, 2.0**-70 * factor.tss))[which]
    reach = found.reach[which] * np.sqrt(factor.sum_weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.nanmax(np.where(reach > 0, reach / typical, 1.0)))
    slices = int(np.clip(np.ceil((8.0 + np.log2(ratio)) / 21.0) + 1, 2, 4))
    rss = found.rss.copy()
    rss[which] = _row_sums(found, problem.rows, which, slices)
    nothing = np.flatnonzero(doubtful & (rss <= 2.0**-90 * factor.tss))
    if len(nothing):
        # A minimum: the smaller value is the better one, and rounded coefficients may be exact.
        rounded = replace(
            found, coef_words=found.coef[None], intercept_words=found.intercept[None]
        )
        rss[nothing] = np.minimum(rss[nothing], _row_sums(rounded, problem.rows, nothing, 4))
    return replace(found, rss=rss)


def _row_sums(
    found: Solution,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    targets: np.ndarray,
    slices: int,
) -> np.ndarray:
    """Weighted residual sums of squares of some targets, from the rows."""
    X, Y, w = rows
    errors = _exact_residuals(found, X, Y, targets, slices)
    return np.einsum("ij,ij->j", errors if w is None else w[:, None] * errors, errors)


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
    refiner = problem.refiner
    goal, same = _variance_goal(problem, root), np.full(len(refiner.P), float(alpha))
    if alpha > 0 and np.all(_filters.shrinkage(factor, alpha) >= 0.5):
        # Close to the covariance at alpha = 0: less a small difference, not a product of two
        # matrices close to the identity, whose small entries no precision holds.
        C, first = refiner.solve(refiner.projector(), 0.0 * same, goal)
        D, second = _difference_words(problem, alpha, C, goal)
        C = add(C, -D, len(C))
        return _from_words(problem, C, root, first and second, constant=True)
    rhs, converged = refiner.projector(), True
    if alpha > 0:
        half, converged = refiner.solve(refiner.G, same, min(goal, refiner.first_goal), FIRST)
        rhs = half.transpose(0, 2, 1)
    C, again = refiner.solve(rhs, same, goal)
    C = np.ldexp(C, -2 * refiner.exponent(alpha))
    return _from_words(problem, C, root, converged and again, constant=True)


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
    root = factor.basis * np.sqrt(lost)
    if not problem.refined or alpha == 0:
        return _from_root(factor, root)
    refiner = problem.refiner
    goal = _variance_goal(problem, root)
    C, converged = refiner.solve(refiner.projector(), np.zeros(len(refiner.P)), goal)
    D, done = _difference_words(problem, alpha, C, goal)
    return _from_words(problem, D, root, converged and done, constant=False)


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
    problem: Problem, C: np.ndarray, root: np.ndarray, converged: bool, constant: bool
) -> Covariance:
    """Covariance from words in the refiner's scaled coordinates."""
    system, scale = problem.equations.system, problem.refiner.scale
    C = C / scale / scale[:, None]
    plain = _from_root(problem.factor, root)
    coef = C[0]
    # The correctly rounded entry of a symmetric matrix: both halves agree but for the last words.
    coef = np.triu(coef) + np.triu(coef, 1).T
    done = converged and problem.equations.enough
    if not system.fit_intercept:
        nothing = np.full(len(coef), np.nan)
        return Covariance(coef, np.nan, nothing, plain.root, done)
    mean, count = system.full_mean, len(system.mean) + 1
    if len(coef) <= 16:
        cross = dot(C, mean[:, None, :], count)
    else:
        cross = matmul(C, mean[:, :, None], system.slices + 1, count)[:, :, 0]
    variance = dot(cross, mean, count)
    if constant:
        variance = add(variance, system.inverse_weights, count)
    return Covariance(coef, float(variance[0]), -cross[0], plain.root, done)


def _from_root(factor: Factor, root: np.ndarray) -> Covariance:
    """Covariance from rows of the shifted problem: the intercept moves with the shift."""
    root = root.copy()
    root[0] = root[0] - factor.shift @ root[1:] if factor.fit_intercept else np.nan
    coef = root[1:] @ root[1:].T
    return Covariance(coef, float(root[0] @ root[0]), root[1:] @ root[0], root)


def stream(
    state: Stream | None,
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    fit_intercept: bool = True,
) -> Stream:
    """Add rows to the state of a stream; None starts one. The state given is left as it was.

    Parameters
    ----------
    state : Stream or None
        What an earlier call returned.
    X, Y, sample_weight, fit_intercept
        As :func:`prepare`. ``fit_intercept`` must not change within a stream.

    Returns
    -------
    Stream
        Of a size that does not grow with the rows; pickles.

    Notes
    -----
    The sums are exact to 112 bits whatever the order and the grouping of the rows, so a stream
    equals all rows at once: correctly rounded up to condition numbers of about 1e7, and as good
    as an orthogonal factorisation beyond 1e12.
    """
    if state is None:
        shift, y_shift = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
        if fit_intercept:
            shift, y_shift = choose_shift(X, sample_weight), choose_shift(Y, sample_weight)
    else:
        shift, y_shift = state.sums.shift, state.sums.y_shift
    new = gram(X, Y, sample_weight, shift, y_shift, STREAM_SLICES)
    return Stream(new if state is None else merge(state.sums, new), fit_intercept)


def prepare_stream(
    state: Stream, *, penalty: np.ndarray | None = None, refine: bool | str = "auto"
) -> Problem:
    """Problem of all rows of a stream so far; as :func:`prepare` on the rows stacked."""
    wanted = len(state.sums.shift) <= WIDEST if refine == "auto" else bool(refine)
    found = from_sums(
        state.sums,
        fit_intercept=state.fit_intercept,
        penalty=penalty,
        bits=EXACT_BITS if wanted else None,
    )
    return Problem(found.factor, found, wanted)


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
    plain = Y - (X @ solution.coef.T + solution.intercept)
    size = np.sqrt(np.einsum("ij,ij->j", plain, plain) / max(1, len(plain)))
    lost = np.flatnonzero(size <= 2.0**-12 * solution.reach)
    if len(lost):
        plain[:, lost] = _exact_residuals(solution, X, Y, lost, 4)
    return plain


def _exact_residuals(
    solution: Solution, X: np.ndarray, Y: np.ndarray, targets: np.ndarray, slices: int
) -> np.ndarray:
    """Residuals of some targets, in words until the end."""
    scale = np.ldexp(1.0, np.frexp(np.abs(X).max(axis=0, initial=0.0))[1])
    coef = solution.coef_words[:, targets].transpose(0, 2, 1) * scale[:, None]
    intercept = solution.intercept_words[:, None, targets]
    out = np.empty((len(X), len(targets)))
    step = max(1, 2**16 // max(1, X.shape[1]))
    for start in range(0, len(X), step):
        part = slice(start, start + step)
        fitted = matmul((X[part] / scale)[None], coef, slices, 3)
        out[part] = add(Y[part][:, targets][None], -add(fitted, intercept, 3), 3).sum(axis=0)
    return out
