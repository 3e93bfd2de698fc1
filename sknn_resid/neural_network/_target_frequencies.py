"""Where a classifier's output layer begins: at the frequencies of the classes."""

from __future__ import annotations

import numpy as np

from sknn_resid.neural_network._targets import LabelCodec


def log_odds(
    codec: LabelCodec, targets: np.ndarray, weight: np.ndarray | None, n_distinct: int
) -> np.ndarray:
    """Initial biases of the outputs, shape (K,): what predicts the frequencies of the classes.

    Log frequencies for a softmax, log odds for a logistic output. So training does not begin with
    learning them. Frequencies are mixed with equal ones, which count as one row per class among
    the distinct rows: a class without rows must not get minus infinity, and a mixture, unlike a
    count of one more, does not depend on the unit of the weights.

    Parameters
    ----------
    codec : LabelCodec
    targets : ndarray of shape (n, T)
    weight : ndarray of shape (n,) or None
    n_distinct : int
        Number of distinct rows.
    """
    if codec.kind in ("binary", "multilabel"):
        share = _mixed(np.average(targets, axis=0, weights=weight), 2, n_distinct)
        return np.log(share) - np.log1p(-share)
    sizes = [len(codec.classes)]
    if codec.kind == "multioutput":
        sizes = [len(c) for c in codec.classes]
    parts = []
    for column, size in zip(targets.T, sizes, strict=True):
        count = np.bincount(column, weights=weight, minlength=size)
        parts.append(np.log(_mixed(count / count.sum(), size, n_distinct)))
    return np.concatenate(parts)


def _mixed(share: np.ndarray, n_classes: int, n_distinct: int) -> np.ndarray:
    equal = n_classes / (n_distinct + n_classes)
    return (1 - equal) * share + equal / n_classes
