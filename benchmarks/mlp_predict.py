"""Seconds of ``predict`` and ``predict_proba``: ours, scikit-learn's, skorch's and plain torch.

Expected before measuring (one CPU thread, float32)
---------------------------------------------------
At least 3 times scikit-learn's speed at 1 row and at 1,000,000 rows; nothing was promised for
1,000 rows, for float64 and for two threads: they are measured and reported.

What is equal among the contestants
-----------------------------------
The rows, the dtype and the weights: ours is fitted, scikit-learn's is its ``to_sklearn()``, the
modules of skorch and torch are given its ``coefs_`` and ``intercepts_``. All results are compared
with scikit-learn's. Ours, scikit-learn's and skorch's take and return numpy arrays, ours and
scikit-learn's also validate the input and translate class numbers into labels. Plain torch is the
module under ``torch.no_grad()`` on all rows at once, converted from and to numpy.

From 100,000 rows on, two settings are measured and both are printed. *together*: the contestants
take turns in one process, as everywhere in these benchmarks; it is the state of a session that has
done other work before. *alone*: each measurement in a fresh process of its own, after one untimed
call. They differ because scikit-learn takes hundreds of megabytes from the system at each call: new
pages cost it between 0.04 and 0.9 seconds of system time, by how the memory of process and machine
looks. Ours reuses a megabyte and takes the same time in both. The promise is about *together*: alone,
at 64-100-10, the two products at the processor's peak are already more than a third of what
scikit-learn takes for everything.

Usage: ``python benchmarks/mlp_predict.py [--threads 1 2] [--nets small] [--rows 1 1000]
[--contestants ours sklearn] [--dtypes float32 float64] [--settings together alone]
[--repeats 5]``. About eight minutes a thread count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from typing import Any

import _harness as harness

SEED = 0
# Name to layer widths: the nets of digits and of the wide shape in mlp_fit.py.
NETS = {"small": (64, 100, 10), "wide": (54, 256, 256, 7)}
ROWS = (1, 1_000, 1_000_000)
METHODS = ("predict", "predict_proba")
CONTESTANTS = ("ours", "sklearn", "skorch", "torch")
# Times scikit-learn's speed, one thread, float32; by rows.
GOALS = {1: 3.0, 1_000_000: 3.0}
# A call at one row is far below the resolution of the clocks: many are timed together.
CALLS = {1: 500, 1_000: 20}
# From this many rows on, both settings; alone with at most this many rounds.
SETTINGS = ("together", "alone")
MANY_ROWS, ALONE_ROUNDS = 100_000, 3

Predictor = dict[str, Callable[[Any], Any]]  # method name to function


def fitted_net(layers: tuple[int, ...], dtype: str) -> Any:
    """Return our network, fitted for five epochs on normal columns and a linear rule.

    Its weights only have to be those of some network: enough that classes differ between rows.
    """
    import numpy as np

    from sknn_resid import MLPClassifier

    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((1_000, layers[0]))
    y = (X @ rng.standard_normal((layers[0], layers[-1]))).argmax(axis=1)
    net = MLPClassifier(layers[1:-1], max_iter=5, random_state=SEED)
    return net.fit(X.astype(dtype), y)


def contestants(net: Any, names: list[str], dtype: str) -> dict[str, Predictor]:
    """Make predictors with the weights of ``net``."""
    makers = {
        "ours": lambda: net,
        "sklearn": net.to_sklearn,
        "skorch": lambda: _skorch(net, dtype),
        "torch": lambda: None,
    }
    made = {name: makers[name]() for name in names}
    return {
        name: _plain_torch(net, dtype)
        if name == "torch"
        else {method: getattr(estimator, method) for method in METHODS}
        for name, estimator in made.items()
    }


def _skorch(net: Any, dtype: str) -> Any:
    import torch
    from skorch import NeuralNetClassifier

    other = NeuralNetClassifier(
        harness.sequential,
        module__coefs=net.coefs_,
        module__intercepts=net.intercepts_,
        module__dtype=dtype,
        criterion=torch.nn.CrossEntropyLoss,
        classes=net.classes_,
    )
    return other.initialize()


def _plain_torch(net: Any, dtype: str) -> Predictor:
    import torch

    module = harness.sequential(net.coefs_, net.intercepts_, dtype)

    def predict_proba(X: Any) -> Any:
        with torch.no_grad():
            return torch.softmax(module(torch.from_numpy(X)), dim=1).numpy()

    def predict(X: Any) -> Any:
        with torch.no_grad():
            return module(torch.from_numpy(X)).argmax(dim=1).numpy()

    return {"predict": predict, "predict_proba": predict_proba}


def difference(result: Any, net: Any, X: Any, method: str) -> float:
    """How far a result is from that of scikit-learn's network of the same weights.

    Probabilities: the largest absolute difference. Labels: the share of rows that differ. The
    reference is computed in slices of rows, in little memory.
    """
    import numpy as np

    function = getattr(net.to_sklearn(), method)
    slices = [function(X[start : start + 10_000]) for start in range(0, len(X), 10_000)]
    ours, reference = np.asarray(result), np.concatenate(slices)
    if method == "predict":
        return float(np.mean(ours != reference))
    return float(np.abs(ours - reference).max())


def measure(
    net: Any, net_name: str, rows: int, options: argparse.Namespace, names: list[str]
) -> list[dict[str, Any]]:
    """Time both methods of one net at one number of rows; one JSON row for each contestant."""
    import numpy as np

    threads, dtype = options.threads[0], net.coefs_[0].dtype.name
    predictors = contestants(net, names, dtype)
    X = np.random.default_rng(SEED + 1).standard_normal((rows, NETS[net_name][0]), dtype=dtype)
    clock_name, clock = harness.clock_for(threads)
    calls = min(CALLS.get(rows, 1), 2 if options.smoke else 10**6)
    found = []
    for method in METHODS:
        functions = {
            name: (lambda function=predictor[method]: function(X))
            for name, predictor in predictors.items()
        }
        # The warm-up also takes the memory of a call from the system, which takes seconds the
        # first time.
        seconds, results = harness.time_interleaved(
            functions, repeats=options.repeats, clock=clock, calls=calls, warm_up=True
        )
        off = {name: difference(result, net, X, method) for name, result in results.items()}
        # Rounding: a few hundred units in the last place; labels may differ at a tie only.
        allowed = 1e-6 if method == "predict" else 500 * float(np.finfo(dtype).eps)
        found += [
            {
                "net": net_name,
                "layers": NETS[net_name],
                "dtype": dtype,
                "rows": rows,
                "method": method,
                "contestant": name,
                "threads": threads,
                "clock": clock_name,
                "seconds": seconds[name],
                "difference": off[name],
                "equal": off[name] <= allowed,
            }
            for name in names
        ]
    return found


def work(options: argparse.Namespace) -> None:
    """Measure everything asked of this worker and write the rows to ``--worker-output``."""
    warnings.filterwarnings("ignore", message="Stochastic Optimizer: Maximum iterations")
    names, notes, rows = list(options.contestants), [], []
    if "skorch" in names and importlib.util.find_spec("skorch") is None:
        names.remove("skorch")
        notes.append("skorch is not installed: its rows are missing")
    with harness.pinned_threads(options.threads[0]):
        for net_name in options.nets if names else []:
            for dtype in options.dtypes:
                net = fitted_net(NETS[net_name], dtype)
                for n in options.rows:
                    print(f"  {net_name} {dtype} {n:,} rows ...", file=sys.stderr, flush=True)
                    rows += measure(net, net_name, n, options, names)
    options.worker_output.write_text(json.dumps({"rows": rows, "notes": notes}))


def goal(row: dict[str, Any]) -> str:
    """Say what was expected of a row and whether it was reached; empty where nothing was."""
    promised = row["threads"] == 1 and row["dtype"] == "float32" and row["contestant"] == "ours"
    promised = promised and row["setting"] == "together"
    if not promised or row["rows"] not in GOALS or row["versus_sklearn"] is None:
        return ""
    wanted = GOALS[row["rows"]]
    return f"{wanted:g}x {'met' if row['versus_sklearn']['median'] >= wanted else 'MISSED'}"


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the rows of one worker."""
    headers = ["net", "dtype", "rows", "setting", "method", "contestant", "one call"]
    headers += ["x sklearn (rounds)", "x skorch (rounds)", "difference", "equal", "goal"]
    table = [
        [
            "-".join(map(str, row["layers"])),
            row["dtype"],
            f"{row['rows']:,}",
            row["setting"],
            row["method"],
            row["contestant"],
            harness.format_seconds(row["median"]),
            harness.format_ratio(row["versus_sklearn"]),
            harness.format_ratio(row["versus_skorch"]),
            f"{row['difference']:.1g}",
            "yes" if row["equal"] else "NO",
            goal(row),
        ]
        for row in rows
    ]
    return harness.format_table(headers, table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_common_options(parser, "mlp_predict")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float64"), default=["float32"])
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    options = parser.parse_args(arguments)
    options.many_rows = MANY_ROWS
    if options.smoke and options.worker_output is None:
        options.rows, options.many_rows = [1, 300], 300
        options.nets, options.repeats = options.nets[:1], min(options.repeats, 2)
    return options


def run(options: argparse.Namespace, threads: int, notes: list[str]) -> list[dict[str, Any]]:
    """Let workers measure everything at one thread count; return their rows, compared."""

    def worker(rows: list[int], nets: list[str], names: list[str], repeats: int) -> list[Any]:
        arguments = ["--threads", str(threads), "--nets", *nets, "--dtypes", *options.dtypes]
        arguments += ["--rows", *map(str, rows), "--contestants", *names]
        arguments += ["--repeats", str(repeats), *(["--smoke"] * options.smoke)]
        found = harness.run_worker(__file__, arguments, threads)
        notes.extend(note for note in found["notes"] if note not in notes)
        return found["rows"]

    names = list(options.contestants)
    many = [n for n in options.rows if n >= options.many_rows]
    rows = [n for n in options.rows if n not in many or "together" in options.settings]
    found = worker(rows, options.nets, names, options.repeats) if rows else []
    found = [row | {"setting": "together"} for row in found]
    for n in many if "alone" in options.settings else []:
        for net in options.nets:
            for turn in range(1 if options.smoke else min(options.repeats, ALONE_ROUNDS)):
                shift = turn % len(names)
                for name in names[shift:] + names[:shift]:
                    found += [row | {"setting": "alone"} for row in worker([n], [net], [name], 1)]
    return compare(found)


def compare(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the rounds of each contestant and put the ratios beside them."""
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    keys = ("net", "dtype", "rows", "setting", "method")
    for row in found:
        case = cases.setdefault(tuple(row[key] for key in keys), {})
        if row["contestant"] in case:
            case[row["contestant"]]["seconds"] += row["seconds"]
        else:
            case[row["contestant"]] = dict(row)
    for case in cases.values():
        seconds = {name: row["seconds"] for name, row in case.items()}
        for name, row in case.items():
            row["median"] = statistics.median(seconds[name])
            row["versus_sklearn"] = harness.ratio(seconds, name, "sklearn")
            row["versus_skorch"] = harness.ratio(seconds, name, "skorch")
    return [row for case in cases.values() for row in case.values()]


def main() -> None:
    """Measure at each thread count, print a table for each, write the JSON."""
    options = parse()
    if options.worker_output is not None:
        work(options)
        return
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for threads in options.threads:
        found = run(options, threads, notes)
        rows += found
        clock = "CPU seconds" if found[0]["clock"] == "cpu" else "wall seconds"
        print(f"\n{threads} thread{'s' * (threads > 1)}, {clock}, median of rounds\n")
        print(report(found), flush=True)
    print("\n".join(["", *notes]))
    harness.write_results(options.output, "mlp_predict", rows, notes)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
