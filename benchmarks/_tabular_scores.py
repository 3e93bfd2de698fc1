"""The arithmetic of ``tabular_accuracy.py``: scores, ranks, wins, paired effects.

A *run* is one (set, seed); a *record* is what one contestant did in one run: a dict with ``set``,
``seed``, ``method``, ``task`` and either ``error`` or ``score`` (accuracy or R2), ``loss`` (log
loss or RMSE), ``fit_seconds`` (CPU), ``calibration`` (CPU seconds of a fixed loop, see there).

The paired effect of A against B is the mean over sets of

    100 * (log e_A - log e_B),    e = 1 - R2 (regression) or log loss (classes),

seeds averaged within a set first, with its standard error over sets: -10 means about ten per cent
less error.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import _harness as harness
import numpy as np

Record = dict[str, Any]
Run = tuple[str, int]


# ---- scores --------------------------------------------------------------------------------------


def class_scores(y: np.ndarray, probabilities: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Accuracy of the likeliest class, and log loss.

    Parameters
    ----------
    y : array of shape (n,)
        True labels, each one of ``classes``.
    probabilities : array of shape (n, n_classes)
        In the order of ``classes``; clipped as in the other benchmarks.
    classes : array of shape (n_classes,)
        Sorted labels.
    """
    codes = np.searchsorted(classes, y)
    if not np.array_equal(np.asarray(classes)[np.minimum(codes, len(classes) - 1)], y):
        raise ValueError("the test rows hold a class that the contestant has not seen")
    p = np.asarray(probabilities, dtype=np.float64)
    if p.shape != (len(y), len(classes)) or not np.isfinite(p).all():
        raise ValueError(f"probabilities of shape {p.shape} for {len(y)} rows, or not finite")
    return {
        "score": float((p.argmax(axis=1) == codes).mean()),
        "loss": harness.cross_entropy(codes, p),
    }


def regression_scores(y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """R2, the mean of several targets' R2, and RMSE over all targets' entries."""
    true = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
    found = np.asarray(predicted, dtype=np.float64).reshape(len(y), -1)
    if found.shape != true.shape or not np.isfinite(found).all():
        raise ValueError(f"predictions of shape {found.shape} for {true.shape}, or not finite")
    squares = ((true - found) ** 2).sum(axis=0)
    total = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    return {
        "score": float((1 - squares / total).mean()),
        "loss": math.sqrt(float(squares.sum()) / true.size),
    }


def error(record: Record) -> float:
    """What the paired effect takes the logarithm of: 1 - R2, or log loss."""
    return 1 - record["score"] if record["task"] == "regression" else record["loss"]


# ---- comparisons ---------------------------------------------------------------------------------


def by_run(records: Iterable[Record]) -> dict[Run, dict[str, Record]]:
    """Records without an error, as run -> method -> record."""
    found: dict[Run, dict[str, Record]] = {}
    for record in records:
        if "error" not in record:
            found.setdefault((record["set"], record["seed"]), {})[record["method"]] = record
    return found


def common_runs(
    records: Iterable[Record], methods: Sequence[str], sets: Iterable[str] | None = None
) -> dict[Run, dict[str, Record]]:
    """Runs that every one of ``methods`` has finished, narrowed to ``sets``."""
    wanted = None if sets is None else set(sets)
    return {
        run: found
        for run, found in by_run(records).items()
        if all(method in found for method in methods) and (wanted is None or run[0] in wanted)
    }


def ranks(values: Sequence[float], *, higher_is_better: bool) -> list[float]:
    """Ranks from 1 for the best; equal values share the mean of their ranks.

    Examples
    --------
    >>> ranks([0.9, 0.8, 0.9], higher_is_better=True)
    [1.5, 3.0, 1.5]
    """
    signed = [-value if higher_is_better else value for value in values]
    return [
        sum(other < value for other in signed) + (sum(other == value for other in signed) + 1) / 2
        for value in signed
    ]


def mean_ranks(
    runs: dict[Run, dict[str, Record]], methods: Sequence[str], key: str
) -> dict[str, float]:
    """Mean rank of each method over the runs, by "score" or by "loss"."""
    table = [
        ranks([found[method][key] for method in methods], higher_is_better=key == "score")
        for found in runs.values()
    ]
    return {method: statistics.fmean(row[j] for row in table) for j, method in enumerate(methods)}


def wins(runs: dict[Run, dict[str, Record]], methods: Sequence[str], key: str) -> dict[str, float]:
    """Number of runs in which each method is best; a tie is shared out."""
    won = dict.fromkeys(methods, 0.0)
    for found in runs.values():
        values = [found[method][key] for method in methods]
        best = max(values) if key == "score" else min(values)
        winners = [m for m, value in zip(methods, values, strict=True) if value == best]
        for method in winners:
            won[method] += 1 / len(winners)
    return won


def paired_effect(
    runs: dict[Run, dict[str, Record]],
    method: str,
    reference: str,
    measure: Callable[[Record], float] = error,
) -> dict[str, float] | None:
    """Change of log error of ``method`` against ``reference`` in %, over sets.

    Returns
    -------
    dict or None
        ``mean``, ``se`` (NaN for a single set), ``median``, ``better`` (share of sets with less
        error), ``sets``; None where no run is common.
    """
    by_set: dict[str, list[float]] = {}
    for (name, _), found in runs.items():
        if method in found and reference in found:
            change = math.log(measure(found[method])) - math.log(measure(found[reference]))
            by_set.setdefault(name, []).append(100 * change)
    if not by_set:
        return None
    values = [statistics.fmean(changes) for changes in by_set.values()]
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {
        "mean": statistics.fmean(values),
        "se": spread,
        "median": statistics.median(values),
        "better": sum(value < 0 for value in values) / len(values),
        "sets": len(values),
    }


# ---- time ----------------------------------------------------------------------------------------


def calibrate() -> float:
    """CPU seconds of a fixed loop of products, about 0.1 s: how fast the machine is just now.

    A busy neighbour slows the caches and the clock down, and CPU seconds with them. The loop runs
    before and after each fit, and ``corrected_seconds`` sets the figures of different hours side
    by side.
    """
    matrix = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    start = time.process_time()
    for _ in range(300):
        matrix = matrix @ matrix
        matrix /= np.abs(matrix).max()
    return time.process_time() - start


def corrected_seconds(records: Sequence[Record]) -> dict[tuple[str, int, str], float]:
    """CPU seconds of each fit, as if all had met the machine at the median of its speeds."""
    timed = [record for record in records if "error" not in record]
    if not timed:
        return {}
    usual = statistics.median(record["calibration"] for record in timed)
    return {
        (r["set"], r["seed"], r["method"]): r["fit_seconds"] * usual / r["calibration"]
        for r in timed
    }
