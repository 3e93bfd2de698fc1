"""Checks of what users pass to the linear models, and the warning of deficient rank."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy import sparse

from sknn_resid._sklearn_compat import validate_data
from sknn_resid._validation import check_weights
from sknn_resid.linear_model._compiled import finite
from sknn_resid.linear_model._factor import Factor
from sknn_resid.linear_model._training import TrainingRows

MAX_NAMED = 5


def check_rows(
    estimator: Any, X: Any, y: Any, sample_weight: Any, weight_type: str, reset: bool = True
) -> TrainingRows:
    """Training rows as float64, with what is to be remembered of y.

    Parameters
    ----------
    estimator : estimator
        Whose `n_features_in_` and `feature_names_in_` are set (``reset=True``) or checked.
    X : array-like of shape (n_samples, n_features)
        Rows, dense.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Targets.
    sample_weight : array-like of shape (n_samples,), float or None
        Weights.
    weight_type : {'frequency', 'precision'}
        What weights mean.
    reset : bool
        Whether this is a first call.

    Returns
    -------
    TrainingRows

    Raises
    ------
    TypeError
        If X or y is sparse.
    ValueError
        If X or y is not numeric, finite, or of matching length.
    """
    name = type(estimator).__name__
    if sparse.issparse(X):
        raise TypeError(
            f"X: sparse data was passed, but {name} needs dense rows, because centring fills them. "
            "Use X.toarray() if they fit in memory, else sklearn.linear_model.Ridge."
        )
    if sparse.issparse(y):
        raise TypeError("y: sparse targets were passed, but they must be dense. Use y.toarray().")
    names = target_names(y)
    if reset and _nothing_to_convert(estimator, X, y):
        estimator.n_features_in_ = X.shape[1]
    else:
        X, y = validate_data(
            estimator, X, y, dtype=np.float64, multi_output=True, y_numeric=True, reset=reset
        )
    Y = _aligned(np.asarray(y, dtype=np.float64))
    single = Y.ndim == 1
    Y = Y[:, None] if single else Y
    weights = check_weights(sample_weight, X)
    return TrainingRows(
        X=_aligned(X),
        Y=Y,
        sample_weight=None if weights is None else _aligned(weights),
        repetitions=weight_type == "frequency",
        single_target=single,
        target_names=names or tuple([f"y{k}" for k in range(Y.shape[1])]),
    )


def _aligned(array: np.ndarray) -> np.ndarray:
    """The numbers where a processor expects them, as the fields of packed records are not."""
    return array if array.flags.aligned else array.copy()


def _nothing_to_convert(estimator: Any, X: Any, y: Any) -> bool:
    """Whether scikit-learn's validation would return these arrays and have nothing to say.

    It would be an eighth of a small fit. Whatever is not plain, finite float64 of matching
    shape goes there, for its conversions and its messages.
    """
    for array in (X, y):
        if type(array) is not np.ndarray or array.dtype != np.float64 or not array.size:
            return False
        if not array.flags.aligned:
            return False
    if X.ndim != 2 or y.ndim not in (1, 2) or len(X) != len(y):
        return False
    if hasattr(estimator, "feature_names_in_"):  # of an earlier fit, to be deleted
        return False
    found = finite(X)
    if found is not None:
        return bool(found and finite(y))
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(X.sum()) and np.isfinite(y.sum()))


def target_names(y: Any) -> tuple[str, ...]:
    """Names of the columns of a frame; empty for anything else."""
    columns = getattr(y, "columns", None)
    return () if columns is None else tuple(str(column) for column in columns)


def check_alpha(alpha: Any, n_targets: int, name: str = "alpha") -> np.ndarray:
    """Penalties, one per target.

    Parameters
    ----------
    alpha : float or array-like of shape (n_targets,)
        One number for all targets, or one for each.
    n_targets : int
        Number of targets.
    name : str
        What messages call it.

    Returns
    -------
    ndarray of shape (n_targets,)

    Raises
    ------
    ValueError
        If a penalty is negative or not finite, or if their number is not that of the targets.
    """
    values = check_penalties(alpha, name)
    if values.ndim == 0:
        return np.full(n_targets, float(values))
    if values.shape != (n_targets,):
        raise ValueError(
            f"{name}: must be one number, or one number per target ({n_targets}), got an array of "
            f"shape {values.shape}. Number of targets and number of penalties must correspond."
        )
    return values


def check_penalties(values: Any, name: str) -> np.ndarray:
    """Numbers that are finite and not negative, as a float64 array of any shape."""
    try:
        # A copy: what a fit keeps must not change when the user's array does.
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: must be numbers, got {values!r}.") from error
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        raise ValueError(
            f"{name}: must be finite and not negative, got {found[wrong].flat[0]:g}. "
            "Use 0 for no penalty."
        )
    return found


def check_penalty_weights(weights: Any, n_features: int) -> np.ndarray | None:
    """Penalty of each feature relative to alpha, or None for 1 everywhere.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or if their number is not that of the features.
    """
    if weights is None:
        return None
    found = check_penalties(weights, "penalty_weights")
    if found.shape != (n_features,):
        raise ValueError(
            f"penalty_weights: must have one number per feature ({n_features}), got an array of "
            f"shape {found.shape}. Use 1 for the usual penalty and 0 for none."
        )
    return None if (found == 1).all() else found


def feature_names(estimator: Any) -> list[str]:
    """Names of the features: those of the frame that was fitted, else x0, x1, ..."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        return [str(name) for name in names]
    return [f"x{j}" for j in range(estimator.n_features_in_)]


def warn_deficient_rank(factor: Factor, names: list[str], stacklevel: int = 4) -> None:
    """Warn that coefficients are not determined, and name at most five columns involved.

    Parameters
    ----------
    factor : Factor
        The factorisation.
    names : list of str
        Names of the features.
    stacklevel : int
        As in :func:`warnings.warn`.
    """
    n_features = len(names)
    if factor.rank == n_features:
        return
    if factor.dependent.size:
        shown = ", ".join(repr(names[j]) for j in factor.dependent[:MAX_NAMED])
        more = factor.dependent.size - MAX_NAMED
        why = f"linearly dependent (or constant) columns: {shown}"
        why += f" and {more} more" if more > 0 else ""
    else:
        why = f"fewer rows ({factor.n_rows}) than it takes to determine {n_features} columns"
    warnings.warn(
        f"X has rank {factor.rank} of {n_features}: {why}. The coefficients are those of minimum "
        "norm among all that fit equally well. Drop columns, add rows, or use Ridge(alpha > 0).",
        np.exceptions.RankWarning,
        stacklevel=stacklevel,
    )
