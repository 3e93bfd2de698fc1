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

import warnings
from dataclasses import dataclass, replace

import numpy as np

from . import _filters
from ._covariances import Covariance, covariance, standard_variances, variance_difference
from ._decompose import (
    EXACT_BITS,
    MOST_BITS,
    first_sums,
    from_sums,
    normal_equations,
    wanted_bits,
)
from ._gram import Gram, choose_shifts, gram, merge
from ._problem import Problem
from ._quick import quicken, solve_quickly
from ._refine import GOAL
from ._wide import factorise_wide
from ._words import add, dot, matmul

__all__ = [
    "Covariance",
    "Problem",
    "Solution",
    "Stream",
    "covariance",
    "prepare",
    "prepare_stream",
    "residuals",
    "solve",
    "standard_variances",
    "stream",
    "variance_difference",
]

# Columns up to which "auto" refines: the matrices of words stay small. Fewer where the rows are
# fewer than the columns: products of rows are smaller then, but serve plain float64 only.
WIDEST, WIDEST_SHORT = 2048, 256
SMALLEST_WIDE = 64  # columns from which products of rows are worth it
HARMLESS = 1e8  # condition number up to which the precision of the sums always suffices
STREAM_SLICES = 4  # correctly rounded up to condition numbers near 1e7, before any row is known


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
    sums = None
    if wanted and penalty is None:
        bits = wanted_bits(X)
        sums = first_sums(X, Y, sample_weight, fit_intercept, bits)
        # The smallest problems have to show that the bits suffice for each entry.
        strict = bits == MOST_BITS
        quick = quicken(sums, fit_intercept, EXACT_BITS if strict else bits, strict)
        if quick is not None:
            return Problem(quick.factor, None, True, rows, quick)
    found = normal_equations(
        X,
        Y,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
        penalty=penalty,
        refine=wanted,
        sums=sums,
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

    Warns
    -----
    UserWarning
        If a refined problem is so ill-conditioned that the last digits are not certain.
    """
    factor = problem.factor
    targets = factor.z.shape[1]
    alpha = np.full(targets, alpha, dtype=np.float64)
    if not problem.refined:
        coef, intercept = _filters.coefficients(factor, alpha)
        rss = _filters.residual_sum(factor, alpha)
        reach = _reach(problem, coef, intercept)
        plain = Solution(coef, intercept, rss, False, coef[None], intercept[None], reach)
        return _with_rss(problem, plain, rss <= 2.0**-36 * factor.tss)
    quickly = None if problem.quick is None else solve_quickly(problem.quick, alpha)
    if problem.quick is not None and quickly is not None:
        b, c, rss, size = quickly
        reach = _reach(problem, b[0], c[0])
        found = Solution(b[0], c[0], np.maximum(rss, 0.0), True, b, c, reach)
        precision = problem.quick.sums.precision
        return _with_rss(problem, found, rss <= 2.0 ** (54.0 - precision) * size**2)
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
    done = converged and problem.enough(alpha)
    # A coefficient that is 0 but for rounding has no last digit, however harmless the columns.
    doubtful = not done and factor.condition > HARMLESS
    if doubtful and (refiner.null is None or refiner.null.possible):
        warnings.warn(
            "The coefficients may not be right to their last digit: the condition number of the "
            f"scaled columns is {factor.condition:.2g}, and beyond about 1e13 the precision of the "
            "sums of products does not suffice. Columns that are nearly combinations of others "
            "carry no information of their own; drop some, or add a penalty.",
            stacklevel=2,
        )
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
    return np.abs(coef) @ problem.typical + np.abs(intercept)


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
        rounded = replace(found, coef_words=found.coef[None], intercept_words=found.intercept[None])
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
            shift, y_shift = choose_shifts(X, Y, sample_weight)
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
