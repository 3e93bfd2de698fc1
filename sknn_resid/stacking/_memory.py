"""How much memory is free, and how much a task may take: tasks are admitted by bytes.

A task of a search keeps the training and the test part of its fold, copied out of X, until it ends.
Together they are as large as X, so what the task was handed is what it will hold; a transformer
before the network may copy it once or twice more, which is why only a quarter of the free memory is
given away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHARE_OF_FREE = 0.25


def free_bytes() -> float:
    """Memory that can be used without swapping; infinity where the system does not say."""
    found = [value for value in (_available(), _left_in_group()) if value is not None]
    return float(min(found, default=float("inf")))


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:  # no Linux: a half of what is built in is a careful guess
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_group() -> int | None:
    """What a container's limit leaves (control groups, version 2)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii").strip()
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None


def bytes_of_task(calls: Iterable[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> int:
    """Bytes of all distinct arrays, matrices and frames among the arguments of joblib's calls."""
    seen: dict[int, int] = {}
    for _, args, kwargs in calls:
        for value in (*args, *kwargs.values()):
            if id(value) not in seen:
                seen[id(value)] = bytes_of(value)
    return sum(seen.values())


def bytes_of(value: Any) -> int:
    """Bytes of an array, a sparse matrix, a tensor or a frame; 0 for anything else."""
    usage = getattr(value, "memory_usage", None)  # pandas
    if callable(usage):
        total = usage(index=False)
        return int(total if isinstance(total, int) else total.sum())
    estimated = getattr(value, "estimated_size", None)  # polars
    if callable(estimated):
        return int(estimated())
    if hasattr(value, "format") and hasattr(value, "nnz"):  # scipy
        parts = ("data", "indices", "indptr", "row", "col")
        return sum(int(getattr(getattr(value, part, None), "nbytes", 0)) for part in parts)
    size = getattr(value, "nbytes", 0)
    return int(size) if isinstance(size, int) else 0
