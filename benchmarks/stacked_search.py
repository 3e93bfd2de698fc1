"""Seconds of a grid search: scikit-learn's MLP and ours with ``n_jobs``, ours under ``stacked()``.

Expected before measuring (equal epochs, equal grid, float32)
-------------------------------------------------------------
* 20 candidates x 5 folds on one or two CPU threads, against ``GridSearchCV(MLPClassifier of
  scikit-learn, n_jobs=threads)``: at least 10 times its speed on iris, 3.5 times on digits, 4 times
  on 20,000 x 30 rows;
* ``stacked()`` is nowhere slower than our own estimators with ``n_jobs=threads``;
* ``hundred``, 100 small nets on one GPU (digits, 20 candidates x 5 folds, 200 epochs): 30 times the
  speed of our own fits one after another there. Both replay captured steps. Not measured so far: no
  GPU was at hand. The shape is left out on a CPU unless it is named.

What is equal among the contestants
-----------------------------------
Rows (standardised, in the dtype of the run), folds, the grid (5 values of ``alpha`` times 4 of
``learning_rate_init``), hidden units, batches (one ``random_state``), Adam, the number of epochs
(nobody stops early), thread count. The last refit is left out (``refit=False``): it is a single
fit, the subject of ``mlp_fit.py``. What is timed is the whole ``fit`` of the search: cloning,
validation of the input, training and scoring of every split. One thread is timed in CPU seconds,
two in wall seconds; the processes of ``n_jobs=2`` run before the clock starts.

*scores differ* compares ``cv_results_`` split by split: the largest difference of any test score
from that of our own search with ``n_jobs`` (0, or a row or two by rounding).

On a GPU the searches but ``hundred`` have 200 candidates; our own estimators then fit one after
another on the GPU (``n_jobs`` processes would each need a context), as skorch does.

Usage: ``python benchmarks/stacked_search.py [--threads 1 2] [--shapes iris digits] [--dtypes
float32] [--contestants sklearn ours stacked] [--repeats 3]``. About five minutes a thread count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import _harness as harness

SEED = 0
FOLDS = 5


@dataclass(frozen=True)
class Shape:
    """One workload."""

    name: str
    rows: int
    columns: int
    epochs: int
    goal: float
    alphas: int = 5
    rates: int = 4
    gpu_goal: float | None = None  # against our own fits one after another, on the same GPU

    @property
    def fits(self) -> int:
        return FOLDS * self.alphas * self.rates


SHAPES = {
    # What scikit-learn's defaults take there until the loss stops improving (451 epochs).
    "iris": Shape("iris", 150, 4, epochs=450, goal=10.0),
    "digits": Shape("digits", 1797, 64, epochs=20, goal=3.5),
    "20000x30": Shape("20000x30", 20_000, 30, epochs=2, goal=4.0),
    "hundred": Shape("hundred", 1797, 64, epochs=200, goal=3.5, gpu_goal=30.0),
}
CPU_SHAPES = ("iris", "digits", "20000x30")
CONTESTANTS = ("sklearn", "ours", "stacked", "skorch")
CPU_CONTESTANTS = ("sklearn", "ours", "stacked")


# ---- contestants ---------------------------------------------------------------------------------


def load(shape: Shape, dtype: str) -> tuple[Any, Any]:
    """Rows and labels, standardised."""
    from sklearn.datasets import load_digits, load_iris, make_classification
    from sklearn.preprocessing import StandardScaler

    if shape.name == "iris":
        X, y = load_iris(return_X_y=True)
    elif shape.name in ("digits", "hundred"):
        X, y = load_digits(return_X_y=True)
    else:
        X, y = make_classification(
            shape.rows, shape.columns, n_informative=shape.columns // 2, random_state=SEED
        )
    return StandardScaler().fit_transform(X).astype(dtype)[: shape.rows], y[: shape.rows]


def parameters(shape: Shape) -> dict[str, Any]:
    """What both MLP estimators are given. With these nobody stops early."""
    return {
        "hidden_layer_sizes": (100,),
        "max_iter": shape.epochs,
        "n_iter_no_change": shape.epochs + 1,
        "tol": 0.0,
        "random_state": SEED,
    }


def grid(shape: Shape) -> dict[str, list[float]]:
    import numpy as np

    return {
        "alpha": np.logspace(-5, -1, shape.alphas).tolist(),
        "learning_rate_init": np.logspace(-3.5, -2, shape.rates).tolist(),
    }


def search(shape: Shape, name: str, n_jobs: int, device: str, X: Any, y: Any) -> Callable[[], Any]:
    """A function that runs the search of one contestant and returns it fitted."""
    import joblib
    import sklearn.neural_network
    from sklearn.model_selection import GridSearchCV

    from sknn_resid import MLPClassifier, stacked

    net: Any
    if name == "sklearn":
        net = sklearn.neural_network.MLPClassifier(**parameters(shape))
    elif name == "skorch":
        net = skorch_net(shape, X, device)
    else:
        net = MLPClassifier(**parameters(shape), device=device)
    values = grid(shape)
    if name == "skorch":
        values = {"optimizer__weight_decay": values["alpha"], "lr": values["learning_rate_init"]}

    def processes() -> AbstractContextManager[Any]:
        if n_jobs == 1:
            return nullcontext()
        # One thread a process, which is joblib's own rule where OMP_NUM_THREADS is not set.
        return joblib.parallel_config(backend="loky", inner_max_num_threads=1)

    def run() -> Any:
        with processes(), stacked() if name == "stacked" else nullcontext():
            return GridSearchCV(net, values, cv=FOLDS, n_jobs=n_jobs, refit=False).fit(X, y)

    return run


def skorch_net(shape: Shape, X: Any, device: str) -> Any:
    """skorch's classifier, as its documentation shows it."""
    import torch
    from skorch import NeuralNetClassifier

    n_classes = {"iris": 3, "digits": 10, "hundred": 10}.get(shape.name, 2)
    coefs, intercepts, _ = harness.initial_weights((X.shape[1], 100, n_classes), SEED)
    return NeuralNetClassifier(
        harness.sequential,
        module__coefs=coefs,
        module__intercepts=intercepts,
        module__dtype=X.dtype.name,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        max_epochs=shape.epochs,
        batch_size=200,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        device=device,
    )


# ---- a worker ------------------------------------------------------------------------------------


def measure(
    shape: Shape, dtype: str, names: list[str], threads: int, device: str, repeats: int
) -> list[dict[str, Any]]:
    """Time one shape in one dtype; return one row for each contestant."""
    n_jobs = 1 if device == "cuda" else threads
    X, y = load(shape, dtype)
    # Lazy imports, thread pools and joblib's processes are there before the clock starts.
    short = replace(shape, epochs=1, alphas=2, rates=1)
    for name in names:
        search(short, name, n_jobs, device, X, y)()
    runs = {name: search(shape, name, n_jobs, device, X, y) for name in names}
    clock_name, clock = harness.clock_for(threads, device)
    seconds, found = harness.time_interleaved(runs, repeats=repeats, clock=clock)
    reference = found.get("ours")
    rows = []
    for name in names:
        results = found[name].cv_results_
        best = int(results["mean_test_score"].argmax())
        rows.append(
            {
                "shape": shape.name,
                "dtype": dtype,
                "contestant": name,
                "device": "cpu" if name == "sklearn" else device,
                "threads": threads,
                "clock": clock_name,
                "epochs": shape.epochs,
                "fits": shape.fits,
                "seconds": seconds[name],
                "median": statistics.median(seconds[name]),
                "versus_sklearn": harness.ratio(seconds, name, "sklearn"),
                "versus_ours": harness.ratio(seconds, name, "ours"),
                "best_score": float(results["mean_test_score"][best]),
                "best_params": results["params"][best],
                "score_difference": score_difference(results, reference),
            }
        )
    return rows


def score_difference(results: dict[str, Any], reference: Any) -> float | None:
    """Largest difference of any split's score from that of our own search with ``n_jobs``."""
    if reference is None:
        return None
    names = [f"split{k}_test_score" for k in range(FOLDS)]
    return max(float(abs(results[n] - reference.cv_results_[n]).max()) for n in names)


def work(options: argparse.Namespace) -> None:
    """Measure everything asked of this worker and write the rows to ``--worker-output``."""
    warnings.filterwarnings("ignore", message=".*Maximum iterations")
    warnings.filterwarnings("ignore", message=".*before the optimization had converged")
    threads, notes, rows = options.threads[0], [], []
    names = list(options.contestants)
    if "skorch" in names and importlib.util.find_spec("skorch") is None:
        names.remove("skorch")
        notes.append("skorch is not installed: its rows are missing")
    # The environment of a worker sets the counts of all pools (`harness.run_worker`). A limit of
    # threadpoolctl on top would belong to this thread and keep others, in which stacks are
    # trained, from setting theirs.
    for name in options.shapes:
        shape = SHAPES[name]
        if options.device == "cuda" and shape.gpu_goal is None:
            shape = replace(shape, alphas=20, rates=10)
        if options.smoke:
            shape = replace(shape, rows=min(shape.rows, 300), epochs=2, alphas=2, rates=2)
        for dtype in options.dtypes:
            print(f"  {name} {dtype} ...", file=sys.stderr, flush=True)
            rows += measure(shape, dtype, names, threads, options.device, options.repeats)
    options.worker_output.write_text(json.dumps({"rows": rows, "notes": notes}))


# ---- the parent ----------------------------------------------------------------------------------


def goal(row: dict[str, Any]) -> str:
    """Say what was expected of a row and whether it was reached; empty where nothing was."""
    if row["contestant"] != "stacked":
        return ""
    if row["device"] != "cpu":
        wanted_there = SHAPES[row["shape"]].gpu_goal
        if wanted_there is None or row["versus_ours"] is None:
            return ""
        met = "met" if row["versus_ours"]["median"] >= wanted_there else "MISSED"
        return f"ours {wanted_there:g}x {met}"
    parts = []
    if row["dtype"] == "float32" and row["versus_sklearn"] is not None:
        wanted = SHAPES[row["shape"]].goal
        met = "met" if row["versus_sklearn"]["median"] >= wanted else "MISSED"
        parts.append(f"sklearn {wanted:g}x {met}")
    if row["versus_ours"] is not None:
        parts.append("ours 1x " + ("met" if row["versus_ours"]["median"] >= 1 else "MISSED"))
    return ", ".join(parts)


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the rows of one worker."""
    headers = ["shape", "dtype", "contestant", "device", "search", "one fit"]
    headers += ["x sklearn (rounds)", "x ours (rounds)", "best score", "scores differ", "goal"]
    table = [
        [
            row["shape"],
            row["dtype"],
            row["contestant"],
            row["device"],
            harness.format_seconds(row["median"]),
            harness.format_seconds(row["median"] / row["fits"]),
            harness.format_ratio(row["versus_sklearn"]),
            harness.format_ratio(row["versus_ours"]),
            f"{row['best_score']:.5f}",
            "-" if row["score_difference"] is None else f"{row['score_difference']:.1e}",
            goal(row),
        ]
        for row in rows
    ]
    return harness.format_table(headers, table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_common_options(parser, "stacked_search")
    parser.set_defaults(repeats=3)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "float64"), default=["float32", "float64"]
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    if options.shapes is None:
        options.shapes = list(SHAPES if options.device == "cuda" else CPU_SHAPES)
    if options.contestants is None:
        on_gpu = ["ours", "stacked", "skorch"]
        options.contestants = on_gpu if options.device == "cuda" else list(CPU_CONTESTANTS)
    return options


def main() -> None:
    """Run the workers one after another, print a table for each, write the JSON."""
    options = parse()
    if options.worker_output is not None:
        work(options)
        return
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for threads in options.threads:
        arguments = ["--device", options.device, "--threads", str(threads)]
        arguments += ["--shapes", *options.shapes, "--dtypes", *options.dtypes]
        arguments += ["--contestants", *options.contestants]
        arguments += ["--repeats", str(options.repeats), *(["--smoke"] * options.smoke)]
        found = harness.run_worker(__file__, arguments, threads)
        rows += found["rows"]
        notes += [note for note in found["notes"] if note not in notes]
        clock = "CPU seconds" if found["rows"][0]["clock"] == "cpu" else "wall seconds"
        print(f"\n{options.device}, {threads} thread{'s' * (threads > 1)}, {clock}, median\n")
        print(report(found["rows"]), flush=True)
    print("\n".join(["", *notes]))
    harness.write_results(options.output, "stacked_search", rows, notes)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
