"""Seconds of the linear models: ours beside scikit-learn's and statsmodels'.

Expected before measuring (one CPU thread, float64)
---------------------------------------------------
* `RidgeCV`, 100 penalties, exact leave-one-out, refit of the best, against scikit-learn's RidgeCV
  on the same grid: at least 10 times faster at 1,000 x 50, 40 times at 100,000 x 100, 6 times at
  10,000 x 500 with 50 targets and a penalty for each, 1.5 times at 2,000 x 5,000.
* `OLS` with full inference (standard errors, t, p, intervals, R2) against statsmodels' OLS with the
  same: at least as fast everywhere.
* ``OLS(refine=False)`` against scikit-learn's LinearRegression at 1,000,000 x 50: at least as fast.

What is equal among the contestants
-----------------------------------
The rows (standard normal columns, a linear rule with noise), the grid of penalties, the intercept.
The coefficients are compared: *difference* is the largest one relative to the largest coefficient
of the reference, and of the RidgeCVs the chosen penalties must be the same as well.

Usage: ``python benchmarks/linear.py [--threads 1] [--cases ridgecv-1000x50 ...] [--repeats 5]``.
scikit-learn's RidgeCV takes a quarter of a minute a fit at the larger shapes: those are run for
three rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import _harness as harness

SEED = 0
N_ALPHAS = 100
SLOW_ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """One comparison: what is fitted, on how many rows and columns, and what was promised."""

    kind: str
    n_rows: int
    n_columns: int
    n_targets: int
    goal: float
    slow: bool = False

    @property
    def name(self) -> str:
        """What the command line calls it."""
        targets = f"x{self.n_targets}" if self.n_targets > 1 else ""
        return f"{self.kind}-{self.n_rows}x{self.n_columns}{targets}"


CASES = {
    case.name: case
    for case in (
        Case("ridgecv", 1_000, 50, 1, 10.0),
        Case("ridgecv", 100_000, 100, 1, 40.0, slow=True),
        Case("ridgecv", 10_000, 500, 50, 6.0, slow=True),
        Case("ridgecv", 2_000, 5_000, 1, 1.5, slow=True),
        Case("ols", 16, 6, 1, 1.0),
        Case("ols", 1_000, 50, 1, 1.0),
        Case("ols", 100_000, 100, 1, 1.0, slow=True),
        Case("ols", 10_000, 500, 1, 1.0, slow=True),
        Case("plain", 1_000_000, 50, 1, 1.0, slow=True),
    )
}
# The same kinds at sizes that say nothing about speed.
SMOKE = (Case("ridgecv", 60, 5, 1, 0.0), Case("ols", 40, 3, 1, 0.0), Case("plain", 50, 4, 1, 0.0))
REFERENCE = {"ridgecv": "sklearn", "ols": "statsmodels", "plain": "sklearn"}


def table(case: Case) -> tuple[Any, Any]:
    """Rows and targets of a case."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    X = rng.standard_normal((case.n_rows, case.n_columns))
    rule = rng.standard_normal((case.n_columns, case.n_targets)) / np.sqrt(case.n_columns)
    Y = X @ rule + rng.standard_normal((case.n_rows, case.n_targets))
    return X, Y[:, 0] if case.n_targets == 1 else Y


def contestants(case: Case, X: Any, y: Any) -> dict[str, Callable[[], Any]]:
    """Functions without arguments that return (coefficients, what else must be equal)."""
    return {"ridgecv": _ridge_cv, "ols": _ols, "plain": _plain}[case.kind](case, X, y)


def _ridge_cv(case: Case, X: Any, y: Any) -> dict[str, Callable[[], Any]]:
    import numpy as np
    from sklearn.linear_model import RidgeCV as SklearnRidgeCV

    from sknn_resid import RidgeCV

    alphas = np.geomspace(1e-3, 1e5, N_ALPHAS)
    several = case.n_targets > 1

    def run(cls: Any) -> Callable[[], Any]:
        def fit() -> Any:
            model = cls(alphas=alphas, alpha_per_target=several).fit(X, y)
            return model.coef_, np.asarray(model.alpha_)

        return fit

    return {"ours": run(RidgeCV), "sklearn": run(SklearnRidgeCV)}


def _ols(case: Case, X: Any, y: Any) -> dict[str, Callable[[], Any]]:
    import numpy as np
    import statsmodels.api as sm

    from sknn_resid import OLS

    del case

    def ours() -> Any:
        model = OLS().fit(X, y)
        intervals = model.confidence_interval()
        return model.coef_, (model.standard_errors_, model.p_values_, model.r2_, intervals)[0]

    def theirs() -> Any:
        result = sm.OLS(y, np.column_stack([np.ones(len(X)), X])).fit()
        found = (result.bse, result.pvalues, result.rsquared, result.conf_int())
        return result.params[1:], found[0][1:]

    return {"ours": ours, "statsmodels": theirs}


def _plain(case: Case, X: Any, y: Any) -> dict[str, Callable[[], Any]]:
    from sklearn.linear_model import LinearRegression

    from sknn_resid import OLS

    del case

    def run(model: Any) -> Callable[[], Any]:
        def fit() -> Any:
            return model.fit(X, y).coef_, None

        return fit

    return {"ours": run(OLS(refine=False)), "sklearn": run(LinearRegression())}


def difference(found: Any, reference: Any) -> float:
    """Largest difference of two results, relative to the largest number of the reference."""
    import numpy as np

    worst = 0.0
    for a, b in zip(found, reference, strict=True):
        if b is not None:
            a, b = np.asarray(a), np.asarray(b)
            worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    return worst


def measure(case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the contestants of one case; one JSON row for each."""
    threads = options.threads[0]
    X, y = table(case)
    functions = contestants(case, X, y)
    clock_name, clock = harness.clock_for(threads)
    small = case.n_rows * case.n_columns <= 100_000
    seconds, results = harness.time_interleaved(
        functions,
        repeats=min(options.repeats, SLOW_ROUNDS) if case.slow else options.repeats,
        clock=clock,
        calls=(20 if small else 1) if not options.smoke else 1,
        warm_up=small,
    )
    reference = REFERENCE[case.kind]
    found = []
    for name in functions:
        off = difference(results[name], results[reference])
        found.append(
            {
                "case": case.name,
                "kind": case.kind,
                "n_rows": case.n_rows,
                "n_columns": case.n_columns,
                "n_targets": case.n_targets,
                "contestant": name,
                "threads": threads,
                "clock": clock_name,
                "seconds": seconds[name],
                "median": statistics.median(seconds[name]),
                "versus_reference": harness.ratio(seconds, name, reference),
                "difference": off,
                "equal": off <= 1e-6,
                "goal": case.goal if name == "ours" and threads == 1 else None,
            }
        )
    return found


def work(options: argparse.Namespace) -> None:
    """Measure everything asked of this worker and write the rows to ``--worker-output``."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # scikit-learn's own announcements
    cases = SMOKE if options.smoke else [CASES[name] for name in options.cases]
    rows = []
    with harness.pinned_threads(options.threads[0]):
        for case in cases:
            print(f"  {case.name} ...", file=sys.stderr, flush=True)
            rows += measure(case, options)
    options.worker_output.write_text(json.dumps({"rows": rows, "notes": []}))


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the rows of one worker."""
    headers = [
        "case",
        "contestant",
        "one fit",
        "x reference (rounds)",
        "difference",
        "equal",
        "goal",
    ]
    lines = []
    for row in rows:
        promised = ""
        if row["goal"] and row["versus_reference"] is not None:
            reached = row["versus_reference"]["median"] >= row["goal"]
            promised = f"{row['goal']:g}x {'met' if reached else 'MISSED'}"
        lines.append(
            [
                row["case"],
                row["contestant"],
                harness.format_seconds(row["median"]),
                harness.format_ratio(row["versus_reference"]),
                f"{row['difference']:.1g}",
                "yes" if row["equal"] else "NO",
                promised,
            ]
        )
    return harness.format_table(headers, lines)


def main() -> None:
    """Measure at each thread count, print a table for each, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_common_options(parser, "linear")
    parser.set_defaults(threads=[1])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    if options.worker_output is not None:
        work(options)
        return
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        arguments = ["--threads", str(threads), "--repeats", str(options.repeats)]
        arguments += ["--cases", *options.cases, *(["--smoke"] * options.smoke)]
        found = harness.run_worker(__file__, arguments, threads)["rows"]
        rows += found
        clock = "CPU seconds" if found[0]["clock"] == "cpu" else "wall seconds"
        print(f"\n{threads} thread{'s' * (threads > 1)}, {clock}, median of rounds\n")
        print(report(found), flush=True)
    harness.write_results(options.output, "linear", rows, [])
    print(f"\nwritten: {options.output}")


if __name__ == "__main__":
    main()
