"""Arithmetic with more than 53 bits: a number as an unevaluated sum of float64 words.

An array of words has one more axis than the array it stands for: ``words[k]`` is its k-th word,
of falling magnitude, and the value is their sum. Sums are error-free transformations; products of
matrices cut both factors into slices of so few bits that BLAS multiplies and adds them without any
rounding. No long double, no fused multiply-add, no compiled code.

Knuth, The Art of Computer Programming 2, 4.2.2 (two_sum); Dekker (1971), Numer. Math. 18 (two_prod,
Veltkamp's splitting); Ogita, Rump & Oishi (2005), SIAM J. Sci. Comput. 26(6) (vector sums); Ozaki,
Ogita, Oishi & Rump (2012), Numer. Algorithms 59(1) (exact products of slices).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

SPLITTER = 134217729.0  # 2^27 + 1


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and its rounding error: ``a + b == s + e`` exactly.

    Examples
    --------
    >>> s, e = two_sum(1e16, 1.0)
    >>> float(s), float(e)
    (1e+16, 1.0)
    """
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_prod(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Product and its rounding error: ``a * b == p + e`` exactly, away from under- and overflow."""
    p = a * b
    c = SPLITTER * a
    a1 = c - (c - a)
    a2 = a - a1
    c = SPLITTER * b
    b1 = c - (c - b)
    b2 = b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def compress(terms: list[np.ndarray], count: int) -> np.ndarray:
    """Add terms into ``count`` words, with an error of ``2^(-53 count)`` of the largest term.

    Parameters
    ----------
    terms : list of ndarray
        Of shapes that broadcast, roughly of falling magnitude.
    count : int
        Words of the result.

    Returns
    -------
    ndarray of shape (count, ...)

    Examples
    --------
    >>> import numpy as np
    >>> compress([np.float64(1e16), np.float64(1.0), np.float64(-1e16)], 2)
    array([1., 0.])
    """
    found: list[np.ndarray] = []
    while len(found) < count - 1 and len(terms) > 1:
        s, errors = terms[-1], []
        for term in terms[-2::-1]:
            s, e = two_sum(term, s)
            errors.append(e)
        found.append(s)
        terms = errors[::-1]
    last = terms[-1]
    for term in terms[-2::-1]:
        last = last + term
    found.append(last)
    # One pass from below, so that each word is the rounding of what it begins.
    for k in range(len(found) - 1, 0, -1):
        found[k - 1], found[k] = two_sum(found[k - 1], found[k])
    if len(found) == count:
        return np.array(found)
    return np.array(found + [np.zeros_like(found[0])] * (count - len(found)))


def word_count(slices: int) -> int:
    """Words that hold the bits of sums of products with that many slices."""
    return 1 if slices == 1 else 2 if slices <= 3 else 3


def add(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """``a + b`` for arrays of words, in ``count`` words."""
    terms = [word for pair in zip(a, b, strict=False) for word in pair]
    terms += [*a[len(b) :], *b[len(a) :]]
    return compress(terms, count)


def multiply(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Elementwise ``a * b`` for arrays of words, in ``count`` words."""
    return compress(_products(a, b, count), count)


def _products(a: np.ndarray, b: np.ndarray, count: int) -> list[np.ndarray]:
    """Terms of the product of words, of falling magnitude, that matter to ``count`` words."""
    terms: list[np.ndarray] = []
    late: list[np.ndarray] = []
    for order in range(count):
        upper = late
        late = []
        for i in range(max(0, order - len(b) + 1), min(order + 1, len(a))):
            if order < count - 1:
                p, e = two_prod(a[i], b[order - i])
                late.append(e)
            else:
                p = a[i] * b[order - i]
            terms.append(p)
        terms += upper
    return terms


def reciprocal(a: np.ndarray, count: int) -> np.ndarray:
    """``1 / a`` for one number of words, shape (n_words,) to (count,); exact until rounded.

    Examples
    --------
    >>> import numpy as np
    >>> reciprocal(np.array([4.0, 0.0]), 2)
    array([0.25, 0.  ])
    """
    # Python divides whole numbers of any length with one rounding; Fraction would reduce each time.
    over, under = 0, 1
    for word in a.tolist():
        n, d = word.as_integer_ratio()
        over, under = over * d + n * under, under * d
    out = np.zeros(count)
    up, down = under, over  # what is left of the reciprocal
    for k in range(count):
        out[k] = up / down
        n, d = out[k].item().as_integer_ratio()
        up, down = up * d - n * down, down * d
    return out


def dot(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """Sums of products along the last axis, as if rounded once at the end.

    Parameters
    ----------
    a, b : ndarray of shape (n_words, ..., k)
    count : int
        Words of the products and of the result.

    Returns
    -------
    ndarray of shape (count, ...)

    Examples
    --------
    >>> import numpy as np
    >>> dot(np.array([[1e16, 1.0, 1e16]]), np.array([[1.0, 3.0, -1.0]]), 2)
    array([3., 0.])
    """
    terms = _products(a, b, count)
    shape = np.broadcast_shapes(*(term.shape for term in terms))
    every = [term if term.shape == shape else np.broadcast_to(term, shape) for term in terms]
    rows = np.concatenate(every, axis=-1).reshape(math.prod(shape[:-1]), -1).tolist()
    out = []
    for row in rows:
        for _ in range(count):
            total = math.fsum(row)
            out.append(total)
            row.append(-total)
    found = np.array(out).reshape(len(rows), count)
    return np.ascontiguousarray(found.T).reshape(count, *shape[:-1])


class Slices(NamedTuple):
    """A matrix cut for exact products.

    ``pieces[i]`` are multiples of a power of two, except the last, which is what remains, rounded;
    ``tails[i]`` is the rounded sum of the pieces from i on.
    """

    pieces: list[np.ndarray]
    tails: list[np.ndarray]


def slice_bits(inner: int, count: int) -> int:
    """Bits of a slice such that ``count`` products over ``inner`` terms add without rounding."""
    # |piece| <= 2^(bits - 1) units; the sum of count * inner products stays below 2^53 units^2.
    return 1 + (53 - int(np.ceil(np.log2(max(2, inner * count))))) // 2


def cut(words: list[np.ndarray] | np.ndarray, count: int, axis: int, bits: int) -> Slices:
    """Cut a matrix of words into ``count`` slices of ``bits`` bits.

    Parameters
    ----------
    words : list of ndarray, or ndarray of shape (n_words, ...)
        Falling magnitude.
    count : int
        Slices; the last one keeps all that remains.
    axis : int
        The axis that the product sums over: slices share one exponent along it.
    bits : int
        From :func:`slice_bits`.

    Returns
    -------
    Slices
    """
    top, rest = words[0], list(words[1:])
    pieces, tails = [], []
    if count > 1:
        largest = _largest(top, axis)
        # Adding and subtracting 1.5 * 2^52 units rounds to a multiple of the unit.
        magic = np.ldexp(1.5, np.frexp(largest)[1] + (53 - bits))
    for _ in range(count - 1):
        tails.append(top)
        piece = top + magic
        piece -= magic
        pieces.append(piece)
        top = top - piece
        if rest:
            for k, word in enumerate(rest):
                if k == 0:
                    top, rest[0] = two_sum(top, word)
                else:
                    rest[k - 1], rest[k] = two_sum(rest[k - 1], word)
        magic = magic * 2.0**-bits
    tails.append(top)
    pieces.append(top)
    return Slices(pieces, tails)


def _largest(matrix: np.ndarray, axis: int) -> np.ndarray:
    """Largest magnitude along an axis, which is kept; numpy does short rows one by one."""
    n = len(matrix)
    if axis == 0 and n >= 64 and matrix.flags.c_contiguous and matrix.shape[1]:
        even = matrix[: n - n % 8].reshape(n // 8, -1)
        folded = [f(axis=0).reshape(8, -1) for f in (even.max, even.min)]
        matrix = np.concatenate([*folded, matrix[n - n % 8 :]])
    return np.maximum(matrix.max(axis=axis, keepdims=True), -matrix.min(axis=axis, keepdims=True))


def matmul(a: np.ndarray, b: np.ndarray, slices: int, count: int) -> np.ndarray:
    """Matrix product of words in ``count`` words.

    The error is about ``2^-(53 + bits (slices - 1))`` of the largest entries of row and column,
    with ``bits`` near 21.

    Parameters
    ----------
    a : ndarray of shape (n_words, m, k)
    b : ndarray of shape (n_words, k, n)
    slices, count : int

    Returns
    -------
    ndarray of shape (count, m, n)
    """
    inner = a.shape[2]
    bits = slice_bits(inner, slices)
    left, right = cut(a, slices, 1, bits), cut(b, slices, 0, bits)
    # Products of pieces i and j with the same i + j lie on one grid: one product of wider matrices.
    wide = np.concatenate(left.pieces, axis=1)
    tall = np.concatenate(right.pieces[slices - 2 :: -1], axis=0) if slices > 1 else None
    terms = []
    for s in range(slices - 1):
        assert tall is not None
        terms.append(wide[:, : (s + 1) * inner] @ tall[(slices - 2 - s) * inner :])
    terms.append(wide @ np.concatenate(right.tails[::-1], axis=0))
    if count == 1:  # the terms may cancel: one word is the rounding of more
        return compress(terms, 3).sum(axis=0, keepdims=True)
    return compress(terms, count)
