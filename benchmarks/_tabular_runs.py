"""One fit of one contestant, and the files that keep the records, for the accuracy benchmarks."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import resource
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import _harness as harness
from _tabular_scores import Record, calibrate, class_scores, regression_scores
from _tabular_sets import Split, Table, describe

PEER_PACKAGES = ("pytabkit", "rtdl_revisiting_models", "rtdl_num_embeddings", "tabm", "pandas")


# ---- the store -----------------------------------------------------------------------------------


def key(record: Record) -> tuple[str, int, str]:
    """What a record is found by: set, seed, method."""
    return record["set"], record["seed"], record["method"]


def load(path: Path) -> list[Record]:
    """Records of a file, none where it does not exist yet."""
    return json.loads(path.read_text())["records"] if path.exists() else []


def store(path: Path, topic: str, record: Record) -> None:
    """Put a record in the place of an older one with the same key; keep the file sorted."""
    kept = [other for other in load(path) if key(other) != key(record)]
    kept = sorted([*kept, record], key=key)
    environment = harness.environment()
    for package in PEER_PACKAGES:
        try:
            environment["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            environment["versions"][package] = "not installed"
    document = {"topic": topic, "environment": environment, "records": kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(path)  # an interrupted run leaves the old file whole


# ---- one run -------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads, and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(model: Any, method: str, table: Table, part: Split, seed: int) -> Record:
    """Fit, predict and score one contestant on one split, on one thread.

    Parameters
    ----------
    model : object
        Unfitted, with ``fit`` and ``predict_proba`` (and ``classes_``) or ``predict``.
    method : str
        Its name in the record.
    table, part, seed : Table, Split, int
        What it is fitted to, and how the split came about.

    Returns
    -------
    dict
        The record; where the contestant raises, with ``error`` in the place of its scores.
    """
    record: Record = {
        "set": table.name,
        "seed": seed,
        "method": method,
        "task": table.task,
        "train_rows": len(part.X_train),
        "test_rows": len(part.X_test),
        **describe(part.X_train),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with warnings.catch_warnings(), harness.pinned_threads(1):
        # scikit-learn's default is 200 epochs at most, and it says so; pytabkit warns of plenty.
        warnings.simplefilter("ignore")
        before = calibrate()
        try:
            start = cpu_seconds()
            model.fit(part.X_train, part.y_train)
            fitted = cpu_seconds()
            predict = model.predict_proba if table.classes else model.predict
            predicted = predict(part.X_test)
            done = cpu_seconds()
            record |= (
                class_scores(part.y_test, predicted, model.classes_)
                if table.classes
                else regression_scores(part.y_test, predicted)
            )
        except Exception as error:  # a contestant that fails is a result too
            traceback.print_exc()
            return record | {"error": f"{type(error).__name__}: {error}"[:500]}
        return record | {
            "fit_seconds": fitted - start,
            "predict_seconds": done - fitted,
            "calibration": (before + calibrate()) / 2,
        }


def line(record: Record) -> str:
    """One record, for the log of a running benchmark."""
    head = f"{record['set']} seed {record['seed']} {record['method']}: "
    if "error" in record:
        return head + record["error"].splitlines()[0]
    return head + (
        f"score {record['score']:.4f} loss {record['loss']:.4f} "
        f"{record['fit_seconds']:.2f} s (calibration {record['calibration']:.3f})"
    )
