"""Stacks on all cores at once: threads that take the next stack from a list.

numpy and torch release the interpreter while they compute, and nothing has to be sent anywhere as
it would between processes. Compiled steps do so for all batches of an epoch. Between two calls of a
step that is not compiled a thread needs the interpreter, though: with calls of some 20 microseconds
two threads wait more than they work, so that `runner` uses them from some amount of work on
(`runner.THREAD_FLOPS`). The calling thread works as well.

Tried without gain: shorter switch intervals, threads bound to cores, stacks of twice the size, and
the threads of BLAS and OpenMP within a call (3 to 30 times slower on two busy cores).
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable

import torch


def available_threads() -> int:
    """Cores that this thread may use: those of the process, and no more than torch was given.

    So ``OMP_NUM_THREADS``, ``torch.set_num_threads`` and ``threadpoolctl`` all limit it, and inside
    the processes of joblib it is what joblib has allotted to them.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    return max(1, min(cores, torch.get_num_threads()))


class Interrupt:
    """One flag that ends all stacks of a call: set by Ctrl-C, or by whoever the caller asks.

    Parameters
    ----------
    asked : callable or None
        ``asked() -> bool``, called from any of the threads.
    """

    def __init__(self, asked: Callable[[], bool] | None) -> None:
        self._asked = asked
        self._flag = threading.Event()

    def set(self) -> None:
        """End all stacks at their next look."""
        self._flag.set()

    @property
    def is_set(self) -> bool:
        return self._flag.is_set()

    def poll(self) -> None:
        """Raise KeyboardInterrupt if the training is to end."""
        if not self._flag.is_set() and self._asked is not None and self._asked():
            self._flag.set()
        if self._flag.is_set():
            raise KeyboardInterrupt


def run_all(tasks: list[Callable[[], None]], n_workers: int, interrupt: Interrupt) -> None:
    """Call every task, ``n_workers`` at a time, in this thread and in helpers that end with it.

    Tasks begin in their order. Ctrl-C, which Python gives to the main thread, sets the flag; tasks
    that have not begun by then are left out. Any other exception that a task raises does the same
    and is raised here, once no helper runs any more.
    """
    todo = iter(tasks)
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not interrupt.is_set:
                with lock:
                    task = next(todo, None)
                if task is None:
                    return
                task()
        except KeyboardInterrupt:
            interrupt.set()
        except BaseException as error:
            errors.append(error)
            interrupt.set()

    def help_out(ended: threading.Event) -> None:
        try:
            work()
        finally:
            ended.set()

    helpers: list[tuple[threading.Thread, threading.Event]] = []
    try:
        for _ in range(min(n_workers, len(tasks)) - 1):
            # Each with a copy of the caller's context: numpy's error state is part of it.
            context, ended = contextvars.copy_context(), threading.Event()
            helper = threading.Thread(
                target=context.run, args=(help_out, ended), name="sknn_resid", daemon=True
            )
            helpers.append((helper, ended))
            helper.start()
        work()
    finally:
        _join(helpers, interrupt)
    if errors:
        raise errors[0]


def _join(helpers: list[tuple[threading.Thread, threading.Event]], interrupt: Interrupt) -> None:
    """Wait for the helpers; a Ctrl-C on the way makes them end sooner, and is not lost.

    Before Python 3.13 a Ctrl-C within ``Thread.join`` makes a running thread count as stopped. So
    the waiting is done with events, and the join is left with the last moments of a thread.
    """
    for helper, ended in helpers:
        if helper.ident is None:
            continue  # Ctrl-C came before it was started
        while not ended.is_set():
            try:
                ended.wait()
            except KeyboardInterrupt:
                interrupt.set()
        helper.join()
