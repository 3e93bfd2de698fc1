"""What follows from a factorisation for any penalty: shrinkage, degrees of freedom, paths.

Every function takes a :class:`~sknn_resid.linear_model._factor.Factor` and one or many penalties.
Differences are written so that they cannot cancel: ``1 - f`` is ``alpha / (d^2 + alpha)``.
"""

from __future__ import annotations

import numpy as np

from ._factor import Factor, WideBasis


def distinct(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct penalties, ascending, and which of them each target has.

    Examples
    --------
    >>> import numpy as np
    >>> distinct(np.array([2.0, 1.0, 2.0]))
    (array([1., 2.]), array([1, 0, 1]))
    """
    if len(alpha) == 1 or (alpha == alpha[0]).all():  # the usual case, without sorting
        return alpha[:1], np.zeros(len(alpha), dtype=int)
    return np.unique(alpha, return_inverse=True)


def shrinkage(factor: Factor, alphas: np.ndarray | float) -> np.ndarray:
    """Shrinkage factors ``f = d^2 / (d^2 + alpha)``; 1 for free directions and alpha = 0.

    Parameters
    ----------
    factor : Factor
    alphas : float or ndarray of any shape
        Penalties, not negative; ``inf`` gives 0 for penalised directions.

    Returns
    -------
    ndarray of shape alphas.shape + (n_directions,)

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid.linear_model._decompose import decompose
    >>> factor = decompose(np.array([[1.0], [-1.0]]), np.array([[1.0], [0.0]]))
    >>> shrinkage(factor, 2.0).round(12)
    array([1. , 0.5])
    """
    a = np.asarray(alphas, dtype=np.float64)[..., None]
    d = factor.singular_values
    if not a.any():
        return np.ones((*a.shape[:-1], len(d)))
    # (sqrt(alpha) / d)^2 neither overflows nor underflows where the factor itself does not.
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + (np.sqrt(a) / d) ** 2)


def complement(factor: Factor, alphas: np.ndarray | float) -> np.ndarray:
    """``1 - f = alpha / (d^2 + alpha)`` without cancellation; shapes as :func:`shrinkage`."""
    a = np.asarray(alphas, dtype=np.float64)[..., None]
    d = factor.singular_values
    if not a.any():
        return np.zeros((*a.shape[:-1], len(d)))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return np.where(a > 0, 1.0 / (1.0 + (d / np.sqrt(a)) ** 2), 0.0)


def degrees_of_freedom(factor: Factor, alphas: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """``tr(H)`` and ``tr(2H - HH')``, both with the intercept's 1.

    Parameters
    ----------
    factor : Factor
    alphas : float or ndarray of any shape

    Returns
    -------
    trace, trace_residual : ndarray of shape alphas.shape
        The second is what the residual variance loses: ``n - tr(2H - HH')``.
    """
    f = shrinkage(factor, alphas)
    return f.sum(axis=-1), (f * (1.0 + complement(factor, alphas))).sum(axis=-1)


def coefficients(factor: Factor, alphas: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and intercepts, in plain float64 (see ``_least_squares.solve`` for refined).

    Parameters
    ----------
    factor : Factor
    alphas : float, or ndarray of shape (n_alphas, 1) or (n_alphas, n_targets)
        Broadcast against targets on the last axis.

    Returns
    -------
    coef : ndarray of shape alphas.shape[:-1] + (n_targets, n_features)
    intercept : ndarray of shape alphas.shape[:-1] + (n_targets,)
    """
    targets = factor.z.shape[1]
    a = np.asarray(alphas, dtype=np.float64)
    a = np.broadcast_to(a, np.broadcast_shapes(a.shape, (targets,)))
    full = _times_basis(factor, shrinkage(factor, a) * factor.z.T)
    coef = full[..., 1:]
    intercept = np.zeros(full.shape[:-1])
    if factor.fit_intercept:
        intercept = full[..., 0] + (factor.y_shift - coef @ factor.shift)
    return coef, intercept


def _times_basis(factor: Factor, coordinates: np.ndarray) -> np.ndarray:
    """``B`` times coordinates of shape (..., n_directions), on the last axis."""
    if not isinstance(factor.directions, WideBasis):
        return coordinates @ factor.directions.T
    flat = coordinates.reshape(-1, coordinates.shape[-1])
    return factor.directions.times(flat.T).T.reshape(*coordinates.shape[:-1], -1)


def residual_sum(factor: Factor, alphas: np.ndarray | float) -> np.ndarray:
    """Weighted residual sums of squares, ``rss_outside + sum (1 - f)^2 z^2``.

    Parameters
    ----------
    factor : Factor
    alphas : float or ndarray, as in :func:`coefficients`

    Returns
    -------
    ndarray of shape alphas.shape[:-1] + (n_targets,)
    """
    targets = factor.z.shape[1]
    a = np.asarray(alphas, dtype=np.float64)
    a = np.broadcast_to(a, np.broadcast_shapes(a.shape, (targets,)))
    return factor.rss_outside + np.einsum("...tk,kt->...t", complement(factor, a) ** 2, factor.z**2)


def orthonormal_rows(
    factor: Factor, X: np.ndarray, sample_weight: np.ndarray | None = None
) -> np.ndarray:
    """Rows of ``U = sqrt(w) A B`` for rows of X, the fitted ones or others.

    Parameters
    ----------
    factor : Factor
    X : ndarray of shape (n_samples, n_features)
    sample_weight : ndarray of shape (n_samples,) or None, default=None

    Returns
    -------
    ndarray of shape (n_samples, n_directions)
    """
    shifted = X - factor.shift if factor.shift.any() else X
    U = shifted @ factor.basis[1:]
    U += factor.basis[0]
    return U if sample_weight is None else U * np.sqrt(sample_weight)[:, None]


def training_rows(factor: Factor, X: np.ndarray, part: slice | np.ndarray) -> np.ndarray:
    """``A B`` for some of the training rows, without the square roots of the weights.

    Parameters
    ----------
    factor : Factor
        Of X.
    X : ndarray of shape (n_samples, n_features)
        All training rows.
    part : slice or ndarray of int

    Returns
    -------
    ndarray of shape (len(part), n_directions)
        A new array.
    """
    found = factor.directions
    if isinstance(found, WideBasis) and found.X is X:
        return found.rows_of(part)
    return orthonormal_rows(factor, X[part])


def leverage(
    factor: Factor,
    X: np.ndarray,
    sample_weight: np.ndarray | None = None,
    alpha: float = 0.0,
    *,
    power: int = 1,
) -> np.ndarray:
    """Diagonal of ``U diag(f^power) U'`` for rows of X, blockwise.

    ``power=1`` is the leverage ``h_ii`` (weighted: the weight's share included); ``power=2``
    without weights is the unscaled variance of a prediction, ``a' Cov a``.

    Parameters
    ----------
    factor : Factor
    X : ndarray of shape (n_samples, n_features)
    sample_weight : ndarray of shape (n_samples,) or None, default=None
    alpha : float, default=0.0
    power : {1, 2}, default=1

    Returns
    -------
    ndarray of shape (n_samples,)
    """
    f = shrinkage(factor, alpha) ** power
    out = np.empty(len(X))
    step = max(1, 2**18 // max(1, len(f)))
    for start in range(0, len(X), step):
        part = slice(start, start + step)
        w = None if sample_weight is None else sample_weight[part]
        out[part] = orthonormal_rows(factor, X[part], w) ** 2 @ f
    return out
