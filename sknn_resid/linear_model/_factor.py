"""One factorisation of a weighted least-squares problem, for all targets and all penalties.

With ``A = [1, X - shift]``, weights ``w`` and the penalty ``alpha * sum_j penalty_j b_j^2`` there
is a basis ``B`` such that ``U = sqrt(w) A B`` has orthonormal columns and

    coefficients(alpha) = B (f * z),        z = U' sqrt(w) (y - y_shift),
    f_k = d_k^2 / (d_k^2 + alpha),

whatever the number of targets, where ``d_k`` are the singular values of the penalised columns in
the metric of the penalty, after the free columns (the intercept, and features with penalty 0) are
projected out. A free direction has ``d = inf``, hence ``f = 1``. Everything else follows:

    covariance      B diag(f^2) B'               trace of H     sum f
    leverage        rows of U^2 @ f              Var difference B diag(1 - f^2) B'

Directions in the null space of the (centred, scaled) columns are not in the basis, so that all
coefficients have minimum norm in the user's coordinates; with unequal penalties and collinear
columns it is the norm of the penalty, which is the limit alpha -> 0.

Golub & Van Loan, Matrix Computations, 4th ed., sections 5.5 and 6.1; Hastie, Tibshirani & Friedman,
The Elements of Statistical Learning, 2nd ed., section 3.4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ._basis import Directions, directions
from ._system import System
from ._words import matmul, word_count


@dataclass(frozen=True, eq=False)
class WideBasis:
    """Basis of a problem with more columns than rows, by way of the rows.

    ``B = [0; P^-1 Z' U / d^2]`` beside the intercept's direction, with ``Z = sqrt(w) (X - mean)``
    and the left singular vectors U of ``Z P^-1/2``. What only needs products with B does not form
    it. It refers to the training rows; pickling forms the matrix and forgets them.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features)
        The rows of positive weight.
    mean : ndarray of shape (n_features,)
        Their weighted means; 0 without an intercept.
    root : ndarray of shape (n_rows,) or None
        Square roots of the weights; None for 1.
    total : float
        Sum of the weights.
    U : ndarray of shape (n_rows, rank)
    d : ndarray of shape (rank,)
    penalty : ndarray of shape (n_features,) or None
    fit_intercept : bool
    """

    X: np.ndarray
    mean: np.ndarray
    root: np.ndarray | None
    total: float
    U: np.ndarray
    d: np.ndarray
    penalty: np.ndarray | None
    fit_intercept: bool

    @cached_property
    def matrix(self) -> np.ndarray:
        """``B``, shape (1 + n_features, n_directions)."""
        return self.times(np.eye(len(self.d) + self.fit_intercept))

    def times(self, coordinates: np.ndarray) -> np.ndarray:
        """``B`` times coordinates of shape (n_directions, m), without B."""
        first = int(self.fit_intercept)
        rows = self.U @ (coordinates[first:] / (self.d * self.d)[:, None])
        if self.root is not None:
            rows *= self.root[:, None]
        body = self.X.T @ rows
        if first:
            body -= np.outer(self.mean, rows.sum(axis=0))
        if self.penalty is not None:
            body /= self.penalty[:, None]
        out = np.zeros((1 + len(body), coordinates.shape[1]))
        out[1:] = body
        if first:
            out[0] = coordinates[0] / np.sqrt(self.total)
        return out

    def rows_of(self, part: slice | np.ndarray) -> np.ndarray:
        """``A B`` of some of the training rows, a new array."""
        U = self.U[part]
        first = int(self.fit_intercept)
        out = np.empty((len(U), U.shape[1] + first))
        out[:, first:] = U if self.root is None else U / self.root[part, None]
        if first:
            out[:, 0] = 1.0 / np.sqrt(self.total)
        return out

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickle as the plain matrix."""
        return np.asarray, (self.matrix,)


@dataclass(frozen=True, eq=False)
class Factor:
    """A factored least-squares problem; plain arrays, no rows of the data.

    Parameters
    ----------
    n_rows : int
        Rows with a positive weight.
    sum_weights : float
        Sum of the weights; ``n_rows`` without weights.
    fit_intercept : bool
        Whether the first row of ``basis`` carries an intercept.
    shift : ndarray of shape (n_features,)
        Subtracted from the columns of X; the coefficients of ``basis`` refer to ``X - shift``.
    y_shift : ndarray of shape (n_targets,)
        Subtracted from the targets.
    directions : ndarray of shape (1 + n_features, n_directions), or WideBasis
        ``B`` above, or what it follows from. Row 0 is the intercept of the shifted columns, zero
        without an intercept.
    singular_values : ndarray of shape (n_directions,)
        ``d`` above: free directions first, with ``inf``, then descending.
    z : ndarray of shape (n_directions, n_targets)
        Coordinates of the targets.
    rank : int
        Rank of X, centred if there is an intercept (which is not counted), decided on columns
        scaled to the same norm.
    scaled_singular_values : ndarray of shape (n_features,)
        Singular values of the (centred) columns, scaled by powers of two where their norms differ
        by more than a factor of 64; descending. Their ratio is the condition number that limits
        accuracy; those behind the rank are noise.
    dependent : ndarray of int
        Columns with a part in the null space; empty for full rank, and where ``rank`` is short
        only because there are fewer rows than columns.
    rss_outside : ndarray of shape (n_targets,)
        Weighted sum of squares that no coefficients can explain: the residual sum at alpha = 0.
    tss : ndarray of shape (n_targets,)
        Weighted sum of squares of the targets around their weighted mean (around 0 without an
        intercept).
    column_squares : ndarray of shape (n_features,)
        Weighted sums of squares of the columns around their mean (around 0 without an intercept).
    penalty : ndarray of shape (n_features,) or None
        Penalty of each feature relative to alpha; None means 1 for all.
    """

    n_rows: int
    sum_weights: float
    fit_intercept: bool
    shift: np.ndarray
    y_shift: np.ndarray
    directions: np.ndarray | WideBasis
    singular_values: np.ndarray
    z: np.ndarray
    rank: int
    scaled_singular_values: np.ndarray
    dependent: np.ndarray
    rss_outside: np.ndarray
    tss: np.ndarray
    column_squares: np.ndarray
    penalty: np.ndarray | None = None

    @property
    def basis(self) -> np.ndarray:
        """``B``, shape (1 + n_features, n_directions); of a wide problem formed when asked for."""
        found = self.directions
        return found.matrix if isinstance(found, WideBasis) else found

    @property
    def n_features(self) -> int:
        """Number of columns of X."""
        return len(self.shift)

    @property
    def rank_gap(self) -> float:
        """Ratio of the last scaled singular value kept to the first one dropped; inf if none."""
        d = self.scaled_singular_values
        if not 0 < self.rank < len(d):
            return np.inf
        return float(d[self.rank - 1] / d[self.rank]) if d[self.rank] > 0 else np.inf

    @property
    def condition(self) -> float:
        """Condition number of the scaled columns within the rank; 1.0 for rank 0."""
        d = self.scaled_singular_values
        return float(d[0] / d[self.rank - 1]) if self.rank else 1.0


def factorise(system: System, penalty: np.ndarray | None = None) -> tuple[Factor, Directions]:
    """Factor centred normal equations.

    Parameters
    ----------
    system : System
    penalty : ndarray of shape (n_features,) or None, default=None
        Relative penalties, not negative; 0 leaves a feature free. None means 1 for all.

    Returns
    -------
    factor : Factor
    found : Directions
        Of the scaled columns: rank, null space, and whether the precision of ``system`` is enough.
    """
    p, t = system.xx.shape[1], system.xy.shape[2]
    max_rank = max(0, system.n_rows - system.fit_intercept)
    shape = (system.precision, system.slices, max_rank)
    found = directions(system.xx, system.norms, *shape)
    free = np.zeros(p, dtype=bool) if penalty is None else penalty == 0
    parts: list[np.ndarray] = []
    values: list[np.ndarray] = []
    if not free.any():
        root = None if penalty is None else np.sqrt(penalty)
        B, d = user_basis(found, root)
        parts, values = [B], [d]
    else:
        first = directions(_block(system.xx, free, free), system.norms[free], *shape)
        B0, d0 = user_basis(first, None)
        parts.append(np.zeros((p, len(d0))))
        parts[0][free] = B0
        values.append(np.full(len(d0), np.inf))
        if not free.all():
            B1, d1 = _beside_free(system, free, B0, penalty, shape)
            parts.append(B1)
            values.append(d1)
    body = np.concatenate(parts, axis=1)
    if system.slices <= 2:  # well-conditioned
        z = body.T @ system.xy[0]
    else:
        z = matmul(np.ascontiguousarray(body.T)[None], system.xy, system.slices, 1)[0]
    basis = np.concatenate([-(system.mean[0] @ body)[None], body])
    if system.fit_intercept:
        root_total = np.sqrt(system.sum_weights[0])
        lead = np.zeros((1 + p, 1))
        lead[0] = 1.0 / root_total
        basis = np.concatenate([lead, basis], axis=1)
        z = np.concatenate([(system.y_mean[0] * root_total)[None], z])
        values.insert(0, np.array([np.inf]))
    tss = np.maximum(system.yy[0], 0.0)
    outside = tss - (z[int(system.fit_intercept) :] ** 2).sum(axis=0)
    factor = Factor(
        n_rows=system.n_rows,
        sum_weights=float(system.sum_weights[0]),
        fit_intercept=system.fit_intercept,
        shift=system.shift,
        y_shift=system.y_shift,
        directions=basis,
        singular_values=np.concatenate(values),
        z=z.reshape(-1, t),
        rank=found.rank,
        scaled_singular_values=found.values,
        dependent=_dependent_columns(found, max_rank),
        rss_outside=np.maximum(outside, 0.0),
        tss=tss,
        column_squares=np.maximum(system.xx[0].diagonal(), 0.0),
        penalty=penalty,
    )
    return factor, found


def _block(xx: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return xx[:, rows][:, :, columns]


def user_basis(found: Directions, root: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Directions and singular values in the user's coordinates, or those of the penalty.

    Parameters
    ----------
    found : Directions
    root : ndarray of shape (p,) or None
        Square roots of the penalties; None means 1 for all.

    Returns
    -------
    B : ndarray of shape (p, rank)
        ``B' X'X B`` is the identity, ``B' diag(root)^2 B`` is diagonal, no part in the null space.
    d : ndarray of shape (rank,)
    """
    V, d = found.vectors[:, : found.rank], found.values[: found.rank]
    stretch = found.scale if root is None else found.scale / root
    if root is None and (found.scale == found.scale[:1]).all():
        return V / (d * stretch[:1]), d * stretch[:1]
    R = (d * V * stretch[:, None]).T  # X = U R, with U orthonormal
    if stretch.max() > 64.0 * stretch.min():
        d, V = _graded_svd(R)
    else:
        _, d, Vt = np.linalg.svd(R, full_matrices=False)
        V = Vt.T
    B = V / d
    return (B if root is None else B / root[:, None]), d


def _graded_svd(R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and right vectors of R = C diag(s), to high relative accuracy.

    One-sided Jacobi: its error is that of C however different the columns' scales s are, where the
    usual algorithm has 2^-53 of the largest singular value (Drmac & Veselic 2008, SIAM J. Matrix
    Anal. Appl. 29(4)).
    """
    if len(R) < R.shape[1]:
        # X = U R with more columns than rows: R' = Q L first, pivoted rows keep the grading.
        from scipy.linalg import qr

        order = np.argsort(-np.abs(R).max(axis=0), kind="stable")
        Q, L, pivot = qr(R[:, order].T, mode="economic", pivoting=True)
        inner = np.empty_like(L)
        inner[:, pivot] = L
        V = np.empty_like(R.T)
        d, W = _jacobi(np.ascontiguousarray(inner.T))
        # R[:, order]' = Q inner, so that R = inner' Q' in the order.
        V[order] = Q @ W
        return d, V
    return _jacobi(R)


def _jacobi(R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, descending, and right singular vectors of a matrix with rows >= columns."""
    from scipy.linalg.lapack import dgejsv

    largest = np.abs(R).max()
    exponent = np.frexp(largest)[1]
    s, _, V, work, _, info = dgejsv(np.ldexp(R, -exponent), joba=2, jobr=0)
    if info:  # did not converge: the plain algorithm, whose error the refinement repairs
        _, d, Vt = np.linalg.svd(R, full_matrices=False)
        return d, Vt.T
    return np.ldexp(s * (work[0] / work[1]), exponent), V


def _beside_free(system, free, B0, penalty, shape):
    """Directions of the penalised columns after the free ones are projected out."""
    pen = ~free
    # X_pen - X_free L. The block of the congruence with [-L; I] errs with the square of L's error.
    cross = _block(system.xx, free, pen)
    slices = system.slices
    L = B0 @ matmul(np.ascontiguousarray(B0.T)[None], cross, slices, 1)[0]
    M = np.zeros((len(free), pen.sum()))
    M[free] = -L
    M[pen] = np.eye(pen.sum())
    half = matmul(system.xx, M[None], slices, slices)
    xx = matmul(np.ascontiguousarray(M.T)[None], half, slices, word_count(slices))
    lower = np.tril_indices(xx.shape[1], -1)
    xx[:, lower[0], lower[1]] = xx[:, lower[1], lower[0]]
    precision, _, max_rank = shape
    norms = system.norms[pen] + np.abs(L).T @ system.norms[free]
    gone = xx[0].diagonal() <= 2.0 ** (6.0 - precision) * norms**2
    xx[:, gone] = 0.0
    xx[:, :, gone] = 0.0
    found = directions(xx, norms, precision, slices, max(0, max_rank - B0.shape[1]))
    B, d = user_basis(found, np.sqrt(penalty[pen]))
    body = np.zeros((len(free), len(d)))
    body[pen] = B
    body[free] = -L @ B
    return body, d


def _dependent_columns(found: Directions, max_rank: int) -> np.ndarray:
    """Columns whose unit vector is not in the row space, constant columns among them."""
    p, rank = len(found.scale), found.rank
    if rank == p or (rank == max_rank and max_rank < p):
        return np.zeros(0, dtype=int)
    return np.flatnonzero((found.vectors[:, rank:] ** 2).sum(axis=1) > 1e-8)
