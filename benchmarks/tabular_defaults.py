"""What a change of one default does: the residual MLPs on the screen sets, paired.

For whoever wants to change a default of ``MLPResidualClassifier`` / ``MLPResidualRegressor``. Each
``--change`` is run beside the defaults on the ten screen sets with seed 11 (``--sets``, ``--seeds``
for others), and the effect is given as in ``tabular_accuracy.py``: change of log(1 - R2) or
log(log loss) in %, mean over sets with its standard error, negative = better.

With ten sets, differences below about 2 % are noise. A change that wins here has to be confirmed on
the sets outside the screen and on seed 12, with ``tabular_accuracy.py``, before it is kept.

Usage: ``python benchmarks/tabular_defaults.py --change n_estimators=4 --change
"numeric_embedding=None, dropout=0.0"``. Values are Python literals. Records are kept in
``results/tabular_defaults.json`` and not run again, unless asked for by ``--again``: do so after a
change of the code.
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import sys
from pathlib import Path
from typing import Any

import _harness as harness

os.environ.update(dict.fromkeys(harness.THREAD_VARIABLES, "1"))  # before numpy and torch load

import _tabular_contestants as contestants
import _tabular_report as reporting
import _tabular_runs as runs
import _tabular_scores as scores
import _tabular_sets as sets

DEFAULTS = "defaults"


def parse_change(text: str) -> dict[str, Any]:
    """Read ``name=value, name=value`` with Python literals as values.

    Examples
    --------
    >>> parse_change("dropout=0.0, numeric_embedding=None")
    {'dropout': 0.0, 'numeric_embedding': None}
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if isinstance(call, ast.Call) and not call.args and all(w.arg for w in call.keywords):
            return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        pass
    raise SystemExit(
        f"--change must read name=value, name=value with Python literals; it is {text!r}"
    )


def run(options: argparse.Namespace, changes: dict[str, dict[str, Any]]) -> None:
    """Run what is not there yet, set by set."""
    folder = sets.data_folder()
    known_sets = sets.tables(folder)
    for name in options.sets:
        table = known_sets[name]
        X, y = sets.read(folder, table)
        for seed in options.seeds:
            part = sets.split(X, y, seed, classes=table.classes)
            for label, parameters in changes.items():
                known = {runs.key(record) for record in runs.load(options.output)}
                if (name, seed, label) in known and not options.again:
                    continue
                model = contestants.contestant(contestants.OURS, classes=table.classes, seed=seed)
                model.set_params(**parameters)
                record = runs.measure(model, label, table, part, seed)
                runs.store(options.output, "tabular_defaults", record)
                print(f"  {runs.line(record)}", file=sys.stderr, flush=True)


def report(records: list[scores.Record], labels: list[str]) -> str:
    """The effect and the seconds of each change against the defaults."""
    rows = []
    seconds = scores.corrected_seconds(records)
    for label in labels:
        found = scores.common_runs(records, [label, DEFAULTS])
        if label == DEFAULTS or not found:
            continue
        regressions = {r: f for r, f in found.items() if f[label]["task"] == "regression"}
        classes = {r: f for r, f in found.items() if f[label]["task"] != "regression"}
        cells = []
        for part in (found, regressions, classes):
            effect = scores.paired_effect(part, label, DEFAULTS)
            cells.append(f"{effect['mean']:+.1f} +- {effect['se']:.1f}" if effect else "-")
        own = math.fsum(seconds[name, seed, label] for name, seed in found)
        usual = math.fsum(seconds[name, seed, DEFAULTS] for name, seed in found)
        effect = scores.paired_effect(found, label, DEFAULTS)
        better = f"{100 * effect['better']:.0f} %" if effect else "-"
        rows.append([label, str(len(found)), *cells, better, f"{own / usual:.2f}"])
    headers = [
        "change",
        "runs",
        "% error, all",
        "1 - R2",
        "log loss",
        "sets better",
        "CPU s, times",
    ]
    return harness.format_table(headers, rows) if rows else "nothing to compare yet"


def main(arguments: list[str] | None = None) -> None:
    """Run the changes and print their effects."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--change", action="append", default=[], help="name=value, name=value")
    parser.add_argument("--sets", nargs="+", default=list(sets.SCREEN))
    parser.add_argument("--seeds", type=int, nargs="+", default=[sets.SEEDS[0]])
    parser.add_argument("--again", action="store_true", help="run what is there already, too")
    parser.add_argument(
        "--output", type=Path, default=harness.RESULTS / "tabular_defaults.json", help="JSON file"
    )
    options = parser.parse_args(arguments)
    missing = contestants.missing_packages(contestants.OURS)
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}")
    changes: dict[str, dict[str, Any]] = {DEFAULTS: {}}
    changes |= {text: parse_change(text) for text in options.change}
    run(options, changes)
    records = [
        record
        for record in runs.load(options.output)
        if record["set"] in options.sets and record["seed"] in options.seeds
    ]
    labels = list(changes)
    print(reporting.per_set(records, labels, "score", "accuracy or R2, mean over seeds"))
    print(reporting.per_set(records, labels, "loss", "log loss or RMSE, mean over seeds"))
    print(f"\neffect of each change, negative = less error\n\n{report(records, labels)}")


if __name__ == "__main__":
    main()
