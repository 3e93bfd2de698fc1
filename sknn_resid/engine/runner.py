"""Jobs in, results out: the one door to training.

A fit is one `TrainJob`. ``run_jobs([job])`` is one fit, ``run_jobs(members)`` an ensemble,
``run_jobs(candidates x folds)`` a search. How jobs are grouped and cut into stacks never changes a
result beyond rounding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import scipy.sparse

from sknn_resid.engine.history import StopReason
from sknn_resid.engine.job import TrainJob, TrainResult
from sknn_resid.engine.lbfgs import minimise
from sknn_resid.engine.loop import train_stack
from sknn_resid.engine.spec import OptimizerKind, stack_key
from sknn_resid.engine.structure import layout_of
from sknn_resid.engine.threads import training_threads

# Models per stack on a CPU: 10 to 20 small nets keep their activations in the cache; one stack of
# 100 was 1.3 to 1.9 times slower.
CPU_STACK = 16


def run_jobs(jobs: Sequence[TrainJob]) -> list[TrainResult]:
    """Train every job; results in the order of the jobs.

    After Ctrl-C each job that had not ended carries its best weights so far (the initial ones if it
    had not begun) and ``StopReason.INTERRUPTED``.
    """
    results: dict[int, TrainResult] = {}
    interrupted = False
    for group in _groups(jobs):
        if interrupted:
            chunk = [_not_begun(jobs[i]) for i in group]
        else:
            chunk = _run_group([jobs[i] for i in group])
            interrupted = any(r.reason is StopReason.INTERRUPTED for r in chunk)
        results.update(zip(group, chunk, strict=True))
    return [results[i] for i in range(len(jobs))]


def _run_group(jobs: Sequence[TrainJob]) -> list[TrainResult]:
    first = jobs[0]
    n_params = layout_of(first.network).n_params
    full_batch = first.train.optimizer.kind is OptimizerKind.LBFGS
    rows = first.data.n_rows if full_batch else min(first.train.batch_size, first.data.n_rows)
    # bfloat16 products and those of an accelerator are torch's
    numpy_products = first.network.product_dtype == first.network.dtype
    flops = 6.0 * n_params * rows * len(jobs)
    with training_threads(flops, numpy_products=numpy_products and first.device.type == "cpu"):
        if full_batch:
            return [minimise(first)]
        return train_stack(jobs)


def _groups(jobs: Sequence[TrainJob]) -> list[list[int]]:
    """Indices of jobs that are trained together."""
    by_key: dict[object, list[int]] = defaultdict(list)
    for i, job in enumerate(jobs):
        key: tuple[object, ...] = (
            stack_key(job.network, job.train),
            job.device,
            scipy.sparse.issparse(job.data.X),
        )
        if job.train.optimizer.kind is OptimizerKind.LBFGS:
            key += (i,)  # scipy minimises one network at a time
        by_key[key].append(i)
    groups = []
    for members in by_key.values():
        size = CPU_STACK if jobs[members[0]].device.type == "cpu" else len(members)
        groups += _stacks(jobs, members, size)
    return groups


def _stacks(jobs: Sequence[TrainJob], members: Sequence[int], size: int) -> list[list[int]]:
    """Stacks of about ``size`` jobs; a team is never divided."""
    teams: dict[object, list[int]] = {}
    for i in members:
        team = jobs[i].team
        teams.setdefault(("alone", i) if team is None else ("team", id(team)), []).append(i)
    stacks: list[list[int]] = []
    for team in teams.values():
        if not stacks or len(stacks[-1]) + len(team) > size:
            stacks.append([])
        stacks[-1] += team
    return stacks


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
