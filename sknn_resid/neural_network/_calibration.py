"""What the rows that members left out decide in the end: group weights and the temperature.

Both are chosen from short fixed lists. A finer minimiser would follow the chance in a few hundred
rows, and its last digits would depend on the order of a sum.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch

from sknn_resid.engine.losses import (
    BinaryCrossEntropy,
    Loss,
    Poisson,
    SoftmaxCrossEntropy,
)

N_WEIGHT_STEPS = 10  # weights of groups are multiples of 1/10
TEMPERATURES = np.geomspace(0.6, 3.0, 33)


def is_classification(loss: Loss) -> bool:
    """Whether outputs of this loss are probabilities."""
    return isinstance(loss, (BinaryCrossEntropy, SoftmaxCrossEntropy))


def raw_of(loss: Loss, outputs: np.ndarray) -> np.ndarray:
    """Raw outputs z whose link gives ``outputs`` (probabilities or means), shape (..., K).

    Softmax is given log p, of which the link makes p again; one output per Bernoulli log p/(1-p);
    Poisson log f.
    """
    tiny = np.finfo(outputs.dtype).tiny
    if isinstance(loss, BinaryCrossEntropy):
        return np.log(np.maximum(outputs, tiny)) - np.log(np.maximum(1 - outputs, tiny))
    if isinstance(loss, (SoftmaxCrossEntropy, Poisson)):
        return np.log(np.maximum(outputs, tiny))
    return outputs


def linked(loss: Loss, raw: np.ndarray) -> np.ndarray:
    """Probabilities or means from raw outputs of shape (n, K)."""
    z_KN = torch.from_numpy(np.ascontiguousarray(raw.T).copy())
    return loss.link_(z_KN).numpy().T


def loss_of_raw(
    loss: Loss, raw: np.ndarray, targets: np.ndarray, weight: np.ndarray | None
) -> float:
    """Weighted mean loss per row of raw outputs (n, K), as the engine reports it."""
    n, n_outputs = raw.shape
    w = np.ones(n) if weight is None else np.asarray(weight, dtype=float)
    r = torch.from_numpy(w / w.sum())[None, None, None]
    z = torch.from_numpy(np.ascontiguousarray(raw.T, dtype=np.float64))[None, None]
    y = torch.from_numpy(np.array(targets, dtype=np.int64 if loss.codes else np.float64))
    prepared = torch.zeros_like(z)
    loss.load_targets(prepared, y[None, None], r, None)
    return float(loss.value(z, prepared, r)[0, 0]) * loss.reported_scale(n_outputs)


def loss_of_outputs(
    loss: Loss, outputs: np.ndarray, targets: np.ndarray, weight: np.ndarray | None
) -> float:
    """As `loss_of_raw`, of probabilities or means."""
    return loss_of_raw(loss, raw_of(loss, outputs), targets, weight)


def group_weights(
    loss: Loss, outputs_GNK: np.ndarray, targets: np.ndarray, weight: np.ndarray | None
) -> np.ndarray:
    """Weights of groups of members, multiples of 1/10, that minimise the loss of their mixture.

    One group exchanges weight with another, pair by pair, until nothing improves; for two groups
    this is the search of the whole list 0, 0.1, ..., 1. Ties go to the more even weights.

    Parameters
    ----------
    loss : Loss
    outputs_GNK : ndarray of shape (G, n, K)
        Probabilities or means that each group gives to rows it did not train on.
    targets : ndarray of shape (n, T)
    weight : ndarray of shape (n,) or None

    Returns
    -------
    weights : ndarray of shape (G,)
        They sum to 1.
    """
    n_groups = len(outputs_GNK)
    units = np.zeros(n_groups, dtype=int)
    for unit in range(N_WEIGHT_STEPS):
        units[unit % n_groups] += 1

    def value(candidate: np.ndarray) -> float:
        mix = np.tensordot(candidate / N_WEIGHT_STEPS, outputs_GNK, axes=1)
        found = loss_of_outputs(loss, mix, targets, weight)
        return found if np.isfinite(found) else np.inf

    best = value(units)
    improved = n_groups > 1
    while improved:
        improved = False
        for a, b in combinations(range(n_groups), 2):
            total = int(units[a] + units[b])
            for first in sorted(range(total + 1), key=lambda k: abs(2 * k - total)):
                candidate = units.copy()
                candidate[a], candidate[b] = first, total - first
                found = value(candidate)
                if found < best * (1 - 1e-9) if best > 0 else found < best:
                    best, units, improved = found, candidate, True
        improved = improved and n_groups > 2
    return units / N_WEIGHT_STEPS


def temperature(
    loss: Loss, outputs: np.ndarray, targets: np.ndarray, weight: np.ndarray | None
) -> float:
    """Factor T of the raw outputs that minimises the log loss; 1 for losses without probabilities.

    p^T, made to sum to 1: above 1 sharpens, below 1 flattens (the inverse of what Guo et al. call
    temperature). Label smoothing and averaging leave an ensemble under-confident, so that T is
    above 1 as a rule.

    References
    ----------
    Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks.
    """
    if not is_classification(loss):
        return 1.0
    raw = raw_of(loss, outputs)
    losses = [loss_of_raw(loss, t * raw, targets, weight) for t in TEMPERATURES]
    return float(TEMPERATURES[int(np.nanargmin(losses))])


def sharpened(loss: Loss, outputs: np.ndarray, factor: float) -> np.ndarray:
    """Probabilities with this temperature; other outputs as they are."""
    if factor == 1.0 or not is_classification(loss):
        return outputs
    return linked(loss, factor * raw_of(loss, outputs))
