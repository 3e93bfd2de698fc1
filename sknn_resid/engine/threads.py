"""How many threads a training loop may use, and giving them back afterwards.

A step of a small network is over before a second thread has woken: below about a millisecond a step
one thread is faster. The limit holds for the loop only.

Thread counts of BLAS and OpenMP belong to the process, not to a caller. When several fits run at
once in threads, "save, set, restore" by each of them would leave the count of whichever ended last;
so the first one in saves, the last one out restores. That counter is the one piece of process-wide
state of the package, because what it guards is process-wide.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController

SINGLE_THREAD_FLOPS = 1e8  # per step: about 1 to 2 ms on one core


@cache
def _controller() -> ThreadpoolController:
    """Handle on the loaded BLAS and OpenMP libraries; finding them takes a millisecond."""
    torch.get_num_threads()  # loads and initialises torch's own pool before it is looked for
    return ThreadpoolController()


class _SharedLimit:
    """One limit for all loops that run at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._restore: object = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        torch.get_num_threads()  # initialise this thread's pool, or the limit would be undone
        controller = _controller()
        with self._lock:
            if self._running == 0:
                self._restore = controller.limit(limits=1)
            else:
                # OpenMP's count is per thread: set it here too; the first one's limit restores BLAS
                controller.select(user_api="openmp").limit(limits=1)
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    self._restore.restore_original_limits()  # type: ignore[attr-defined]
                    self._restore = None


_LIMIT = _SharedLimit()


@contextmanager
def training_threads(flops_per_step: float) -> Iterator[None]:
    """One thread for steps of little work, the caller's own setting for the others."""
    if flops_per_step >= SINGLE_THREAD_FLOPS:
        yield
        return
    with _LIMIT.hold():
        yield
