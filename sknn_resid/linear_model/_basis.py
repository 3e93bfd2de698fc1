"""Singular values and directions of columns from their sums of products.

``G = X'X`` has the square of the condition number, so its float64 eigenvectors are right only for
what exceeds 2^-53 of the largest eigenvalue, 1e-8 of the largest singular value. But with ``G`` in
words that is no limit: ``T' G T``, evaluated with enough bits, with the ``T`` of those eigenvectors
is nearly the identity where they were right, and shows the small directions enlarged, to be resolved
in the next round. Two or three rounds reach singular values of 2^-53 of the largest, as an
orthogonal factorisation of X would.

Rump (2009), Inversion of extremely ill-conditioned matrices in floating-point, Japan J. Indust.
Appl. Math. 26; Ogita & Oishi (2012), Accurate and robust inverse Cholesky factorization, NTA 3(1).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._words import matmul

CUT = 1e-12  # eigenvalues below this part of the largest wait for the next round
ROUNDS = 4


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
    scaled = xx / scale / scale[:, None]
    T = None
    clipped = False
    floor = 2.0 ** (6.0 - precision)
    for turn in range(ROUNDS):
        H = scaled[0] if T is None else _congruence(scaled, T, slices)
        h, Q = np.linalg.eigh(H)
        top = h[-1] if p and h[-1] > 0 else 1.0
        low = h < CUT * top
        clipped = bool(low.any())
        step = Q / np.sqrt(np.where(low, CUT * top, h))
        T = step if T is None else T @ step
        if not clipped and (turn > 0 or slices == 1 or 2.0**-53 * top < 1e-13 * h[0]):
            break
        if clipped and CUT ** (turn + 1) < floor:
            break  # what is still below the cut is below the precision of xx
    assert T is not None
    if slices == 1:  # eigenvectors as they are: T is Q / sqrt(h)
        values, V = np.sqrt(np.maximum(h, 0.0))[::-1], Q[:, ::-1]
    else:
        V, t, _ = np.linalg.svd(T)
        values, V = 1.0 / t[::-1], V[:, ::-1]
    eps = np.finfo(float).eps
    tol = max(32.0, 2.0 * p) * eps * (values[0] if p else 0.0)
    rank = min(int((values > tol).sum()), max_rank)
    if p and scaled[0].diagonal().max() <= 0:
        values, rank = np.zeros(p), 0
    weight = np.abs(V[:, :rank] / values[:rank]) * (norms / scale)[:, None]
    growth = float((weight.sum(axis=0) ** 2).max()) if rank else 1.0
    # Squares of values: the last one kept and all those dropped must stand above the noise.
    noise = 2.0**-precision * (norms / scale).max() ** 2 * p if p else 0.0
    unresolved = rank < min(p, max_rank) and noise > tol**2 * 2.0**-6
    return Directions(scale, V, values, rank, growth, unresolved)


def _congruence(xx: np.ndarray, T: np.ndarray, slices: int) -> np.ndarray:
    """``T' xx T`` with the bits that ``slices`` give, rounded at the end."""
    half = matmul(xx, T[None], slices, slices)
    H = matmul(np.ascontiguousarray(T.T)[None], half, slices, 1)[0]
    return 0.5 * (H + H.T)
