"""Accuracy of ``MLPResidualClassifier`` / ``MLPResidualRegressor`` with their defaults.

Every table of the real data, raw, beside scikit-learn's MLP and HistGradientBoosting, RTDL's MLP
and ResNet, RealMLP-TD and TabM, all at their defaults (``_tabular_contestants.py`` and
``_tabular_torch.py`` say exactly how, ``_tabular_sets.py`` defines the splits).

Expected before measuring
-------------------------
* Best mean rank of all, by score (accuracy, R2) and by loss (log loss, RMSE), on at least 12 sets
  and two seeds; best of the fast three on all sets.
* At most 7 % of RealMLP's CPU seconds, and at most 4 times those of scikit-learn's MLP.

Which sets the slow peers are run on was fixed before any score was seen: **the sets in ascending
order of their training rows**, as many as time allows, at least 12, each with both seeds. The
first 13, all with fewer than 1,100 training rows, are 6 with classes and 7 regressions, 5 of them
with categories and 4 with missing values.

How it is measured
------------------
* One process, one thread; ``fit_seconds`` and ``predict_seconds`` are CPU seconds of the process
  and its children. Preparing the columns counts.
* Results are kept in ``results/tabular_accuracy_<method>.json``, one record a (set, seed). What is
  there already is not run again, unless asked for by ``--again``. A contestant that raises leaves
  a record with its error; it is left out of the comparisons of that run and counted.
* A fixed loop of products is timed around each fit (``calibration``), because the speed of a
  shared machine changes; the seconds of the comparisons are corrected by it.

Usage: ``python benchmarks/tabular_accuracy.py [--methods ours realmlp] [--sets abalone]
[--seeds 11] [--again] [--report-only]``. ``SKNN_RESID_DATA`` names the folder of the real data.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import _harness as harness

os.environ.update(dict.fromkeys(harness.THREAD_VARIABLES, "1"))  # before numpy and torch load

import _tabular_contestants as contestants
import _tabular_report as reporting
import _tabular_scores as scores
import _tabular_sets as sets

PEER_PACKAGES = ("pytabkit", "rtdl_revisiting_models", "rtdl_num_embeddings", "tabm", "pandas")


# ---- the store -----------------------------------------------------------------------------------


def results_path(folder: Path, method: str) -> Path:
    """File of a contestant's records."""
    return folder / f"tabular_accuracy_{method}.json"


def load(folder: Path, method: str) -> list[scores.Record]:
    """Records of a contestant, none where it has not run yet."""
    path = results_path(folder, method)
    return json.loads(path.read_text())["records"] if path.exists() else []


def store(folder: Path, method: str, record: scores.Record) -> None:
    """Put a record in the place of the same run's older one, sorted by set and seed."""
    kept = [r for r in load(folder, method) if (r["set"], r["seed"]) != _run(record)]
    kept = sorted([*kept, record], key=_run)
    environment = harness.environment()
    for package in PEER_PACKAGES:
        try:
            environment["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            environment["versions"][package] = "not installed"
    document = {"topic": "tabular_accuracy", "environment": environment, "records": kept}
    path = results_path(folder, method)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(path)  # an interrupted run leaves the old file whole


def _run(record: scores.Record) -> scores.Run:
    return record["set"], record["seed"]


# ---- one run -------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """CPU seconds of this process, all its threads, and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(method: str, table: sets.Table, part: sets.Split, seed: int) -> scores.Record:
    """Fit, predict and score one contestant on one split."""
    record: scores.Record = {
        "set": table.name,
        "seed": seed,
        "method": method,
        "task": table.task,
        "train_rows": len(part.X_train),
        "test_rows": len(part.X_test),
        **sets.describe(part.X_train),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    before = scores.calibrate()
    try:
        model = contestants.contestant(method, classes=table.classes, seed=seed)
        start = cpu_seconds()
        model.fit(part.X_train, part.y_train)
        fitted = cpu_seconds()
        predict = model.predict_proba if table.classes else model.predict
        predicted = predict(part.X_test)
        done = cpu_seconds()
        record |= (
            scores.class_scores(part.y_test, predicted, model.classes_)
            if table.classes
            else scores.regression_scores(part.y_test, predicted)
        )
    except Exception as error:  # a contestant that fails is a result too
        traceback.print_exc()
        return record | {"error": f"{type(error).__name__}: {error}"[:500]}
    return record | {
        "fit_seconds": fitted - start,
        "predict_seconds": done - fitted,
        "calibration": (before + scores.calibrate()) / 2,
    }


def run(options: argparse.Namespace) -> list[str]:
    """Run what is asked for and not there yet; return notes on what could not be run."""
    notes, methods = [], []
    for method in options.methods:
        missing = contestants.missing_packages(method)
        if missing:
            notes.append(f"{method} was not run: {', '.join(missing)} not installed")
        else:
            methods.append(method)
    folder = sets.data_folder()
    for name, table in chosen(options, folder).items():
        X, y = sets.read(folder, table)
        for seed in options.seeds:
            part = sets.split(X, y, seed, classes=table.classes)
            for method in methods:
                known = {_run(record) for record in load(options.output, method)}
                if (name, seed) in known and not options.again:
                    continue
                with warnings.catch_warnings(), harness.pinned_threads(1):
                    # 200 epochs at most is scikit-learn's default; pytabkit's warn in plenty.
                    warnings.simplefilter("ignore")
                    record = measure(method, table, part, seed)
                store(options.output, method, record)
                print(f"  {reporting.line(record)}", file=sys.stderr, flush=True)
    return notes


def chosen(options: argparse.Namespace, folder: Path) -> dict[str, sets.Table]:
    """Sets asked for, in ascending order of training rows."""
    known = sets.tables(folder)
    unknown = set(options.sets or ()) - set(known)
    if unknown:
        raise SystemExit(f"--sets: {sorted(unknown)} are no sets; there are {sorted(known)}")
    tables = {n: t for n, t in known.items() if options.sets is None or n in options.sets}
    return dict(list(tables.items())[: options.smallest])


# ---- the command ---------------------------------------------------------------------------------


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    every = list(contestants.NEEDS)
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--sets", nargs="+", help="default: all")
    parser.add_argument("--smallest", type=int, help="only so many, smallest training part first")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(sets.SEEDS))
    parser.add_argument("--again", action="store_true", help="run what is there already, too")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument(
        "--output",
        type=Path,
        default=harness.RESULTS,
        help="folder of the JSON files (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run, then print every comparison that the stored records allow."""
    options = parse(arguments)
    notes = [] if options.report_only else run(options)
    records: list[dict[str, Any]] = []
    for method in options.methods:
        records += load(options.output, method)
    print(reporting.report(records, options.methods))
    print("\n".join(["", *notes, f"written: {options.output}"]))


if __name__ == "__main__":
    main()
