"""Jobs in, results out: the one door to training.

A fit is one `TrainJob`. ``run_jobs([job])`` is one fit, ``run_jobs(members)`` an ensemble,
``run_jobs(candidates x folds)`` a search. How jobs are grouped and cut into stacks never changes a
result beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from sknn_resid.engine.alike import Likeness, likenesses
from sknn_resid.engine.compiled import compiles
from sknn_resid.engine.history import StopReason
from sknn_resid.engine.job import Outcome, TrainJob, TrainResult
from sknn_resid.engine.lbfgs import minimise
from sknn_resid.engine.loop import train_stack
from sknn_resid.engine.meeting import current_meeting
from sknn_resid.engine.plan import StackPlan, plan_stacks
from sknn_resid.engine.spec import OptimizerKind
from sknn_resid.engine.threads import SINGLE_THREAD_FLOPS, training_threads
from sknn_resid.engine.workers import Interrupt, available_threads, run_all

# Work of a step from which on a thread beside another pays, where steps are not compiled. Between
# two calls of such a step a thread needs the interpreter; one that finds it taken sleeps, and
# waking took 16 microseconds. Speed of two threads over one, on two busy cores: 0.75 at 2e7 (iris),
# 0.86 at 8e7, 0.7 to 1.2 at 1.3e8 (digits), 1.25 at 5e8. Compiled steps let the interpreter go.
THREAD_FLOPS = 4e8


def run_jobs(jobs: Sequence[TrainJob]) -> list[TrainResult]:
    """Train every job; results in the order of the jobs.

    Where the calling thread has a meeting (`meeting.attending`), the jobs are trained there,
    together with those of other threads.

    After Ctrl-C each job that had not ended carries its best weights so far (the initial ones if it
    had not begun) and ``StopReason.INTERRUPTED``.

    Raises
    ------
    Exception
        What the score or the callback of a job raised: that of the first such job. The others have
        been trained, but their results are lost; `train_jobs` returns them.
    """
    meeting = current_meeting()
    results = []
    for outcome in train_jobs(jobs) if meeting is None else meeting.train(jobs):
        if isinstance(outcome, Exception):
            raise outcome
        results.append(outcome)
    return results


def train_jobs(
    jobs: Sequence[TrainJob], interrupted: Callable[[], bool] | None = None
) -> list[Outcome]:
    """Train every job, as few and as large stacks as are fast, on all cores that torch may use.

    Callbacks and scores of different jobs may be called from different threads at the same time;
    those of one job are called one after another, in the order of its epochs. Jobs whose generator
    is one and the same object are trained one after another, because each draws on from where the
    one before stopped.

    Parameters
    ----------
    jobs : sequence of TrainJob
    interrupted : callable or None
        ``interrupted() -> bool`` is asked several times an epoch, from any thread that trains; once
        it says True everything ends as after Ctrl-C.

    Returns
    -------
    list of (TrainResult or Exception)
        What became of each job, in the order of the jobs: its result, or the exception that its own
        score or callback raised. One that was interrupted has a result with
        ``StopReason.INTERRUPTED``.
    """
    outcomes: dict[int, Outcome] = {}
    interrupt = Interrupt(interrupted)
    for turn in _turns(jobs):
        if not interrupt.is_set:
            _train_at_once(jobs, turn, outcomes, interrupt)
    return [outcomes.get(i) or _not_begun(jobs[i]) for i in range(len(jobs))]


def _turns(jobs: Sequence[TrainJob]) -> list[list[int]]:
    """Jobs that can be trained at the same time: no two with the same generator."""
    turns: list[list[int]] = []
    drawn: dict[int, int] = {}
    for i, job in enumerate(jobs):
        turn = drawn.get(id(job.rng), 0)
        drawn[id(job.rng)] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(i)
    return turns


def _train_at_once(
    jobs: Sequence[TrainJob], turn: list[int], outcomes: dict[int, Outcome], interrupt: Interrupt
) -> None:
    """Train these jobs and note their outcomes."""
    likes = likenesses([jobs[i] for i in turn])
    on_cpu = all(like.job.device.type == "cpu" for like in likes)
    n_workers = available_threads() if on_cpu and len(likes) > 1 else 1
    stacks = plan_stacks(likes, n_workers)
    small = n_workers > 1 and max(stack.flops for stack in stacks) < THREAD_FLOPS
    if small and not all(compiles([like.job]) for like in likes):
        n_workers = 1
        stacks = plan_stacks(likes, n_workers)
    if len(stacks) < n_workers and stacks[0].flops_of_a_model >= SINGLE_THREAD_FLOPS:
        n_workers = 1  # few and large: one after another, each on all cores

    def task(stack: StackPlan) -> None:
        with _threads(likes[stack.jobs[0]].job, stack, alone=n_workers == 1):
            done = _train(likes, stack, interrupt)
        for i, outcome in zip(stack.jobs, done, strict=True):
            outcomes[turn[i]] = outcome
        if any(isinstance(o, TrainResult) and o.reason is StopReason.INTERRUPTED for o in done):
            interrupt.set()

    run_all([partial(task, stack) for stack in stacks], n_workers, interrupt)


def _threads(job: TrainJob, stack: StackPlan, *, alone: bool) -> AbstractContextManager[None]:
    # bfloat16 products and those of an accelerator are torch's
    numpy_products = job.network.product_dtype == job.network.dtype and job.device.type == "cpu"
    # BLAS sees one model at a time: threads of its own pay by the work of one, not of the stack.
    flops = stack.flops_of_a_model if alone else 0.0
    return training_threads(flops, numpy_products=numpy_products)


def _train(likes: Sequence[Likeness], stack: StackPlan, interrupt: Interrupt) -> list[Outcome]:
    """Outcomes of the stack's jobs, in the order of ``stack.jobs``."""
    paths = [[likes[i].job for i in path] for path in stack.paths]
    try:
        if paths[0][0].train.optimizer.kind is OptimizerKind.LBFGS:
            return [minimise(paths[0][0], interrupt.poll)]
        on_cpu = paths[0][0].device.type == "cpu"
        done = train_stack(
            paths,
            shared_rows=stack.shared_rows,
            rows_M=[] if on_cpu else [likes[path[0]].rows for path in stack.paths],
            poll=interrupt.poll,
        )
        return [outcome for path in done for outcome in path]
    except Exception as error:  # no memory, or a user's loss, which is trained alone
        return [error for _ in stack.jobs]


def _not_begun(job: TrainJob) -> TrainResult:
    resume = job.resume
    return TrainResult(
        params=job.params.copy(),
        loss_curve=[],
        validation_scores=[],
        validation_losses=[],
        loss=math.nan,
        best_loss=resume.best_loss,
        best_score=resume.best_score,
        n_epochs=0,
        rows_seen=resume.rows_seen,
        no_improvement=resume.no_improvement,
        reason=StopReason.INTERRUPTED,
        optimizer=resume.optimizer,
    )
