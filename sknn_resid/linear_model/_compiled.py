"""The compiled kernels, called with numpy arrays; None where they do not serve.

They serve problems whose time in numpy is that of its calls, hundreds of them, and what numpy can
only do in several passes over memory. The caller has the same in numpy, which is the way where the
kernels were not built, and what the tests hold them to. Sums here are in two words too, but by
exact products and sums of single numbers (Ogita, Rump & Oishi 2005, SIAM J. Sci. Comput. 26(6)),
not by slices; they have the bits of three slices or more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sknn_resid._native import compiled

KERNELS = compiled("least_squares")

# Beyond so many multiplications BLAS is faster, with slices.
MOST_WORK = 2**21
WIDEST = 128  # columns up to which a step in words is sooner done here than by slices
WIDEST_SHIFTS = 256  # columns up to which reading them one by one is no loss
JACOBI = 8  # columns up to which rotations are faster than the call of a library
# Leave-one-out: directions up to which its products keep up with BLAS; with many targets they are
# the smaller part. And targets up to which its memory is small.
WIDEST_LOO, MANY_TARGETS, MOST_TARGETS = 256, 8, 256


class Centred(NamedTuple):
    """Centred sums of products that nothing forbids to solve in one step.

    Parameters
    ----------
    xx : ndarray of shape (p, p)
    xy : ndarray of shape (p, t)
    yy : ndarray of shape (t,)
    mean : ndarray of shape (p,)
    y_mean : ndarray of shape (t,)
    norms : ndarray of shape (1 + p,)
        Of the columns before centring, the first of which is constant.
    scale : ndarray of shape (1 + p,)
        Powers of two near them, one for all columns but the first.
    """

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    mean: np.ndarray
    y_mean: np.ndarray
    norms: np.ndarray
    scale: np.ndarray


class Based(NamedTuple):
    """What follows from eigenvalues: see :class:`~._factor.Factor`; and the growth of errors."""

    basis: np.ndarray
    values: np.ndarray
    z: np.ndarray
    outside: np.ndarray
    growth: float


def finite(X: np.ndarray) -> bool | None:
    """Whether all numbers of a float64 array of one or two axes are finite."""
    if KERNELS is None:
        return None
    return KERNELS.finite(X if X.ndim == 2 else X[:, None])


def rows(
    X: np.ndarray,
    Y: np.ndarray,
    coef: np.ndarray,
    intercept: np.ndarray,
    basis: np.ndarray,
    shift: np.ndarray,
    f: np.ndarray,
    reach: np.ndarray,
    sample_weight: np.ndarray | None,
) -> tuple[bool, np.ndarray, np.ndarray, np.ndarray] | None:
    """Residuals, leverages at one penalty, and leave-one-out residuals, in one pass over the rows.

    Returns
    -------
    well : bool
        Whether the residuals, and what follows from them, are as good as they look.
    residuals : ndarray of shape (n_samples, n_targets)
    leverage : ndarray of shape (n_samples, 1)
    loo_residuals : ndarray of shape (n_samples, n_targets)
    """
    if KERNELS is None or len(f) > WIDEST or Y.shape[1] > WIDEST:
        return None
    found = np.empty(Y.shape), np.empty((len(X), 1)), np.empty(Y.shape)
    well = KERNELS.rows(X, Y, coef, intercept, basis, shift, f, reach, sample_weight, *found)
    return well, *found


def shifts(X: np.ndarray, Y: np.ndarray) -> np.ndarray | None:
    """Shifts of columns and targets, shape (n_features + n_targets,)."""
    if KERNELS is None or X.shape[1] > WIDEST_SHIFTS or Y.shape[1] > WIDEST_SHIFTS:
        return None
    found = np.empty(X.shape[1] + Y.shape[1])
    KERNELS.shifts(X, Y, found)
    return found


def sums(
    X: np.ndarray,
    Y: np.ndarray,
    sample_weight: np.ndarray | None,
    shift: np.ndarray,
    y_shift: np.ndarray,
) -> np.ndarray | None:
    """Sums of products of [1, X - shift, Y - y_shift], shape (2, m, m)."""
    m = 1 + X.shape[1] + Y.shape[1]
    if KERNELS is None or len(X) * m * m > MOST_WORK:
        return None
    found = np.empty((2, m, m))
    if not KERNELS.sums(X, Y, sample_weight, shift, y_shift, found):
        return None  # out of the range where products have their rounding errors
    return found


def cut_in_two(
    X: np.ndarray,
    Y: np.ndarray,
    shift: np.ndarray,
    y_shift: np.ndarray,
    bits: int,
    memory: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Two slices of [1, X - shift, Y - y_shift], and the first one plus the whole.

    ``memory`` of at least 3 n m numbers holds them: fresh memory for each block of rows costs as
    much as the arithmetic.
    """
    if KERNELS is None:
        return None
    n, m = len(X), 1 + X.shape[1] + Y.shape[1]
    piece, rest, both = memory[: 3 * n * m].reshape(3, n, m)
    KERNELS.cut(X, Y, shift, y_shift, piece, rest, both, bits)
    return piece, rest, both


def skeleton(F: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray] | bool | None:
    """Columns of F and a matrix with ``F = columns @ mix``; False where that would be no gain."""
    if KERNELS is None or F.shape[1] > WIDEST:
        return None
    columns, mix = np.empty(F.size), np.empty(F.shape[1] ** 2)
    rank = KERNELS.skeleton(F, columns, mix, tolerance)
    if rank < 1:
        return False
    a, k = F.shape
    return columns[: a * rank].reshape(a, rank), mix[: rank * k].reshape(rank, k)


def loo(
    X: np.ndarray,
    Y: np.ndarray,
    sample_weight: np.ndarray | None,
    basis: np.ndarray,
    shifts: tuple[np.ndarray, np.ndarray],
    z: np.ndarray,
    F: np.ndarray,
    skeleton: tuple[np.ndarray, np.ndarray] | None,
    kept: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Sums of squared leave-one-out errors; see :func:`~._loo.loo_pass`.

    Returns
    -------
    weighted, plain : ndarray of shape (n_alphas, n_targets)
        NaN or infinite where a row has no leave-one-out prediction.
    clear : bool
        Whether ``kept`` has been filled in: all leverages are clear of 1.
    """
    t = Y.shape[1]
    if KERNELS is None or t > MOST_TARGETS or (F.shape[1] > WIDEST_LOO and t < MANY_TARGETS):
        return None
    plain = np.empty((len(F), t))
    weighted = None
    if sample_weight is not None:
        if not sample_weight.all():  # rows that are no rows
            return None
        weighted = np.empty_like(plain)
    columns, mix = (None, None) if skeleton is None else skeleton
    clear = KERNELS.loo(
        X, Y, sample_weight, basis, *shifts, z, F, columns, mix, kept, plain, weighted
    )
    return plain if weighted is None else weighted, plain, clear


def centre(
    xx: np.ndarray, xy: np.ndarray, yy: np.ndarray, fit_intercept: bool
) -> Centred | bool | None:
    """Centred sums of products; False where one step is not known to do; None as elsewhere."""
    p, t = xx.shape[1] - 1, xy.shape[2]
    if KERNELS is None or p > WIDEST:
        return None
    found = Centred(
        np.empty((p, p)),
        np.empty((p, t)),
        np.empty(t),
        np.empty(p),
        np.empty(t),
        np.empty(1 + p),
        np.empty(1 + p),
    )
    return found if KERNELS.centre(xx, xy, yy, *found, fit_intercept) else False


def solve(
    words: tuple[np.ndarray, np.ndarray, np.ndarray],
    basis: np.ndarray,
    f: np.ndarray,
    alpha: np.ndarray,
    norms: np.ndarray,
    scale: np.ndarray,
    shifts: tuple[np.ndarray, np.ndarray],
    rate: float,
    error: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | bool | None:
    """One step; see :func:`~._quick.solve_quickly`. False where the last digits are not certain.

    ``error`` is what the sums may lack, relative to their terms; negative if it does not matter.
    """
    p, t = len(shifts[0]), len(alpha)
    if KERNELS is None or p > WIDEST:
        return None
    found = np.empty((2, t, p)), np.empty((2, t)), np.empty(t), np.empty(t)
    done = KERNELS.solve(*words, basis, f, alpha, norms, scale, *shifts, *found, rate, error)
    return found if done else False


def covariance(
    xx: np.ndarray,
    basis: np.ndarray,
    norms: np.ndarray,
    scale: np.ndarray,
    shift: np.ndarray,
    rate: float,
    error: float,
) -> np.ndarray | bool | None:
    """One step; see :func:`~._quick.covariance_quickly`. False as for :func:`solve`."""
    if KERNELS is None or len(shift) > WIDEST:
        return None
    found = np.empty((len(norms), len(norms)))
    done = KERNELS.covariance(xx, basis, norms, scale, shift, found, rate, error)
    return found if done else False


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`numpy.linalg.eigh`, which it calls but for the smallest matrices."""
    p = len(matrix)
    if KERNELS is not None and p <= JACOBI:
        values, vectors = np.empty(p), np.empty((p, p))
        if KERNELS.eigh(matrix, values, vectors):
            return values, vectors
    return np.linalg.eigh(matrix)


def based(
    values: np.ndarray, vectors: np.ndarray, centred: Centred, total: float, fit_intercept: bool
) -> Based | None:
    """Basis, singular values, coordinates of targets and residual sums."""
    p, t = centred.xy.shape
    if KERNELS is None or p > WIDEST:  # as for what it follows from
        return None
    k = p + fit_intercept
    found = np.empty((1 + p, k)), np.empty(k), np.empty((k, t)), np.empty(t)
    _, xy, yy, mean, y_mean, norms, _ = centred
    growth = KERNELS.basis(
        vectors, values, mean, xy, y_mean, yy, norms, *found, total, fit_intercept
    )
    return Based(*found, growth)
