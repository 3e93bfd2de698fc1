"""Well-conditioned problems in one refinement step, with a bound of the error that is left.

The same normal equations, and the same answer to the last bit, as by :mod:`._system` and
:mod:`._refine`, which know how to deal with everything: dependent columns, columns of very
different size, penalties per feature, condition numbers up to 1e14. Most problems have none of
this, and then the intercept is an unknown like the others: with ``A = [1, X - shift]`` and
``S = A'WA + alpha diag(0, 1, ..., 1)`` one step

    x = x0 + M (g - S x0),    x0 = M g,    M = B diag(f) B'

from float64 to twice that gives coefficients and intercept, and with ``g = I`` the covariance of
both. What it leaves is bounded, entry by entry, by ``|M| (|I - S M| |r| + the errors of S times
|x|)``; where that is not far below the last bit of an entry, None is returned, and the general way
is taken. The bound is what makes a small number of bits enough for small problems, too: there the
general way takes 133 bits and more for the sake of entries that are tiny beside their terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from . import _compiled
from ._basis import power_of_two
from ._compiled import Based, Centred
from ._factor import Factor
from ._filters import shrinkage
from ._gram import Gram
from ._words import add, compress, cut, dot, slice_bits, two_prod, two_sum

SPREAD = 900.0  # ratio of eigenvalues up to which float64 gives the directions to 1e-13
CENTRED = 2.0**-6  # part of the square of a column that centring must leave
# |I - S M|_ij <= RATE q norm_i / norm_j: a small multiple of 2^-53 times SPREAD and what centring
# takes, with a wide margin, which costs nothing.
RATE = 2.0**20 * 2.0**-53
LAST = 2.0**-58  # error of an entry that does not matter
LARGEST = 2.0**200  # penalty, for columns of norm 1
SMALL = 2.0**-20  # part of its terms below which an entry counts as small


@dataclass(frozen=True, eq=False)
class Quick:
    """A problem that one step solves; no rows.

    Parameters
    ----------
    sums : Gram
        Sums of products, in two words.
    factor : Factor
    norms : ndarray of shape (q,)
        Norms of the columns of A; q counts the intercept, if there is one.
    scale : ndarray of shape (q,)
        Powers of two near them.
    mean : ndarray of shape (n_features,)
        Weighted means of the shifted columns; 0 without an intercept.
    strict : bool
        Whether the bits of the sums must be shown to suffice for each entry; otherwise they
        suffice for entries that are not far smaller than their terms.
    """

    sums: Gram
    factor: Factor
    norms: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    strict: bool

    @property
    def first(self) -> int:
        """Column of A where the unknowns begin."""
        return 1 - int(self.factor.fit_intercept)

    @cached_property
    def left(self) -> np.ndarray:
        """Slices of the scaled matrix, beside each other."""
        i = self.first
        G = self.sums.xx[:, i:, i:] / self.scale / self.scale[:, None]
        return np.concatenate(cut(G, self.sums.slices, 1, self.bits).pieces, axis=1)

    @cached_property
    def basis(self) -> np.ndarray:
        """Basis in scaled coordinates, shape (q, n_directions)."""
        return self.factor.basis[self.first :] * self.scale[:, None]

    @property
    def bits(self) -> int:
        """Bits of a slice."""
        return slice_bits(len(self.scale), self.sums.slices)

    @property
    def rate(self) -> float:
        """What is known of ``|I - S M|`` beforehand."""
        return RATE * len(self.scale)

    @property
    def error(self) -> float:
        """What the sums may lack, relative to their terms."""
        return 2.0 ** (6.0 - self.sums.precision)

    def remainder(self, rhs: list[np.ndarray], x: np.ndarray, more: list[np.ndarray]) -> np.ndarray:
        """``rhs - G x - more`` in scaled coordinates, rounded at the end."""
        slices, q = self.sums.slices, len(self.scale)
        right = cut([x], slices, 0, self.bits)
        tall = np.concatenate(right.pieces[slices - 2 :: -1], axis=0)
        terms = [rhs[0]]
        for s in range(slices - 1):
            terms.append(-(self.left[:, : (s + 1) * q] @ tall[(slices - 2 - s) * q :]))
            if s == 0:
                terms += [-term for term in more] + rhs[1:]
        terms.append(-(self.left @ np.concatenate(right.tails[::-1], axis=0)))
        return compress(terms, 2)[0]

    def certain(
        self,
        x: np.ndarray,
        remainder: np.ndarray,
        f: np.ndarray | float,
        last: float,
        reference: np.ndarray,
        rate: float,
    ) -> bool:
        """Whether what one step leaves is below the last bit of every entry.

        Parameters
        ----------
        x, remainder : ndarray of shape (q, m)
            In scaled coordinates.
        f : ndarray of shape (n_directions, m), or 1.0
        last : float
            Error of an entry that is allowed, relative to ``reference``.
        reference : ndarray of shape (q, m)
            ``|x|``, or the size of what an entry is a part of.
        rate : float
            Bound of ``|I - S M|_ij norm_j / norm_i``.
        """
        norms = (self.norms / self.scale)[:, None]
        B = np.abs(self.basis)
        spread = B @ (f * (B.T @ norms))  # |M| norms: all errors are bounded by their multiples
        q = len(norms)
        terms = norms.T @ np.abs(x)
        left = rate * ((1.0 / norms).T @ np.abs(remainder))
        if self.strict:
            left += self.error * q * terms
        else:
            reference = np.maximum(reference, SMALL * terms / norms)
        return bool((spread * left <= last * reference).all())


def quicken(sums: Gram, fit_intercept: bool, needed: float, strict: bool) -> Quick | None:
    """A problem for one step, or None where it is not known to be one.

    Parameters
    ----------
    sums : Gram
        In two words.
    fit_intercept : bool
    needed : float
        Bits that the sums need at a condition number of 1.
    strict : bool
        See :class:`Quick`.

    Returns
    -------
    Quick or None
    """
    p, first = len(sums.shift), 1 - int(fit_intercept)
    if p == 0 or sums.n_rows < p + 1 - first or sums.slices not in (2, 3):
        return None
    centred = _compiled.centre(sums.xx, sums.xy, sums.yy, fit_intercept)
    if centred is None:
        centred = _centred(sums, fit_intercept)
    if centred is False:
        return None
    assert isinstance(centred, Centred)
    h, V = _compiled.eigh(centred.xx)
    if not h[0] * SPREAD > h[-1]:
        return None
    total = float(sums.xx[0, 0, 0])
    based = _compiled.based(h, V, centred, total, fit_intercept)
    if based is None:
        based = _based(h, V, centred, total, fit_intercept)
    if sums.precision < needed + max(1.0, math.log2(max(based.growth, 1.0))):
        return None
    scale = centred.scale
    factor = Factor(
        n_rows=sums.n_rows,
        sum_weights=total,
        fit_intercept=fit_intercept,
        shift=sums.shift,
        y_shift=sums.y_shift,
        directions=based.basis,
        singular_values=based.values,
        z=based.z,
        rank=p,
        scaled_singular_values=based.values[int(fit_intercept) :] / scale[1],
        dependent=np.zeros(0, dtype=int),
        rss_outside=based.outside,
        tss=centred.yy,
        column_squares=centred.xx.diagonal().copy(),
    )
    return Quick(sums, factor, centred.norms[first:], scale[first:], centred.mean, strict)


def _centred(sums: Gram, fit_intercept: bool) -> Centred | bool:
    """Centred sums of products; False where a column or a target asks for more care."""
    square = sums.xx[0].diagonal()
    if not (square > 0).all():
        return False
    norms = np.sqrt(square)
    scale = power_of_two(norms[1:])
    if (scale != scale[0]).any():
        return False
    xx, xy, yy, mean, y_mean = _less_means(sums) if fit_intercept else _plain(sums)
    left, y_left = xx.diagonal(), sums.yy[0]
    if (left < CENTRED * square[1:]).any() or not (yy >= CENTRED * y_left).all() or not yy.all():
        return False
    return Centred(xx, xy, yy, mean, y_mean, norms, np.append(power_of_two(norms[:1]), scale))


def _based(
    h: np.ndarray, V: np.ndarray, centred: Centred, total: float, fit_intercept: bool
) -> Based:
    """Basis, singular values, coordinates of the targets, and what they leave."""
    d = np.sqrt(h[::-1])
    body = V[:, ::-1] / d
    growth = float(((np.abs(body) * centred.norms[1:, None]).sum(axis=0) ** 2).max())
    z = body.T @ centred.xy
    outside = np.maximum(centred.yy - (z * z).sum(axis=0), 0.0)
    basis = np.concatenate([-(centred.mean @ body)[None], body])
    if fit_intercept:
        lead = np.zeros((len(basis), 1))
        lead[0] = 1.0 / np.sqrt(total)
        basis = np.concatenate([lead, basis], axis=1)
        z = np.concatenate([(centred.y_mean * np.sqrt(total))[None], z])
        d = np.concatenate([[np.inf], d])
    return Based(basis, d, z, outside, growth)


def _less_means(sums: Gram) -> tuple[np.ndarray, ...]:
    """Centred sums of products, and the means, rounded at the end."""
    total, error = sums.xx[0, 0, 0], sums.xx[1, 0, 0]
    every = np.concatenate([sums.xx[:, 0, 1:], sums.xy[:, 0]], axis=1)
    mean = every[0] / total
    product, lost = two_prod(mean, total)
    small = (((every[0] - product) - lost) + (every[1] - mean * error)) / total
    p = len(sums.shift)
    head = every[0, :p, None]
    product, lost = two_prod(head, mean)
    lost = lost + (head * small + every[1, :p, None] * mean)
    body = np.concatenate([sums.xx[:, 1:, 1:], sums.xy[:, 1:]], axis=2)
    found = (body[0] - product) + (body[1] - lost)
    y_sum, y_mean = every[0, p:], mean[p:]
    product, lost = two_prod(y_sum, y_mean)
    lost = lost + (y_sum * small[p:] + every[1, p:] * y_mean)
    yy = (sums.yy[0] - product) + (sums.yy[1] - lost)
    return found[:, :p], found[:, p:], yy, mean[:p], y_mean


def _plain(sums: Gram) -> tuple[np.ndarray, ...]:
    """Sums of products as they are, and means of 0."""
    nothing = np.zeros(len(sums.shift)), np.zeros(len(sums.y_shift))
    return sums.xx[0, 1:, 1:], sums.xy[0, 1:], sums.yy[0].copy(), *nothing


def solve_quickly(
    quick: Quick, alpha: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Coefficients, intercepts and residual sums at one penalty per target.

    Parameters
    ----------
    quick : Quick
    alpha : ndarray of shape (n_targets,)

    Returns
    -------
    coef : ndarray of shape (2, n_targets, n_features)
        In words.
    intercept : ndarray of shape (2, n_targets)
        0 without an intercept.
    rss : ndarray of shape (n_targets,)
        May be negative by rounding.
    size : ndarray of shape (n_targets,)
        Norms of what a residual is the difference of.

    None where the last digits are not certain.
    """
    factor, sums = quick.factor, quick.sums
    if alpha.max(initial=0.0) > LARGEST * float(quick.scale.min()) ** 2:
        return None
    f = np.ascontiguousarray(shrinkage(factor, alpha).T)
    found = _compiled.solve(
        (sums.xx, sums.xy, sums.yy),
        factor.basis,
        f,
        alpha,
        quick.norms,
        quick.scale,
        (sums.shift, sums.y_shift),
        quick.rate,
        quick.error if quick.strict else -1.0,
    )
    if found is not None:
        return found if isinstance(found, tuple) else None
    B, scale = quick.basis, quick.scale[:, None]
    g = sums.xy[:, quick.first :] / scale
    x = B @ (f * (B.T @ g[0]))
    own = int(factor.fit_intercept)
    more: list[np.ndarray] = []
    penalised = bool(alpha.any())
    if penalised:
        weight = np.broadcast_to(alpha, x.shape) / scale**2
        weight[:own] = 0.0
        more = list(two_prod(weight, x))
    remainder = quick.remainder(list(g), x, more)
    words = np.array(two_sum(x, B @ (f * (B.T @ remainder))))
    user = (words / scale).transpose(0, 2, 1)
    b, c, lost = np.ascontiguousarray(user[:, :, own:]), np.zeros((1, len(alpha))), 1.0
    reference = np.abs(x)
    if own:
        c, lost = _moved(user[:, :, 0], b, sums)
        # That of the shifted columns is a part of the intercept, and near 0 by the choice of shift.
        reference[0] = np.abs(c[0]) * scale[0]
    if not (
        np.isfinite(words).all()
        and quick.certain(x, remainder, f, LAST / lost, reference, quick.rate)
    ):
        return None
    # |y - A x|^2 = y'y - x'(g + alpha P x), because the equations hold.
    terms = [*sums.yy, *-dot(words.transpose(0, 2, 1), g.transpose(0, 2, 1), 2)]
    if penalised:
        square, rounded = two_prod(words[0], words[0])
        squares = np.stack([square, rounded + 2.0 * words[0] * words[1]])
        terms += [*-dot(squares.transpose(0, 2, 1), weight.T[None], 2)]
    rss = np.array([math.fsum(column) for column in np.array(terms).T.tolist()])
    size = (quick.norms / quick.scale) @ np.abs(x) + np.sqrt(sums.yy[0])
    return b, c, rss, size


def _moved(c: np.ndarray, b: np.ndarray, sums: Gram) -> tuple[np.ndarray, float]:
    """Intercepts of the columns as given, in words; how much larger their terms are."""
    if not sums.shift.any() and not sums.y_shift.any():
        return c, 1.0
    found = add(add(c, sums.y_shift[None], 3), -dot(b, sums.shift[None, None], 3), 3)
    terms = np.abs(c[0]) + np.abs(sums.y_shift) + np.abs(b[0]) @ np.abs(sums.shift)
    return found, _ratio(terms, found[0])


def _ratio(terms: np.ndarray, found: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(terms > 0, terms / np.abs(found), 1.0), initial=1.0))


def covariance_quickly(quick: Quick) -> np.ndarray | None:
    """Unscaled covariance without a penalty of [intercept, coefficients].

    Parameters
    ----------
    quick : Quick

    Returns
    -------
    ndarray of shape (q, q), or None where the last digits are not certain
        Symmetric; without the row and column of an intercept if there is none.
    """
    sums = quick.sums
    found = _compiled.covariance(
        sums.xx,
        quick.factor.basis,
        quick.norms,
        quick.scale,
        sums.shift,
        quick.rate,
        quick.error if quick.strict else -1.0,
    )
    if found is not None:
        return found if isinstance(found, np.ndarray) else None
    B = quick.basis
    x = B @ B.T
    x = 0.5 * (x + x.T)  # exactly symmetric, whatever the product was
    remainder = quick.remainder([np.eye(len(x))], x, [])
    # The remainder is I - S M itself, for M = x; with what rounding adds to its product with M, and
    # twice that, because |S^-1| is only nearly |M|.
    norms = quick.norms / quick.scale
    rate = float((np.abs(remainder) * norms / norms[:, None]).max())
    rate = 2.0 * (rate + 2.0**-53 * (8 + len(x)))
    if not rate <= quick.rate:
        return None
    step = x @ remainder
    step = 0.5 * (step + step.T)
    C = x + step
    scale, lost, reference, whole = quick.scale, 1.0, np.abs(C), C
    if quick.factor.fit_intercept and sums.shift.any():
        # The intercept of the columns as given: (1, -shift)' times that of the shifted ones.
        a = np.concatenate([[1.0], -sums.shift]) / scale
        cross = dot(np.array(two_sum(x, step)), a[None, None], 3)
        variance = dot(cross, a[None], 3)
        terms = np.abs(C) @ np.abs(a)
        lost = max(_ratio(terms[1:], cross[0, 1:]), _ratio(terms @ np.abs(a)[:, None], variance[0]))
        whole = C.copy()
        whole[0] = whole[:, 0] = cross[0] * scale[0]
        whole[0, 0] = float(variance[0]) * scale[0] ** 2
        reference[0] = reference[:, 0] = np.abs(whole[0])
    if not (
        np.isfinite(C).all() and quick.certain(C, remainder, 1.0, LAST / lost, reference, rate)
    ):
        return None
    return whole / scale / scale[:, None]
