"""Problems with more columns than rows: singular values and directions from products of rows.

``Z Z'`` of n rows instead of ``Z'Z`` of p columns, with ``Z = sqrt(w) (X - mean) P^-1/2``: the same
singular values, and the left singular vectors directly, which leave-one-out needs. A plain product
first; where its error bound, about 2^-53 d_1^2 / d_r^2, is not far below what is asked, once more
with slices (:mod:`._gram`).
"""

from __future__ import annotations

import numpy as np

from ._basis import Directions, directions
from ._factor import Factor, WideBasis, user_basis
from ._gram import gram
from ._words import add

COLUMNS = 512  # of X at a time
NUMBERS = 2**18  # of a block of rows that is read twice


def factorise_wide(
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    fit_intercept: bool = True,
    penalty: np.ndarray | None = None,
) -> Factor:
    """Factor a problem with more columns than rows and without free features, in plain float64.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
    Y : ndarray of shape (n_samples, n_targets)
    sample_weight : ndarray of shape (n_samples,) or None, default=None
    fit_intercept : bool, default=True
    penalty : ndarray of shape (n_features,) or None, default=None
        Positive.

    Returns
    -------
    Factor
        Its rank is decided on scaled rows, not columns; ``dependent`` stays empty.
    """
    w = None
    if sample_weight is not None:
        keep = np.flatnonzero(sample_weight > 0)
        w = np.asarray(sample_weight, dtype=np.float64)
        if len(keep) < len(X):
            X, Y, w = X[keep], Y[keep], w[keep]
    n, p = X.shape
    total = float(n) if w is None else float(w.sum())
    root = None if w is None else np.sqrt(w)
    mean, y_mean = np.zeros(p), np.zeros(Y.shape[1])
    if fit_intercept:
        mean, y_mean = _mean(X, w, total), _mean(Y, w, total)
    V = Y - y_mean if root is None else (Y - y_mean) * root[:, None]
    found, squares = _left_directions(X, mean, root, penalty, fit_intercept)
    B, d = user_basis(found, None)
    U = B * d
    z = U.T @ V
    outside = V - U @ z
    values = d
    if fit_intercept:
        z = np.concatenate([np.zeros((1, z.shape[1])), z])
        values = np.concatenate([[np.inf], d])
    return Factor(
        n_rows=n,
        sum_weights=total,
        fit_intercept=fit_intercept,
        shift=mean,
        y_shift=y_mean,
        directions=WideBasis(X, mean, root, total, U, d, penalty, fit_intercept),
        singular_values=values,
        z=z,
        rank=len(d),
        scaled_singular_values=found.values,
        dependent=np.zeros(0, dtype=int),
        rss_outside=np.einsum("ij,ij->j", outside, outside),
        tss=np.einsum("ij,ij->j", V, V),
        column_squares=squares,
        penalty=penalty,
    )


def _mean(X: np.ndarray, w: np.ndarray | None, total: float) -> np.ndarray:
    """Weighted means, taken twice: the second time of what the first left."""
    first = X.mean(axis=0) if w is None else w @ X / total
    rest = np.zeros(X.shape[1])
    step = max(1, NUMBERS // max(1, X.shape[1]))
    for start in range(0, len(X), step):
        part = slice(start, start + step)
        left = X[part] - first
        rest += left.sum(axis=0) if w is None else w[part] @ left
    return first + rest / total


def _left_directions(
    X: np.ndarray,
    mean: np.ndarray,
    root: np.ndarray | None,
    penalty: np.ndarray | None,
    centred: bool,
) -> tuple[Directions, np.ndarray]:
    """Directions of the rows, and the sums of squares of the columns."""
    n, p = X.shape
    K, squares = np.zeros((n, n)), np.zeros(p)
    product = np.empty_like(K)  # fresh memory for each block takes as long as adding it up
    for _, Z in _blocks(X, mean, root, squares, penalty):
        K += np.matmul(Z, Z.T, out=product)
    norms = np.sqrt(np.maximum(K.diagonal(), 0.0))
    max_rank = n - centred
    found = directions(K[None], norms, 49.0, 1, max_rank)
    slices = 1
    while slices < 6 and (found.rank < max_rank or found.growth > 1e3 * n):
        # The plain product does not tell small singular values from none.
        slices = 3 if slices == 1 else 6
        words = None
        for _, Z in _blocks(X, mean, root, squares, penalty):
            sums = gram(Z.T, np.zeros((Z.shape[1], 0)), None, np.zeros(n), np.zeros(0), slices)
            words = sums.xx if words is None else add(words, sums.xx, len(words))
        assert words is not None
        found = directions(words[:, 1:, 1:], norms, sums.precision, slices, max_rank)
        if not found.unresolved and sums.precision > 53.0 + 0.5 * np.log2(found.growth):
            break
    return found, squares


def _blocks(X, mean, root, squares, penalty):
    """Yield column ranges and the centred, weighted, scaled columns; fill in their squares."""
    for start in range(0, X.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        Z = X[:, part] - mean[part]
        if root is not None:
            Z *= root[:, None]
        squares[part] = np.einsum("ij,ij->j", Z, Z)
        if penalty is not None:
            Z /= np.sqrt(penalty[part])
        yield part, Z
