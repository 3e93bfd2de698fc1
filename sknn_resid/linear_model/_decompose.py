"""From rows to a factorisation, with as many bits as the problem turns out to need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._basis import Directions
from ._factor import Factor, factorise
from ._gram import BITS, Gram, choose_shifts, gram, small_gram
from ._system import System, centre

MAX_SLICES = 6
# Bits for a correctly rounded solution, whose entries are sums of larger terms. More of them where
# they cost little, for entries that are far smaller than their terms: by the number of
# multiplications in a product; and the most where columns of very different size meet.
EXACT_BITS = 60.0
MORE_BITS, MORE = 84.0, 2**21
MOST_BITS, MOST = 124.0, 2**16


class Decomposition(NamedTuple):
    """Normal equations and what they factor into."""

    system: System
    factor: Factor
    found: Directions
    enough: bool


def normal_equations(
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    fit_intercept: bool = True,
    penalty: np.ndarray | None = None,
    refine: bool = True,
    sums: Gram | None = None,
) -> Decomposition:
    """Sums of products and their factorisation.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features), float64
        Finite.
    Y : ndarray of shape (n_samples, n_targets), float64
        Finite, always two axes.
    sample_weight : ndarray of shape (n_samples,) or None, default=None
        Not negative, finite, not all 0. A row of weight 0 counts as absent.
    fit_intercept : bool, default=True
        Whether an unpenalised intercept belongs to the model.
    penalty : ndarray of shape (n_features,) or None, default=None
        Relative penalties, not negative; 0 leaves a feature free. None means 1 for all.
    refine : bool, default=True
        Whether the sums must serve a correctly rounded solution; without, they only serve a
        factorisation as good as an orthogonal one.
    sums : Gram or None, default=None
        From :func:`first_sums`, if they are there already.

    Returns
    -------
    Decomposition
        ``enough`` says whether the precision reached is what was asked for.

    Raises
    ------
    ValueError
        If the squares of a column leave the range of float64.
    """
    bits = wanted_bits(X) if refine else None
    if sums is None:
        sums = first_sums(X, Y, sample_weight, fit_intercept, bits)
    while True:
        slices = sums.slices
        result = from_sums(sums, fit_intercept=fit_intercept, penalty=penalty, bits=bits)
        scale = result.found.scale
        if bits == MORE_BITS and (scale != scale[:1]).any():
            bits = MOST_BITS
            result = result._replace(enough=_is_enough(result.system, result.found, bits))
        if slices == MAX_SLICES:  # the extra bits of small problems are no condition
            least = None if bits is None else EXACT_BITS
            return result._replace(enough=_is_enough(result.system, result.found, least))
        if result.enough:
            return result
        more = int(np.ceil((bits_needed(result.found.growth, bits) - 49.0) / BITS)) + 1
        slices = min(MAX_SLICES, max(slices + 1, more))
        if result.found.unresolved:
            slices = MAX_SLICES
        sums = gram(X, Y, sample_weight, sums.shift, sums.y_shift, slices)


def wanted_bits(X: np.ndarray) -> float:
    """Bits that a refined solution for these rows shall have."""
    work = len(X) * X.shape[1] ** 2
    return MOST_BITS if work <= MOST else MORE_BITS if work <= MORE else EXACT_BITS


def first_sums(
    X: np.ndarray,
    Y: np.ndarray,
    sample_weight: np.ndarray | None,
    fit_intercept: bool,
    bits: float | None,
) -> Gram:
    """Sums of products with as many bits as a well-conditioned problem needs.

    Parameters
    ----------
    X, Y, sample_weight, fit_intercept
        As :func:`normal_equations`.
    bits : float or None
        From :func:`wanted_bits`; None means plain float64.

    Returns
    -------
    Gram

    Raises
    ------
    ValueError
        If the squares of a column leave the range of float64.
    """
    if fit_intercept:
        shift, y_shift = choose_shifts(X, Y, sample_weight)
    else:
        shift, y_shift = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
    if bits is not None:
        quickly = small_gram(X, Y, sample_weight, shift, y_shift)
        if quickly is not None:
            return quickly
    slices = 1 if bits is None else 2 if bits == EXACT_BITS else 3
    with np.errstate(over="ignore", invalid="ignore"):
        sums = gram(X, Y, sample_weight, shift, y_shift, slices)
    _check_range(sums, X, Y)
    return sums


def _check_range(sums: Gram, X: np.ndarray, Y: np.ndarray) -> None:
    """Refuse columns whose squares are infinite, naming the first."""
    x_squares = sums.xx[0].diagonal()[1:]
    if np.isfinite(x_squares.sum() + sums.yy[0].sum()):
        return
    for name, data, squares in (("X", X, x_squares), ("y", Y, sums.yy[0])):
        beyond = np.flatnonzero(~np.isfinite(squares))
        if len(beyond):
            j = int(beyond[0])
            raise ValueError(
                f"{name}: the squares of column {j} leave the range of float64 (largest entry "
                f"{np.abs(data[:, j]).max():.3g}); columns may be up to about 1e150. Divide it by "
                "a power of ten."
            )


def from_sums(
    sums: Gram, *, fit_intercept: bool, penalty: np.ndarray | None, bits: float | None
) -> Decomposition:
    """Factorisation of sums of products; parameters and result as :func:`normal_equations`.

    ``bits`` is what a refined solution shall have; None means plain float64.
    """
    system = centre(sums, fit_intercept)
    factor, found = factorise(system, penalty)
    return Decomposition(system, factor, found, _is_enough(system, found, bits))


def _is_enough(system: System, found: Directions, bits: float | None) -> bool:
    return not found.unresolved and system.precision >= bits_needed(found.growth, bits)


def bits_needed(growth: float, bits: float | None) -> float:
    """Bits of the sums that a problem of this conditioning needs."""
    lost = max(1.0, float(np.log2(max(growth, 1.0))))
    if bits is not None:
        return bits + lost
    # Either a plain product that is as good as exact, or the error of an orthogonal factorisation.
    return 49.0 if lost < 10.0 else 53.0 + 0.5 * lost


def decompose(
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    fit_intercept: bool = True,
    penalty: np.ndarray | None = None,
) -> Factor:
    """Factor a least-squares problem; parameters as :func:`normal_equations`.

    Returns
    -------
    Factor

    Examples
    --------
    >>> import numpy as np
    >>> X, Y = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [5.0]])
    >>> factor = decompose(X, Y)
    >>> factor.rank, factor.tss.round(12)
    (1, array([8.]))
    """
    return normal_equations(
        X,
        Y,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
        penalty=penalty,
        refine=False,
    ).factor
