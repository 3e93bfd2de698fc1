"""One factorisation of a weighted least-squares problem, for all targets and all penalties.

With ``A = [1, X - shift]``, weights ``w`` and the penalty ``alpha * sum_j penalty_j b_j^2`` there is
a basis ``B`` such that ``U = sqrt(w) A B`` has orthonormal columns and

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

import numpy as np


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
    basis : ndarray of shape (1 + n_features, n_directions)
        ``B`` above. Row 0 is the intercept of the shifted columns, zero without an intercept.
    singular_values : ndarray of shape (n_directions,)
        ``d`` above: free directions first, with ``inf``, then descending.
    z : ndarray of shape (n_directions, n_targets)
        Coordinates of the targets.
    rank : int
        Rank of X, centred if there is an intercept (which is not counted), decided on columns
        scaled to the same norm.
    scaled_singular_values : ndarray of shape (min(n_rows, n_features),)
        Singular values of the (centred) columns scaled to norm 1 (a constant column stays 0),
        descending. Their ratio is the condition number that limits accuracy.
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
    basis: np.ndarray
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


def decompose(
    X: np.ndarray,
    Y: np.ndarray,
    *,
    sample_weight: np.ndarray | None = None,
    fit_intercept: bool = True,
    penalty: np.ndarray | None = None,
) -> Factor:
    """Factor a least-squares problem.

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
    n, p = X.shape
    if sample_weight is not None:
        keep = sample_weight > 0
        X, Y, w = X[keep], Y[keep], np.asarray(sample_weight, dtype=np.float64)[keep]
    else:
        w = np.ones(n)
    total = float(w.sum())
    shift = w @ X / total if fit_intercept else np.zeros(p)
    y_shift = w @ Y / total if fit_intercept else np.zeros(Y.shape[1])
    root = np.sqrt(w)[:, None]
    Z, V = root * (X - shift), root * (Y - y_shift)
    if fit_intercept:  # what the rounding of the means left
        Z -= root * (root.T @ Z / total)
        V -= root * (root.T @ V / total)
    squares = np.einsum("ij,ij->j", Z, Z)
    scale = _power_of_two(np.sqrt(squares))
    norms = np.where(squares > 0, np.sqrt(squares), 1.0)
    tol = max(len(w), p) * np.finfo(float).eps
    _, d_all, Vt_all = np.linalg.svd(Z / norms, full_matrices=False)
    rank = int((d_all > tol * d_all[:1].sum()).sum())
    dependent = _dependent_columns(Vt_all[:rank], squares, min(len(w) - fit_intercept, p))
    pen = np.ones(p) if penalty is None else np.asarray(penalty, dtype=np.float64)
    blocks, d_list, z_list = [], [], []
    if fit_intercept:
        start = np.zeros((1 + p, 1))
        start[0] = 1 / np.sqrt(total)
        blocks, d_list, z_list = [start], [np.array([np.inf])], [root.T @ V / np.sqrt(total)]
    free = pen == 0
    if free.any():
        U0, basis0 = _range_basis(Z[:, free], scale[free], tol)
        U0, d0, B0t = _polar(U0, basis0, U0.T @ Z[:, free])
        part = np.zeros((1 + p, len(d0)))
        part[1:][free] = B0t
        blocks.append(part)
        d_list.append(np.full(len(d0), np.inf))
        z_list.append(U0.T @ V)
        L = B0t @ (U0.T @ Z[:, ~free])
        Z_pen = Z[:, ~free] - U0 @ (U0.T @ Z[:, ~free])
    else:
        Z_pen = Z
    if (~free).any():
        U, raw = _range_basis(Z_pen, scale[~free], tol)
        half = np.sqrt(pen[~free])
        U, d, B = _polar(U, raw, (U.T @ Z_pen) / half)
        part = np.zeros((1 + p, len(d)))
        part[1:][~free] = B / half[:, None]
        if free.any():
            part[1:][free] = -L @ part[1:][~free]
        blocks.append(part)
        d_list.append(d)
        z_list.append(U.T @ V)
    basis = np.concatenate(blocks, axis=1) if blocks else np.zeros((1 + p, 0))
    d = np.concatenate(d_list) if d_list else np.zeros(0)
    z = np.concatenate(z_list) if z_list else np.zeros((0, Y.shape[1]))
    fitted = root * (basis[0] @ z) + Z @ (basis[1:] @ z)
    return Factor(
        n_rows=len(w),
        sum_weights=total,
        fit_intercept=fit_intercept,
        shift=shift,
        y_shift=y_shift,
        basis=basis,
        singular_values=d,
        z=z,
        rank=rank,
        scaled_singular_values=d_all,
        dependent=dependent,
        rss_outside=((V - fitted) ** 2).sum(axis=0),
        tss=(V**2).sum(axis=0),
        column_squares=squares,
        penalty=penalty,
    )


def _power_of_two(norms: np.ndarray) -> np.ndarray:
    """Powers of two near the norms, 1 for 0: scaling by them is exact."""
    return np.ldexp(1.0, np.frexp(np.where(norms > 0, norms, 1.0))[1])


def _range_basis(Z: np.ndarray, scale: np.ndarray, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal basis U of the range of Z, and B with Z B = U, decided on scaled columns."""
    U, d, Vt = np.linalg.svd(Z / scale, full_matrices=False)
    keep = d > tol * d[:1].sum()
    return U[:, keep], (Vt[keep].T / d[keep]) / scale[:, None]


def _polar(U: np.ndarray, raw: np.ndarray, R: np.ndarray) -> tuple[np.ndarray, ...]:
    """Turn an orthonormal basis into singular directions of U R; B = V / d has minimum norm."""
    Q, d, Vt = np.linalg.svd(R, full_matrices=False)
    return U @ Q, d, Vt.T / d


def _dependent_columns(Vt: np.ndarray, squares: np.ndarray, full: int) -> np.ndarray:
    """Columns whose unit vector is not in the row space (constant columns among them)."""
    if len(Vt) >= full:
        return np.flatnonzero(squares == 0) if len(Vt) < Vt.shape[1] == full else np.zeros(0, int)
    outside = 1.0 - np.einsum("kj,kj->j", Vt, Vt)
    return np.flatnonzero(outside > 1e-8)
