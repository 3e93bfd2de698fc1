"""Solutions of normal equations to their last bit.

The normal equations ``S x = g``, ``S = X'WX + alpha P``, are known to many bits (:mod:`._system`).
The factorisation gives ``M = B diag(f) B'``, which differs from ``S^+`` by about 2^-53 times the
condition number of X, so that ``x += M (g - S x)``, with the residual in words, gains the digits
that M has, every step. The limit is the precision of S: an error of ``2^-b`` in it moves the
solution by ``2^-b kappa^2``, and :func:`~sknn_resid.linear_model._decompose.normal_equations` takes
as many slices as that needs.

At deficient rank the equations are solved on independent columns, and the solution of minimum norm
follows from that (:mod:`._null_space`).

Wilkinson (1963), Rounding Errors in Algebraic Processes, ch. 3; Demmel et al. (2006), ACM TOMS
32(2), on when to stop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._basis import Directions, directions
from ._factor import Factor
from ._null_space import NullSpace
from ._system import System
from ._words import add, compress, cut, multiply, slice_bits, two_prod, word_count

STEPS = 20
GOAL = 2.0**-62  # of each entry


class _Equations(NamedTuple):
    """Normal equations for one penalty, or for all where one scale suits all."""

    S_cut: np.ndarray  # slices of the scaled matrix, beside each other
    side: np.ndarray  # exact scales of its columns
    B: np.ndarray  # the inverse is about B diag(f) B'
    d: np.ndarray | None  # f = d^2 / (d^2 + alpha); None for f = 1
    possible: bool


class Refiner:
    """Correctly rounded solutions of one system, for any right-hand sides and penalties.

    Parameters
    ----------
    system : System
    factor : Factor
        Of ``system``.
    found : Directions
        Of ``system``.

    Attributes
    ----------
    scale : ndarray of shape (p,)
        Powers of two; right-hand sides are to be divided by them, and solutions too.
    first_goal : float
        For the first of two solutions in turn.
    G, P : ndarray of shape (n_words, p, p) and (p,)
        Scaled sums of products and penalties.
    """

    def __init__(self, system: System, factor: Factor, found: Directions) -> None:
        self.slices, self.count = system.slices, word_count(system.slices)
        p = system.xx.shape[1]
        diagonal = np.maximum(system.xx[0].diagonal(), 0.0)
        largest = diagonal.max(initial=0.0)
        # Exact scales: products are cut along rows, so all columns must have about one size.
        root = np.sqrt(np.where(diagonal > 0, diagonal, largest if largest > 0 else 1.0))
        self.scale = np.ldexp(1.0, np.frexp(root)[1])
        self.G = system.xx / self.scale / self.scale[:, None]
        penalty = np.ones(p) if factor.penalty is None else factor.penalty
        self.P = penalty / self.scale / self.scale
        self.precision = system.precision
        # One basis for all penalties, unless sizes differ so much that each has its own scales.
        positive = penalty[penalty > 0]
        self.even = bool((found.scale == found.scale[:1]).all()) and (
            not len(positive) or positive.max() <= 4096.0 * positive.min()
        )
        self.count += not self.even
        # Bits that the sums of products leave for a solution; smaller entries have fewer.
        growth = max(found.growth, 1.0)
        spare = float(system.precision - np.log2(growth) + np.log2(GOAL))
        self.floor = 2.0 ** -float(np.clip(spare, 0.0, 80.0))
        # What a solution on independent columns loses when it is spread over all.
        self.further = 2.0 ** -float(np.clip(spare - 10.0, 0.0, 40.0)) if found.rank < p else 1.0
        # A first of two solutions in turn: what it errs by grows by the condition number.
        self.first_goal = GOAL / min(np.sqrt(growth), 2.0 ** max(0.0, spare - 4.0))
        self.null = None
        self.G_J, self.norms_J = self.G, system.norms / self.scale
        self.penalty_J: np.ndarray | None = None  # None: diagonal, P
        if found.rank < p:
            vectors = found.vectors[:, found.rank :] * (self.scale / found.scale)[:, None]
            self.null = NullSpace(
                self.G,
                self.P,
                vectors,
                self.norms_J,
                system.precision,
                system.slices,
                not self.even,
            )
            J = self.null.J
            self.G_J, self.norms_J = self.G[:, J][:, :, J], self.norms_J[J]
        self.bits = slice_bits(max(1, self.G_J.shape[1]), self.slices)
        self._common: _Equations | None = self._shared(factor) if self.even else None

    def _shared(self, factor: Factor) -> _Equations:
        """Equations for all penalties, from the basis of the factorisation."""
        first = int(factor.fit_intercept)
        B = factor.basis[1:, first:] * self.scale[:, None]
        possible = True
        if self.null is not None:
            B = B[self.null.J] + self.null.T[0] @ B[self.null.K]
            possible = self.null.possible
        side = np.ones(len(B))
        return _Equations(self._left(self.G_J), side, B, factor.singular_values[first:], possible)

    def exponent(self, alpha: np.ndarray | float) -> int:
        """Power of two that the equations are to be divided by, lest a huge penalty overflows."""
        largest = float(np.max(alpha, initial=0.0)) * float(self.P.max(initial=0.0))
        return max(0, int(np.frexp(largest)[1]) - 200) if np.isfinite(largest) else 1200

    def _equations(self, alpha: float, exponent: int = 0) -> _Equations:
        """Equations for one penalty, with scales and a factorisation of their own."""
        S = self.G_J if exponent == 0 else np.ldexp(self.G_J, -exponent)
        if alpha > 0:
            S = add(S, self._penalty(alpha), self.count)
        size = S[0].diagonal()
        side = np.ldexp(1.0, np.frexp(np.sqrt(np.where(size > 0, size, 1.0)))[1])
        S = S / side / side[:, None]
        p = len(side)
        found = directions(S, self.norms_J / side, self.precision, self.slices, p)
        B = found.vectors[:, : found.rank] / found.values[: found.rank] / found.scale[:, None]
        possible = found.rank == p and (self.null is None or self.null.possible)
        return _Equations(self._left(S), side, B, None, possible)

    def _penalty(self, alpha: float) -> np.ndarray:
        """``alpha`` times the penalty on the independent columns, as a matrix of words."""
        if self.null is None:
            out = np.zeros((2, len(self.P), len(self.P)))
            diagonal = np.arange(len(self.P))
            out[:, diagonal, diagonal] = two_prod(self.P, np.array(alpha))
            return out
        if self.penalty_J is None:
            self.penalty_J = self.null.penalty()
        return multiply(self.penalty_J, np.array([alpha]).reshape(1, 1, 1), len(self.penalty_J))

    def solve(
        self, rhs: np.ndarray, alpha: np.ndarray, goal: float = GOAL, least: float | None = None
    ) -> tuple[np.ndarray, bool]:
        """``x`` of minimum norm with ``(G + alpha P) x = rhs``, in scaled coordinates.

        Parameters
        ----------
        rhs : ndarray of shape (n_words, p, m)
            Scaled: divided by ``scale``.
        alpha : ndarray of shape (m,)
        goal : float, default=2**-62
            Error of each entry.
        least : float or None, default=None
            Entries smaller than this part of the terms that they are the sum of may have no more
            than the absolute error of an entry of that size. None means what the precision allows.

        Returns
        -------
        x : ndarray of shape (n_words, p, m)
            To be divided by ``scale``, and by 2 to the power :meth:`exponent` of ``alpha``.
        converged : bool
        """
        least = self.floor if least is None else max(least, self.floor)
        exponent = self.exponent(alpha)
        rhs = rhs if self.null is None else self.null.reduce(rhs)
        if self._common is not None and not exponent:
            x, converged = self._iterate(self._common, rhs, alpha, goal, least)
        else:
            x, converged = np.zeros((self.count, *rhs.shape[1:])), True
            for value in np.unique(alpha):
                same = np.flatnonzero(alpha == value)
                equations = self._equations(float(np.ldexp(value, -exponent)), exponent)
                part, done = self._iterate(equations, rhs[:, :, same], alpha[same], goal, least)
                x[: len(part), :, same] = part
                converged &= done
        return (x if self.null is None else self.null.expand(x)), converged

    def _iterate(
        self, equations: _Equations, rhs: np.ndarray, alpha: np.ndarray, goal: float, least: float
    ) -> tuple[np.ndarray, bool]:
        """Refinement; parameters as :meth:`solve`, on the independent columns."""
        S_cut, side, B, d, possible = equations
        if not rhs.size:
            return rhs, possible
        f, penalised = 1.0, False
        if d is not None:
            with np.errstate(over="ignore"):
                f = 1.0 / (1.0 + (np.sqrt(alpha) / d[:, None]) ** 2)
            penalised = bool(alpha.any())
        rhs = rhs / side[:, None]
        terms = np.abs(B) @ (f * np.abs(B.T @ rhs[0]))
        residual, before, converged = rhs, 1.0, False
        x = np.zeros((1, *rhs.shape[1:]))
        for turn in range(STEPS):
            step = B @ (f * (B.T @ residual[0]))
            x = add(x, step[None], self.count) if turn else step[None]
            change = _largest(step, x[0], self.floor * terms) if turn else 1.0
            rate = max(min(1.0, change / before), 2.0**-40) if turn else 0.1
            if turn and change * rate <= goal * self.further:
                converged = True
                break
            if turn > 2 and rate > 0.5:  # no more digits in the small entries
                converged = _largest(step, x[0], least * terms) <= goal
                break
            before = change
            residual = add(rhs, -self._times(S_cut, x), self.count)
            if penalised:
                residual = add(residual, -self._penalised(alpha, x), self.count)
        return x / side[:, None], converged and possible

    def _penalised(self, alpha: np.ndarray, x: np.ndarray) -> np.ndarray:
        """``alpha P x`` where one scale suits all penalties."""
        if self.null is None:
            return multiply(np.stack(two_prod(self.P[:, None], alpha)), x, self.count)
        if self.penalty_J is None:
            self.penalty_J = self.null.penalty()
        return multiply(self._times(self._left(self.penalty_J), x), alpha[None, None], self.count)

    def projector(self) -> np.ndarray:
        """Right-hand sides whose solutions at alpha = 0 are the columns of the covariance."""
        return np.eye(len(self.P))[None]

    def times(self, x: np.ndarray) -> np.ndarray:
        """``G x`` on all columns."""
        if not x.size:
            return np.zeros((self.count, *x.shape[1:]))
        bits = slice_bits(self.G.shape[1], self.slices)
        wide = np.concatenate(cut(self.G, self.slices, 1, bits).pieces, axis=1)
        return compress(_products(wide, x, self.slices, bits), self.count)

    def _left(self, words: np.ndarray) -> np.ndarray:
        """Slices of a left factor beside each other."""
        if not words.size:
            return np.zeros((0, 0))
        return np.concatenate(cut(words, self.slices, 1, self.bits).pieces, axis=1)

    def _times(self, wide: np.ndarray, x: np.ndarray) -> np.ndarray:
        return compress(_products(wide, x, self.slices, self.bits), self.count)


def _largest(change: np.ndarray, x: np.ndarray, floor: np.ndarray) -> float:
    """Largest change relative to each entry, or to a part of the terms it is the sum of."""
    reference = np.maximum(np.abs(x), floor)
    return float(np.max(np.abs(change) / np.where(reference > 0, reference, np.inf), initial=0.0))


def _products(wide: np.ndarray, x: np.ndarray, slices: int, bits: int) -> list[np.ndarray]:
    """Exact products, order by order; see :func:`._words.matmul`."""
    inner = wide.shape[1] // slices
    right = cut(x, slices, 0, bits)
    terms = []
    if slices > 1:
        tall = np.concatenate(right.pieces[slices - 2 :: -1], axis=0)
        terms = [
            wide[:, : (s + 1) * inner] @ tall[(slices - 2 - s) * inner :] for s in range(slices - 1)
        ]
    return [*terms, wide @ np.concatenate(right.tails[::-1], axis=0)]
