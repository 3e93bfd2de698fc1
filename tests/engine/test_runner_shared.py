"""What jobs have in common is found by content, used once, and changes no result.

Equal rows in the same order (candidates of a fold), and equal paths of the weights (jobs that end
at different times): each job ends as it would alone, its generator included.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from engine.builders import leave_out_compiled
from engine.test_stack_equals_solo import (
    LOSSES,
    N_ROWS,
    assert_same,
    make_data,
    make_job,
    random_weights,
)

from sknn_resid.engine import runner
from sknn_resid.engine.alike import DistinctArrays, likenesses
from sknn_resid.engine.data import TrainingData, ValidationData
from sknn_resid.engine.history import Resume, StopReason
from sknn_resid.engine.layout import Layout
from sknn_resid.engine.plan import plan_stacks
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.schedules import Adaptive, Cosine, InverseScaling, Schedule
from sknn_resid.engine.spec import OptimizerKind

KINDS = [OptimizerKind.ADAM, OptimizerKind.SGD, OptimizerKind.ADAMW]
WIDTHS = (9, 7)


@pytest.fixture(params=[1, 2], autouse=True)
def n_workers(request, monkeypatch):
    monkeypatch.setattr(runner, "available_threads", lambda: request.param)
    monkeypatch.setattr(runner, "THREAD_FLOPS", 0.0)


def candidates(n, *, loss="softmax", fold=0, kind=OptimizerKind.ADAM, weighted=False, sparse=False,
               **changes):  # fmt: skip
    """Jobs of one fold: equal rows (each its own copy), one seed, other numbers everywhere."""
    engine_loss, n_outputs = LOSSES[loss]
    X, y = make_data(engine_loss, np.random.default_rng(40 + fold))
    own = np.random.default_rng(fold)
    rows = own.permutation(N_ROWS)[: 70 + fold]
    weight = own.uniform(0.1, 3, len(rows)) * (own.random(len(rows)) > 0.2) if weighted else None
    jobs = []
    for m in range(n):
        job = make_job(m, X, y, engine_loss, n_outputs, kind=kind, **changes)
        X_own = scipy.sparse.csr_array(X * (np.abs(X) > 0.5)) if sparse else X.copy()
        own_weight = None if weight is None else weight.copy()
        sizes = (X.shape[1], *WIDTHS, n_outputs)
        params = Layout(sizes).pack(*random_weights(np.random.RandomState(1), sizes))
        data = TrainingData(X_own, y.copy(), rows.copy(), own_weight)
        jobs.append(replace(job, data=data, params=params, rng=np.random.RandomState(3)))
    return jobs


def restarted(jobs, **changes):
    return [replace(job, rng=np.random.RandomState(3), **changes) for job in jobs]


def n_models(jobs):
    """How many networks these jobs are."""
    return sum(len(stack.paths) for stack in plan_stacks(likenesses(jobs), 1))


def check(jobs, *, exact=False):
    together = restarted(jobs)
    results = run_jobs(together)
    for mine, job, result in zip(together, restarted(jobs), results, strict=True):
        (alone,) = run_jobs([job])
        assert_same(result, alone, rtol=0 if exact else 1e-9)
        if exact:
            assert_identical(result, alone)
        ours, theirs = mine.rng.get_state(), job.rng.get_state()
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert ours[2:] == theirs[2:]
    return results


def assert_identical(a, b):
    for name in (
        "loss_curve", "validation_scores", "validation_losses", "loss", "best_loss", "best_score",
        "n_epochs", "rows_seen", "no_improvement", "reason", "has_finite_epoch",
    ):  # fmt: skip
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.params, b.params)
    assert a.optimizer.kind is b.optimizer.kind
    assert a.optimizer.learning_rate == b.optimizer.learning_rate
    assert a.optimizer.steps == b.optimizer.steps
    for mine, theirs in zip(a.optimizer.moments, b.optimizer.moments, strict=True):
        np.testing.assert_array_equal(mine, theirs)


# -- shared rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_candidates_of_a_fold(loss, sparse, weighted):
    jobs = candidates(7, loss=loss, weighted=weighted, sparse=sparse)
    (stack,) = plan_stacks(likenesses(jobs), 1)
    assert stack.shared_rows
    results = check(jobs)
    assert len({result.n_epochs for result in results}) > 2  # the stack was compacted


@pytest.mark.parametrize("kind", KINDS)
def test_folds_and_candidates(kind):
    """Four folds of five; the order of results is that of the jobs."""
    folds = [candidates(5, fold=f, kind=kind) for f in range(4)]
    jobs = [folds[f][m] for m in range(5) for f in range(4)]
    stacks = plan_stacks(likenesses(jobs), 1)
    assert sorted(len(stack.paths) for stack in stacks) == [5] * 4
    assert all(stack.shared_rows for stack in stacks)
    check(jobs)


def test_an_accelerator_has_one_stack_for_all_folds():
    """A launch takes as long for all models as for those of one fold."""
    jobs = [job for f in range(4) for job in candidates(5, fold=f)]
    there = [replace(job, device=torch.device("meta")) for job in jobs]
    (stack,) = plan_stacks(likenesses(there), 1)
    assert len(stack.paths) == 20
    assert not stack.shared_rows
    (stack,) = plan_stacks(likenesses(there[:5]), 1)
    assert stack.shared_rows


def test_small_folds_are_trained_in_one_stack():
    jobs = [job for f in range(4) for job in candidates(2, fold=f)]
    (stack,) = plan_stacks(likenesses(jobs), 1)
    assert not stack.shared_rows
    check(jobs)


def test_dropout_and_clipping_beside_shared_rows():
    jobs = candidates(6, dropout=0.3, clip_norm=0.1, weighted=True)
    check([replace(job, dropout_seed=m) for m, job in enumerate(jobs)])


def test_label_smoothing_is_part_of_the_targets():
    jobs = candidates(8)
    for m, job in enumerate(jobs):
        jobs[m] = replace(job, train=replace(job.train, label_smoothing=0.1 * (m % 2)))
    assert [s.shared_rows for s in plan_stacks(likenesses(jobs), 1)] == [True, True]
    check(jobs)


def test_one_batch_that_holds_every_row():
    """Nobody draws, unless the generator goes on elsewhere."""
    check(candidates(5, batch_size=200))
    check([replace(job, rng_is_shared=True) for job in candidates(5, batch_size=200)])


def test_without_shuffling():
    check(candidates(5, shuffle=False))


@pytest.mark.parametrize(
    "change",
    [
        lambda job: replace(job, data=replace(job.data, X=job.data.X + 1e-9)),
        lambda job: replace(job, data=replace(job.data, y=1 - job.data.y)),
        lambda job: replace(job, data=replace(job.data, rows=job.data.rows[::-1].copy())),
        lambda job: replace(job, data=replace(job.data, weight=np.ones(len(job.data.rows)))),
        lambda job: replace(job, rng=np.random.RandomState(4)),
        lambda job: replace(job, rng_is_shared=True),
        lambda job: replace(job, train=replace(job.train, shuffle=False)),
    ],
    ids=["X", "y", "rows", "weight", "seed", "drawn from elsewhere", "shuffle"],
)
def test_rows_are_shared_only_if_all_is_equal(change):
    first, second = candidates(2, loss="binary")
    assert len({like.rows for like in likenesses([first, second])}) == 1
    assert len({like.rows for like in likenesses([first, change(second)])}) == 2


def test_equal_arrays_are_held_once():
    jobs = candidates(4)
    likes = likenesses(jobs)
    assert len({id(like.job.data.X) for like in likes}) == 1
    assert len({id(job.data.X) for job in jobs}) == 4


def test_torch_only(monkeypatch):
    """What an accelerator would run, on the CPU."""
    from sknn_resid.engine import kernels

    expected = run_jobs(restarted(candidates(5, weighted=True)))
    leave_out_compiled(monkeypatch)
    monkeypatch.setattr(kernels, "numpy_speaks", lambda tensor: False)
    results = run_jobs(restarted(candidates(5, weighted=True)))
    for mine, theirs in zip(results, expected, strict=True):
        assert_same(mine, theirs)


# -- shared paths --------------------------------------------------------------------------------


def lengths(job, epochs):
    return [replace(job, train=replace(job.train, max_epochs=n)) for n in epochs]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [Schedule(), InverseScaling(power=0.3), Adaptive()])
def test_numbers_of_epochs_are_one_network(kind, schedule):
    (job,) = candidates(1, kind=kind, schedule=schedule, patience=np.inf, weighted=True)
    jobs = lengths(job, [3, 11, 1, 7, 11])
    assert n_models(jobs) == 1
    results = check(jobs, exact=True)
    assert [result.n_epochs for result in results] == [3, 11, 1, 7, 11]


def test_the_longest_may_stop_early():
    (job,) = candidates(1, tolerance=0.5, patience=3)
    results = check(lengths(job, [2, 50, 4, 100]), exact=True)
    assert [r.reason for r in results] == [
        StopReason.MAX_EPOCHS, StopReason.PLATEAU, StopReason.MAX_EPOCHS, StopReason.PLATEAU
    ]  # fmt: skip


def test_tolerance_and_patience_only_decide_when_to_stop():
    (job,) = candidates(1, max_epochs=25)
    jobs = [
        replace(job, train=replace(job.train, tolerance=tol, patience=patience))
        for tol in (1e-4, 0.05, 0.3)
        for patience in (0, 2)
    ]
    assert n_models(jobs) == 1
    assert len({result.n_epochs for result in check(jobs, exact=True)}) > 2


def test_an_adaptive_rate_depends_on_tolerance_and_patience():
    (job,) = candidates(1, kind=OptimizerKind.SGD, schedule=Adaptive(), max_epochs=15)
    jobs = [replace(job, train=replace(job.train, patience=p, tolerance=0.1)) for p in (1, 2, 3)]
    assert n_models(jobs) == 3
    check(jobs)
    jobs = lengths(jobs[0], [4, 9, 15])
    assert n_models(jobs) == 1
    check(jobs, exact=True)


@pytest.mark.parametrize("schedule", [Cosine(), Schedule(0.3)], ids=["cosine", "warm-up"])
def test_a_schedule_with_a_horizon_is_another_path(schedule):
    (job,) = candidates(1, schedule=schedule, patience=np.inf)
    jobs = lengths(job, [4, 8, 8])
    assert n_models(jobs) == 2
    check(jobs)


def test_each_job_scores_and_calls_back_for_itself():
    """Validation scores, early stopping and callbacks, as often as alone and in the same order."""
    (job,) = candidates(1, loss="squared", watch_validation=True, patience=4, tolerance=0.0)
    rows = np.arange(15)
    part = ValidationData(job.data.X[rows], job.data.y[rows])
    seen = {}

    def with_hooks(m, job):
        seen[m] = []

        def on_epoch(view):
            seen[m].append((view.epoch, view.loss, view.validation_score))
            return view.epoch == 5 and m == 2

        def score(view):
            return -float(np.abs(view.logits - part.y).mean())

        return replace(job, validation=part, score=score, on_epoch=on_epoch)

    def make():
        return [with_hooks(m, one) for m, one in enumerate(lengths(job, [3, 40, 20, 9]))]

    jobs = make()
    assert n_models(jobs) == 1
    results = run_jobs(restarted(jobs))
    together, alone = {m: list(calls) for m, calls in seen.items()}, []
    jobs = make()
    for one in restarted(jobs):
        alone += run_jobs([one])
    assert seen == together
    assert results[2].reason is StopReason.CALLBACK
    for mine, theirs in zip(results, alone, strict=True):
        assert_identical(mine, theirs)


def test_a_failure_in_one_of_them():
    (job,) = candidates(1, patience=np.inf)

    def fail(view):
        raise RuntimeError

    jobs = lengths(job, [3, 6, 9])
    jobs[2] = replace(jobs[2], on_epoch=fail)
    outcomes = runner.train_jobs(restarted(jobs))
    assert isinstance(outcomes[2], RuntimeError)
    for one, outcome in zip(restarted(jobs[:2]), outcomes, strict=False):
        (alone,) = run_jobs([one])
        assert_identical(outcome, alone)


def test_one_that_diverges():
    (job,) = candidates(1, loss="squared", kind=OptimizerKind.SGD, patience=np.inf)
    wild = replace(job.train.optimizer, learning_rate=30.0)
    results = check(lengths(replace(job, train=replace(job.train, optimizer=wild)), [1, 40, 80]))
    assert results[2].reason is StopReason.DIVERGED


def test_going_on_where_a_fit_has_stopped():
    (job,) = candidates(1, patience=np.inf)
    (first,) = run_jobs(restarted([job]))
    resume = Resume(first.best_loss, first.best_score, 1, first.rows_seen, first.optimizer)
    jobs = lengths(replace(job, params=first.params, resume=resume), [2, 6, 4])
    assert n_models(jobs) == 1
    check(jobs, exact=True)


def test_grid_of_rates_and_epochs():
    """Four networks, twelve jobs, one batch for all."""
    base = candidates(4, patience=np.inf)
    jobs = [one for n in (2, 9, 5) for job in base for one in lengths(job, [n])]
    (stack,) = plan_stacks(likenesses(jobs), 1)
    assert stack.shared_rows
    assert len(stack.paths) == 4
    check(jobs)


@pytest.mark.parametrize(
    "change",
    [
        lambda job: replace(job, params=job.params + 1e-12),
        lambda job: replace(job, dropout_seed=5),
        lambda job: replace(job, rng=np.random.RandomState(9)),
        lambda job: replace(job, train=replace(job.train, penalty=0.5)),
        lambda job: replace(job, train=replace(job.train, batch_size=31)),
        lambda job: replace(job, resume=Resume(rows_seen=7)),
    ],
)
def test_paths_are_one_only_if_all_is_equal(change):
    job, _ = candidates(2)
    assert len({like.path for like in likenesses([job, replace(job)])}) == 1
    assert len({like.path for like in likenesses([job, change(job)])}) == 2


# -- equal arrays --------------------------------------------------------------------------------


def number_of(arrays, *values):
    return [arrays.number(value) for value in values]


def test_equal_arrays_have_one_number():
    arrays = DistinctArrays()
    a = np.random.default_rng(0).standard_normal((50, 3))
    b = a.copy()
    b[31, 2] = np.nextafter(b[31, 2], 1)
    turned = np.asfortranarray(a)
    assert number_of(arrays, a, a.copy(), a[:], turned, b, a[:49]) == [0, 0, 0, 0, 1, 2]
    assert arrays.number(None) == -1
    assert arrays.first(a.copy()) is a
    assert number_of(arrays, a.astype(np.float32), a.ravel()) == [3, 4]
    assert number_of(arrays, np.empty((0, 3)), np.empty((0, 3)), np.empty((0, 4))) == [5, 5, 6]


def test_an_array_that_is_gone_is_not_mistaken_for_another():
    """Python gives an old id to a new object."""
    arrays = DistinctArrays()
    numbers = [arrays.number(np.full(1000, float(k))) for k in range(50)]
    assert numbers == list(range(50))


def test_equal_sparse_matrices_and_tensors():
    arrays = DistinctArrays()
    dense = np.eye(5)
    a, b = scipy.sparse.csr_array(dense), scipy.sparse.csr_array(dense)
    c = scipy.sparse.csr_array(np.roll(dense, 1, 0))
    assert number_of(arrays, a, b, c) == [0, 0, 1]
    t = torch.from_numpy(dense)
    assert number_of(arrays, t, t.clone(), t + 1) == [2, 2, 3]


def test_memory_maps_are_compared_by_place(tmp_path):
    for name in "ab":
        np.memmap(tmp_path / name, dtype=float, mode="w+", shape=(6, 2))[:] = 1.0
    a = np.memmap(tmp_path / "a", dtype=float, mode="r", shape=(6, 2))
    b = np.memmap(tmp_path / "b", dtype=float, mode="r", shape=(6, 2))
    arrays = DistinctArrays()
    assert number_of(arrays, a, np.asarray(a), a[:], b, a[1:]) == [0, 0, 0, 1, 2]
