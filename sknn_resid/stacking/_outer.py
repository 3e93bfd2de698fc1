"""Groups of tasks for the workers of another joblib backend (dask, ray), each stacked there.

Such a backend runs the tasks of a batch one after another, so nothing would meet. Here tasks are
collected until joblib has dispatched all it dispatches at first, cut into one group a worker, and
each group is one task of the outer backend: on its worker it is a call of ``Parallel`` of its own,
under the backend "stacked". A group's results come back together and are handed to joblib task by
task; what joblib dispatches then is collected again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import joblib
from joblib.parallel import BatchedCalls, ParallelBackendBase, SequentialBackend

from sknn_resid.stacking._backend import MAX_STACK, stacked_backend
from sknn_resid.stacking._terms import Failure

Items = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]

# Warnings and the turn belong to a process: a worker with several threads takes one group at a
# time. (Each uses all the cores that the worker has.)
_ONE_GROUP_A_PROCESS = threading.Lock()


def reaches_other_machines(backend: ParallelBackendBase) -> bool:
    """Whether a backend sends tasks elsewhere: it is none of joblib's own, nor ours."""
    home = type(backend).__module__
    return not home.startswith(("joblib._parallel_backends", "sknn_resid."))


class GroupBackend(ParallelBackendBase):
    """An outer backend whose workers get groups of tasks.

    Parameters
    ----------
    outer : ParallelBackendBase
    max_stack : int or None
        Largest group; None for 256.
    device : str or None
        Device that the workers' fits use; it must be there on the workers.
    """

    supports_retrieve_callback = True

    def __init__(
        self, outer: ParallelBackendBase, max_stack: int | None, device: str | None
    ) -> None:
        super().__init__(nesting_level=outer.nesting_level)
        self._outer = outer
        self._largest = MAX_STACK if max_stack is None else max_stack
        self._device = device
        self._n_workers = 1
        self._lock = threading.RLock()
        self._collected: list[tuple[Items, Callable[[Any], Any]]] = []
        self._collecting = False
        self.default_n_jobs = -1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As many tasks as all workers take together, so that joblib dispatches full groups."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        # Kept: results arrive in dask's own thread, which must not ask dask and wait.
        self._n_workers = self._count_workers()
        return self._n_workers * self._largest

    def _count_workers(self) -> int:
        client = getattr(self._outer, "client", None)
        if client is not None and hasattr(client, "ncores"):  # dask: processes, not threads
            self._outer.effective_n_jobs(n_jobs=-1)  # waits for the first worker
            return max(1, len(client.ncores()))
        return max(1, int(self._outer.effective_n_jobs(n_jobs=-1)))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        self.parallel = parallel
        self._outer.configure(n_jobs=-1, parallel=parallel, **options)
        return self.effective_n_jobs(n_jobs)

    def get_nested_backend(self) -> tuple[ParallelBackendBase, None]:
        """Never used: the inner level is decided on the worker."""
        return SequentialBackend(nesting_level=0), None

    def start_call(self) -> None:
        self._collected, self._collecting = [], True
        if hasattr(self._outer, "start_call"):
            self._outer.start_call()

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Any:
        assert callback is not None
        with self._lock:
            self._collected.append((func.items, callback))
            if not self._collecting:
                self._send()
        return None

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        with self._lock:
            self._collecting = False
            self._send()
        with self._outer.retrieval_context():
            yield

    def _send(self) -> None:
        """Submit what was collected, in groups of equal size; under the lock."""
        tasks, self._collected = self._collected, []
        if not tasks:
            return
        n_groups = max(self._n_workers, -(-len(tasks) // self._largest))
        n_groups = min(n_groups, len(tasks))
        bounds = [len(tasks) * g // n_groups for g in range(n_groups + 1)]
        for first, stop in pairwise(bounds):
            self._send_group(tasks[first:stop])

    def _send_group(self, tasks: Sequence[tuple[Items, Callable[[Any], Any]]]) -> None:
        plan, objects = _flatten([items for items, _ in tasks], self._largest, self._device)
        callbacks = [callback for _, callback in tasks]
        batch = BatchedCalls([(run_group, (plan, *objects), {})], (SequentialBackend(0), 1))
        told = threading.Lock()

        def tell(outcomes: Sequence[Any]) -> None:
            if not told.acquire(blocking=False):  # once only
                return
            with self._lock:
                self._collecting = True
            try:
                for callback, outcome in zip(callbacks, outcomes, strict=True):
                    callback(outcome)
            finally:
                with self._lock:
                    self._collecting = False
                    self._send()

        def arrived(out: Any) -> None:
            try:
                (outcomes,) = self._outer.retrieve_result_callback(out)
            except BaseException as error:
                outcomes = [Failure(error)] * len(callbacks)
            tell(outcomes)

        def lost(future: Any) -> None:
            # dask's backend keeps an error that no task raised (a worker that died) in the future
            # and calls nobody; joblib would wait for ever.
            error = None if future.cancelled() else future.exception()
            if error is not None:
                tell([Failure(error)] * len(callbacks))

        future = self._outer.submit(batch, callback=arrived)
        if hasattr(future, "add_done_callback"):
            future.add_done_callback(lost)

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, Failure):
            raise out.error
        return out

    def abort_everything(self, ensure_ready: bool = True) -> None:
        with self._lock:
            self._collected = []
        self._outer.abort_everything(ensure_ready=ensure_ready)

    def stop_call(self) -> None:
        if hasattr(self._outer, "stop_call"):
            self._outer.stop_call()

    def terminate(self) -> None:
        self._outer.terminate()


@dataclass(frozen=True)
class _Plan:
    """Tasks whose arguments are places in a list of objects.

    dask sends a large argument once and then by reference, but only what it sees as an argument;
    inside a list X would be pickled for every task.
    """

    tasks: list[list[tuple[int, list[int], dict[str, int]]]]
    max_stack: int
    device: str | None


def _flatten(
    groups: Sequence[Items], max_stack: int, device: str | None
) -> tuple[_Plan, list[Any]]:
    places: dict[int, int] = {}
    objects: list[Any] = []

    def place(value: Any) -> int:
        if id(value) not in places:
            places[id(value)] = len(objects)
            objects.append(value)
        return places[id(value)]

    tasks = [
        [
            (place(f), [place(a) for a in args], {k: place(v) for k, v in kwargs.items()})
            for f, args, kwargs in items
        ]
        for items in groups
    ]
    return _Plan(tasks, max_stack, device), objects


def run_group(plan: _Plan, *objects: Any) -> list[list[Any]]:
    """Run a group of tasks under the backend "stacked"; on the worker.

    Returns
    -------
    list of list
        What each task returned.
    """
    functions = [
        joblib.delayed(_run_task)(
            [
                (objects[f], [objects[a] for a in args], {k: objects[v] for k, v in kwargs.items()})
                for f, args, kwargs in task
            ]
        )
        for task in plan.tasks
    ]
    backend = stacked_backend(max(2, plan.max_stack), plan.device)
    with _ONE_GROUP_A_PROCESS:
        parallel = joblib.Parallel(backend=backend, n_jobs=-1, pre_dispatch="all")
        results: list[list[Any]] = parallel(functions)
    return results


def _run_task(items: Items) -> list[Any]:
    return [f(*args, **kwargs) for f, args, kwargs in items]
