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
import os
import sys
from pathlib import Path
from typing import Any

import _harness as harness

os.environ.update(dict.fromkeys(harness.THREAD_VARIABLES, "1"))  # before numpy and torch load

import _tabular_contestants as contestants
import _tabular_report as reporting
import _tabular_runs as runs
import _tabular_sets as sets

# ---- running -------------------------------------------------------------------------------------


def results_path(folder: Path, method: str) -> Path:
    """File of a contestant's records."""
    return folder / f"tabular_accuracy_{method}.json"


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
                path = results_path(options.output, method)
                known = {runs.key(record) for record in runs.load(path)}
                if (name, seed, method) in known and not options.again:
                    continue
                model = contestants.contestant(method, classes=table.classes, seed=seed)
                record = runs.measure(model, method, table, part, seed)
                runs.store(path, "tabular_accuracy", record)
                print(f"  {runs.line(record)}", file=sys.stderr, flush=True)
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
        records += runs.load(results_path(options.output, method))
    print(reporting.report(records, options.methods))
    print("\n".join(["", *notes, f"written: {options.output}"]))


if __name__ == "__main__":
    main()
