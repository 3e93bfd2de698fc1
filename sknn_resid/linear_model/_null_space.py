"""The null space of columns, and the solution of minimum norm, in words.

Dependent columns K are combinations of independent ones J, ``X_K = X_J T``. A solution on the
columns J alone, ``y``, is spread over all columns by ``x = E y``, which has the least
``sum P x^2`` of all that fit as ``y`` does:

    x_K = W^-1 T' P_J y,    x_J = y - T x_K,    W = P_K + T' P_J T,

written so that nothing cancels. ``E' g`` is the right-hand side on J that belongs to one on all
columns, and ``E' P E`` the penalty of ``y``.
"""

from __future__ import annotations

import numpy as np

from ._basis import Directions, directions
from ._words import add, matmul, multiply, word_count

STEPS = 12


class NullSpace:
    """Independent columns, and how the others depend on them; in scaled coordinates.

    Parameters
    ----------
    G : ndarray of shape (n_words, p, p)
        Scaled sums of products.
    P : ndarray of shape (p,)
        Scaled penalties.
    basis : ndarray of shape (p, q)
        Spans the null space of G.
    norms : ndarray of shape (p,)
        What the errors of ``G`` are relative to.
    precision : float
        Bits of ``G``.
    slices : int
    graded : bool
        Whether sums have to be right for terms of very different size.

    Attributes
    ----------
    J, K : ndarray of int
        Independent and dependent columns.
    possible : bool
        False where the precision is not enough, or free columns depend on each other, so that no
        penalty decides between them.
    """

    def __init__(
        self,
        G: np.ndarray,
        P: np.ndarray,
        basis: np.ndarray,
        norms: np.ndarray,
        precision: float,
        slices: int,
        graded: bool,
    ) -> None:
        self.slices, self.count, self.graded = slices, word_count(slices) + 1, graded
        self.J, self.K = _split(basis, P, G[0].diagonal() <= 0)
        J, K = self.J, self.K
        inner = directions(G[:, J][:, :, J], norms[J], precision, slices, len(J))
        self.possible = inner.rank == len(J)
        self.P_J, self.P_K = P[J], P[K]
        self.T = self._coefficients(G[:, J], inner)
        # No part in columns that cost more, see _split; what is there is noise.
        dearer = self.P_J[:, None] > 2.0**16 * self.P_K
        self.T[:, (np.abs(self.T[0]) < 2.0**-50) & dearer] = 0.0
        self._weigh()

    def _coefficients(self, G_J: np.ndarray, inner: Directions) -> np.ndarray:
        """``T``, refined."""
        J, K = self.J, self.K
        T = np.zeros((self.count, len(J), len(K)))
        if not len(J) or not self.possible:
            return T
        G_JJ, target = G_J[:, :, J], G_J[:, :, K]
        B = inner.vectors / inner.values / inner.scale[:, None]
        for turn in range(STEPS):
            residual = add(target, -matmul(G_JJ, T, self.slices, self.count), self.count)
            step = B @ (B.T @ residual[0])
            T = add(T, step[None], self.count)
            if turn and np.abs(step).max() <= 2.0**-120 * np.abs(T[0]).max():
                break
        return T

    def _weigh(self) -> None:
        """``W = N'PN``, with exact scales that make its diagonal about 1, and its inverse."""
        weighted = multiply(self.T, self.P_J[None, :, None], self.count)
        W = self._dot(self.T, weighted)
        diagonal = np.arange(len(self.K))
        W[:, diagonal, diagonal] = add(W[:, diagonal, diagonal], self.P_K[None], self.count)
        size = W[0].diagonal()
        if not np.all(size > 0):
            self.possible = False
            W[0, diagonal, diagonal] = np.where(size > 0, size, 1.0)
            size = W[0].diagonal()
        self.side = np.ldexp(1.0, np.frexp(np.sqrt(size))[1])
        self.W = W / self.side / self.side[:, None]
        try:
            self.inverse = np.linalg.inv(self.W[0])
        except np.linalg.LinAlgError:
            self.possible, self.inverse = False, np.eye(len(size))

    def _solve(self, v: np.ndarray) -> np.ndarray:
        """``W^-1 v``."""
        v = v / self.side[:, None]
        u = np.zeros((1, *v.shape[1:]))
        for _ in range(STEPS if self.possible else 1):
            residual = add(v, -self._dot(self.W, u), self.count)
            step = self.inverse @ residual[0]
            u = add(u, step[None], self.count)
            if np.all(np.abs(step) <= 2.0**-150 * np.abs(u[0])):
                break
        return u / self.side[:, None]

    def expand(self, y: np.ndarray) -> np.ndarray:
        """``E y``: words of shape (n_words, len(J), m) to (n_words, p, m)."""
        weighted = multiply(y, self.P_J[None, :, None], self.count)
        dependent = self._solve(self._dot(self.T, weighted))
        out = np.zeros((self.count, len(self.J) + len(self.K), y.shape[2]))
        across = self.T.transpose(0, 2, 1)
        out[:, self.J] = add(y, -self._dot(across, dependent), self.count)
        out[:, self.K] = dependent
        return out

    def reduce(self, g: np.ndarray) -> np.ndarray:
        """``E' g``: words of shape (n_words, p, m) to (n_words, len(J), m)."""
        a, b = g[:, self.J], g[:, self.K]
        u = self._solve(add(b, -self._dot(self.T, a), self.count))
        back = self._dot(self.T.transpose(0, 2, 1), u)
        return add(a, multiply(back, self.P_J[None, :, None], self.count), self.count)

    def penalty(self) -> np.ndarray:
        """``E' P E``, shape (n_words, len(J), len(J)): symmetric."""
        E = self.expand(np.eye(len(self.J))[None])
        P = np.zeros(E.shape[1])
        P[self.J], P[self.K] = self.P_J, self.P_K
        L = self._dot(E, multiply(E, P[None, :, None], self.count))
        lower = np.tril_indices(len(self.J), -1)
        L[:, lower[0], lower[1]] = L[:, lower[1], lower[0]]
        return L

    def _dot(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a' b`` in words."""
        if not a.shape[1] or not a.shape[2] or not b.shape[2]:
            return np.zeros((self.count, a.shape[2], b.shape[2]))
        if self.graded:
            return _graded_dot(a, b, self.count)
        return matmul(np.ascontiguousarray(a.transpose(0, 2, 1)), b, 7, self.count)


def _split(vectors: np.ndarray, P: np.ndarray, dead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Independent and dependent columns from a basis of the null space (p, q).

    Elimination. Of the columns that the null space allows, those whose coefficients cost most
    become dependent first (constant columns before all), and among equals the one with the largest
    pivot. That is the greedy algorithm of a matroid: a dependent column is a combination of columns
    that cost no more than itself, so that ``N'PN`` is dominated by its diagonal.
    """
    rows = vectors.T.copy()
    norms = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows /= np.where(norms > 0, norms, 1.0)
    cost = np.where(P > 0, np.floor(np.log2(np.where(P > 0, P, 1.0)) / 8.0), -np.inf)
    cost = np.where(dead, np.inf, cost)
    chosen: list[int] = []
    left = list(range(len(rows)))
    while left:
        size = np.abs(rows[left]).max(axis=0)
        size[chosen] = 0.0
        allowed = np.flatnonzero(size > 1e-5 * size.max())
        allowed = allowed[cost[allowed] == cost[allowed].max()]
        k = int(allowed[np.argmax(size[allowed])])
        row = left[int(np.argmax(np.abs(rows[left, k])))]
        left.remove(row)
        chosen.append(k)
        pivot = rows[row] / rows[row, k]
        for other in left:
            rows[other] -= rows[other, k] * pivot
            rows[other] /= np.abs(rows[other]).max()
    K = np.array(sorted(chosen), dtype=int)
    return np.setdiff1d(np.arange(len(P)), K), K


def _graded_dot(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """``a' b`` in words, each entry as precise as its own terms; for graded factors.

    Products are formed and added one by one: slices share an exponent along the sum, which terms
    of very different size would not survive.
    """
    n, m, k = a.shape[2], b.shape[2], a.shape[1]
    out = np.zeros((count, n, m))
    step = max(1, 2**18 // max(1, k * m))
    for start in range(0, n, step):
        left = a[:, :, start : start + step, None]
        terms = multiply(left, b[:, :, None, :], count)
        while terms.shape[1] > 1:
            if terms.shape[1] % 2:
                pad = np.zeros((count, 1, *terms.shape[2:]))
                terms = np.concatenate([terms, pad], axis=1)
            half = terms.shape[1] // 2
            terms = add(terms[:, :half], terms[:, half:], count)
        out[:, start : start + step] = terms[:, 0]
    return out
