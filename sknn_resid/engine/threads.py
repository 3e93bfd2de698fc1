"""How many threads a training loop may use, and giving them back afterwards.

A step of a small network is over before a second thread has woken: below about a millisecond a step
one thread is faster. The limit holds for the loop only.

OpenMP's thread count belongs to the calling thread, BLAS's to the process. When several fits run at
once in threads, "save, set, restore" by each of them would leave BLAS at the count of whichever
ended last; so the first one in saves, the last one out restores. That counter is the one piece of
process-wide state of the package, because what it guards is process-wide.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

SINGLE_THREAD_FLOPS = 1e8  # per step: about 1 to 2 ms on one core


@cache
def _controllers() -> tuple[ThreadpoolController, ThreadpoolController]:
    """Handles on the loaded BLAS and OpenMP libraries; finding them takes a millisecond."""
    torch.get_num_threads()  # loads and initialises torch's own pool before it is looked for
    every = ThreadpoolController()
    return every.select(user_api="blas"), every.select(user_api="openmp")


class _SharedLimit:
    """One limit on BLAS for all loops that run at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._restore: Any = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        torch.get_num_threads()  # initialise this thread's pool, or the limit would be undone
        blas, openmp = _controllers()
        # OpenMP's count belongs to the calling thread: each loop sets and restores its own. It is
        # the outer limit because threadpoolctl lets go of its claim on BLAS (one thread at a time
        # may set it) when a ``with`` limit of that thread ends.
        with openmp.limit(limits=1):
            with self._lock:
                if self._running == 0:
                    self._restore = blas.limit(limits=1)
                self._running += 1
            try:
                yield
            finally:
                with self._lock:
                    self._running -= 1
                    if self._running == 0:
                        self._restore.restore_original_limits()
                        self._restore = None


_LIMIT = _SharedLimit()


@contextmanager
def training_threads(flops_per_step: float, *, numpy_products: bool) -> Iterator[None]:
    """One thread for steps of little work, one pool of threads for the others.

    Parameters
    ----------
    flops_per_step : float
    numpy_products : bool
        Whether the matrix products are numpy's (then BLAS's threads do the work) or torch's.
    """
    if flops_per_step < SINGLE_THREAD_FLOPS:
        with _LIMIT.hold():
            yield
    elif numpy_products:
        with blas_threads_only():
            yield
    else:
        yield


@contextmanager
def blas_threads_only() -> Iterator[None]:
    """Leave the cores to BLAS: torch's elementwise operations run on the calling thread.

    numpy's BLAS and torch's OpenMP keep a pool of threads each, whose members spin for a while
    after every call. Taking turns, the two pools fight for the cores: a prediction of 1,000 rows
    took 20 times longer on two threads than on one. The products are nine tenths of the work, so
    they get the threads.
    """
    torch.get_num_threads()  # initialise this thread's pool, or the limit would be undone
    with _controllers()[1].limit(limits=1):
        yield
