"""What every benchmark file shares: pinned threads, interleaved timing, losses, tables, JSON.

How a measurement is made
-------------------------
* One process per thread count. The parent measures nothing; it starts a worker with
  OMP_NUM_THREADS, OPENBLAS_NUM_THREADS and MKL_NUM_THREADS set, and the worker limits the loaded
  pools once more through threadpoolctl and ``torch.set_num_threads``.
* Contestants take turns within a round, and each round starts with another contestant, so that a
  machine that slows down slows all of them down. Only ratios inside one run mean anything.
* One thread is timed in CPU seconds of the process, because a shared machine makes wall time
  meaningless; several threads and accelerators are timed in wall seconds.
* The figure is the median over rounds. The range printed beside a ratio is the lowest and the
  highest ratio of any single round.
* The loss beside a time is computed here, by one function, from the ``predict_proba`` of each
  contestant on the same rows.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES = ("sknn-resid", "numpy", "scipy", "scikit-learn", "torch", "skorch", "threadpoolctl")


# ---- processes and threads ---------------------------------------------------------------------


def run_worker(script: str | Path, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """Run ``script`` as a worker with ``threads`` threads and return what it measured.

    Parameters
    ----------
    script : path
        A benchmark file that understands ``--worker-output PATH``.
    arguments : sequence of str
        Its other arguments.
    threads : int
        Thread count of every BLAS and OpenMP pool of the worker.

    Returns
    -------
    dict
        The JSON object the worker wrote: ``{"rows": [...], "notes": [...]}``.
    """
    environment = dict(os.environ) | dict.fromkeys(THREAD_VARIABLES, str(threads))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = [sys.executable, str(script), *arguments, "--worker-output", str(path)]
        subprocess.run(command, env=environment, check=True)
        return json.loads(path.read_text())


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Limit torch and every loaded BLAS and OpenMP pool to ``threads`` threads."""
    import numpy  # noqa: F401  (a pool has to be loaded before it can be limited)
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        yield


def clock_for(threads: int, device: str = "cpu") -> tuple[str, Callable[[], float]]:
    """Name and function of the clock that suits a thread count and a device."""
    if device == "cuda":
        import torch

        def synchronised() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return "wall", synchronised
    if threads == 1:
        return "cpu", time.process_time
    return "wall", time.perf_counter


# ---- timing ------------------------------------------------------------------------------------


def time_interleaved(
    contestants: dict[str, Callable[[], Any]],
    *,
    repeats: int,
    clock: Callable[[], float],
    calls: int = 1,
    warm_up: bool = False,
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time the contestants in turns.

    Parameters
    ----------
    contestants : dict
        Name to a function without arguments.
    repeats : int
        Rounds; every contestant runs once a round, each round begins with another one.
    clock : callable
        Returns seconds.
    calls : int, default=1
        Calls of a contestant inside one measurement; the time is divided by it.
    warm_up : bool, default=False
        Whether each contestant is called once, untimed, before the first round.

    Returns
    -------
    seconds : dict
        Name to the seconds of one call, one figure a round.
    results : dict
        Name to what the last call returned.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    results: dict[str, Any] = {}
    if warm_up:
        for run in contestants.values():
            run()
    # The objects of the imported libraries are set aside, or each collection walks all of them.
    gc.collect()
    gc.freeze()
    try:
        for turn in range(repeats):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                run = contestants[name]
                results.pop(name, None)
                gc.collect()  # nobody pays for another contestant's garbage
                start = clock()
                for _ in range(calls):
                    result = run()
                seconds[name].append((clock() - start) / calls)
                results[name] = result
    finally:
        gc.unfreeze()
    return seconds, results


def ratio(seconds: dict[str, list[float]], name: str, reference: str) -> dict[str, float] | None:
    """How many times faster ``name`` is than ``reference``: by medians, and the range by rounds.

    None where one of the two did not run, or for the reference itself.
    """
    if name == reference or not seconds.get(name) or not seconds.get(reference):
        return None
    rounds = [
        slow / fast for slow, fast in zip(seconds[reference], seconds[name], strict=True) if fast
    ]
    median = statistics.median(seconds[name])
    if not rounds or not median:  # below the clock's resolution
        return None
    return {
        "median": statistics.median(seconds[reference]) / median,
        "low": min(rounds),
        "high": max(rounds),
    }


# ---- the loss reached --------------------------------------------------------------------------


def cross_entropy(codes: Any, probabilities: Any) -> float:
    """Mean of -log p of the true class, in float64.

    Parameters
    ----------
    codes : array of shape (n_samples,)
        Class numbers 0 .. n_classes - 1.
    probabilities : array of shape (n_samples, n_classes), or (n_samples,) for the second of two
        What ``predict_proba`` returned. Clipped at float32's epsilon whatever its dtype, so that
        a saturated probability counts the same for every contestant.
    """
    import numpy as np

    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim == 1:
        p = np.column_stack([1 - p, p])
    eps = float(np.finfo(np.float32).eps)
    picked = np.clip(p[np.arange(len(codes)), codes], eps, 1 - eps)
    return float(-np.log(picked).mean())


def agrees(value: float, reference: float, tolerance: float = 0.01) -> bool:
    """Whether two losses are finite and agree within ``tolerance``, relative to the reference."""
    return math.isfinite(value) and abs(value - reference) <= tolerance * abs(reference)


# ---- equal start and equal batches -------------------------------------------------------------


def initial_weights(layers: Sequence[int], seed: int) -> tuple[list[Any], list[Any], Any]:
    """Draw scikit-learn's initial weights, and return the random state as it stands afterwards.

    scikit-learn draws, layer by layer, coefficients and then intercepts uniformly from
    [-b, b], b = sqrt(6 / (fan_in + fan_out)), and shuffles with the same random state. Handing
    both to the other contestants gives all of them the same start and the same batches.
    """
    import numpy as np

    state = np.random.RandomState(seed)
    coefs, intercepts = [], []
    for fan_in, fan_out in itertools.pairwise(layers):
        bound = np.sqrt(6 / (fan_in + fan_out))
        coefs.append(state.uniform(-bound, bound, (fan_in, fan_out)))
        intercepts.append(state.uniform(-bound, bound, fan_out))
    return coefs, intercepts, state


def sequential(coefs: Sequence[Any], intercepts: Sequence[Any], dtype: str) -> Any:
    """Build ``nn.Sequential(Linear, ReLU, ..., Linear)`` with the given weights."""
    import torch
    from torch import nn

    parts: list[nn.Module] = []
    for coef, intercept in zip(coefs, intercepts, strict=True):
        linear = nn.Linear(*coef.shape, dtype=getattr(torch, dtype))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(coef.T.copy()))
            linear.bias.copy_(torch.from_numpy(intercept))
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


# ---- reporting ---------------------------------------------------------------------------------


def cpu_name() -> str:
    """Model name of the processor, as far as the system tells it."""
    for line in _cpu_info():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def has_bfloat16_products() -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware (AVX-512 BF16 or AMX)."""
    flags = " ".join(line for line in _cpu_info() if line.startswith("flags")).split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")  # absent outside Linux
    return path.read_text().splitlines() if path.exists() else []


def environment() -> dict[str, Any]:
    """Versions, machine, date and commit: what a figure needs beside it to mean something."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") or "unknown",
        # The results themselves are rewritten by a run; they do not make the code another one.
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ".", ":!*/results/*")),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions,
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def format_ratio(value: dict[str, float] | None) -> str:
    """Write a ratio as ``3.41x (3.20 to 3.62)``; ``-`` for None."""
    if value is None:
        return "-"
    return f"{value['median']:.2f}x ({value['low']:.2f} to {value['high']:.2f})"


def format_seconds(seconds: float) -> str:
    """Write seconds with the unit that leaves one to three digits before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds / 1e-6:.3g} us"


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a plain text table; every column as wide as its widest cell."""
    lines = [list(headers), *[list(row) for row in rows]]
    widths = [max(len(line[j]) for line in lines) for j in range(len(headers))]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in text)


def write_results(path: Path, topic: str, rows: list[dict[str, Any]], notes: list[str]) -> None:
    """Write the rows of a run to ``path`` as JSON, with the environment beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"topic": topic, "environment": environment(), "notes": notes, "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")


def add_common_options(parser: argparse.ArgumentParser, topic: str) -> None:
    """Add the options every benchmark has."""
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS / f"{topic}.json",
        help="where the JSON goes (default: %(default)s)",
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--worker-output", type=Path, help=argparse.SUPPRESS)
