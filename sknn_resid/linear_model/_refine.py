"""Solutions of normal equations to their last bit: refinement, and the minimum norm.

The normal equations ``S x = g``, ``S = X'WX + alpha P``, are known to many bits (:mod:`._system`).
The factorisation gives ``M = B diag(f) B'``, which differs from ``S^+`` by about 2^-53 times the
condition number of X, so that ``x += M (g - S x)``, with the residual in words, gains the digits
that M has, every step. The limit is the precision of S: an error of ``2^-b`` in it moves the
solution by ``2^-b kappa^2``, and :func:`~sknn_resid.linear_model._decompose.normal_equations` takes
as many slices as that needs.

At deficient rank, ``Pi = I - N (N'PN)^+ N'P`` takes what lies in the null space out of a solution;
it is built from the coefficients of the dependent columns on independent ones, refined themselves.

Wilkinson (1963), Rounding Errors in Algebraic Processes, ch. 3; Demmel et al. (2006), ACM TOMS
32(2), on when to stop.
"""

from __future__ import annotations

import numpy as np

from ._basis import Directions, directions
from ._factor import Factor, user_basis
from ._system import System
from ._words import Slices, add, compress, cut, matmul, multiply, slice_bits, two_prod, word_count

STEPS = 20
GOAL = 2.0**-62  # of each entry
FLOOR = 2.0**-42  # of the largest entry of a column: below, entries count as 0


class Refiner:
    """Correctly rounded solutions of one system, for any right-hand sides and penalties.

    Parameters
    ----------
    system : System
    factor : Factor
        Of ``system``.
    found : Directions
        Of ``system``.
    """

    def __init__(self, system: System, factor: Factor, found: Directions) -> None:
        self.slices = system.slices
        self.count = word_count(system.slices)
        p = system.xx.shape[1]
        diagonal = np.maximum(system.xx[0].diagonal(), 0.0)
        largest = diagonal.max() if p else 1.0
        # Exact scales: products are cut along rows, so all columns must have about one size.
        root = np.sqrt(np.where(diagonal > 0, diagonal, largest if largest > 0 else 1.0))
        self.scale = np.ldexp(1.0, np.frexp(root)[1])
        self.G = system.xx / self.scale / self.scale[:, None]
        penalty = np.ones(p) if factor.penalty is None else factor.penalty
        self.P = penalty / self.scale / self.scale
        first = int(factor.fit_intercept)
        self.B = factor.basis[1:, first:] * self.scale[:, None]
        self.d = factor.singular_values[first:]
        self.bits = slice_bits(p, self.slices)
        self.G_cut = _left(self.G, self.slices, self.bits)
        self.null = None
        self.possible = True
        if found.rank < p:
            self.null = NullSpace(self, system, found)
            self.possible = self.null.possible

    def solve(
        self, rhs: np.ndarray, alpha: np.ndarray, goal: float = GOAL
    ) -> tuple[np.ndarray, bool]:
        """``x`` of minimum norm with ``(G + alpha P) x = rhs``, in scaled coordinates.

        Parameters
        ----------
        rhs : ndarray of shape (n_words, p, m)
            Scaled: divided by ``scale``.
        alpha : ndarray of shape (m,)
        goal : float, default=2**-62
            Error of each entry.

        Returns
        -------
        x : ndarray of shape (count, p, m)
            To be divided by ``scale``.
        converged : bool
        """
        with np.errstate(over="ignore"):
            f = 1.0 / (1.0 + (np.sqrt(alpha) / self.d[:, None]) ** 2)
        penalised = alpha.any()
        rhs = rhs if self.null is None else self.null.remove_left(rhs)
        pen = np.stack(two_prod(self.P[:, None], alpha)) if penalised else None
        x = np.zeros((1, *rhs.shape[1:]))
        residual, before = rhs, np.inf
        converged = False
        for turn in range(STEPS):
            step = self.B @ (f * (self.B.T @ residual[0]))
            x = add(x, step[None], self.count) if turn else step[None]
            size = np.abs(x[0])
            change = float(_largest(np.abs(step), size)) if turn else 1.0
            rate = min(1.0, change / before) if turn else 0.1
            if turn and change * max(rate, 2.0**-40) <= goal:
                converged = True
                break
            if turn > 2 and rate > 0.5:
                break
            before = change
            residual = add(rhs, -self.times(x), self.count)
            if pen is not None:
                residual = add(residual, -multiply(pen, x, self.count), self.count)
        return (x if self.null is None else self.null.remove(x)), converged and self.possible

    def projector(self) -> np.ndarray:
        """Right-hand sides whose solutions at alpha = 0 are the columns of the covariance."""
        return np.eye(len(self.P))[None] if self.null is None else self.null.full()

    def times(self, x: np.ndarray) -> np.ndarray:
        """``G x`` in words."""
        right = cut(x, self.slices, 0, self.bits)
        return compress(_products(self.G_cut, right, self.slices), self.count)


def _largest(change: np.ndarray, size: np.ndarray) -> float:
    """Largest change relative to each entry, or to a tiny part of the largest one of its column."""
    if not size.size:
        return 0.0
    floor = size.max(axis=0) * FLOOR
    reference = np.maximum(size, floor)
    return float(np.max(change / np.where(reference > 0, reference, np.inf), initial=0.0))


def _left(words: np.ndarray, slices: int, bits: int) -> np.ndarray:
    """Slices of a left factor beside each other."""
    return np.concatenate(cut(words, slices, 1, bits).pieces, axis=1)


def _products(wide: np.ndarray, right: Slices, slices: int) -> list[np.ndarray]:
    """Exact products, order by order; see :func:`._words.matmul`."""
    inner = wide.shape[1] // slices
    terms = []
    if slices > 1:
        tall = np.concatenate(right.pieces[slices - 2 :: -1], axis=0)
        terms = [
            wide[:, : (s + 1) * inner] @ tall[(slices - 2 - s) * inner :]
            for s in range(slices - 1)
        ]
    return [*terms, wide @ np.concatenate(right.tails[::-1], axis=0)]


class NullSpace:
    """Dependent columns K as combinations of independent ones J: ``x_K = X_J T``, in words.

    Everything is in the scaled coordinates of a :class:`Refiner`; ``N = [-T; I]`` spans the null
    space, in the order J, K.
    """

    def __init__(self, owner: Refiner, system: System, found: Directions) -> None:
        self.slices, self.count = owner.slices, owner.count + 1
        vectors = found.vectors[:, found.rank :] * (owner.scale / found.scale)[:, None]
        dead = system.xx[0].diagonal() <= 0  # constant columns
        self.J, self.K = _split(vectors, owner.P, dead)
        J, K = self.J, self.K
        G_JJ, G_JK = owner.G[:, J][:, :, J], owner.G[:, J][:, :, K]
        norms = (system.norms / owner.scale)[J]
        inner = directions(G_JJ, norms, system.precision, system.slices, len(J))
        self.possible = inner.rank == len(J)
        B, _ = user_basis(inner, None)
        wide = _left(G_JJ, self.slices, slice_bits(len(J), self.slices))
        T = np.zeros((1, len(J), len(K)))
        for turn in range(STEPS if self.possible and len(J) else 0):
            right = cut(T, self.slices, 0, slice_bits(len(J), self.slices))
            residual = add(
                G_JK, -compress(_products(wide, right, self.slices), self.count), self.count
            )
            step = B @ (B.T @ residual[0])
            T = add(T, step[None], self.count)
            if turn and np.abs(step).max() <= 2.0**-120 * np.abs(T[0]).max():
                break
        # What the precision cannot tell from 0 is 0: columns of other groups.
        T[:, np.abs(T[0]) <= 2.0**-50 * 2.0**-50 * np.abs(T[0]).max(initial=1.0)] = 0.0
        self.T = T
        self.P_J, self.P_K = owner.P[J], owner.P[K]
        self._weigh()

    def _weigh(self) -> None:
        """``W = N'PN``, with exact scales that make its diagonal about 1, and its inverse."""
        T = self.T
        weighted = multiply(T, self.P_J[None, :, None], self.count)
        W = _dot(T, weighted, self.count)
        diagonal = np.arange(len(self.K))
        W[:, diagonal, diagonal] = add(W[:, diagonal, diagonal], self.P_K[None], self.count)
        size = W[0].diagonal()
        if not np.all(size > 0):
            self.possible = False  # free columns among themselves: no penalty decides
            size = np.ones(len(size))
        self.side = np.ldexp(1.0, np.frexp(np.sqrt(size))[1])
        self.W = W / self.side / self.side[:, None]
        try:
            self.inverse = np.linalg.inv(self.W[0])
        except np.linalg.LinAlgError:
            self.possible, self.inverse = False, np.eye(len(size))

    def _solve(self, v: np.ndarray) -> np.ndarray:
        """``W^-1 v`` in words."""
        v = v / self.side[:, None]
        u = np.zeros((1, *v.shape[1:]))
        for _ in range(8 if self.possible else 1):
            residual = add(v, -_dot(self.W, u, self.count), self.count)
            step = self.inverse @ residual[0]
            u = add(u, step[None], self.count)
            if np.all(np.abs(step) <= 2.0**-150 * np.abs(u[0])):
                break
        return u / self.side[:, None]

    def remove(self, x: np.ndarray) -> np.ndarray:
        """``Pi x``: minimum norm of the penalty among all that fit equally well."""
        a, b = x[:, self.J], x[:, self.K]
        v = add(
            multiply(b, self.P_K[None, :, None], self.count),
            -_dot(self.T, multiply(a, self.P_J[None, :, None], self.count), self.count),
            self.count,
        )
        u = self._solve(v)
        out = np.zeros((self.count, *x.shape[1:]))
        out[:, self.J] = add(a, _dot(self.T.transpose(0, 2, 1), u, self.count), self.count)
        out[:, self.K] = add(b, -u, self.count)
        return out

    def remove_left(self, g: np.ndarray) -> np.ndarray:
        """``Pi' g``: the part of a right-hand side that has a solution."""
        a, b = g[:, self.J], g[:, self.K]
        u = self._solve(add(b, -_dot(self.T, a, self.count), self.count))
        out = np.zeros((self.count, *g.shape[1:]))
        back = multiply(
            _dot(self.T.transpose(0, 2, 1), u, self.count), self.P_J[None, :, None], self.count
        )
        out[:, self.J] = add(a, back, self.count)
        out[:, self.K] = add(b, -multiply(u, self.P_K[None, :, None], self.count), self.count)
        return out

    def full(self) -> np.ndarray:
        """``Pi'`` as a matrix of words."""
        p = len(self.J) + len(self.K)
        return self.remove_left(np.eye(p)[None])


def _split(vectors: np.ndarray, P: np.ndarray, dead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Independent and dependent columns from a basis of the null space (p, q).

    Elimination; among the columns that the null space allows, the one whose coefficient costs most
    becomes dependent, so that ``T`` is not large in the user's coordinates.
    """
    rows = vectors.T.copy()
    norms = np.abs(rows).max(axis=1, keepdims=True)
    rows /= np.where(norms > 0, norms, 1.0)
    chosen: list[int] = []
    left = list(range(len(rows)))
    while left:
        size = np.abs(rows[left]).max(axis=0)
        size[chosen] = 0.0
        allowed = np.flatnonzero(size > 0.3 * size.max())
        if dead[allowed].any():
            allowed = allowed[dead[allowed]]
        k = int(allowed[np.argmax(P[allowed] * (1.0 + size[allowed]))])
        row = left[int(np.argmax(np.abs(rows[left, k])))]
        left.remove(row)
        chosen.append(k)
        pivot = rows[row] / rows[row, k]
        for other in left:
            rows[other] -= rows[other, k] * pivot
    K = np.array(sorted(chosen), dtype=int)
    return np.setdiff1d(np.arange(len(P)), K), K


def _dot(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
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
        if k:
            out[:, start : start + step] = terms[:, 0]
    return out
