"""Seconds of ``fit``: ours, scikit-learn's, skorch's and a plain torch loop, interleaved.

Expected before measuring (one CPU thread, equal epochs, final loss equal within 1 %)
------------------------------------------------------------------------------------
* float32: at least 3.3 times scikit-learn's speed with 100 hidden units (digits, binary), 4 times
  on iris, 1.4 times with hidden (256, 256) ("wide"), 2.5 times there with bfloat16 products where
  the processor has them;
* float64: at least 1.7 times with 100 hidden units, and never slower;
* float32: at least 8 times skorch's speed with 100 hidden units.

Two threads and accelerators have no goal: they are measured and reported.

What is equal among the contestants
-----------------------------------
Rows, dtype, initial weights, batches (scikit-learn's random state, also for skorch and torch),
batch size, Adam with rate 0.001, number of epochs (nobody stops early), thread count. What is not:
ours and scikit-learn's apply their default penalty alpha = 1e-4 (divided by the batch size, so it
moves the loss far less than 1 %), validate the input and encode the labels; skorch and torch do
neither. Ours and scikit-learn's add Adam's epsilon before the bias correction, torch after it.

Usage: ``python benchmarks/mlp_fit.py [--threads 1 2] [--shapes digits iris] [--dtypes float32]
[--contestants ours sklearn] [--repeats 5]``. About five minutes a thread count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import _harness as harness

SEED = 0
LEARNING_RATE = 0.001


@dataclass(frozen=True)
class Shape:
    """One workload: how many rows and columns, which network, how long."""

    name: str
    rows: int
    columns: int
    classes: int
    hidden: tuple[int, ...]
    batch: int
    epochs: int

    @property
    def steps(self) -> int:
        """Optimizer steps of one fit."""
        return self.epochs * -(-self.rows // self.batch)

    @property
    def layers(self) -> tuple[int, ...]:
        """Widths from input to output; two classes share one logit, as in scikit-learn."""
        return (self.columns, *self.hidden, 1 if self.classes == 2 else self.classes)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("digits", 1_797, 64, 10, (100,), batch=200, epochs=100),
        Shape("binary", 20_000, 30, 2, (100,), batch=200, epochs=8),
        Shape("iris", 150, 4, 3, (100,), batch=150, epochs=400),
        Shape("wide", 100_000, 54, 7, (256, 256), batch=1_024, epochs=2),
        Shape("huge", 1_000_000, 100, 10, (512, 512), batch=4_096, epochs=1),
    )
}
CPU_SHAPES = ("digits", "binary", "iris", "wide")
CUDA_SHAPES = ("wide", "huge")
CONTESTANTS = ("ours", "sklearn", "skorch", "torch")
DTYPES = ("float32", "float64", "bfloat16")

# Times scikit-learn's speed, one thread; (shape, dtype).
GOALS_SKLEARN = {
    ("digits", "float32"): 3.3,
    ("binary", "float32"): 3.3,
    ("iris", "float32"): 4.0,
    ("wide", "float32"): 1.4,
    ("wide", "bfloat16"): 2.5,
    ("digits", "float64"): 1.7,
    ("binary", "float64"): 1.7,
    ("iris", "float64"): 1.7,
    ("wide", "float64"): 1.0,
}
# Times skorch's speed, one thread.
GOALS_SKORCH = {
    ("digits", "float32"): 8.0,
    ("binary", "float32"): 8.0,
    ("iris", "float32"): 8.0,
}


def load(shape: Shape, dtype: str) -> tuple[Any, Any]:
    """Return standardised X of ``dtype`` and class numbers y.

    digits and iris are the real tables; the others are drawn, because only their size matters
    here. A tenth of their labels is wrong, so that the loss stays away from zero.
    """
    from sklearn.datasets import load_digits, load_iris, make_classification
    from sklearn.preprocessing import StandardScaler

    if shape.name in ("digits", "iris"):
        X, y = {"digits": load_digits, "iris": load_iris}[shape.name](return_X_y=True)
        X, y = X[: shape.rows], y[: shape.rows]
    else:
        X, y = make_classification(
            shape.rows,
            shape.columns,
            n_informative=shape.columns // 2,
            n_classes=shape.classes,
            flip_y=0.1,
            random_state=SEED,
        )
    return StandardScaler().fit_transform(X).astype(dtype), y.astype("int64")


# ---- the contestants: functions that fit once and return predict_proba ---------------------------

Fit = Callable[[], Callable[[Any], Any]]


def _scikit_learn_parameters(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_layer_sizes": shape.hidden,
        "batch_size": shape.batch,
        "learning_rate_init": LEARNING_RATE,
        "max_iter": shape.epochs,
        "n_iter_no_change": shape.epochs + 1,
        "tol": 0.0,
        "random_state": SEED,
    }


def ours(shape: Shape, X: Any, y: Any, device: str, dtype: str | None = None) -> Fit:
    """sknn_resid's MLPClassifier; ``dtype`` None computes in X's dtype."""
    from sknn_resid import MLPClassifier

    def fit() -> Callable[[Any], Any]:
        net = MLPClassifier(**_scikit_learn_parameters(shape), device=device, dtype=dtype)
        return net.fit(X, y).predict_proba

    return fit


def scikit_learn(shape: Shape, X: Any, y: Any) -> Fit:
    """scikit-learn's MLPClassifier, always on the CPU."""
    from sklearn.neural_network import MLPClassifier

    def fit() -> Callable[[Any], Any]:
        return MLPClassifier(**_scikit_learn_parameters(shape)).fit(X, y).predict_proba

    return fit


def plain_torch(shape: Shape, X: Any, y: Any, device: str) -> Fit:
    """The loop a good user writes: tensors sliced in order of an epoch's shuffle, torch's Adam."""
    import numpy as np
    import torch
    from torch import nn

    def fit() -> Callable[[Any], Any]:
        coefs, intercepts, state = harness.initial_weights(shape.layers, SEED)
        model = harness.sequential(coefs, intercepts, X.dtype.name).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
        data, target = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
        criterion: nn.Module = nn.CrossEntropyLoss()
        if shape.classes == 2:
            criterion, target = nn.BCEWithLogitsLoss(), target.to(data.dtype)[:, None]
        order = np.arange(len(X))
        for _ in range(shape.epochs):
            order = next_order(order, state)
            rows = torch.from_numpy(order).to(device)
            X_epoch, y_epoch = data[rows], target[rows]
            for start in range(0, len(X), shape.batch):
                optimizer.zero_grad()
                output = model(X_epoch[start : start + shape.batch])
                criterion(output, y_epoch[start : start + shape.batch]).backward()
                optimizer.step()
        return lambda X_new: probabilities(model, X_new, device)

    return fit


def probabilities(model: Any, X: Any, device: str) -> Any:
    """predict_proba of a network of logits: (n, k), or (n,) where it has one logit."""
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(X).to(device))
        if logits.shape[1] == 1:
            return torch.sigmoid(logits[:, 0]).cpu().numpy()
        return torch.softmax(logits, dim=1).cpu().numpy()


def next_order(order: Any, state: Any) -> Any:
    """Return the row order of the next epoch, as scikit-learn draws it."""
    permutation = state.permutation(len(order))
    return order[permutation]


def skorch(shape: Shape, X: Any, y: Any, device: str) -> Fit:
    """skorch's classifier as its documentation shows it, with the batches of the others."""
    import numpy as np
    import torch
    from skorch import NeuralNetBinaryClassifier, NeuralNetClassifier
    from torch.utils.data import Sampler

    class SameBatches(Sampler):
        """Rows in scikit-learn's order, a new one each epoch; stands where RandomSampler would."""

        def __init__(self, n_rows: int, state: Any) -> None:
            self.order, self.state = np.arange(n_rows), state

        def __len__(self) -> int:
            return len(self.order)

        def __iter__(self) -> Any:
            self.order = next_order(self.order, self.state)
            return iter(self.order.tolist())

    binary = shape.classes == 2
    target = y.astype(X.dtype) if binary else y

    def fit() -> Callable[[Any], Any]:
        coefs, intercepts, state = harness.initial_weights(shape.layers, SEED)
        net = (NeuralNetBinaryClassifier if binary else NeuralNetClassifier)(
            harness.sequential,
            module__coefs=coefs,
            module__intercepts=intercepts,
            module__dtype=X.dtype.name,
            criterion=torch.nn.BCEWithLogitsLoss if binary else torch.nn.CrossEntropyLoss,
            optimizer=torch.optim.Adam,
            lr=LEARNING_RATE,
            max_epochs=shape.epochs,
            batch_size=shape.batch,
            iterator_train__sampler=SameBatches(len(X), state),
            train_split=None,
            verbose=0,
            device=device,
        )
        return net.fit(X, target).predict_proba

    return fit


# ---- a worker ------------------------------------------------------------------------------------


def build(
    shape: Shape, dtype: str, names: list[str], device: str, bfloat16: bool
) -> tuple[dict[str, Fit], Any, Any]:
    """Make the contestants of one shape and dtype, and the data they are judged on."""
    X, y = load(shape, dtype)
    makers = {
        "ours": lambda: ours(shape, X, y, device),
        "ours bfloat16": lambda: ours(shape, X, y, device, "bfloat16"),
        "sklearn": lambda: scikit_learn(shape, X, y),
        "skorch": lambda: skorch(shape, X, y, device),
        "torch": lambda: plain_torch(shape, X, y, device),
    }
    wanted = [*names]
    if bfloat16 and dtype == "float32" and "ours" in names:
        wanted.insert(wanted.index("ours") + 1, "ours bfloat16")
    return {name: makers[name]() for name in wanted}, X, y


def measure(
    shape: Shape, dtype: str, names: list[str], threads: int, device: str, repeats: int, bf16: bool
) -> list[dict[str, Any]]:
    """Time one shape in one dtype; return one row for each contestant."""
    # A fit of one epoch each: lazy imports and thread pools are set up before the clock starts.
    first, _, _ = build(
        replace(shape, rows=min(shape.rows, 2_000), epochs=1), dtype, names, device, bf16
    )
    for fit in first.values():
        fit()
    fits, X, y = build(shape, dtype, names, device, bf16)
    clock_name, clock = harness.clock_for(threads, device)
    seconds, predictors = harness.time_interleaved(fits, repeats=repeats, clock=clock)
    losses = {name: harness.cross_entropy(y, predict(X)) for name, predict in predictors.items()}
    reference = losses.get("sklearn", next(iter(losses.values())))
    rows = []
    for name in fits:
        computed = "bfloat16" if name.endswith("bfloat16") else dtype
        median = statistics.median(seconds[name])
        rows.append(
            {
                "shape": shape.name,
                "dtype": computed,
                "contestant": name.split()[0],
                "device": "cpu" if name == "sklearn" else device,
                "threads": threads,
                "clock": clock_name,
                "epochs": shape.epochs,
                "seconds": seconds[name],
                "median": median,
                "per_step": median / shape.steps,
                "versus_sklearn": harness.ratio(seconds, name, "sklearn"),
                "versus_skorch": harness.ratio(seconds, name, "skorch"),
                "loss": losses[name],
                "loss_agrees": harness.agrees(losses[name], reference),
            }
        )
    return rows


def work(options: argparse.Namespace) -> None:
    """Measure everything asked of this worker and write the rows to ``--worker-output``."""
    warnings.filterwarnings("ignore", message="Stochastic Optimizer: Maximum iterations")
    threads, notes, rows = options.threads[0], [], []
    names = list(options.contestants)
    if "skorch" in names and importlib.util.find_spec("skorch") is None:
        names.remove("skorch")
        notes.append("skorch is not installed: its rows are missing")
    bfloat16 = "bfloat16" in options.dtypes
    if bfloat16 and options.device == "cpu" and not harness.has_bfloat16_products():
        bfloat16 = False
        notes.append("no bfloat16: this processor does not multiply it in hardware")
    with harness.pinned_threads(threads):
        for name in options.shapes:
            shape = SHAPES[name]
            if options.smoke:
                shape = replace(shape, rows=min(shape.rows, 300), batch=64, epochs=2)
            for dtype in ("float32", "float64"):
                if dtype not in options.dtypes or (options.device == "cuda" and dtype != "float32"):
                    continue
                print(f"  {name} {dtype} ...", file=sys.stderr, flush=True)
                # bfloat16 pays from about 256 units on; below it only the wide shapes tell.
                wide = bfloat16 and min(shape.hidden) >= 256
                repeats = 1 if name == "huge" else options.repeats
                rows += measure(shape, dtype, names, threads, options.device, repeats, wide)
    options.worker_output.write_text(json.dumps({"rows": rows, "notes": notes}))


# ---- the parent ----------------------------------------------------------------------------------


def goal(row: dict[str, Any]) -> str:
    """Say what was expected of a row and whether it was reached; empty where nothing was."""
    if row["contestant"] != "ours" or row["threads"] != 1 or row["device"] != "cpu":
        return ""
    key, parts = (row["shape"], row["dtype"]), []
    for goals, found in ((GOALS_SKLEARN, "versus_sklearn"), (GOALS_SKORCH, "versus_skorch")):
        if key in goals and row[found] is not None:
            met = "met" if row[found]["median"] >= goals[key] else "MISSED"
            parts.append(f"{found.split('_')[1]} {goals[key]:g}x {met}")
    return ", ".join(parts)


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the rows of one worker."""
    headers = ["shape", "dtype", "contestant", "device", "one fit", "one step"]
    headers += ["x sklearn (rounds)", "x skorch (rounds)", "loss", "within 1 %", "goal"]
    table = [
        [
            row["shape"],
            row["dtype"],
            row["contestant"],
            row["device"],
            harness.format_seconds(row["median"]),
            harness.format_seconds(row["per_step"]),
            harness.format_ratio(row["versus_sklearn"]),
            harness.format_ratio(row["versus_skorch"]),
            f"{row['loss']:.5f}",
            "yes" if row["loss_agrees"] else "NO",
            goal(row),
        ]
        for row in rows
    ]
    return harness.format_table(headers, table)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_common_options(parser, "mlp_fit")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="default: all that fit")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the CPU, then CUDA where there is one"
    )
    options = parser.parse_args(arguments)
    if "bfloat16" in options.dtypes and "float32" not in options.dtypes:
        parser.error("bfloat16 is measured beside float32: name both in --dtypes")
    return options


def main() -> None:
    """Run the workers one after another, print a table for each, write the JSON."""
    options = parse()
    if options.worker_output is not None:
        work(options)
        return
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for device, threads in plan(options):
        shapes = options.shapes or (CPU_SHAPES if device == "cpu" else CUDA_SHAPES)
        arguments = ["--device", device, "--threads", str(threads), "--shapes", *shapes]
        arguments += ["--dtypes", *options.dtypes, "--contestants", *options.contestants]
        arguments += ["--repeats", str(options.repeats), *(["--smoke"] * options.smoke)]
        found = harness.run_worker(__file__, arguments, threads)
        rows += found["rows"]
        notes += [note for note in found["notes"] if note not in notes]
        clock = "CPU seconds" if found["rows"][0]["clock"] == "cpu" else "wall seconds"
        print(f"\n{device}, {threads} thread{'s' * (threads > 1)}, {clock}, median of rounds\n")
        print(report(found["rows"]), flush=True)
    print("\n".join(["", *notes]))
    harness.write_results(options.output, "mlp_fit", rows, notes)
    print(f"written: {options.output}")


def plan(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Return the workers to run, as (device, threads)."""
    import torch

    workers = []
    if options.device != "cuda":
        workers += [("cpu", threads) for threads in options.threads]
    if options.device == "cuda" or (options.device is None and torch.cuda.is_available()):
        # Beside an accelerator scikit-learn may use every core.
        workers.append(("cuda", os.cpu_count() or 1))
    return workers


if __name__ == "__main__":
    main()
