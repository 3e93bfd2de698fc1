"""Sums of products of columns in one pass over the rows, to as many bits as a problem needs.

``A = [1, X - shift]`` and ``Y - y_shift`` are cut, block of rows by block, into slices whose
products BLAS adds without rounding (:mod:`._words`); sums over blocks carry their rounding errors
along. With S slices the relative error is about ``2^-(53 + 21 (S - 1))`` of the product of the
columns' norms: S = 1 is a plain product, S = 2 costs a half more and already has 74 bits, S = 6 has
158, enough to solve the normal equations correctly rounded whatever the float64 columns are.

So there is no tall orthogonal factorisation here: it was the alternative, but its R has an error of
2^-53 of the norms, it needs the rows a second time for every refinement step, and it is slower than
the products with three slices. The sums are exact to the bits above, hence they can be added up in
any order: a stream of rows is the same thing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from . import _compiled
from ._words import Slices, add, compress, cut, slice_bits, two_prod, two_sum, word_count

BITS = 21
MAX_ROWS = 1024  # with 21 bits, the products of 1024 rows and up to five pairs add exactly


@dataclass(frozen=True, eq=False)
class Gram:
    """Weighted sums of products; words on the first axis.

    Parameters
    ----------
    n_rows : int
        Rows with a positive weight.
    shift : ndarray of shape (n_features,)
        Subtracted from X without error.
    y_shift : ndarray of shape (n_targets,)
    xx : ndarray of shape (n_words, 1 + n_features, 1 + n_features)
        ``A' W A``.
    xy : ndarray of shape (n_words, 1 + n_features, n_targets)
    yy : ndarray of shape (n_words, n_targets)
        Sums of squares of the targets.
    slices : int
        Slices it was computed with.
    """

    n_rows: int
    shift: np.ndarray
    y_shift: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    slices: int

    @property
    def precision(self) -> float:
        """Bits of the entries relative to the norms of their columns."""
        return 53.0 + BITS * (self.slices - 1) - 4.0


def gram(
    X: np.ndarray,
    Y: np.ndarray,
    sample_weight: np.ndarray | None,
    shift: np.ndarray,
    y_shift: np.ndarray,
    slices: int,
) -> Gram:
    """Sums of products of the rows.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
    Y : ndarray of shape (n_samples, n_targets)
    sample_weight : ndarray of shape (n_samples,) or None
        Rows of weight 0 add nothing.
    shift, y_shift : ndarray
        Any finite values; near the means they save bits.
    slices : int
        1 to 6.

    Returns
    -------
    Gram
    """
    q, t = 1 + X.shape[1], Y.shape[1]
    n_rows = _count(X, sample_weight)
    # Few targets are columns like the others: one product less, at the price of a larger one.
    joint = 0 < t <= max(4, q // 16)
    if joint and slices == 2 and sample_weight is None and _compiled.KERNELS is not None:
        return _two_slices(X, Y, shift, y_shift)
    xx, xy, yy = _Sum(), _Sum(), _Sum()
    for a, y, weighted in _blocks(X, Y, sample_weight, shift, y_shift, slices, joint):
        wa, wy = (None, y) if weighted is None else weighted
        for s in range(slices):
            xx.add(s, _symmetric(a, s) if wa is None else _general(a, wa, s))
            if not joint:
                xy.add(s, _general(a, wy, s))
                yy.add(s, _elementwise(y, wy, s))
    count = word_count(slices)
    products = compress(xx.terms(), count)
    if joint:
        return _joint(n_rows, shift, y_shift, products, slices)
    sides = compress(xy.terms(), count), compress(yy.terms(), count)
    return Gram(n_rows, shift, y_shift, products, *sides, slices)


def _two_slices(X: np.ndarray, Y: np.ndarray, shift: np.ndarray, y_shift: np.ndarray) -> Gram:
    """The usual case of :func:`gram`, with blocks of rows cut in one pass and no fresh memory."""
    n, m = len(X), 1 + X.shape[1] + Y.shape[1]
    step = _rows_of_a_block(X.shape[1], 2)
    memory, xx = np.empty(3 * min(step, n) * m), _Sum()
    for start in range(0, n, step):
        part = slice(start, start + step)
        found = _compiled.cut_in_two(X[part], Y[part], shift, y_shift, BITS, memory)
        assert found is not None
        piece, rest, both = found
        # A'A = P'P + (M'R + R'M) / 2 with A = P + R and M = P + A, both symmetric.
        xx.add(0, piece.T @ piece)
        half = both.T @ rest
        half *= 0.5
        xx.add(1, half + half.T)
    return _joint(n, shift, y_shift, compress(xx.terms(), 2), 2)


def _rows_of_a_block(p: int, slices: int) -> int:
    largest = MAX_ROWS if slices > 1 else 4 * MAX_ROWS
    return int(np.clip(2**19 // max(1, p), 256, largest))


def small_gram(
    X: np.ndarray,
    Y: np.ndarray,
    sample_weight: np.ndarray | None,
    shift: np.ndarray,
    y_shift: np.ndarray,
) -> Gram | None:
    """As :func:`gram` with the bits of three slices or more; None where slices are the way.

    All squares are in the range of float64.
    """
    words = _compiled.sums(X, Y, sample_weight, shift, y_shift)
    if words is None:
        return None
    return _joint(_count(X, sample_weight), shift, y_shift, words, 3)


def _count(X: np.ndarray, sample_weight: np.ndarray | None) -> int:
    return len(X) if sample_weight is None else int(np.count_nonzero(sample_weight))


def _joint(
    n_rows: int, shift: np.ndarray, y_shift: np.ndarray, products: np.ndarray, slices: int
) -> Gram:
    """From the products of columns and targets beside each other."""
    q = 1 + len(shift)
    squares = products[:, q:, q:].diagonal(axis1=1, axis2=2)
    return Gram(n_rows, shift, y_shift, products[:, :q, :q], products[:, :q, q:], squares, slices)


def merge(a: Gram, b: Gram) -> Gram:
    """Sums over the rows of both; the shifts must be the same."""
    count = len(a.xx)
    return replace(
        a,
        n_rows=a.n_rows + b.n_rows,
        xx=add(a.xx, b.xx, count),
        xy=add(a.xy, b.xy, count),
        yy=add(a.yy, b.yy, count),
    )


def choose_shifts(
    X: np.ndarray, Y: np.ndarray, sample_weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Shifts that keep the columns' means from costing bits; 0 where they cost few.

    Any value is exact, so a sample of rows decides. A column is left alone unless its mean is many
    standard deviations from 0, because a shift makes entries longer than 53 bits.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
    Y : ndarray of shape (n_samples, n_targets)
    sample_weight : ndarray of shape (n_samples,) or None, default=None

    Returns
    -------
    shift : ndarray of shape (n_features,)
    y_shift : ndarray of shape (n_targets,)
    """
    if sample_weight is None:
        quickly = _compiled.shifts(X, Y)
        if quickly is not None:
            return quickly[: X.shape[1]], quickly[X.shape[1] :]
    if sample_weight is not None:
        present = np.flatnonzero(sample_weight)
        some = present[:: max(1, len(present) // 64)]
        part = np.concatenate([X[some], Y[some]], axis=1)
    else:
        step = max(1, len(X) // 64)
        part = np.concatenate([X[::step], Y[::step]], axis=1)
    # Scaled first: the squares of large entries would overflow.
    largest = np.maximum(np.abs(part).max(axis=0), np.finfo(float).tiny)
    part /= largest
    mean = part.sum(axis=0) / len(part)
    part -= mean
    spread = np.sqrt((part * part).sum(axis=0) / len(part))
    found = np.where(np.abs(mean) > 4.0 * spread, mean * largest, 0.0)
    return found[: X.shape[1]], found[X.shape[1] :]


class _Sum:
    """Running sums of a pass: for each order of slices a sum and what its additions rounded off."""

    def __init__(self) -> None:
        self.main: list[np.ndarray] = []
        self.rest: dict[int, np.ndarray] = {}

    def add(self, order: int, value: np.ndarray) -> None:
        """Add the products of one block; blocks come with their orders ascending."""
        if len(self.main) == order:
            self.main.append(value)
            return
        self.main[order], error = two_sum(self.main[order], value)
        if order in self.rest:
            self.rest[order] += error
        else:
            self.rest[order] = error

    def terms(self) -> list[np.ndarray]:
        return [*self.main, *self.rest.values()]


def _general(a: Slices, b: Slices, s: int) -> np.ndarray:
    """Sum of the products of pieces i and j, i + j = s; the last order takes all that remains."""
    last = s == len(a.pieces) - 1
    right = b.tails if last else b.pieces
    found = a.pieces[0].T @ right[s]
    for i in range(1, s + 1):
        found += a.pieces[i].T @ right[s - i]
    return found


def _elementwise(a: Slices, b: Slices, s: int) -> np.ndarray:
    """As :func:`_general`, the diagonal only."""
    last = s == len(a.pieces) - 1
    right = b.tails if last else b.pieces
    return sum(np.einsum("ij,ij->j", a.pieces[i], right[s - i]) for i in range(s + 1))


def _symmetric(a: Slices, s: int) -> np.ndarray:
    """As :func:`_general` for ``a' a``, at half the cost: pairs i < j once, squares by syrk."""
    count = len(a.pieces)
    half = (s + 1) // 2
    if s < count - 1:
        pairs = [(a.pieces[i], a.pieces[s - i]) for i in range(half)]
        square = a.pieces[half] if s % 2 == 0 else None
    else:
        # Pieces of at least half the order, all together: tail' tail, within the last bits.
        pairs = [(a.pieces[i], a.tails[s - i]) for i in range(half)]
        square = a.tails[half]
        if s == 1:  # half of M' tail and its transpose, with M = piece + the whole
            found = (a.pieces[0] + a.tails[0]).T @ square
            found *= 0.5
            return found + found.T
        if s % 2 == 1:  # tail' tail is half of (tail / 2)' tail and its transpose
            pairs[-1] = (a.pieces[half - 1] + 0.5 * square, square)
            square = None
    if pairs:
        found = pairs[0][0].T @ pairs[0][1]
        for left, right in pairs[1:]:
            found += left.T @ right
        found = found + found.T
        if square is not None:
            found += square.T @ square
        return found
    assert square is not None
    return square.T @ square


def _blocks(X, Y, sample_weight, shift, y_shift, slices, joint):
    """Yield the slices of ``A``, of the targets, and of both times the weights.

    ``joint`` puts the targets behind the columns of A, and yields None for them.
    """
    n, p = X.shape
    step = _rows_of_a_block(p, slices)
    rows = None
    if sample_weight is not None and not np.all(sample_weight):
        rows = np.flatnonzero(sample_weight)
        n = len(rows)
    for start in range(0, n, step):
        part = slice(start, start + step) if rows is None else rows[start : start + step]
        columns = [(X[part], shift)]
        if joint:
            columns.append((Y[part], y_shift))
        a = _shifted(columns, lead=True)
        y = None if joint else _shifted([(Y[part], y_shift)], lead=False)
        weighted = None
        if sample_weight is not None:
            w = sample_weight[part][:, None]
            wy = None if y is None else _slices(_times(y, w), slices)
            weighted = (_slices(_times(a, w), slices), wy)
        yield _slices(a, slices), None if y is None else _slices(y, slices), weighted


def _slices(words: list[np.ndarray], count: int) -> Slices:
    if count == 1:  # a plain product
        whole = words[0] if len(words) == 1 else words[0] + words[1]
        return Slices([whole], [whole])
    return cut(words, count, 0, BITS)


def _shifted(columns: list[tuple[np.ndarray, np.ndarray]], lead: bool) -> list[np.ndarray]:
    """Columns less their shifts, without error as one or two words, behind ones if ``lead``."""
    width = lead + sum(part.shape[1] for part, _ in columns)
    out = np.empty((len(columns[0][0]), width))
    error = None
    if lead:
        out[:, 0] = 1.0
    start = int(lead)
    for part, shift in columns:
        body = out[:, start : start + part.shape[1]]
        moved = np.flatnonzero(shift)
        if not len(moved):
            body[...] = part
        else:
            np.subtract(part, shift, out=body)
            lost = two_sum(part[:, moved], -shift[moved])[1]
            if lost.any():
                error = np.zeros_like(out) if error is None else error
                error[:, start + moved] = lost
        start += part.shape[1]
    return [out] if error is None else [out, error]


def _times(words: list[np.ndarray], w: np.ndarray) -> list[np.ndarray]:
    """Words times a weight per row."""
    main, error = two_prod(words[0], w)
    if len(words) == 1:
        return [main, error] if error.any() else [main]
    second, error2 = two_prod(words[1], w)
    return list(compress([main, second, error, error2], 3))


assert slice_bits(MAX_ROWS, 5) >= BITS
