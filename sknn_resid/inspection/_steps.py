"""The steps of a pipeline before its network."""

from __future__ import annotations

from typing import Any

from sklearn.base import clone
from sklearn.pipeline import Pipeline

_OF_FITTED = ("coefs_", "_ensemble", "state_dict_")  # what fitted networks have


def through_steps(pipeline: Pipeline, X: Any, y: Any) -> tuple[Any, Any, list[str] | None]:
    """The last step, X as it gets there, and the names of its columns where the steps know them."""
    last, before = pipeline.steps[-1][1], pipeline[:-1]
    if not before.steps:
        return last, X, None
    if any(hasattr(last, name) for name in _OF_FITTED):
        X = before.transform(X)
    else:
        before = clone(before)
        X = before.fit_transform(X, y)
    if hasattr(X, "columns"):
        return last, X, None  # a frame carries its names
    try:
        return last, X, [str(name) for name in before.get_feature_names_out()]
    except (AttributeError, ValueError):  # a step that does not name what it makes
        return last, X, None
