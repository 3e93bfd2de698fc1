"""What the rendezvous keeps about calls, tasks and those who wait."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sknn_resid.stacking._summary import Member, Unconverged
from sknn_resid.stacking._warning_state import WarningState

if TYPE_CHECKING:
    from sknn_resid.engine.job import Outcome, TrainJob


class TaskCancelled(BaseException):
    """The call that this task belongs to has ended early; nobody waits for its result.

    Not an `Exception`, so that ``error_score`` does not take it for a failed fit.
    """


class HookFailed(Exception):
    """What a job's own callback or score raised, in its own thread."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(repr(error))
        self.error = error


@dataclass(frozen=True, eq=False)
class Failure:
    """Outcome of a task that raised."""

    error: BaseException


@dataclass(frozen=True, eq=False)
class Work:
    """What joblib submits.

    Attributes
    ----------
    function : callable
    callback : callable
        Gets what the function returned, or a `Failure`.
    n_bytes : int
        Of memory that the work is taken to hold while it runs.
    member : Member or None
        Which candidate and fold of a search it is.
    shares_steps : bool
        Whether other tasks of the call may take the very same steps, for fewer or more epochs.
    """

    function: Callable[[], Any]
    callback: Callable[[Any], Any]
    n_bytes: int
    member: Member | None
    shares_steps: bool = False


class Actor:
    """A thread that takes turns: that of a task, or one that runs a joblib call."""

    def __init__(self, lock: threading.Lock, call: Call | None) -> None:
        self.wake = threading.Condition(lock)
        self.warnings: WarningState | None = None
        self.call = call
        self.questions: deque[Question] = deque()

    @property
    def cancelled(self) -> bool:
        """Whether the call of this task, or one around it, has ended early."""
        call = self.call
        while call is not None:
            if call.ended_early:
                return True
            call = call.owner.call
        return False


class Call:
    """One call of a ``joblib.Parallel``, made by its owner's thread."""

    def __init__(
        self, lock: threading.Lock, owner: Actor, unconverged: Unconverged, *, took_turn: bool
    ) -> None:
        self.owner, self.unconverged = owner, unconverged
        self.depth: int = 0 if owner.call is None else owner.call.depth + 1
        # A task sees the context variables (numpy's errstate is one) of the one who called.
        self.context = contextvars.copy_context()
        self.took_turn = took_turn
        self.open = False
        self.parent_waits = False  # the owner is a task, and its thread is in `gather`
        self.ended_early = False
        self.pending: list[Task] = []
        self.n_queued = 0
        self.n_live = 0
        self.empty = threading.Condition(lock)

    @property
    def is_over(self) -> bool:
        """Whether all tasks have ended; more would have been submitted before that."""
        return self.open and not self.n_queued and not self.n_live


class Task(Actor):
    """One piece of work that joblib submitted."""

    def __init__(self, lock: threading.Lock, call: Call, work: Work) -> None:
        super().__init__(lock, call)
        self.work = work

    @property
    def rank(self) -> tuple[int, int]:
        """Lowest first: the deepest call, and in it those that hold the same rows together."""
        return -self.home.depth, 0 if self.work.member is None else self.work.member.fold

    @property
    def home(self) -> Call:
        """The call that the task belongs to."""
        assert self.call is not None
        return self.call


class Question:
    """A callback or score that a training thread wants the task's own thread to run."""

    def __init__(self, lock: threading.Lock, function: Callable[[Any], Any], view: Any) -> None:
        self._function, self._view = function, view
        self.answered = threading.Condition(lock)
        self.done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def ask(self) -> None:
        """Run the hook; in the task's own thread."""
        try:
            self._value = self._function(self._view)
        except BaseException as error:
            self._error = error

    def answer(self) -> Any:
        """What the hook returned; in the training thread.

        Raises
        ------
        HookFailed
            If the hook raised.
        """
        if self._error is not None:
            raise HookFailed(self._error)
        return self._value


@dataclass(eq=False)
class Visit:
    """A task's jobs at the rendezvous, and what became of them.

    ``needs_crowd``: they are trained faster among many others than among few.
    """

    task: Task
    jobs: Sequence[TrainJob]
    needs_crowd: bool
    outcomes: list[Outcome] = field(default_factory=list)
    error: BaseException | None = None
