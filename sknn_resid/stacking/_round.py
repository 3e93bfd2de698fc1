"""One round of training: the jobs of all tasks that wait, each with hooks that run at home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sknn_resid.stacking._terms import Actor, HookFailed, Task, TaskCancelled, Visit

if TYPE_CHECKING:
    from sknn_resid.engine.job import Outcome, TrainJob

Ask = Callable[[Task, Callable[[Any], Any], Any], Any]


def needs_a_solo(jobs: Sequence[TrainJob]) -> bool:
    """Whether these jobs gain nothing from company: scipy minimises one network at a time."""
    from sknn_resid.engine.spec import OptimizerKind

    return all(job.train.optimizer.kind is OptimizerKind.LBFGS for job in jobs)


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
