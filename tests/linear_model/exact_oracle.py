"""Weighted ridge and least squares in rational arithmetic: the truth for float64 inputs.

Textbook formulas on `fractions.Fraction`, Gauss-Jordan elimination, the pseudo-inverse from a full
rank factorisation. Nothing of the package is used, and nothing here rounds.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Truth(NamedTuple):
    """Exact answers; lists of Fractions, matrices as lists of rows."""

    coef: list  # (n_targets, n_features)
    intercept: list  # (n_targets,)
    rss: list  # (n_targets,)
    covariance: list  # (n_features, n_features), unscaled
    intercept_variance: Fraction
    intercept_covariance: list
    difference: list  # covariance at alpha = 0 minus this one


def fractions(array):
    """The array's numbers, exactly, as nested lists."""
    array = np.asarray(array, dtype=np.float64)
    if array.ndim == 1:
        return [Fraction(float(v)) for v in array]
    return [fractions(row) for row in array]


def transpose(A):
    return [list(column) for column in zip(*A, strict=True)]


def product(A, B):
    columns = transpose(B)
    return [
        [sum((a * b for a, b in zip(row, col, strict=True)), Fraction(0)) for col in columns]
        for row in A
    ]


def combine(A, B, factor=1):
    """``A + factor * B``."""
    return [[a + factor * b for a, b in zip(x, y, strict=True)] for x, y in zip(A, B, strict=True)]


def echelon(A):
    """Reduced row echelon form and its pivot columns."""
    A = [list(row) for row in A]
    pivots, r = [], 0
    for c in range(len(A[0])):
        k = next((i for i in range(r, len(A)) if A[i][c] != 0), None)
        if k is None:
            continue
        A[r], A[k] = A[k], A[r]
        inverse = 1 / A[r][c]
        A[r] = [v * inverse for v in A[r]]
        for i in range(len(A)):
            if i != r and A[i][c] != 0:
                f = A[i][c]
                A[i] = [u - f * v for u, v in zip(A[i], A[r], strict=True)]
        pivots.append(c)
        r += 1
        if r == len(A):
            break
    return A[: len(pivots)], pivots


def inverse(A):
    n = len(A)
    wide = [row + [Fraction(int(i == j)) for j in range(n)] for i, row in enumerate(A)]
    reduced, pivots = echelon(wide)
    assert pivots == list(range(n)), "singular"
    return [row[n:] for row in reduced]


def pseudo_inverse(A):
    """Moore-Penrose inverse from the full rank factorisation ``A = C R``."""
    R, pivots = echelon(A)
    if not pivots:
        return [[Fraction(0)] * len(A) for _ in A[0]]
    C = [[row[c] for c in pivots] for row in A]
    Rt, Ct = transpose(R), transpose(C)
    right = product(Rt, inverse(product(R, Rt)))
    return product(right, product(inverse(product(Ct, C)), Ct))


def solve_exactly(X, Y, *, weights=None, fit_intercept=True, alpha=0.0, penalty=None):
    """The exact minimiser of ``sum w (y - c - X b)^2 + alpha sum penalty b^2``.

    At alpha = 0 the one of minimum norm. With alpha > 0 all penalties must be positive, or the
    columns independent.
    """
    X, Y = fractions(X), fractions(Y)
    w = [Fraction(1)] * len(X) if weights is None else fractions(weights)
    alpha = Fraction(float(alpha))
    p, t, total = len(X[0]), len(Y[0]), sum(w)
    mean, y_mean = [Fraction(0)] * p, [Fraction(0)] * t
    if fit_intercept:
        mean = [sum(a * row[j] for a, row in zip(w, X, strict=True)) / total for j in range(p)]
        y_mean = [sum(a * row[j] for a, row in zip(w, Y, strict=True)) / total for j in range(t)]
    Xc = [[v - m for v, m in zip(row, mean, strict=True)] for row in X]
    Yc = [[v - m for v, m in zip(row, y_mean, strict=True)] for row in Y]
    XW = [[a * v for a, v in zip(w, column, strict=True)] for column in transpose(Xc)]
    G, g = product(XW, Xc), product(XW, Yc)
    ols = pseudo_inverse(G)
    if alpha == 0:
        S_inverse, covariance = ols, ols
    else:
        P = [Fraction(1)] * p if penalty is None else fractions(penalty)
        S = [
            [v + (alpha * P[i] if i == j else 0) for j, v in enumerate(row)]
            for i, row in enumerate(G)
        ]
        S_inverse = inverse(S)
        covariance = product(product(S_inverse, G), S_inverse)
    coef = transpose(product(S_inverse, g))
    intercept = [
        y - sum(m * b for m, b in zip(mean, row, strict=True))
        for y, row in zip(y_mean, coef, strict=True)
    ]
    errors = combine(Yc, product(Xc, transpose(coef)), -1)
    rss = [sum(a * row[j] ** 2 for a, row in zip(w, errors, strict=True)) for j in range(t)]
    cross = [sum(a * m for a, m in zip(row, mean, strict=True)) for row in covariance]
    return Truth(
        coef,
        intercept,
        rss,
        covariance,
        1 / total + sum(m * v for m, v in zip(mean, cross, strict=True)),
        [-v for v in cross],
        combine(ols, covariance, -1),
    )


def ulps(got, truth):
    """Largest distance in units of the last place of the correctly rounded truth.

    A truth of exactly 0 has no last place; there, 2^-60 of the largest entry counts as one unit.
    """
    got = np.asarray(got, dtype=np.float64).ravel().tolist()
    true = np.array(truth, dtype=object).ravel().tolist()
    assert len(got) == len(true)
    largest = max((abs(v) for v in true), default=Fraction(0))
    worst = 0.0
    for value, exact in zip(got, true, strict=True):
        unit = Fraction(float(np.spacing(abs(float(exact)))))
        if exact == 0:
            unit = largest / 2**60 if largest else Fraction(5e-324)
        worst = max(worst, float(abs(Fraction(value) - exact) / unit))
    return worst
