"""The training loop: epochs of a stack until every model has stopped.

One loop serves one model and many. It holds no formula: steps are bound in `network`, updates in
`optimizers`, counting and stopping in `history`. A model that has stopped leaves the stack as soon
as half of it has; until then its steps go on unseen, on weights that were already saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from sknn_resid.engine.history import Progress, StopReason
from sknn_resid.engine.job import TrainJob, TrainResult
from sknn_resid.engine.stack import Member, Stack, new_member, rows_per_epoch
from sknn_resid.engine.structure import unpacked
from sknn_resid.engine.validation import epoch_view, judge


class _Run:
    """One job in the loop: its progress, and its result once it has stopped."""

    def __init__(self, job: TrainJob) -> None:
        job = _within_steps(job)
        self.member = new_member(job)
        state = job.resume.optimizer
        rate = job.train.optimizer.learning_rate if state is None else state.learning_rate
        self.progress = Progress(job.train, job.resume, rate, self.member.params_P)
        self.result: TrainResult | None = None

    @property
    def job(self) -> TrainJob:
        return self.member.job

    def factors(self, n_steps: int) -> np.ndarray | None:
        """Per-step factors of the learning rate in the coming epoch."""
        train = self.job.train
        done = self.progress.n_epochs
        return train.schedule.factors(done * n_steps, n_steps, train.max_epochs * n_steps)

    def finish(self, member: Member, *, best: bool) -> None:
        """Fix the result: the weights at hand, or the best ones."""
        progress = self.progress
        assert progress.reason is not None
        diverged = progress.reason is StopReason.DIVERGED
        params = progress.best_params(diverged=diverged) if best else member.judged_P
        self.result = TrainResult(
            params=params.cpu().numpy().copy(),
            loss_curve=progress.loss_curve,
            validation_scores=progress.validation_scores,
            validation_losses=progress.validation_losses,
            loss=progress.loss_curve[-1] if progress.loss_curve else math.nan,
            best_loss=progress.best_loss,
            best_score=progress.best_score,
            n_epochs=progress.n_epochs,
            rows_seen=progress.rows_seen,
            no_improvement=progress.no_improvement,
            reason=progress.reason,
            has_finite_epoch=progress.has_finite_epoch(),
            optimizer=member.optimizer,
        )


def train_stack(jobs: Sequence[TrainJob]) -> list[TrainResult]:
    """Train jobs of one structure together; results in the order of the jobs.

    Ctrl-C ends every job that is still running, each with its best weights so far and
    ``StopReason.INTERRUPTED``; the caller decides whether the interrupt goes on.
    """
    started = time.monotonic()
    runs = [_Run(job) for job in jobs]
    try:
        running = runs
        while running:
            _train_until_half_stopped(running, started)
            running = [run for run in running if run.result is None]
    except KeyboardInterrupt:
        for run in runs:
            if run.result is None:
                run.progress.reason = StopReason.INTERRUPTED
                run.finish(run.member, best=True)
    return [run.result for run in runs if run.result is not None]


def _train_until_half_stopped(runs: Sequence[_Run], started: float) -> None:
    """Epochs of one stack; leaves each run with a result or with a member for the next stack."""
    stack = Stack([run.member for run in runs])
    steps_M = stack.steps_per_epoch()
    steady = all(run.job.train.schedule.steady for run in runs)
    running = list(range(len(runs)))
    while 2 * len(running) > len(runs):
        rates = [run.progress.rate for run in runs]
        factors = None
        if not steady:
            factors = [run.factors(int(n)) for run, n in zip(runs, steps_M, strict=True)]
        loss_M = stack.run_epoch(rates, factors, running)
        late = time.monotonic() - started
        for m in running:
            _end_epoch(runs[m], stack, m, float(loss_M[m]), late)
        running = [m for m in running if runs[m].result is None]
    for m in running:
        runs[m].member = stack.member(m, runs[m].progress.rate)


def _end_epoch(run: _Run, stack: Stack, m: int, loss: float, seconds: float) -> None:
    """What follows an epoch of one model: record, validate, tell, decide."""
    progress, job = run.progress, run.job
    params_P, judged_P = stack.params_M[m], stack.judged_M[m]
    rate = progress.rate
    finite = progress.record_loss(loss, job.data.n_rows, judged_P)
    weights = partial(_copy_weights, job, judged_P)
    due = progress.n_epochs % job.train.judge_every == 0
    judged = job.validation is not None and (due or progress.n_epochs >= job.train.max_epochs)
    if judged:
        progress.record_score(*judge(job, judged_P, weights), judged_P)
    if finite:
        progress.end_epoch(job.train.optimizer.learning_rate)
    else:
        progress.reason = StopReason.DIVERGED
    limit = job.train.max_seconds
    if progress.reason is None and limit is not None and seconds >= limit:
        progress.reason = StopReason.MAX_TIME
    if job.on_epoch is not None:
        parameters = partial(_copy_params, judged_P)
        view = epoch_view(progress, loss, rate, weights, parameters, judged=judged)
        if job.on_epoch(view) and progress.reason is None:
            progress.reason = StopReason.CALLBACK
    if progress.reason is None:
        return
    if progress.reason is not StopReason.DIVERGED and not bool(params_P.isfinite().all()):
        progress.reason = StopReason.DIVERGED  # the last step of the epoch overflowed
    best = job.train.watch_validation or progress.reason is StopReason.DIVERGED
    run.finish(stack.member(m, progress.rate), best=best)


def _within_steps(job: TrainJob) -> TrainJob:
    """The job with its budget of steps, if it has one, as a number of epochs."""
    if job.train.max_steps is None:
        return job
    per_epoch = -(-rows_per_epoch(job) // job.train.batch_size)
    epochs = max(1, -(-job.train.max_steps // per_epoch))
    train = replace(job.train, max_epochs=min(job.train.max_epochs, epochs))
    return replace(job, train=train)


def _copy_params(params_P: Tensor) -> np.ndarray:
    """The current weights as a fresh flat row."""
    return params_P.cpu().numpy().copy()


def _copy_weights(job: TrainJob, params_P: Tensor) -> Any:
    """The current weights as fresh copies, by layer or by name."""
    return unpacked(job.network, _copy_params(params_P))
