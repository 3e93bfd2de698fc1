"""scikit-learn's scorers on predictions that are there already, and the metadata they ask for."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import check_scoring
from sklearn.utils.metadata_routing import process_routing

from sknn_resid._r2 import r2_of_checked
from sknn_resid._sklearn_compat import routing_enabled


class IdentityRegressor(RegressorMixin, BaseEstimator):
    """Predicts what it is given, so that a scorer judges predictions made elsewhere."""

    def __sklearn_is_fitted__(self) -> bool:
        """Nothing has to be fitted."""
        return True

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The predictions themselves."""
        return X


@dataclass(frozen=True)
class PredictionScorer:
    """A scorer with its metadata.

    Parameters
    ----------
    scorer : callable
        A scorer of scikit-learn.
    arguments : dict
        Keyword arguments of the scorer for all rows; those with one entry per row are cut to the
        rows in question.
    n_samples : int
        Number of all rows.
    """

    scorer: Any
    arguments: dict[str, Any]
    n_samples: int

    def __call__(self, y_true: np.ndarray, y_pred: np.ndarray, index: np.ndarray) -> float:
        """Score of predictions for the rows of the index."""
        some = {name: self._cut(value, index) for name, value in self.arguments.items()}
        return float(self.scorer(IdentityRegressor(), y_pred, y_true, **some))

    def _cut(self, value: Any, index: np.ndarray) -> Any:
        if np.ndim(value) >= 1 and len(value) == self.n_samples:
            return np.asarray(value)[index]
        return value


def prediction_scorer(
    estimator: Any, routed_to_scorer: dict[str, Any], sample_weight: np.ndarray | None
) -> PredictionScorer:
    """The scorer of an estimator's ``scoring``; R2 for None.

    Without metadata routing the weights go to every scorer that takes weights; with it, to the
    scorers that request them, and R2, which is ours, gets them always.

    Parameters
    ----------
    estimator : estimator
        With a parameter ``scoring``.
    routed_to_scorer : dict
        What metadata routing has for the scorer.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights.

    Returns
    -------
    PredictionScorer
    """
    n_samples = 0 if sample_weight is None else len(sample_weight)
    n_samples = max([n_samples, *(len(v) for v in routed_to_scorer.values() if np.ndim(v))])
    if estimator.scoring is None:
        arguments = {} if sample_weight is None else {"sample_weight": sample_weight}
        return PredictionScorer(_r2, arguments, n_samples)
    scorer = check_scoring(estimator, scoring=estimator.scoring)
    arguments = dict(routed_to_scorer)
    if not routing_enabled() and sample_weight is not None and _takes_weights(scorer):
        arguments["sample_weight"] = sample_weight
    return PredictionScorer(scorer, arguments, n_samples)


def _r2(
    estimator: IdentityRegressor,
    y_pred: np.ndarray,
    y_true: np.ndarray,
    sample_weight: np.ndarray | None = None,
) -> float:
    """The scorer of ``scoring=None``, called as scikit-learn's are."""
    return r2_of_checked(y_true, estimator.predict(y_pred), sample_weight)


def _takes_weights(scorer: Any) -> bool:
    """Whether a scorer takes weights: what it wraps says so, or its own signature."""
    function = getattr(scorer, "_score_func", scorer)
    return "sample_weight" in inspect.signature(function).parameters


def routed(
    estimator: Any, params: dict[str, Any], sample_weight: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What metadata routing has for the scorer and for the splitter; empty if it is off.

    Parameters
    ----------
    estimator : estimator
        A router.
    params : dict
        Metadata given to fit.
    sample_weight : array-like of shape (n_samples,) or None
        Weights given to fit.

    Returns
    -------
    to_scorer, to_splitter : dict
    """
    if not routing_enabled():
        return {}, {}
    if sample_weight is not None:
        params = {**params, "sample_weight": sample_weight}
    found = process_routing(estimator, "fit", **params)
    to_scorer = found.scorer.score if "scorer" in found else {}
    to_splitter = found.splitter.split if "splitter" in found else {}
    return to_scorer, to_splitter
