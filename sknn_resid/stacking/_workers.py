"""Threads for tasks: started when they are needed, kept for the next task, joined at the end.

joblib's own thread pool starts all its threads at each call and does not join them. Here the number
of threads follows from how many tasks really are under way, and none is left behind.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


class _Worker(threading.Thread):
    """Does one piece of work after another, as handed to it."""

    def __init__(self, lock: threading.Lock, work: Callable[[], None] | None) -> None:
        super().__init__(name="sknn_resid-stacked", daemon=True)
        self.wake = threading.Condition(lock)
        self.lock = lock
        self.work = work
        self.leave = False

    def run(self) -> None:
        while True:
            with self.lock:
                while self.work is None and not self.leave:
                    self.wake.wait()
                work, self.work = self.work, None
            if work is None:
                return
            try:
                work()
            except BaseException:  # reported like any thread's; this one is needed further on
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), self)))


class Workers:
    """A pool of threads under its owner's lock, which the caller of each method but `join` holds.

    A piece of work has to end with `rest`, inside the owner's lock: then its thread is free before
    anybody asks for the next one, so that a task that ends can always be followed by another.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._resting: list[_Worker] = []
        self._all: list[_Worker] = []

    def reserve(self) -> None:
        """See that a thread rests: the one that `start_reserved` needs.

        Raises
        ------
        RuntimeError
            If the system gives no more threads.
        """
        if not self._resting:
            self._resting.append(self._new(None))

    def start(self, work: Callable[[], None]) -> None:
        """Have the work done, and leave one thread at rest.

        Raises
        ------
        RuntimeError
            If the system gives no more threads.
        """
        if len(self._resting) < 2:
            self._new(work)
        else:
            self.start_reserved(work)

    def start_reserved(self, work: Callable[[], None]) -> None:
        """Have the work done by a resting thread, the last one if need be."""
        worker = self._resting.pop()
        worker.work = work
        worker.wake.notify()

    def _new(self, work: Callable[[], None] | None) -> _Worker:
        worker = _Worker(self._lock, work)
        worker.start()
        self._all.append(worker)
        return worker

    def rest(self) -> None:
        """Declare the calling thread free for other work."""
        worker = threading.current_thread()
        assert isinstance(worker, _Worker)
        self._resting.append(worker)

    def dismiss(self) -> list[threading.Thread]:
        """Send all threads home; `join` waits for them."""
        leaving, self._all, self._resting = self._all, [], []
        for worker in leaving:
            worker.leave = True
            worker.wake.notify()
        return list(leaving)

    @staticmethod
    def join(leaving: list[threading.Thread]) -> None:
        """Wait until these threads are gone; without the lock."""
        for worker in leaving:
            worker.join()
