"""Where a fit finds others to be trained with: a meeting point that belongs to the calling thread.

The engine does not know who runs many fits, nor how. Whoever does puts a `Meeting` in place for the
thread of each fit (`attending`); `runner.run_jobs` then hands its jobs over instead of training
them, and gets their outcomes back. It is kept per thread and not in a context variable, because a
thread that a fit starts must not inherit it: it is not one of those that the meeting waits for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sknn_resid.engine.job import Outcome, TrainJob


class Meeting(Protocol):
    """Something that trains jobs together with those of other threads."""

    def train(self, jobs: Sequence[TrainJob]) -> list[Outcome]:
        """Outcomes in the order of the jobs; may wait for other threads first."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether what the calling thread's fit belongs to has been ended (by Ctrl-C, say)."""
        ...


class _Here(threading.local):
    """The calling thread's own."""

    meeting: Meeting | None = None
    device: str | None = None


_HERE = _Here()


def current_meeting() -> Meeting | None:
    """The calling thread's meeting, None where fits train by themselves."""
    return _HERE.meeting


def preferred_device() -> str | None:
    """Device that the fits of the calling thread shall use instead of their own ``device``."""
    return _HERE.device


@contextmanager
def attending(meeting: Meeting | None, device: str | None) -> Iterator[None]:
    """Put a meeting and a device in place for the calling thread."""
    before = _HERE.meeting, _HERE.device
    _HERE.meeting, _HERE.device = meeting, device
    try:
        yield
    finally:
        _HERE.meeting, _HERE.device = before
