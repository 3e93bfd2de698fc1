"""The training loop: epochs of a stack until every model has stopped.

One loop serves one model and many. It holds no formula: steps are bound in `network`, updates in
`optimizers`, counting and stopping in `history`. A model that has stopped leaves the stack as soon
as half of it has; until then its steps go on unseen, on weights that were already saved.

A model may serve several jobs, whose weights go through the same values and which end at different
times (other numbers of epochs, other patience). Each of them counts, stops, calls back and takes
its result for itself.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from sknn_resid.engine.data import RowOrder
from sknn_resid.engine.fused_judge import FusedJudge
from sknn_resid.engine.graphs import Graphs, MakeGraphs, graphs_for
from sknn_resid.engine.history import Progress, StopReason
from sknn_resid.engine.job import Outcome, TrainJob, TrainResult
from sknn_resid.engine.kept import Copies
from sknn_resid.engine.stack import Member, Stack, new_member, rows_per_epoch
from sknn_resid.engine.structure import unpacked
from sknn_resid.engine.validation import epoch_view, judge


class _Run:
    """One job in the loop: its progress, and its outcome once it has ended."""

    def __init__(self, job: TrainJob, start: Member, copies: Copies | None) -> None:
        self.job = job
        self.n_rows = job.data.n_rows
        state = job.resume.optimizer
        rate = job.train.optimizer.learning_rate if state is None else state.learning_rate
        self.progress = Progress(job.train, job.resume, rate, start.params_P, copies=copies)
        self.outcome: Outcome | None = None

    def factors(self, n_steps: int) -> np.ndarray | None:
        """Per-step factors of the learning rate in the coming epoch."""
        train = self.job.train
        done = self.progress.n_epochs
        return train.schedule.factors(done * n_steps, n_steps, train.max_epochs * n_steps)

    def finish(self, member: Member, *, best: bool) -> None:
        """Fix the result: the weights at hand, or the best ones."""
        member.order.settle(self.job.rng)
        progress = self.progress
        assert progress.reason is not None
        diverged = progress.reason is StopReason.DIVERGED
        params = progress.best_params(diverged=diverged) if best else member.judged_P
        self.outcome = TrainResult(
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
            flow=np.stack(progress.flow) if progress.flow else None,
        )


class _Model:
    """One model of the stack and the jobs that follow it."""

    def __init__(
        self, jobs: Sequence[TrainJob], order: RowOrder | None, copies: Copies | None
    ) -> None:
        self.member = new_member(jobs[0], order)
        self.runs = [_Run(job, self.member, copies) for job in jobs]

    def open_runs(self) -> list[_Run]:
        """The jobs that have not ended."""
        return [run for run in self.runs if run.outcome is None]


def train_stack(
    paths: Sequence[Sequence[TrainJob]],
    *,
    shared_rows: bool = False,
    rows_M: Sequence[Hashable | None] = (),
    poll: Callable[[], None] | None = None,
    make_graphs: MakeGraphs = graphs_for,
) -> list[list[Outcome]]:
    """Train models of one structure together.

    Ctrl-C ends every job that is still running, each with its best weights so far and
    ``StopReason.INTERRUPTED``; the caller decides whether the interrupt goes on. What a job's own
    score or callback raises ends that job only.

    Parameters
    ----------
    paths : sequence of sequence of TrainJob
        For each model the jobs that follow it: their weights go through the same values as long as
        they are trained (`alike.Likeness.path`).
    shared_rows : bool
        Whether all models visit the same rows in the same order (`alike.Likeness.rows`).
    rows_M : sequence of (Hashable or None)
        Otherwise: those with equal keys do, so that one permutation an epoch is drawn for them.
        None, and an empty sequence, for models that share with nobody.
    poll : callable or None
        Called several times an epoch; raises KeyboardInterrupt to end the training as Ctrl-C does.
    make_graphs : callable
        ``make_graphs(device)`` says how steps are carried out on an accelerator.

    Returns
    -------
    list of list of (TrainResult or Exception)
        One outcome a job, in the order of ``paths``.
    """
    started, fused = time.monotonic(), FusedJudge()
    graphs = make_graphs(paths[0][0].device)
    copies = None if graphs is None else Copies()
    paths = [[_within_steps(job) for job in jobs] for jobs in paths]
    keys_M = [0] * len(paths) if shared_rows else rows_M or [None] * len(paths)
    models = [
        _Model(jobs, order, copies)
        for jobs, order in zip(paths, _orders(paths, keys_M), strict=True)
    ]
    try:
        running = models
        while running:
            _train_until_half_stopped(running, started, poll, fused, graphs, copies)
            running = [model for model in running if model.open_runs()]
    except KeyboardInterrupt:
        for model in models:
            for run in model.open_runs():
                run.progress.reason = StopReason.INTERRUPTED
                run.finish(model.member, best=True)
    return [[run.outcome for run in model.runs if run.outcome is not None] for model in models]


def _orders(
    paths: Sequence[Sequence[TrainJob]], keys_M: Sequence[Hashable | None]
) -> list[RowOrder | None]:
    """Orders that models of one key, or several jobs of one model, have in common."""
    found: dict[Hashable, RowOrder] = {}
    orders: list[RowOrder | None] = []
    times = Counter(keys_M)
    for m, (jobs, key) in enumerate(zip(paths, keys_M, strict=True)):
        alone = key is None or times[key] == 1
        if alone and len(jobs) == 1:
            orders.append(None)
            continue
        own: Hashable = ("alone", m) if alone else ("shared", key)
        if own not in found:
            # it leaves the jobs' generators alone
            found[own] = RowOrder(jobs[0].data, jobs[0].rng, jobs[0].train.shuffle).alike()
        orders.append(found[own])
    return orders


def _train_until_half_stopped(
    models: Sequence[_Model],
    started: float,
    poll: Callable[[], None] | None,
    fused: FusedJudge,
    graphs: Graphs | None,
    copies: Copies | None,
) -> None:
    """Epochs of one stack; leaves each model without an open run or with its next member."""
    stack = Stack([model.member for model in models], poll, graphs)
    steps_M = stack.steps_per_epoch()
    running = list(range(len(models)))
    runs_M = [model.open_runs() for model in models]
    steady = all(runs[0].job.train.schedule.steady for runs in runs_M)
    while 2 * len(running) > len(models):
        # The jobs of a model share rate and factors as long as they run.
        leader_M = [runs[0] for runs in runs_M]
        rates = [run.progress.rate for run in leader_M]
        factors = None
        if not steady:
            factors = [run.factors(int(n)) for run, n in zip(leader_M, steps_M, strict=True)]
        loss_M = stack.run_epoch(rates, factors, running)
        late = time.monotonic() - started
        ended = []
        for m, loss in zip(running, loss_M[running].tolist(), strict=True):
            for run in runs_M[m]:
                _end_epoch(run, stack, m, loss, late, fused)
                if run.outcome is not None:
                    ended.append(m)
        if copies is not None:
            copies.make()  # before the weights change
        for m in ended:
            runs_M[m] = models[m].open_runs() or runs_M[m]
        if ended:
            running = [m for m in running if models[m].open_runs()]
    for m in running:
        models[m].member = stack.member(m, runs_M[m][0].progress.rate)


def _end_epoch(
    run: _Run, stack: Stack, m: int, loss: float, seconds: float, fused: FusedJudge
) -> None:
    """What follows an epoch of one job: record, validate, tell, decide."""
    try:
        _record_epoch(run, stack, m, loss, seconds, fused)
    except Exception as error:  # its own score or callback: the others go on
        stack.members[m].order.settle(run.job.rng)
        run.outcome = error


def _record_epoch(
    run: _Run, stack: Stack, m: int, loss: float, seconds: float, fused: FusedJudge
) -> None:
    progress, job = run.progress, run.job
    params_P, judged_P = stack.params_M[m], stack.judged_M[m]
    rate = progress.rate
    finite = progress.record_loss(loss, run.n_rows, judged_P)
    if stack.recorder is not None:
        progress.flow.append(stack.recorder.epoch_MLC[m])
    due = progress.n_epochs % job.train.judge_every == 0
    judged = job.validation is not None and (due or progress.n_epochs >= job.train.max_epochs)
    if judged:
        weights = partial(_copy_weights, job, judged_P)
        progress.record_score(*judge(job, judged_P, weights, fused), judged_P)
    if finite:
        progress.end_epoch(job.train.optimizer.learning_rate)
    else:
        progress.reason = StopReason.DIVERGED
    limit = job.train.max_seconds
    if progress.reason is None and limit is not None and seconds >= limit:
        progress.reason = StopReason.MAX_TIME
    if job.on_epoch is not None:
        weights = partial(_copy_weights, job, judged_P)
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
