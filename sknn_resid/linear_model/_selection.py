"""How good each penalty is: leave-one-out, generalised cross-validation, AIC and BIC, or folds.

Scores follow scikit-learn's sign: greater is better. All of them come from one factorisation (one
for each fold), for all penalties and targets at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._filters import (
    coefficients,
    degrees_of_freedom,
    orthonormal_rows,
    residual_sum,
    shrinkage,
)
from sknn_resid.linear_model._inference import information_criteria, ratio
from sknn_resid.linear_model._loo import Squares, loo_blocks, loo_pass, loo_squared_errors
from sknn_resid.linear_model._training import TrainingRows, prepare_rows

# Leave-one-out predictions of so many numbers are held at once.
MAX_TABLE = 2**24


class Scorer(Protocol):
    """Score of predictions, greater is better; ``index`` says which of all rows they belong to."""

    def __call__(self, y_true: np.ndarray, y_pred: np.ndarray, index: np.ndarray) -> float:
        """Score."""


def automatic_alphas(factor: Factor, n_alphas: int = 100) -> np.ndarray:
    """Penalties from nearly none to nearly everything shrunk, from the singular values.

    Log-spaced from ``d_r^2 / 1000`` (the weakest direction is kept to 99.9 %; at least
    ``eps d_1^2``, below which penalties do not differ) to ``1000 d_1^2`` (the strongest one is
    shrunk to 0.1 %).

    Parameters
    ----------
    factor : Factor
        The factorisation.
    n_alphas : int, default=100
        How many.

    Returns
    -------
    ndarray of shape (n_alphas,)
        Descending, as ``scikit-learn``'s paths are; [1.0] if no direction is penalised.
    """
    d = factor.singular_values
    d = d[np.isfinite(d)]
    if d.size == 0:
        return np.ones(1)
    # In logarithms: d^2 may overflow.
    top, bottom = np.log10(d.max()), np.log10(d.min())
    low = max(2.0 * bottom - 3.0, 2.0 * top + np.log10(np.finfo(np.float64).eps))
    limits = np.clip([2.0 * top + 3.0, low], -300.0, 300.0)
    return np.logspace(limits[0], limits[1], n_alphas)


def loo_scores(factor: Factor, rows: TrainingRows, alphas: np.ndarray) -> np.ndarray:
    """Minus the weighted mean of squared leave-one-out errors, shape (n_alphas, n_targets)."""
    weighted, _ = loo_squared_errors(factor, rows.X, rows.Y, alphas, rows.sample_weight)
    return -weighted / factor.sum_weights


def loo_scores_and_squares(
    factor: Factor, rows: TrainingRows, alphas: np.ndarray
) -> tuple[np.ndarray, Squares | None]:
    """As :func:`loo_scores`, with what the leverages at the chosen penalty follow from."""
    weighted, _, squares = loo_pass(factor, rows.X, rows.Y, alphas, rows.sample_weight)
    return -weighted / factor.sum_weights, squares


def gcv_scores(factor: Factor, n_obs: float, alphas: np.ndarray) -> np.ndarray:
    """Minus generalised cross-validation, ``(rss / n) / (1 - tr(H) / n)^2``.

    Golub, Heath and Wahba (1979); every leverage of leave-one-out replaced by their mean, which
    makes it invariant to rotations of the rows. -inf where the fit leaves nothing over.

    Parameters
    ----------
    factor : Factor
        The factorisation.
    n_obs : float
        Number of observations.
    alphas : ndarray of shape (n_alphas,)
        Penalties.

    Returns
    -------
    ndarray of shape (n_alphas, n_targets)
    """
    left = 1.0 - degrees_of_freedom(factor, alphas)[0] / n_obs
    left = np.where(left > 16 * np.finfo(np.float64).eps, left, 0.0)[:, None]
    score = -ratio(residual_sum(factor, alphas[:, None]) / n_obs, left**2)
    return np.where(np.isnan(score), -np.inf, score)


def information_scores(
    factor: Factor, n_obs: float, sum_log_weights: float, alphas: np.ndarray, criterion: str
) -> np.ndarray:
    """Minus AIC or BIC with ``tr(H)`` degrees of freedom, shape (n_alphas, n_targets)."""
    df = degrees_of_freedom(factor, alphas)[0][:, None]
    rss = residual_sum(factor, alphas[:, None])
    found = information_criteria(rss, n_obs, df, sum_log_weights)
    # A fit without residual degrees of freedom explains everything and predicts nothing.
    return np.where(df < n_obs, -(found.aic if criterion == "aic" else found.bic), -np.inf)


def loo_predictions_of(
    factor: Factor, rows: TrainingRows, alphas: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Leave-one-out predictions of all rows, some penalties at a time.

    Parameters
    ----------
    factor : Factor
        The factorisation.
    rows : TrainingRows
        The rows.
    alphas : ndarray of shape (n_alphas,)
        Penalties.

    Yields
    ------
    start : int
        Number of the first penalty of the group.
    predictions : ndarray of shape (group, n_samples, n_targets)
        A row of weight 0, which no fit has seen, gets the plain prediction.
    """
    n, k = rows.Y.shape
    group = max(1, MAX_TABLE // max(1, n * k))
    for start in range(0, len(alphas), group):
        some = alphas[start : start + group]
        if rows.sample_weight is None:
            found = np.empty((len(some), n, k))
        else:
            coef, intercept = coefficients(factor, some[:, None])
            found = rows.X @ coef.transpose(0, 2, 1) + intercept[:, None]
        for index, errors in loo_blocks(factor, rows.X, rows.Y, some, rows.sample_weight):
            found[:, index] = rows.Y[index] - errors
        yield start, found


def loo_scores_by(
    factor: Factor, rows: TrainingRows, alphas: np.ndarray, scorer: Scorer, per_target: bool
) -> np.ndarray:
    """Scores of leave-one-out predictions, shape (n_alphas, n_targets) or (n_alphas, 1)."""
    found = np.empty((len(alphas), rows.Y.shape[1] if per_target else 1))
    index = rows.present()
    for start, predictions in loo_predictions_of(factor, rows, alphas):
        for number, predicted in enumerate(predictions):
            found[start + number] = _scores(
                scorer, rows.Y[index], predicted[index], index, rows.single_target, per_target
            )
    return found


def fold_scores(
    rows: TrainingRows,
    alphas: np.ndarray,
    splits: Iterable[tuple[np.ndarray, np.ndarray]],
    scorer: Scorer,
    *,
    fit_intercept: bool,
    penalty: np.ndarray | None,
    per_target: bool,
) -> np.ndarray:
    """Scores on held-out rows, averaged over folds; one factorisation per fold.

    Parameters
    ----------
    rows : TrainingRows
        All rows.
    alphas : ndarray of shape (n_alphas,)
        Penalties.
    splits : iterable of (train, test)
        Indices of rows. Rows of weight 0 are no rows, also in the test part of a fold; a fold
        without test rows does not count.
    scorer : Scorer
        Of predictions.
    fit_intercept : bool
        Whether the model has an intercept.
    penalty : ndarray of shape (n_features,) or None
        Penalty of each feature.
    per_target : bool
        Whether targets are scored one by one.

    Returns
    -------
    ndarray of shape (n_folds, n_alphas, n_targets) or (n_folds, n_alphas, 1)

    Raises
    ------
    ValueError
        If the training rows of a fold, or the test rows of all, have no weight.
    """
    found = []
    is_present = np.zeros(len(rows.X), dtype=bool)
    is_present[rows.present()] = True
    for number, (train, test) in enumerate(splits):
        train, test = (part[is_present[part]] for part in map(_indices, (train, test)))
        if not test.size:
            continue
        if not train.size:
            raise ValueError(
                f"cv: fold {number} has no training row with a positive sample_weight. Use other "
                "folds, or cv=None."
            )
        held_out = rows.take(test)
        factor = prepare_rows(rows.take(train), fit_intercept, penalty, False).factor
        found.append(
            [
                _scores(scorer, held_out.Y, one, test, rows.single_target, per_target)
                for one in _path_predictions(factor, held_out.X, alphas)
            ]
        )
    if not found:
        raise ValueError("cv: no fold has a test row with a positive sample_weight.")
    return np.asarray(found)


def _indices(part: np.ndarray) -> np.ndarray:
    """Indices, also of a boolean mask, which splits may be too."""
    part = np.asarray(part)
    return np.flatnonzero(part) if part.dtype == bool else part


def _path_predictions(factor: Factor, X: np.ndarray, alphas: np.ndarray) -> Iterator[np.ndarray]:
    """Predictions for rows at one penalty after the other, shape (n_rows, n_targets)."""
    U = orthonormal_rows(factor, X)
    for f in shrinkage(factor, alphas):
        yield factor.y_shift + U @ (f[:, None] * factor.z)


def _scores(
    scorer: Scorer,
    Y: np.ndarray,
    predicted: np.ndarray,
    index: np.ndarray,
    single: bool,
    per_target: bool,
) -> list[float]:
    """Scores of one set of predictions: for each target, or one for all."""
    finite = np.isfinite(predicted).all(axis=0)
    if per_target:
        return [
            scorer(Y[:, t], predicted[:, t], index) if finite[t] else -np.inf
            for t in range(Y.shape[1])
        ]
    if not finite.all():
        return [-np.inf]
    if single:
        return [scorer(Y[:, 0], predicted[:, 0], index)]
    return [scorer(Y, predicted, index)]
