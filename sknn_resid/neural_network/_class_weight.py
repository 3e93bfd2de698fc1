"""class_weight as weights of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import compute_class_weight, compute_sample_weight

from sknn_resid.neural_network._targets import LabelCodec


def class_weights(
    est: Any, codec: LabelCodec, y: np.ndarray, weight: np.ndarray | None, *, incremental: bool
) -> np.ndarray | None:
    """Weights from the estimator's ``class_weight``, None without one.

    The counts of one batch are not those of all the data: 'balanced' in ``partial_fit`` keeps its
    counts over calls, on the estimator.
    """
    if est.class_weight is None:
        return None
    if incremental and isinstance(est.class_weight, str):
        est._class_counts = add_counts(getattr(est, "_class_counts", None), codec, y, weight)
        return balanced_rows(est._class_counts, codec, y)
    est.__dict__.pop("_class_counts", None)
    return row_weights(est.class_weight, codec, y, weight)


def row_weights(
    class_weight: Any, codec: LabelCodec, y: np.ndarray, weight: np.ndarray | None
) -> np.ndarray:
    """Weight of each row from its class.

    'balanced' counts by ``weight``, so that a row of weight 2 counts as two rows.
    """
    if codec.kind in ("multilabel", "multioutput"):
        return compute_sample_weight(class_weight, y)
    if isinstance(class_weight, str):
        return balanced_rows(add_counts(None, codec, y, weight), codec, y)
    by_class = compute_class_weight(class_weight, classes=codec.classes, y=y)
    return by_class[np.searchsorted(codec.classes, y)]


def add_counts(
    counts: np.ndarray | None, codec: LabelCodec, y: np.ndarray, weight: np.ndarray | None
) -> np.ndarray:
    """Weight of each class over all calls of ``partial_fit`` so far."""
    if codec.kind in ("multilabel", "multioutput"):
        raise ValueError(
            "class_weight='balanced' in partial_fit needs one target of classes, got "
            f"{codec.kind} targets. Pass sample_weight instead."
        )
    codes = np.searchsorted(codec.classes, y)
    new = np.bincount(codes, weights=weight, minlength=len(codec.classes))
    return new if counts is None else counts + new


def balanced_rows(counts: np.ndarray, codec: LabelCodec, y: np.ndarray) -> np.ndarray:
    """'balanced' weights by the counts of all rows seen: n / (classes seen * count)."""
    seen = counts > 0
    by_class = np.zeros(len(counts))
    by_class[seen] = counts.sum() / (seen.sum() * counts[seen])
    return by_class[np.searchsorted(codec.classes, y)]
