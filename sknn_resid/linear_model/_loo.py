"""Leave-one-out errors for every penalty without a hat matrix.

``e_i(alpha) / (1 - h_i(alpha))`` with ``h_i = sum_k U_ik^2 f_k(alpha)``: one product of the squared
orthonormal rows with the table of factors gives the leverages of a block of rows for all penalties
at once; nothing of size n x n, or n x n_alphas x n_targets, is stored.

The table ``F_ak = f_k(alpha_a)`` has few independent columns: as functions of alpha, the factors of
directions whose d are within a factor of ten of each other are the same S curve, moved by less than
its width. So ``F = F_J T`` with a few of the directions, J, and the products with n_alphas columns
become products with J (about ten for a hundred columns of one size).

Allen (1974), Technometrics 16(1); Golub, Heath & Wahba (1979), Technometrics 21(2); Cheng,
Gimbutas, Martinsson & Rokhlin (2005), SIAM J. Sci. Comput. 26(4), on such skeletons of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import _compiled
from ._factor import Factor
from ._filters import shrinkage, training_rows

MIN_SLACK = 16 * float(np.finfo(float).eps)  # 1 - h below this is 0 but for rounding
# The skeleton gives every factor to about 1e-15. Where 1 - h is smaller than this in a block of
# rows, the error that is left in it is no longer of no account, and the whole table is used.
CLEAR_SLACK = 2.0**-10
SKELETON = 2.0**-47  # of 1, the largest factor: rounding errors of the factorisation are below
COMPRESSED = 2**22  # multiplications of a product with the table from which a skeleton pays
NUMBERS = 2**16  # errors of a block of rows: they stay in the cache
KEPT = 2**21  # numbers that may be kept for the leverages at a penalty chosen later


@dataclass(frozen=True, eq=False)
class Table:
    """Factors ``F = columns @ mix`` of all directions and penalties.

    Parameters
    ----------
    columns : ndarray of shape (n_alphas, n_columns)
        Factors of some directions, or of all.
    mix : ndarray of shape (n_columns, n_directions), or None
        What the others are of these; None where ``columns`` has all.
    whole : ndarray of shape (n_alphas, n_directions)
        ``F``.
    """

    columns: np.ndarray
    mix: np.ndarray | None
    whole: np.ndarray

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.columns.shape[1]


def table(factor: Factor, alphas: np.ndarray, n_rows: int) -> Table:
    """The table of factors, as a skeleton where that saves time.

    Parameters
    ----------
    factor : Factor
    alphas : ndarray of shape (n_alphas,)
    n_rows : int
        How often it will be multiplied by.

    Returns
    -------
    Table
    """
    F = shrinkage(factor, alphas)
    a, k = F.shape
    if n_rows * a * k < COMPRESSED or n_rows < min(a, k):
        return Table(F, None, F)
    quickly = _compiled.skeleton(F, SKELETON)
    if quickly is not None:
        return Table(*quickly, F) if isinstance(quickly, tuple) else Table(F, None, F)
    from scipy.linalg import qr, solve_triangular

    R, order = qr(F, mode="r", pivoting=True)
    size = np.abs(R.diagonal())
    rank = int((size > SKELETON).sum())
    if rank * (a + k) > 0.75 * a * k:
        return Table(F, None, F)
    mix = np.empty((rank, k))
    mix[:, order[:rank]] = np.eye(rank)
    mix[:, order[rank:]] = solve_triangular(R[:rank, :rank], R[:rank, rank:])
    return Table(np.ascontiguousarray(F[:, order[:rank]]), mix, F)


@dataclass(frozen=True, eq=False)
class Squares:
    """What the leverages at any of the penalties follow from, row by row.

    Parameters
    ----------
    columns : ndarray of shape (n_alphas, n_columns)
        Of the :class:`Table`.
    sums : ndarray of shape (n_columns, n_rows)
        ``sum_k mix_jk U_ik^2``, weighted.
    """

    columns: np.ndarray
    sums: np.ndarray

    def leverage(self, number: np.ndarray) -> np.ndarray:
        """Leverages at some of the penalties, by their numbers, shape (n_rows, len(number))."""
        return (self.columns[number] @ self.sums).T


def loo_squared_errors(
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alphas: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over rows of squared leave-one-out errors, for each penalty and target.

    Parameters
    ----------
    factor : Factor
        Of the same X, Y and sample_weight.
    X : ndarray of shape (n_samples, n_features)
    Y : ndarray of shape (n_samples, n_targets)
    alphas : ndarray of shape (n_alphas,)
    sample_weight : ndarray of shape (n_samples,) or None, default=None

    Returns
    -------
    weighted : ndarray of shape (n_alphas, n_targets)
        ``sum_i w_i e_(i)^2``, what the choice of a penalty minimises.
    plain : ndarray of shape (n_alphas, n_targets)
        ``sum_i e_(i)^2`` over rows of positive weight.

    Notes
    -----
    A row that nothing but itself determines (leverage 1) has no leave-one-out prediction by this
    formula; its error is taken as infinite, so that such a penalty is never chosen.
    """
    weighted, plain, _ = loo_pass(factor, X, Y, alphas, sample_weight)
    return weighted, plain


def loo_pass(
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alphas: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Squares | None]:
    """As :func:`loo_squared_errors`, with what the leverages of the rows follow from.

    Returns
    -------
    weighted, plain : ndarray of shape (n_alphas, n_targets)
    squares : Squares or None
        Of all rows. None where it would be large, or where a leverage is so close to 1 that its
        complement needs more care.
    """
    factors = table(factor, alphas, len(X))
    if isinstance(factor.directions, np.ndarray):
        quickly = _quick_pass(factor, factors, X, Y, sample_weight)
        if quickly is not None:
            return quickly
    weighted = np.zeros((len(alphas), Y.shape[1]))
    plain = np.zeros_like(weighted)
    kept = None
    if factors.width * len(X) <= KEPT:
        kept = np.zeros((factors.width, len(X)))
    for rows, errors, squares in _blocks(factor, factors, X, Y, alphas, sample_weight):
        plain += _infinite(np.einsum("ati,ati->at", errors, errors))
        if sample_weight is not None:
            weighted += _infinite(np.einsum("ati,ati,i->at", errors, errors, sample_weight[rows]))
        if squares is None:
            kept = None
        elif kept is not None:
            kept[:, rows] = squares
    found = None if kept is None else Squares(factors.columns, kept)
    return (plain.copy() if sample_weight is None else weighted), plain, found


def _quick_pass(
    factor: Factor,
    factors: Table,
    X: np.ndarray,
    Y: np.ndarray,
    sample_weight: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, Squares | None] | None:
    """The same by the compiled kernels, if they serve."""
    kept = None
    if factors.width * len(X) <= KEPT:
        kept = np.empty((factors.width, len(X)))
    found = _compiled.loo(
        X,
        Y,
        sample_weight,
        factor.basis,
        (factor.shift, factor.y_shift),
        factor.z,
        factors.whole,
        None if factors.mix is None else (factors.columns, factors.mix),
        kept,
    )
    if found is None:
        return None
    weighted, plain, clear = found
    squares = Squares(factors.columns, kept) if clear and kept is not None else None
    return _infinite(weighted), _infinite(plain), squares


def _infinite(sums: np.ndarray) -> np.ndarray:
    """Without predictions (0 / 0): infinite."""
    return np.where(np.isnan(sums), np.inf, sums)


def loo_blocks(
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alphas: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray | slice, np.ndarray]]:
    """Leave-one-out errors, block of rows by block; parameters as :func:`loo_squared_errors`.

    Yields
    ------
    rows : slice or ndarray of int
        Rows of positive weight.
    errors : ndarray of shape (n_alphas, n_rows_of_block, n_targets)
    """
    factors = table(factor, alphas, len(X))
    for rows, errors, _ in _blocks(factor, factors, X, Y, alphas, sample_weight):
        yield rows, _infinite(errors).transpose(0, 2, 1)


def _blocks(factor, factors, X, Y, alphas, sample_weight):
    """Yield rows, errors (n_alphas, n_targets, n_rows) with NaN for 0 / 0, and ``Squares.sums``.

    The last is None where the leverages need the whole table. The arrays are overwritten by the
    next block: fresh memory for each costs as much as the arithmetic.
    """
    whole = factors if factors.mix is None else Table(factors.whole, None, factors.whole)
    index = None if sample_weight is None else np.flatnonzero(sample_weight > 0)
    n = len(X) if index is None else len(index)
    a, t = len(alphas), Y.shape[1]
    step = min(max(1, n), int(np.clip(NUMBERS // max(1, a * t), 64, 4096)))
    memory = np.empty((t + 1) * a * step)
    for start in range(0, n, step):
        stop = min(n, start + step)
        part = slice(start, stop) if index is None else index[start:stop]
        size = a * (stop - start)
        slack = memory[:size].reshape(a, -1)
        errors = memory[size : (t + 1) * size].reshape(a, t, -1)
        U = training_rows(factor, X, part)
        y = (Y[part] - factor.y_shift).T
        w = None if index is None else sample_weight[part]
        U2 = (U * U).T if w is None else (U * U).T * w
        squares = _slack(factors, U2, slack)
        clear = slack.min(initial=1.0) >= CLEAR_SLACK
        if not clear and factors.mix is not None:
            _slack(whole, U2, slack)
        _residuals(factors if clear else whole, factor.z, U, y, errors)
        if clear:
            errors /= slack[:, None]
        else:
            slack[slack <= MIN_SLACK] = 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                errors /= slack[:, None]
        yield part, errors, squares if clear else None


def _slack(factors: Table, U2: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Fill in ``1 - h`` for all penalties, (n_alphas, n_rows); ``Squares.sums``."""
    squares = U2 if factors.mix is None else factors.mix @ U2
    np.matmul(factors.columns, squares, out=out)
    np.subtract(1.0, out, out=out)
    return squares


def _residuals(
    factors: Table, z: np.ndarray, U: np.ndarray, y: np.ndarray, out: np.ndarray
) -> None:
    """Fill in ``y - U (f z)`` for all penalties, shape (n_alphas, n_targets, n_rows)."""
    a, width = factors.columns.shape
    t, n = y.shape
    if factors.mix is None:
        left = (factors.columns[:, None] * z.T).reshape(a * t, width)
        np.matmul(left, U.T, out=out.reshape(a * t, n))
    else:
        mixed = (factors.mix[:, None] * z.T).reshape(width * t, -1) @ U.T
        np.matmul(factors.columns, mixed.reshape(width, t * n), out=out.reshape(a, t * n))
    np.subtract(y, out, out=out)


def loo_predictions(
    factor: Factor,
    X: np.ndarray,
    Y: np.ndarray,
    alpha: np.ndarray | float,
    sample_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Prediction for each row from a fit without it, at one penalty per target.

    Parameters
    ----------
    factor, X, Y, sample_weight
        As :func:`loo_squared_errors`.
    alpha : float or ndarray of shape (n_targets,)

    Returns
    -------
    ndarray of shape (n_samples, n_targets)
        ``-inf`` or ``inf`` where the leverage is 1. A row of weight 0 gets the plain prediction.
    """
    targets = Y.shape[1]
    alpha = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (targets,))
    f = shrinkage(factor, alpha)  # (n_targets, n_directions)
    out = np.empty((len(X), targets))
    step = max(1, 2**18 // max(1, f.shape[1]))
    for start in range(0, len(X), step):
        rows = slice(start, start + step)
        U = training_rows(factor, X, rows)
        w = 1.0 if sample_weight is None else sample_weight[rows, None]
        slack = 1.0 - w * ((U * U) @ f.T)
        errors = (Y[rows] - factor.y_shift) - U @ (f.T * factor.z)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors /= np.where(slack > MIN_SLACK, slack, 0.0)
        out[rows] = Y[rows] - np.where(np.isnan(errors), np.inf, errors)
    return out
