"""The normal equations of a least-squares problem, to many words: centred sums of products.

Centring subtracts ``s s' / sum(w)`` from the sums of products. In float64 that is where normal
equations lose their digits; here both have the precision of :mod:`._gram`, and the precision that a
problem needs is known once it is factored, so a pass with too few slices is repeated with more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._gram import Gram
from ._words import add, multiply, reciprocal


@dataclass(frozen=True, eq=False)
class System:
    """Centred normal equations in words (first axis), of ``X - shift`` and ``Y - y_shift``.

    Parameters
    ----------
    n_rows : int
        Rows with a positive weight.
    fit_intercept : bool
        Whether the means were taken out; else ``mean`` and ``y_mean`` are 0.
    shift, y_shift : ndarray of shape (n_features,) and (n_targets,)
    sum_weights : ndarray of shape (n_words,)
    inverse_weights : ndarray of shape (n_words,)
        Its reciprocal.
    mean, y_mean : ndarray of shape (n_words, n_features) and (n_words, n_targets)
        Weighted means of the shifted columns.
    full_mean, full_y_mean : ndarray
        Those of the columns as given.
    xx, xy, yy : ndarray of shape (n_words, p, p), (n_words, p, t) and (n_words, t)
        Centred weighted sums of products.
    norms, y_norms : ndarray of shape (n_features,) and (n_targets,)
        Norms of the columns before centring: errors are relative to them.
    precision : float
        Bits that hold relative to the norms.
    slices : int
    """

    n_rows: int
    fit_intercept: bool
    shift: np.ndarray
    y_shift: np.ndarray
    sum_weights: np.ndarray
    inverse_weights: np.ndarray
    mean: np.ndarray
    y_mean: np.ndarray
    full_mean: np.ndarray
    full_y_mean: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    norms: np.ndarray
    y_norms: np.ndarray
    precision: float
    slices: int


def centre(gram: Gram, fit_intercept: bool) -> System:
    """Centred normal equations from sums of products.

    Parameters
    ----------
    gram : Gram
    fit_intercept : bool
        Whether to centre; without, the shifts of ``gram`` must be 0.

    Returns
    -------
    System
    """
    count = len(gram.xx)
    total = gram.xx[:, 0, 0]
    sums, y_sums = gram.xx[:, 0, 1:], gram.xy[:, 0]
    xx, xy, yy = gram.xx[:, 1:, 1:], gram.xy[:, 1:], gram.yy
    norms, y_norms = np.sqrt(_diagonal(xx[0])), np.sqrt(np.maximum(yy[0], 0.0))
    mean, y_mean = np.zeros_like(sums), np.zeros_like(y_sums)
    inverse = reciprocal(total, count)
    if fit_intercept:
        mean = multiply(sums, inverse[:, None], count)
        y_mean = multiply(y_sums, inverse[:, None], count)
        xx, xy, yy = _less_means(gram, mean, y_mean, count)
        # What is left of a constant column, and of one that the precision cannot tell from it.
        blur = 2.0 ** (3.0 - gram.precision)
        constant = xx[0].diagonal() <= blur * norms**2
        if constant.any():
            xx[:, constant] = 0.0
            xx[:, :, constant] = 0.0
            xy[:, constant] = 0.0
        yy[:, yy[0] <= blur * y_norms**2] = 0.0
    return System(
        n_rows=gram.n_rows,
        fit_intercept=fit_intercept,
        shift=gram.shift,
        y_shift=gram.y_shift,
        sum_weights=total,
        inverse_weights=inverse,
        mean=mean,
        y_mean=y_mean,
        full_mean=_moved(mean, gram.shift),
        full_y_mean=_moved(y_mean, gram.y_shift),
        xx=xx,
        xy=xy,
        yy=yy,
        norms=norms,
        y_norms=y_norms,
        precision=gram.precision,
        slices=gram.slices,
    )


def _less_means(gram, mean, y_mean, count):
    """Sums of products less those of the means; symmetric up to the last bits only."""
    sums, y_sums = gram.xx[:, 0, 1:], gram.xy[:, 0]
    xx, xy, yy = gram.xx[:, 1:, 1:], gram.xy[:, 1:], gram.yy
    if count == 1:
        outer = mean[0][:, None] * sums[0]
        return (
            xx - 0.5 * (outer + outer.T),
            xy - mean[0][:, None] * y_sums[0],
            yy - y_mean[0] * y_sums[0],
        )
    xx = add(xx, -multiply(mean[:, :, None], sums[:, None, :], count), count)
    xy = add(xy, -multiply(mean[:, :, None], y_sums[:, None, :], count), count)
    return xx, xy, add(yy, -multiply(y_mean, y_sums, count), count)


def _moved(mean: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return add(mean, shift[None], len(mean) + 1) if shift.any() else mean


def _diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.maximum(matrix.diagonal(), 0.0)
