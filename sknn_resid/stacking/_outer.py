"""Groups of tasks for the workers of another joblib backend, each stacked there.

The workers are those of dask or ray, or processes of this machine where ``n_jobs`` asks for them.
Such a backend runs the tasks of a batch one after another, so nothing would meet. Here tasks are
collected until joblib has dispatched all it dispatches at first, cut into one group a worker, and
each group is one task of the outer backend: on its worker it is a call of ``Parallel`` of its own,
under the backend "stacked". A group's results come back together and are handed to joblib task by
task; what joblib dispatches then is collected again.

Warnings come back with the results and are given out where the call was made, as if the fit had
been there. (joblib leaves them on the worker's stderr.)
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import joblib
from joblib.parallel import BatchedCalls, LokyBackend, ParallelBackendBase, SequentialBackend

from sknn_resid.stacking._backend import (
    MAX_STACK,
    CallBackend,
    Items,
    may_share_steps,
    stacked_backend,
)
from sknn_resid.stacking._memory import bytes_of_task
from sknn_resid.stacking._round import ROUND_BYTES
from sknn_resid.stacking._summary import Member, Unconverged
from sknn_resid.stacking._terms import Failure

Collected = tuple[Items, Callable[[Any], Any], Member | None]

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
    n_processes : int or None
        Workers to ask the outer backend for; None for all that it has.
    """

    supports_retrieve_callback = True

    def __init__(
        self,
        outer: ParallelBackendBase,
        max_stack: int | None,
        device: str | None,
        n_processes: int | None = None,
    ) -> None:
        super().__init__(nesting_level=outer.nesting_level)
        self._outer = outer
        self._n_processes = n_processes
        self._largest = MAX_STACK if max_stack is None else max_stack
        self._device = device
        self._n_workers = 1
        self._lock = threading.RLock()
        self._collected: list[Collected] = []
        self._collecting = False
        self._unconverged = Unconverged()
        self._warnings: list[Warned] = []
        self.default_n_jobs = -1

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """As many tasks as all workers take together, so that joblib dispatches full groups."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        # Kept: results arrive in dask's own thread, which must not ask dask and wait.
        self._n_workers = self._count_workers()
        return self._n_workers * self._largest

    def _count_workers(self) -> int:
        if self._n_processes is not None:
            return self._n_processes
        client = getattr(self._outer, "client", None)
        if client is not None and hasattr(client, "ncores"):  # dask: processes, not threads
            self._outer.effective_n_jobs(n_jobs=-1)  # waits for the first worker
            return max(1, len(client.ncores()))
        return max(1, int(self._outer.effective_n_jobs(n_jobs=-1)))

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        self.parallel = parallel
        n_workers = -1 if self._n_processes is None else self._n_processes
        self._outer.configure(n_jobs=n_workers, parallel=parallel, **options)
        return self.effective_n_jobs(n_jobs)

    def get_nested_backend(self) -> tuple[ParallelBackendBase, None]:
        """Never used: the inner level is decided on the worker."""
        return SequentialBackend(nesting_level=0), None

    def start_call(self) -> None:
        self._collected, self._collecting = [], True
        self._unconverged.begin_call()
        if hasattr(self._outer, "start_call"):
            self._outer.start_call()

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Any:
        assert callback is not None
        with self._lock:
            self._collected.append((func.items, callback, self._unconverged.member(func.items)))
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
        self._give_warnings()

    def _send(self) -> None:
        """Submit what was collected, in groups; under the lock."""
        tasks, self._collected = self._collected, []
        if not tasks:
            return
        # Fits on the same fold go to the same worker: they read one copy of each batch there.
        tasks.sort(key=_fold)
        # Only processes of this machine read X from one place, however many groups there are.
        dividable = self._n_processes is not None and _makes_many_rounds(tasks, self._n_workers)
        for first, stop in pairwise(
            group_bounds(len(tasks), self._n_workers, self._largest, dividable=dividable)
        ):
            self._send_group(tasks[first:stop])

    def _send_group(self, tasks: Sequence[Collected]) -> None:
        plan, objects = _flatten([items for items, _, _ in tasks], self._largest, self._device)
        callbacks = [callback for _, callback, _ in tasks]
        batch = BatchedCalls(
            [(run_group, (plan, *objects), {})], (SequentialBackend(0), 1), self._before_pickling()
        )
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
                (returned,) = self._outer.retrieve_result_callback(out)
            except BaseException as error:
                tell([Failure(error)] * len(callbacks))
                return
            for (_, _, member), one in zip(tasks, returned, strict=True):
                self._note(member, one)
            tell([one.outcome for one in returned])

        def lost(future: Any) -> None:
            # dask's backend keeps an error that no task raised (a worker that died) in the future
            # and calls nobody; joblib would wait for ever.
            error = None if future.cancelled() else future.exception()
            if error is not None:
                tell([Failure(error)] * len(callbacks))

        future = self._outer.submit(batch, callback=arrived)
        if hasattr(future, "add_done_callback"):
            future.add_done_callback(lost)

    def _before_pickling(self) -> Callable[[], None] | None:
        """What joblib's processes need: the folder in which large arrays of this call are shared.

        joblib does this itself, but only where the backend it was given is its own.
        """
        if not isinstance(self._outer, LokyBackend):
            return None
        outer, call = self._outer, self.parallel._id
        return lambda: outer._workers._temp_folder_manager.set_current_context(call)

    def _note(self, member: Member | None, returned: Returned) -> None:
        with self._lock:
            self._warnings += returned.warnings
            if member is not None and returned.ended_early:
                self._unconverged.note(member)

    def _give_warnings(self) -> None:
        """In the thread of the call: only there they meet its filters and its records."""
        with self._lock:
            told, self._warnings = self._warnings, []
        for one in told:
            one.give()

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, Failure):
            raise out.error
        return out

    def abort_everything(self, ensure_ready: bool = True) -> None:
        with self._lock:
            self._collected, self._warnings = [], []
            self._unconverged = Unconverged()
        self._outer.abort_everything(ensure_ready=ensure_ready)

    def stop_call(self) -> None:
        if hasattr(self._outer, "stop_call"):
            self._outer.stop_call()

    def terminate(self) -> None:
        self._outer.terminate()
        self._unconverged.warn()


@dataclass(frozen=True)
class Warned:
    """A warning on its way back; its text, because an instance need not be picklable."""

    text: str
    category: type[Warning]
    filename: str
    lineno: int

    def give(self) -> None:
        """Warn here as there."""
        warnings.warn_explicit(self.text, self.category, self.filename, self.lineno)


@dataclass(frozen=True)
class Returned:
    """What comes back of a task: what its calls returned, what they warned of."""

    outcome: list[Any]
    warnings: list[Warned]
    ended_early: bool = False


@dataclass(frozen=True)
class _Plan:
    """Tasks whose arguments are places in a list of objects.

    dask sends a large argument once and then by reference, but only what it sees as an argument;
    inside a list X would be pickled for every task.
    """

    tasks: list[list[tuple[int, list[int], dict[str, int]]]]
    max_stack: int
    device: str | None


def _fold(task: Collected) -> int:
    _, _, member = task
    return 0 if member is None else member.fold


def _makes_many_rounds(tasks: Sequence[Collected], n_workers: int) -> bool:
    """Whether half of a worker's share is a round or more, so that cutting it up loses nothing."""
    items, _, _ = tasks[0]
    if any(may_share_steps(kwargs) for _, _, kwargs in items):
        return False
    return len(tasks) * bytes_of_task(items) >= 2 * n_workers * ROUND_BYTES


def group_bounds(n_tasks: int, n_workers: int, largest: int, *, dividable: bool) -> list[int]:
    """Where groups begin, and the end of the last one.

    One group a worker, or of the largest size. If ``dividable``, a worker's share is cut into a
    half and two quarters, the halves first: whoever is done sooner takes what is left, when fits or
    cores are unequally fast.
    """
    halves = n_workers if dividable else 0
    n_small = halves * 2 or n_workers
    shares = [2] * halves + [1] * n_small
    done = list(accumulate(shares, initial=0))
    bounds = [n_tasks * d // done[-1] for d in done]
    cut = [0]
    for first, stop in pairwise(bounds):
        n_groups = -(-(stop - first) // largest)
        cut += [first + (stop - first) * g // n_groups for g in range(1, n_groups + 1)]
    return cut


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


def run_group(plan: _Plan, *objects: Any) -> list[Returned]:
    """Run a group of tasks under the backend "stacked"; on the worker.

    Returns
    -------
    list of Returned
        For each task.
    """
    functions = [
        joblib.delayed(_run_task)(
            [
                (objects[f], [objects[a] for a in args], {k: objects[v] for k, v in kwargs.items()})
                for f, args, kwargs in task
            ],
            place,
        )
        for place, task in enumerate(plan.tasks)
    ]
    unconverged = _ByPlace()
    rendezvous = stacked_backend(max(2, plan.max_stack), plan.device).rendezvous
    backend = _GroupCall(rendezvous, nesting_level=0, unconverged=unconverged)
    with _ONE_GROUP_A_PROCESS:
        parallel = joblib.Parallel(backend=backend, n_jobs=-1, pre_dispatch="all")
        results: list[Returned] = parallel(functions)
    return [
        replace(one, ended_early=place in unconverged.places) for place, one in enumerate(results)
    ]


class _GroupCall(CallBackend):
    """The call of a group on its worker, which weighs what is wrapped in `_run_task`."""

    def _calls(self, func: Any) -> Items:
        ((_, (calls, _), _),) = func.items
        wrapped: Items = calls
        return wrapped


class _ByPlace(Unconverged):
    """Which tasks of a group held networks that had not converged; their caller says it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def member(self, items: Items) -> Member:
        _, (_, place), _ = items[0]
        return Member(None, "", place)

    def note(self, member: Member) -> None:
        self.places.add(member.fold)


def _run_task(items: Items, place: int) -> Returned:
    # The rendezvous gives each task warnings of its own, so this records only what it says.
    with warnings.catch_warnings(record=True) as log:
        outcome = [f(*args, **kwargs) for f, args, kwargs in items]
    told = [Warned(str(w.message), w.category, w.filename, w.lineno) for w in log]
    return Returned(outcome, told)
