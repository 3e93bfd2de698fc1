"""Singular values and directions of columns from their sums of products.

``G = X'X`` has the square of the condition number, so its float64 eigenvectors are right only for
what exceeds 2^-53 of the largest eigenvalue, 1e-8 of the largest singular value. But with ``G`` in
words that is no limit: ``T' G T``, evaluated with enough bits, with the ``T`` of those eigenvectors
is nearly the identity where they were right, and shows the small directions enlarged, to be
resolved in the next round. Two or three rounds reach singular values of 2^-53 of the largest, as an
orthogonal factorisation of X would.

Rump (2009), Inversion of extremely ill-conditioned matrices in floating-point, Japan J. Indust.
Appl. Math. 26; Ogita & Oishi (2012), Accurate and robust inverse Cholesky factorization, NTA 3(1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._words import matmul, word_count

CUT = 1e-12  # eigenvalues below this part of the largest wait for the next round


class Directions(NamedTuple):
    """Right singular vectors and values of scaled columns.

    Parameters
    ----------
    scale : ndarray of shape (p,)
        Powers of two; the columns were divided by them.
    vectors : ndarray of shape (p, p)
        Orthonormal, a column each; those from ``rank`` on span the null space.
    values : ndarray of shape (p,)
        Singular values of the scaled columns, descending.
    rank : int
    growth : float
        Relative error of ``T' G T`` per unit of relative error of G.
    unresolved : bool
        Whether the precision of G does not decide what is zero.
    """

    scale: np.ndarray
    vectors: np.ndarray
    values: np.ndarray
    rank: int
    growth: float
    unresolved: bool


def power_of_two(norms: np.ndarray, spread: float = 64.0) -> np.ndarray:
    """Powers of two near the norms, 1 for 0; the same for all whose ratio is within ``spread``.

    Scaling by them is exact. Where the norms differ little, one scale for all leaves the user's
    coordinates as they are, up to a factor.
    """
    positive = norms[norms > 0]
    if not len(positive):
        return np.ones_like(norms)
    largest = positive.max()
    if largest <= spread * positive.min():
        norms = np.full_like(norms, largest)
    else:
        norms = np.where(norms > 0, norms, largest)
    return np.ldexp(1.0, np.frexp(norms)[1] - 1)


def directions(
    xx: np.ndarray, norms: np.ndarray, precision: float, slices: int, max_rank: int
) -> Directions:
    """Singular values and vectors of scaled columns, from their sums of products.

    Parameters
    ----------
    xx : ndarray of shape (n_words, p, p)
        Sums of products, symmetric.
    norms : ndarray of shape (p,)
        What the errors of ``xx`` are relative to.
    precision : float
        Bits of ``xx``.
    slices : int
        For products with ``xx``.
    max_rank : int
        A bound that is known: rows, less one for the mean.

    Returns
    -------
    Directions
    """
    p = xx.shape[1]
    scale = power_of_two(np.sqrt(np.maximum(xx[0].diagonal(), 0.0)))
    # One scale for all is the usual case; a large matrix is gone through once then.
    same = p > 0 and (scale == scale[0]).all()
    scaled = xx / scale[0] ** 2 if same else xx / scale / scale[:, None]
    if not p or scaled[0].diagonal().max() <= 0:
        return Directions(scale, np.eye(p), np.zeros(p), 0, 1.0, False)
    vectors, values, missing = _resolve(scaled, slices, precision)
    rank = min(int((values > _tolerance(p) * values[0]).sum()), p - missing, max_rank)
    size = norms / scale
    weight = size @ np.abs(vectors[:, :rank]) / values[:rank]
    growth = float((weight**2).max()) if rank else 1.0
    # Squares of values: the last one kept and all those dropped must stand above the noise.
    noise = 2.0**-precision * size.max() ** 2 * p
    limit = (2.0**-3 * _tolerance(p) * values[0]) ** 2
    return Directions(
        scale, vectors, values, rank, growth, rank < min(p, max_rank) and noise > limit
    )


def _tolerance(p: int) -> float:
    """Part of the largest singular value below which one counts as 0.

    Columns that depend on each other but for the rounding of their entries have singular values of
    about 2^-54 of the largest, whatever the number of rows: the sums of products add nothing.
    """
    return max(32.0, 2.0 * p) * float(np.finfo(float).eps)


def _resolve(
    scaled: np.ndarray, slices: int, precision: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Right singular vectors and values, descending, and how many of the values are noise."""
    p = scaled.shape[1]
    h, Q = np.linalg.eigh(scaled[0])
    top = h[-1]
    low = h < CUT * top
    if not low.any() and (slices == 1 or 2.0**-53 * top < 1e-13 * h[0]):
        return Q[:, ::-1], np.sqrt(h[::-1]), 0
    if slices == 1:
        return Q[:, ::-1], np.sqrt(np.maximum(h[::-1], 0.0)), int(low.sum())
    T = Q / np.sqrt(np.where(low, CUT * top, h))
    reach = CUT
    while low.any() and reach >= 2.0 ** (6.0 - precision):
        h, Q = np.linalg.eigh(_congruence(scaled, T, slices))
        low = h < CUT * h[-1]
        T = T @ (Q / np.sqrt(np.where(low, CUT * h[-1], h)))
        reach *= CUT
    U, t, _ = np.linalg.svd(T)
    missing = int((t * np.sqrt(top) * _tolerance(p) >= 1.0).sum())
    if not missing:
        # G = R' (T' G T)^-1 R with R = T' G. Rounding T leaves T' G T up to 2^-53 times the
        # condition number from the identity; dividing by it takes that out again, and the error
        # is 2^-53 of the largest singular value.
        h, Q = np.linalg.eigh(_congruence(scaled, T, slices))
        R = (Q / np.sqrt(h)).T @ matmul(scaled, T[None], slices, 1)[0].T
        _, values, Vt = np.linalg.svd(R)
        return Vt.T, values, 0
    # The null space is right, but in T it hides the rest: once more without it.
    rest = np.ascontiguousarray(U[:, missing:])
    if missing == p:  # cannot be: the largest value is not 0
        return U, 1.0 / t, missing
    half = matmul(scaled, rest[None], slices, word_count(slices))
    inner = matmul(np.ascontiguousarray(rest.T)[None], half, slices, word_count(slices))
    vectors, values, more = _resolve(_symmetrised(inner), slices, precision)
    vectors = np.concatenate([rest @ vectors, U[:, missing - 1 :: -1]], axis=1)
    return vectors, np.concatenate([values, 1.0 / t[missing - 1 :: -1]]), missing + more


def _symmetrised(words: np.ndarray) -> np.ndarray:
    """The upper half, mirrored."""
    lower = np.tril_indices(words.shape[1], -1)
    words[:, lower[0], lower[1]] = words[:, lower[1], lower[0]]
    return words


def _congruence(xx: np.ndarray, T: np.ndarray, slices: int) -> np.ndarray:
    """``T' xx T`` with the bits that ``slices`` give, rounded at the end."""
    half = matmul(xx, T[None], slices, slices)
    H = matmul(np.ascontiguousarray(T.T)[None], half, slices, 1)[0]
    return 0.5 * (H + H.T)
