"""Where tasks that want a network trained wait for each other.

Who takes part
--------------
An *actor* is a thread: that of a *task* (one per piece of work that joblib submits), or that of a
caller of ``joblib.Parallel`` which is no task itself (a *root*). A *call* is one call of a
``Parallel``; its *owner* is the actor that made it, so calls and tasks form a tree.

States of an actor::

    queued --admit--> ready --turn--> running --train()--> waiting --round--> training --> ready
                        ^               |  ^                  ^  (asked: ready, running)     |
                        |               |  '------------------'                              |
                        |               +--gather()--> parent --(call over)--> ready         |
                        |               '--> ended                                           |
                        '--------------------------------------------------------------------'

* **running**: has the *turn*. At most one actor has it. Only who has it runs Python code of a user,
  of scikit-learn or of joblib's callbacks, and the warnings state of the process is its own.
* **ready**: could run at once; first come, first served.
* **waiting**: handed in jobs. **training**: these jobs are in the round that is being trained.
  Training has no turn. A job's callbacks and scores are run by the task's own thread: the training
  thread asks, the task becomes ready, runs, answers, and waits on.
* **parent**: its own call of a ``Parallel`` is under way (joblib's ``retrieval_context``).
* **queued**: submitted. A task may be admitted once its call is *open*, that is, once joblib has
  dispatched all that it dispatches at first; before, the first one would train alone.

The release rule, `_advance`, is asked whenever the turn is free:

1. someone is ready: give him the turn;
2. a round is being trained: wait for its end (or for a question, which is 1);
3. no full round waits, and the next queued task, by rank, fits under the caps: admit it;
4. a parent's call is over: joblib will see it, and the parent be ready, within 10 milliseconds;
5. someone waits: train all that wait, as one round;
6. a task is queued: admit it although it does not fit.

Why nobody waits for ever
-------------------------
Invariant: whenever the lock is free, either someone has the turn, or a round is being trained, or a
parent's call is over, or nobody is ready, waiting or queued in an open call. It holds because
whatever frees the turn, or adds to the ready, the waiting or the queue, asks `_advance` before it
lets go of the lock, and each of 1, 3, 5, 6 hands out the turn or begins a round. So, as long as
user code and training end:

* a ready actor comes to its turn, since 1 precedes all else;
* a waiting one is trained: admissions under 3 are bounded by the caps, returns under 4 by the
  number of parents, and 5 follows;
* a parent comes back. Take a deepest parent that does not. None of its call's tasks is ready or
  waiting for ever (above), none is a parent (it is deepest), none stays queued: the call is open,
  and if all live tasks are parents then 6 admits one of the deepest. So each ends, and joblib,
  polling in the parent, sees it. Further tasks are submitted by the callbacks of those that end,
  before they count as ended. Parents do not count for the cap on tasks, which therefore cannot be
  used up by tasks that wait for tasks which it keeps out;
* a training thread is answered: the asked task is ready. While it answers, its fits are trained
  alone and joblib runs sequentially in it, so its answer waits for nobody. The same holds for
  joblib's callbacks, which run the caller's generator under joblib's own lock.

Locks: this class has one, every condition uses it, and no foreign code is called under it. joblib's
lock is taken before ours (submit), never after.

A call that ends early (an error, a timeout, Ctrl-C in the root's thread) is cancelled: its queued
tasks and those of calls below it are dropped and reported as `TaskCancelled`, those that wait or
train get that exception when they come to their turn, and its owner waits until all have ended. A
round all of whose tasks are cancelled is interrupted.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sknn_resid.engine.meeting import attending
from sknn_resid.stacking._memory import SHARE_OF_FREE, free_bytes
from sknn_resid.stacking._round import (
    Place,
    apart,
    is_full,
    needs_a_solo,
    needs_crowd,
    note_unconverged,
    train_solo,
    train_together,
)
from sknn_resid.stacking._summary import Unconverged
from sknn_resid.stacking._terms import (
    Actor,
    Call,
    Failure,
    HookFailed,
    Question,
    Task,
    TaskCancelled,
    Visit,
    Work,
)
from sknn_resid.stacking._warning_state import WarningState
from sknn_resid.stacking._workers import Workers

if TYPE_CHECKING:
    from sknn_resid.engine.job import Outcome, TrainJob


class Rendezvous:
    """One turn, one queue, one lock; see the text of this module.

    Parameters
    ----------
    max_tasks : int
        Cap on tasks under way, parents not counted.
    device : str or None
        Device that the tasks' fits use instead of their own ``device``.
    """

    def __init__(self, max_tasks: int, device: str | None) -> None:
        self.max_tasks, self.device = max_tasks, device
        self._lock = threading.Lock()
        self._here = threading.local()
        self._workers = Workers(self._lock)
        self._number = itertools.count()
        self._holder: Actor | None = None
        self._ready: deque[Actor] = deque()
        self._queue: list[tuple[tuple[int, int], int, Task]] = []  # heap: by rank, then in order
        self._waiting: list[Visit] = []
        self._training = False
        self._live: set[Task] = set()
        self._live_bytes = 0
        self._calls: set[Call] = set()
        self._byte_cap = 0.0

    # -- calls: joblib's side, in the thread of the call's owner ------------------------------

    def open_call(self, unconverged: Unconverged) -> Call:
        """A ``Parallel`` begins; its thread has the turn until `gather`."""
        actor = self._actor()
        with self._lock:
            took_turn = self._holder is not actor
            if took_turn:
                actor.warnings = None  # the state of a root is the one it comes with
                self._take_turn(actor)
            self._workers.reserve()  # for training, whatever else the system refuses
            if not self._calls:
                self._byte_cap = SHARE_OF_FREE * free_bytes()
            call = Call(self._lock, actor, unconverged, took_turn=took_turn)
            self._calls.add(call)
            return call

    def submit(self, call: Call, work: Work) -> Task:
        """Queue a piece of work; its callback gets the outcome or a `Failure` in its own thread."""
        task = Task(self._lock, call, work)
        with self._lock:
            dropped = task.cancelled
            if not dropped:
                if call.open:
                    self._enqueue(task)
                    self._advance()
                else:
                    call.pending.append(task)
        if dropped:
            work.callback(Failure(TaskCancelled()))
        return task

    @contextmanager
    def gather(self, call: Call) -> Iterator[None]:
        """The owner waits for the call's tasks; entered when the first ones are submitted."""
        # In the owner's name, since another thread may be the reader of a generator (`return_as`).
        owner = call.owner
        take_back = self._holder is owner
        is_parent = take_back and isinstance(owner, Task)
        try:
            with self._lock:
                if owner.cancelled:  # after this, nobody would report the tasks to joblib
                    raise TaskCancelled
                call.parent_waits = is_parent
                call.open = True
                for task in call.pending:
                    self._enqueue(task)
                call.pending = []
                if take_back:
                    self._pass_turn(owner)
                else:
                    self._advance()
            yield
        except BaseException:
            had_turn, take_back = take_back, False
            self.cancel(call)  # a second Ctrl-C ends this wait, and then the turn is not waited for
            take_back = had_turn
            raise
        finally:
            with self._lock:
                call.parent_waits = False
                if take_back:
                    self._take_turn(owner)

    def cancel(self, call: Call) -> None:
        """End a call early, and wait until its tasks have ended."""
        with self._lock:
            call.ended_early = True
            dropped = [task for _, _, task in self._queue if task.cancelled]
            for task in dropped:
                task.home.n_queued -= 1
            self._queue = [entry for entry in self._queue if not entry[2].cancelled]
            heapq.heapify(self._queue)
            for other in self._calls:
                if other is call or other.owner.cancelled:
                    dropped += other.pending
                    other.pending = []
            for visit in [visit for visit in self._waiting if visit.task.cancelled]:
                self._waiting.remove(visit)
                self._ready.append(visit.task)
            self._advance()
        for task in dropped:
            task.work.callback(Failure(TaskCancelled()))
        with self._lock:
            while call.n_live:
                call.empty.wait()

    def close_call(self, call: Call) -> None:
        """The ``Parallel`` is over; a root gives back the turn that it took."""
        with self._lock:
            self._calls.discard(call)
            if call.took_turn and self._holder is call.owner:
                self._pass_turn(call.owner)

    def dismiss(self) -> None:
        """Join all threads, unless calls or tasks are still under way."""
        with self._lock:
            leaving = [] if self._calls or self._live else self._workers.dismiss()
        Workers.join(leaving)

    # -- tasks --------------------------------------------------------------------------------

    def train(self, task: Task, jobs: Sequence[TrainJob]) -> list[Outcome]:
        """Have jobs trained together with those of other tasks; in the task's own thread.

        Raises
        ------
        TaskCancelled
            If the task's call has ended early.
        """
        # Who has no turn is the reader of a generator that its own call fills (`return_as`).
        if needs_a_solo(jobs) or self._holder is not task:
            return self._outcomes(task, jobs, train_solo(jobs, lambda: task.cancelled))
        visit = Visit(task, jobs, needs_crowd(task, jobs))
        with self._lock:
            if task.cancelled:
                raise TaskCancelled
            self._waiting.append(visit)
            self._pass_turn(task)
        while (question := self._next_question(task)) is not None:
            with apart(task, self.device):
                question.ask()
            with self._lock:
                question.done = True
                question.answered.notify()
                if task.questions:
                    self._ready.append(task)
                self._pass_turn(task)
        if visit.error is not None:
            raise visit.error
        return self._outcomes(task, jobs, visit.outcomes)

    def _outcomes(self, task: Task, jobs: Sequence[TrainJob], outcomes: list[Any]) -> list[Outcome]:
        """What came out of a round, in the task's thread."""
        if task.cancelled:
            raise TaskCancelled
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome  # a hook said SystemExit or the like
        note_unconverged(task, jobs, outcomes)
        return outcomes

    def _next_question(self, task: Task) -> Question | None:
        """Wait for the turn: to answer a question, or (None) because the round is over."""
        with self._lock:
            self._wait_for_turn(task)
            return task.questions.popleft() if task.questions else None

    def ask(self, task: Task, function: Callable[[Any], Any], view: Any) -> Any:
        """Run a hook in the task's thread, with its turn; called by a thread that trains."""
        question = Question(self._lock, function, view)
        with self._lock:
            if task.cancelled:  # an Exception, which ends this job and not its stack
                raise HookFailed(TaskCancelled())
            task.questions.append(question)
            if len(task.questions) == 1 and self._holder is not task:
                self._ready.append(task)
                self._advance()
            while not question.done:
                question.answered.wait()
        return question.answer()

    def _run_task(self, task: Task) -> None:
        """All of a task, in a worker's thread; it has been given the turn."""
        with self._lock:
            self._wait_for_turn(task)
        self._here.actor = task
        outcome: Any = None
        try:
            if task.cancelled:
                raise TaskCancelled
            with attending(Seat(self, task), self.device):
                outcome = task.home.context.copy().run(task.work.function)
        except TaskCancelled as error:
            outcome = Failure(error)
        except BaseException as error:
            # joblib drops the traceback, and with it where in the task it happened
            error.add_note("".join(traceback.format_exception(error)))
            outcome = Failure(error)
        try:
            # joblib goes on with the caller's generator in here, so its warnings are the owner's.
            if task.home.owner.warnings is not None:
                task.home.owner.warnings.restore()
            with suppress(TaskCancelled), apart(task, self.device):
                task.work.callback(outcome)
        finally:
            del outcome
            self._here.actor = None
            with self._lock:
                self._live.discard(task)
                self._live_bytes -= task.work.n_bytes
                task.home.n_live -= 1
                task.home.empty.notify_all()
                self._workers.rest()
                self._holder = None
                self._advance()

    # -- the turn: all of it under the lock ---------------------------------------------------

    def _actor(self) -> Actor:
        """The actor of the calling thread; a root if it is no task's."""
        actor: Actor | None = getattr(self._here, "actor", None)
        if actor is None:
            actor = self._here.actor = Actor(self._lock, None)
        return actor

    def _take_turn(self, actor: Actor) -> None:
        if self._holder is not actor:
            self._ready.append(actor)
            self._advance()
            self._wait_for_turn(actor)

    def _wait_for_turn(self, actor: Actor) -> None:
        try:
            while self._holder is not actor:
                actor.wake.wait()
        except BaseException:  # Ctrl-C: do not be given a turn that nobody would use
            if actor in self._ready:
                self._ready.remove(actor)
            if self._holder is actor:
                self._holder = None
                self._advance()
            raise
        if actor.warnings is not None:
            actor.warnings.restore()

    def _pass_turn(self, actor: Actor) -> None:
        actor.warnings = WarningState.here()
        self._holder = None
        self._advance()

    def _advance(self) -> None:
        """The release rule."""
        if self._holder is not None:
            return
        if self._ready:
            self._holder = self._ready.popleft()
            self._holder.wake.notify()
            return
        if self._training:
            return
        parents = [call for call in self._calls if call.parent_waits]
        if self._queue and self._fits(self._queue[0][2], len(parents)):
            try:
                self._admit()
                return
            except RuntimeError:  # no more threads: train those that wait, they will end
                if not self._waiting:
                    raise
        if any(call.is_over for call in parents):
            return
        if self._waiting:
            self._begin_round()
        elif self._queue:
            self._admit()

    def _enqueue(self, task: Task) -> None:
        task.home.n_queued += 1
        heapq.heappush(self._queue, (task.rank, next(self._number), task))

    def _fits(self, task: Task, n_parents: int) -> bool:
        if len(self._live) - n_parents >= self.max_tasks:
            return False
        under = self._live_bytes + task.work.n_bytes <= self._byte_cap
        return under and not is_full(self._waiting)

    def _admit(self) -> None:
        _, _, task = self._queue[0]
        task.warnings = task.home.owner.warnings
        self._workers.start(lambda: self._run_task(task))
        heapq.heappop(self._queue)
        task.home.n_queued -= 1
        self._live.add(task)
        self._live_bytes += task.work.n_bytes
        task.home.n_live += 1
        self._holder = task

    # -- rounds -------------------------------------------------------------------------------

    def _begin_round(self) -> None:
        visits, self._waiting = self._waiting, []
        self._training = True
        self._workers.start_reserved(lambda: self._train_round(visits))

    def _train_round(self, visits: list[Visit]) -> None:
        """Train what all these tasks wait for; in a thread of its own, without the turn."""
        error: BaseException | None = None
        try:
            train_together(visits, self.ask)
        except BaseException as raised:
            error = raised
        with self._lock:
            self._workers.rest()
            self._training = False
            for visit in visits:
                visit.error = error
                self._ready.append(visit.task)
            self._advance()


class Seat(Place):
    """A task's place at the rendezvous: the `engine.meeting.Meeting` of its thread."""

    def __init__(self, rendezvous: Rendezvous, task: Task) -> None:
        self.rendezvous, self._task = rendezvous, task

    def train(self, jobs: Sequence[TrainJob]) -> list[Outcome]:
        return self.rendezvous.train(self._task, jobs)
