"""The joblib backend "stacked": every task of a ``Parallel`` is a thread at the rendezvous."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from joblib.parallel import FallbackToBackend, ParallelBackendBase

from sknn_resid.engine.meeting import current_meeting
from sknn_resid.stacking._memory import bytes_of_task
from sknn_resid.stacking._rendezvous import Rendezvous, Seat
from sknn_resid.stacking._summary import Unconverged
from sknn_resid.stacking._terms import Call, Failure, Work

Items = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]

MAX_STACK = 256
SAY_WHEN_TO_STOP = ("max_iter", "tol", "n_iter_no_change", "max_time")


class _OneTaskEach(ParallelBackendBase):
    """What both backends tell joblib: threads of this process, a task at a time."""

    supports_retrieve_callback = True
    uses_threads = True
    supports_sharedmem = True

    def __init__(self, rendezvous: Rendezvous, nesting_level: int | None) -> None:
        super().__init__(nesting_level=nesting_level)
        self.rendezvous = rendezvous
        self.default_n_jobs = rendezvous.max_tasks

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """The size of the stack, whatever ``n_jobs`` says: nothing else would meet."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        return self.rendezvous.max_tasks

    def submit(self, func: Any, callback: Any = None) -> Any:
        raise RuntimeError("Should never be called: `configure` puts another backend in place.")


class StackedBackend(_OneTaskEach):
    """Stands for all calls of ``Parallel`` in its context.

    Each gets a backend of its own, by joblib's own way of falling back to another one: a call's
    tasks must be known from those of a call around it, or beside it.
    """

    def configure(self, n_jobs: int = 1, parallel: Any = None, **unused: Any) -> int:
        """Hand over to a backend of this one ``Parallel``."""
        raise FallbackToBackend(CallBackend(self.rendezvous, self.nesting_level))


def stacked_backend(
    max_stack: int | None = None, device: str | None = None, nesting_level: int | None = None
) -> StackedBackend:
    """A backend that trains whatever is fitted in its context together, in this process.

    Parameters
    ----------
    max_stack : int or None
        Cap on tasks under way; None for 256.
    device : str or None
        Device that the fits use instead of their own ``device``.
    nesting_level : int or None
        joblib's.

    Raises
    ------
    ValueError
        If ``max_stack`` is no positive integer, or the device is not there.
    """
    here = current_meeting()
    if isinstance(here, Seat):  # inside a task: more of the same, not a second rendezvous
        return StackedBackend(here.rendezvous, nesting_level)
    rendezvous = Rendezvous(_checked_size(max_stack), _checked_device(device))
    return StackedBackend(rendezvous, nesting_level)


class CallBackend(_OneTaskEach):
    """The backend of one ``Parallel``: of one call at a time."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        nesting_level: int | None,
        unconverged: Unconverged | None = None,
    ) -> None:
        super().__init__(rendezvous, nesting_level)
        self._call: Call | None = None
        self._unconverged = Unconverged() if unconverged is None else unconverged

    def configure(self, n_jobs: int = 1, parallel: Any = None, **unused: Any) -> int:
        self.parallel = parallel
        return self.effective_n_jobs(n_jobs)

    def get_nested_backend(self) -> tuple[ParallelBackendBase, None]:
        """Calls inside a task meet at the same rendezvous."""
        return StackedBackend(self.rendezvous, (self.nesting_level or 0) + 1), None

    def start_call(self) -> None:
        self._unconverged.begin_call()
        self._call = self.rendezvous.open_call(self._unconverged)

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Any:
        call = self._call
        assert call is not None
        assert callback is not None
        calls = self._calls(func)
        member = self._unconverged.member(func.items)
        shares_steps = any(may_share_steps(kwargs) for _, _, kwargs in calls)
        work = Work(func, callback, bytes_of_task(calls), member, shares_steps)
        return self.rendezvous.submit(call, work)

    def _calls(self, func: Any) -> Items:
        """The calls that a piece of work consists of."""
        calls: Items = func.items
        return calls

    def retrieve_result_callback(self, out: Any) -> Any:
        if isinstance(out, Failure):
            raise out.error
        return out

    @contextmanager
    def retrieval_context(self) -> Iterator[None]:
        assert self._call is not None
        with self.rendezvous.gather(self._call):
            yield

    def abort_everything(self, ensure_ready: bool = True) -> None:
        if self._call is not None:
            self.rendezvous.cancel(self._call)

    def stop_call(self) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        self.rendezvous.close_call(call)
        if call.ended_early:
            self._unconverged = Unconverged()

    def terminate(self) -> None:
        self.stop_call()  # does nothing, unless Ctrl-C came between joblib's lines
        self.rendezvous.dismiss()
        self._unconverged.warn()


def may_share_steps(kwargs: dict[str, Any]) -> bool:
    """Whether a search sets what decides only when its fits end (`engine.alike.trajectory`)."""
    parameters = kwargs.get("parameters")
    if not isinstance(parameters, dict):
        return False
    return any(name.rpartition("__")[2] in SAY_WHEN_TO_STOP for name in parameters)


def _checked_size(max_stack: int | None) -> int:
    if max_stack is None:
        return MAX_STACK
    if isinstance(max_stack, bool) or not isinstance(max_stack, int) or max_stack < 1:
        raise ValueError(
            f"max_stack: must be an integer of at least 1, or None for {MAX_STACK}, "
            f"got {max_stack!r}."
        )
    return max_stack


def _checked_device(device: str | None) -> str | None:
    if device is not None:
        from sknn_resid._device import resolve_device

        resolve_device(device)
    return device
