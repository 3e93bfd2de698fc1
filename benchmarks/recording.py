"""What ``record_gradients=True`` costs: the same fit with and without it, in turns.

Expected before measuring: less than 3 % of the time of a fit at hidden (256, 256) and batches of
1,024 rows, float32, on one thread and on two ("wide", the shape of `mlp_fit.py` with 98 steps an
epoch).

The record is made at one step of an epoch, so its share falls with the steps of an epoch. The other
shapes have no goal; they are measured to be known: the same network with 10 steps an epoch, a small
one, and one that has a single step an epoch, which is the worst there is.

Both contestants do the same steps; the benchmark compares the weights they end with, bit for bit.

Usage: ``python benchmarks/recording.py [--threads 1 2] [--shapes wide digits] [--repeats 5]``.
Less than a minute a thread count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import _harness as harness

SEED = 0
GOAL = 0.03


@dataclass(frozen=True)
class Shape:
    """One workload."""

    rows: int
    columns: int
    hidden: tuple[int, ...]
    batch: int
    epochs: int
    goal: float | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of one fit."""
        return self.epochs * -(-self.rows // self.batch)


SHAPES = {
    "wide": Shape(100_000, 54, (256, 256), 1024, 2, GOAL),
    "wide, 10 steps": Shape(10_240, 54, (256, 256), 1024, 4),
    "digits": Shape(1797, 64, (100,), 200, 30),
    "small, 1 step": Shape(200, 30, (100,), 200, 200),
}


def make_rows(shape: Shape) -> tuple[Any, Any]:
    """Rows drawn at random; only their size matters for time."""
    import numpy as np
    from sklearn.datasets import make_classification

    X, y = make_classification(
        shape.rows, shape.columns, n_informative=10, n_classes=7, random_state=SEED
    )
    return X.astype(np.float32), y


def fit(shape: Shape, X: Any, y: Any, *, record: bool) -> Callable[[], Any]:
    """A fit of a fixed number of epochs; gives the fitted estimator."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    from sknn_resid import MLPClassifier

    def run() -> Any:
        net = MLPClassifier(
            shape.hidden,
            batch_size=shape.batch,
            max_iter=shape.epochs,
            n_iter_no_change=shape.epochs + 1,
            random_state=SEED,
            record_gradients=record,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs are fixed on purpose
            return net.fit(X, y)

    return run


def measure(name: str, threads: int, repeats: int) -> list[dict[str, Any]]:
    """Time one shape; one row."""
    import numpy as np

    shape = SHAPES[name]
    X, y = make_rows(shape)
    contestants = {
        "plain": fit(shape, X, y, record=False),
        "recording": fit(shape, X, y, record=True),
    }
    clock_name, clock = harness.clock_for(threads)
    seconds, nets = harness.time_interleaved(
        contestants, repeats=repeats, clock=clock, warm_up=True
    )
    pairs = zip(nets["plain"].coefs_, nets["recording"].coefs_, strict=True)
    costs = [b / a - 1 for a, b in zip(seconds["plain"], seconds["recording"], strict=True)]
    medians = {who: statistics.median(times) for who, times in seconds.items()}
    return [
        {
            "shape": name,
            "threads": threads,
            "clock": clock_name,
            "seconds": seconds,
            "per_step": {who: median / shape.steps for who, median in medians.items()},
            "cost": medians["recording"] / medians["plain"] - 1,
            "cost_low": min(costs),
            "cost_high": max(costs),
            "goal": shape.goal,
            "same_weights": all(bool(np.array_equal(a, b)) for a, b in pairs),
        }
    ]


def work(options: argparse.Namespace) -> None:
    """Measure everything asked of this worker and write the rows to ``--worker-output``."""
    rows = []
    with harness.pinned_threads(options.threads[0]):
        for name in options.shapes:
            print(f"  {name} ...", file=sys.stderr, flush=True)
            rows += measure(name, options.threads[0], options.repeats)
    options.worker_output.write_text(json.dumps({"rows": rows, "notes": []}))


def verdict(row: dict[str, Any]) -> str:
    """Whether what was expected of a row was found; empty where nothing was."""
    if row["goal"] is None:
        return ""
    return f"< {row['goal']:.0%} {'met' if row['cost'] < row['goal'] else 'MISSED'}"


def main() -> None:
    """Parse options; be the worker or start one for each thread count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    harness.add_common_options(parser, "recording")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    if options.smoke:
        options.shapes = ["small, 1 step"]
    if options.worker_output is not None:
        work(options)
        return
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        print(f"{threads} thread(s)", file=sys.stderr, flush=True)
        arguments = ["--threads", str(threads), "--repeats", str(options.repeats), "--shapes"]
        rows += harness.run_worker(__file__, [*arguments, *options.shapes], threads)["rows"]
    table = [
        [
            row["shape"],
            str(row["threads"]),
            harness.format_seconds(row["per_step"]["plain"]),
            harness.format_seconds(row["per_step"]["recording"]),
            f"{row['cost']:+.1%} ({row['cost_low']:+.1%} to {row['cost_high']:+.1%})",
            "yes" if row["same_weights"] else "NO",
            verdict(row),
        ]
        for row in rows
    ]
    headers = ["shape", "threads", "one step", "recording", "cost", "same weights", "expected"]
    print(harness.format_table(headers, table))
    harness.write_results(options.output, "recording", rows, [])
    print(f"\nresults: {options.output}")


if __name__ == "__main__":
    main()
