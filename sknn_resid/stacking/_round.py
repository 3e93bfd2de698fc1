"""One round of training: the jobs of all tasks that wait, each with hooks that run at home."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from joblib import parallel_config
from joblib.parallel import SequentialBackend

from sknn_resid.engine.meeting import attending
from sknn_resid.stacking._terms import Actor, HookFailed, Task, TaskCancelled, Visit

if TYPE_CHECKING:
    from sknn_resid.engine.job import Outcome, TrainJob

Ask = Callable[[Task, Callable[[Any], Any], Any], Any]

# What the tasks of a full round hold. 100 fits on 20,000 x 30 that all wait hold 270 MB: each of
# their pages is touched for the first time, which took longer than what more company saves.
ROUND_BYTES = 32 << 20
# A full round keeps every core busy, and large data do not make it a round of one.
FITS_PER_CORE, FEWEST_FITS = 4, 8


def needs_a_solo(jobs: Sequence[TrainJob]) -> bool:
    """Whether these jobs gain nothing from company: scipy minimises one network at a time."""
    from sknn_resid.engine.spec import OptimizerKind

    return all(job.train.optimizer.kind is OptimizerKind.LBFGS for job in jobs)


def needs_crowd(task: Task, jobs: Sequence[TrainJob]) -> bool:
    """Whether these jobs are trained faster among many others than among few.

    Compiled steps go through one model after another: what they gain from company is shared memory.
    Jobs that differ in the number of their epochs only are one network instead, so all of them have
    to be there, and an accelerator is filled by many.
    """
    from sknn_resid.engine.compiled import compiles

    return task.work.shares_steps or not all(compiles([job]) for job in jobs)


def is_full(visits: Sequence[Visit]) -> bool:
    """Whether these make a round, although more tasks could be admitted."""
    if sum(visit.task.work.n_bytes for visit in visits) < ROUND_BYTES:
        return False
    from sknn_resid.engine.workers import available_threads

    enough = max(FEWEST_FITS, FITS_PER_CORE * available_threads())
    return len(visits) >= enough and not any(visit.needs_crowd for visit in visits)


def train_solo(jobs: Sequence[TrainJob], interrupted: Callable[[], bool]) -> list[Outcome]:
    """Train jobs by themselves, in the calling thread."""
    from sknn_resid.engine import runner

    return runner.train_jobs(jobs, interrupted)


def train_together(visits: Sequence[Visit], ask: Ask) -> None:
    """Train the jobs of all visits as one program and give each visit its outcomes.

    Parameters
    ----------
    visits : sequence of Visit
    ask : callable
        ``ask(task, hook, view)`` runs a hook in the task's own thread and returns what it returned.
    """
    from sknn_resid.engine import runner

    hooked = [_Hooked(job, visit.task, ask) for visit in visits for job in visit.jobs]

    def interrupted() -> bool:
        return all(visit.task.cancelled for visit in visits)

    jobs = [one.job for one in hooked]
    draws = [job.rng.get_state() for job in jobs]
    try:
        outcomes = runner.train_jobs(jobs, interrupted)
    except Exception as error:
        outcomes = [error for _ in jobs]
    for i, one in enumerate(hooked):
        failed = isinstance(outcomes[i], Exception)
        # A failure that is not the job's own (no memory for a stack, a member that could not be
        # set up) has hit all that shared its stack: each is tried alone, where the error meets the
        # one that it belongs to. Not if hooks have run, which must see each epoch once.
        if failed and not one.asked and len(jobs) > 1 and not one.task.cancelled:
            one.job.rng.set_state(draws[i])
            outcomes[i] = _alone(one.job, one.task)
    outcomes = [_own_error(outcome) for outcome in outcomes]
    for visit in visits:
        visit.outcomes, outcomes = outcomes[: len(visit.jobs)], outcomes[len(visit.jobs) :]


def note_unconverged(task: Task, jobs: Sequence[TrainJob], outcomes: Sequence[Outcome]) -> None:
    """Report networks that ended too early to the nearest search around the task."""
    from sknn_resid.engine.history import StopReason
    from sknn_resid.engine.job import TrainResult

    too_early = (StopReason.MAX_EPOCHS, StopReason.MAX_TIME, StopReason.DIVERGED)
    if not any(
        isinstance(outcome, TrainResult)
        and outcome.reason in too_early
        and job.train.stop_on_plateau
        for job, outcome in zip(jobs, outcomes, strict=True)
    ):  # without stop_on_plateau it is a partial_fit, which is one epoch and never the last word
        return
    around: Actor = task
    while isinstance(around, Task):
        if around.work.member is not None:
            around.home.unconverged.note(around.work.member)
            return
        around = around.home.owner


def _alone(job: TrainJob, task: Task) -> Outcome:
    from sknn_resid.engine import runner

    try:
        (outcome,) = runner.train_jobs([job], lambda: task.cancelled)
    except Exception as error:
        return error
    return outcome


def _own_error(outcome: Any) -> Any:
    return outcome.error if isinstance(outcome, HookFailed) else outcome


class _Hooked:
    """A job whose callback and score are run by its task's thread."""

    def __init__(self, job: TrainJob, task: Task, ask: Ask) -> None:
        self.task, self._ask = task, ask
        self.asked = False
        score = None if job.score is None else self._at_home(job.score)
        on_epoch = None if job.on_epoch is None else self._at_home(job.on_epoch)
        self.job = replace(job, score=score, on_epoch=on_epoch)

    def _at_home(self, hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def ask(view: Any) -> Any:
            self.asked = True
            return self._ask(self.task, hook, view)

        return ask


class Place:
    """What every `Meeting` of a task's thread knows."""

    _task: Task

    @property
    def cancelled(self) -> bool:
        """Whether the task's call has ended early."""
        return self._task.cancelled


class Apart(Place):
    """The `Meeting` of a thread that others wait for: its fits are its own, but they can end."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def train(self, jobs: Sequence[TrainJob]) -> list[Outcome]:
        outcomes = train_solo(jobs, lambda: self._task.cancelled)
        if self._task.cancelled:
            raise TaskCancelled
        return outcomes


@contextmanager
def apart(task: Task, device: str | None) -> Iterator[None]:
    """Whatever is fitted in here waits for nobody, and joblib runs sequentially."""
    backend = SequentialBackend(nesting_level=0)
    with attending(Apart(task), device), parallel_config(backend=backend, n_jobs=1):
        yield
