"""What ``tabular_accuracy.py`` prints."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import _harness as harness
from _tabular_contestants import FAST, OURS
from _tabular_runs import line
from _tabular_scores import (
    Record,
    Run,
    by_run,
    common_runs,
    corrected_seconds,
    mean_ranks,
    paired_effect,
    wins,
)
from _tabular_sets import SCREEN

REALMLP_SHARE = 0.07  # the goals of the benchmark's first lines
SKLEARN_TIMES = 4.0


def report(records: Sequence[Record], methods: Sequence[str]) -> str:
    """Every table that the records allow."""
    present = [m for m in methods if any(r["method"] == m for r in records)]
    if not present:
        return "no results yet"
    parts = [per_set(records, present, "score", "accuracy or R2, mean over seeds")]
    parts.append(per_set(records, present, "loss", "log loss or RMSE, mean over seeds"))
    parts.append(failures(records))
    fast = [method for method in FAST if method in present]
    groups = [("the fast ones", fast)] if 1 < len(fast) < len(present) else []
    if len(present) > 1:
        groups.append(("all", present))
    for title, group in groups:
        parts.append(comparison(records, group, f"{title}, on the sets that all have finished"))
        if OURS in group:
            unseen = {r["set"] for r in records} - set(SCREEN)
            parts.append(
                comparison(records, group, f"{title}, sets outside the screen only", unseen)
            )
    parts += [effects(records, present), times(records, present)]
    return "\n".join(part for part in parts if part)


def per_set(records: Sequence[Record], methods: Sequence[str], key: str, title: str) -> str:
    """A row for each set: the mean over its seeds; ``x`` where a method raised."""
    finished = by_run(records)
    shapes = {r["set"]: r for r in records}
    rows = []
    for name, shape in sorted(shapes.items(), key=lambda item: (item[1]["train_rows"], item[0])):
        row = [name, shape["task"][:5], str(shape["train_rows"]), str(shape["columns"])]
        for method in methods:
            values = [
                found[method][key]
                for (other, _), found in finished.items()
                if other == name and method in found
            ]
            raised = any(
                r["set"] == name and r["method"] == method and "error" in r for r in records
            )
            row.append(f"{statistics.fmean(values):.4f}" if values else "x" if raised else "")
        rows.append(row)
    return f"\n{title}\n\n" + harness.format_table(
        ["set", "task", "rows", "columns", *methods], rows
    )


def failures(records: Sequence[Record]) -> str:
    """Who raised, on what, with which message."""
    lines = [f"  {line(record)}" for record in records if "error" in record]
    return (
        "\n".join(["\nraised (left out of the comparisons of these runs)", *lines]) if lines else ""
    )


def comparison(
    records: Sequence[Record],
    methods: Sequence[str],
    title: str,
    sets: set[str] | None = None,
) -> str:
    """Ranks, wins, means and seconds over the runs that every method has finished."""
    runs = common_runs(records, methods, sets)
    if not runs:
        return ""
    seconds = corrected_seconds(records)
    columns = [mean_ranks(runs, methods, "score"), mean_ranks(runs, methods, "loss")]
    won = [wins(runs, methods, "score"), wins(runs, methods, "loss")]
    rows = []
    for method in methods:
        own = [seconds[name, seed, method] for name, seed in runs]
        rows.append(
            [
                method,
                *[f"{column[method]:.2f}" for column in columns],
                *[f"{count[method]:.1f}" for count in won],
                *_means(runs, method),
                f"{math.fsum(own):.1f}",
                f"{statistics.median(own):.2f}",
            ]
        )
    headers = ["method", "rank by score", "rank by loss", "wins by score", "wins by loss"]
    headers += ["accuracy", "log loss", "R2", "CPU s, sum", "median"]
    kinds = {name: found[methods[0]]["task"] for (name, _), found in runs.items()}
    regressions = sum(task == "regression" for task in kinds.values())
    return (
        f"\n{title}: {len(runs)} runs of {len(kinds)} sets "
        f"({len(kinds) - regressions} with classes, {regressions} regressions)\n\n"
        + harness.format_table(headers, rows)
    )


def _means(runs: dict[Run, dict[str, Record]], method: str) -> list[str]:
    own = [found[method] for found in runs.values()]
    classes = [record for record in own if record["task"] != "regression"]
    regressions = [record["score"] for record in own if record["task"] == "regression"]
    return [
        f"{statistics.fmean(r['score'] for r in classes):.4f}" if classes else "-",
        f"{statistics.fmean(r['loss'] for r in classes):.4f}" if classes else "-",
        f"{statistics.fmean(regressions):.4f}" if regressions else "-",
    ]


def effects(records: Sequence[Record], methods: Sequence[str]) -> str:
    """Ours against each peer, on every run that the two have finished."""
    rows = []
    for peer in methods:
        if peer == OURS or OURS not in methods:
            continue
        for title, wanted in (("all", None), ("outside the screen", True)):
            unseen = {r["set"] for r in records} - set(SCREEN) if wanted else None
            runs = common_runs(records, [OURS, peer], unseen)
            parts = [
                {run: f for run, f in runs.items() if (f[OURS]["task"] == "regression") is kind}
                for kind in (True, False)
            ]
            cells = []
            for part in (runs, *parts):
                found = paired_effect(part, OURS, peer)
                cells.append(f"{found['mean']:+.1f} +- {found['se']:.1f}" if found else "-")
            found = paired_effect(runs, OURS, peer)
            if found:
                share = [f"{found['median']:+.1f}", f"{100 * found['better']:.0f} %"]
                rows.append([peer, title, str(found["sets"]), *cells, *share])
    headers = ["ours against", "sets", "number", "% error, all", "1 - R2", "log loss"]
    headers += ["median", "sets better"]
    return (
        "\npaired effect, negative = ours has less error\n\n" + harness.format_table(headers, rows)
        if rows
        else ""
    )


def times(records: Sequence[Record], methods: Sequence[str]) -> str:
    """Seconds of ours over a peer's on the same runs, with the goals."""
    if OURS not in methods:
        return ""
    seconds = corrected_seconds(records)
    rows = []
    for peer in methods:
        runs = common_runs(records, [OURS, peer])
        if peer == OURS or not runs:
            continue
        own = [seconds[name, seed, OURS] for name, seed in runs]
        theirs = [seconds[name, seed, peer] for name, seed in runs]
        total = math.fsum(own) / math.fsum(theirs)
        bound = {"realmlp": REALMLP_SHARE, "sklearn_mlp": SKLEARN_TIMES}.get(peer)
        goal = "" if bound is None else f"{bound:g}: {'met' if total <= bound else 'MISSED'}"
        shares = [a / b for a, b in zip(own, theirs, strict=True)]
        rows.append(
            [peer, str(len(runs)), f"{total:.3f}", f"{statistics.median(shares):.3f}", goal]
        )
    headers = ["seconds of ours over", "runs", "of the sums", "median of ratios", "goal (sums)"]
    return (
        "\nCPU seconds of fit, corrected by the calibration\n\n"
        + harness.format_table(headers, rows)
        if rows
        else ""
    )
