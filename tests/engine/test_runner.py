"""Many jobs at once: any grouping and any number of threads gives what each job gives alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.builders import leave_out_compiled
from engine.test_stack_equals_solo import assert_same, fresh, make_data, make_job
from threadpoolctl import threadpool_info, threadpool_limits

from sknn_resid._native import compiled
from sknn_resid.engine import plan, runner
from sknn_resid.engine.alike import likenesses
from sknn_resid.engine.history import StopReason
from sknn_resid.engine.losses import CallableLoss, SoftmaxCrossEntropy, SquaredError
from sknn_resid.engine.plan import models_per_stack, plan_stacks
from sknn_resid.engine.runner import run_jobs, train_jobs
from sknn_resid.engine.spec import OptimizerKind
from sknn_resid.engine.structure import layout_of
from sknn_resid.engine.workers import Interrupt, available_threads, run_all

LOSS = SquaredError()
X, Y = make_data(LOSS, np.random.default_rng(0))


def use_threads(monkeypatch, n):
    """So many threads for any amount of work."""
    monkeypatch.setattr(runner, "available_threads", lambda: n)
    monkeypatch.setattr(runner, "THREAD_FLOPS", 0.0)


@pytest.fixture(params=[1, 2, 5])
def n_workers(request, monkeypatch):
    use_threads(monkeypatch, request.param)
    return request.param


@pytest.fixture
def two_workers(monkeypatch):
    use_threads(monkeypatch, 2)


@pytest.fixture(autouse=True)
def no_thread_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def jobs_of(n, *, kind=OptimizerKind.ADAM, loss=LOSS, **changes):
    return [make_job(m, X, Y, loss, 3, kind=kind, **changes) for m in range(n)]


def mixed_jobs():
    """Three structures, one of them L-BFGS, in no order."""
    kinds = [OptimizerKind.ADAM, OptimizerKind.SGD, OptimizerKind.LBFGS, OptimizerKind.ADAM]
    return [make_job(m, X, Y, LOSS, 3, kind=kinds[m % 4]) for m in range(14)]


def restarted(jobs):
    return [fresh(job, m) for m, job in enumerate(jobs)]


def check_alone(outcomes, jobs, leaving=()):
    for m, job in enumerate(jobs):
        if m not in leaving:
            (alone,) = run_jobs([fresh(job, m)])
            assert_same(outcomes[m], alone)


# -- how jobs are cut ----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 32])
def test_any_cut_gives_the_same(monkeypatch, n_workers, most):
    monkeypatch.setattr(plan, "MOST_ON_CPU", most)
    jobs = mixed_jobs()
    outcomes = train_jobs(restarted(jobs))
    assert any(outcome.minimizer is not None for outcome in outcomes)
    check_alone(outcomes, jobs)


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
@pytest.mark.parametrize("n_jobs", [1, 2, 5, 33, 70])
def test_every_job_is_in_one_stack(workers, n_jobs):
    jobs = jobs_of(n_jobs)
    likes = likenesses(jobs)
    stacks = plan_stacks(likes, workers)
    assert sorted(i for stack in stacks for i in stack.jobs) == list(range(n_jobs))
    sizes = [len(stack.paths) for stack in stacks]
    assert max(sizes) <= models_per_stack(jobs[0])
    assert len(stacks) >= min(workers, n_jobs), "a core has nothing to do"
    assert max(sizes) - min(sizes) <= 1


def test_stacks_of_large_networks_are_small():
    """What does not fit into the cache gains nothing from company."""
    small, large = jobs_of(1)[0], jobs_of(1)[0]
    wide = replace(large.network, layer_sizes=(6, 3000, 3000, 3))
    assert models_per_stack(small) == plan.MOST_ON_CPU
    assert models_per_stack(replace(large, network=wide)) == 1


def test_a_team_is_never_divided(monkeypatch, n_workers):
    monkeypatch.setattr(plan, "MOST_ON_CPU", 2)
    jobs, team = jobs_of(9), object()
    jobs[1:6] = [replace(job, team=team) for job in jobs[1:6]]
    stacks = plan_stacks(likenesses(jobs), n_workers)
    assert sorted(i for stack in stacks for i in stack.jobs) == list(range(9))
    assert any(set(stack.jobs) >= set(range(1, 6)) for stack in stacks)
    check_alone(train_jobs(restarted(jobs)), jobs)


def test_neighbours_share_the_optimizers_numbers():
    """So that Adam updates them with one call."""
    jobs = jobs_of(12)
    rates = [0.1, 0.01, 0.001]
    for m, job in enumerate(jobs):
        optimizer = replace(jobs[0].train.optimizer, learning_rate=rates[m % 3])
        jobs[m] = replace(job, train=replace(job.train, optimizer=optimizer))
    (stack,) = plan_stacks(likenesses(jobs), 1)
    seen = [jobs[i].train.optimizer.learning_rate for i in stack.jobs]
    assert seen == sorted(seen)


def test_no_jobs():
    assert train_jobs([]) == []


def test_one_generator_for_several_jobs():
    """The second goes on drawing where the first has stopped, as in one call after another."""
    jobs = jobs_of(3, max_epochs=3)
    rng = np.random.RandomState(5)
    together = run_jobs([replace(job, rng=rng, rng_is_shared=True) for job in jobs])
    other = np.random.RandomState(5)
    for mine, job in zip(together, jobs, strict=True):
        (alone,) = run_jobs([replace(job, rng=other, rng_is_shared=True)])
        assert_same(mine, alone)
    np.testing.assert_array_equal(rng.get_state()[1], other.get_state()[1])


# -- failures ------------------------------------------------------------------------------------


class Broken(RuntimeError):
    """What a user's function raises in these tests."""


def failing_at(epoch):
    def on_epoch(view):
        if view.epoch == epoch:
            raise Broken(epoch)
        return False

    return on_epoch


@pytest.mark.parametrize("where", ["on_epoch", "score"])
def test_a_failure_ends_its_own_job_only(n_workers, where):
    jobs = jobs_of(11, max_epochs=6, patience=np.inf)
    rows = np.arange(12)
    for m in (0, 4, 10):
        if where == "on_epoch":
            jobs[m] = replace(jobs[m], on_epoch=failing_at(2))
        else:

            def score(view):
                raise Broken

            part = runner_validation(rows)
            jobs[m] = replace(jobs[m], validation=part, score=score)
    outcomes = train_jobs(restarted(jobs))
    assert [m for m, o in enumerate(outcomes) if isinstance(o, Broken)] == [0, 4, 10]
    check_alone(outcomes, jobs, leaving=(0, 4, 10))
    with pytest.raises(Broken):
        run_jobs(restarted(jobs))


def runner_validation(rows):
    from sknn_resid.engine.data import ValidationData

    return ValidationData(X[rows], Y[rows])


def test_a_users_loss_that_fails_ends_its_own_job_only(n_workers):
    def loss(y_true, y_pred):
        if y_true.max() > 1e3:
            raise Broken
        return (y_true - y_pred) ** 2

    jobs = jobs_of(6, loss=CallableLoss(loss), max_epochs=2)
    jobs[2] = replace(jobs[2], data=replace(jobs[2].data, y=Y + 1e4))
    outcomes = train_jobs(restarted(jobs))
    assert [m for m, o in enumerate(outcomes) if isinstance(o, Exception)] == [2]
    check_alone(outcomes, jobs, leaving=(2,))


def test_all_jobs_of_a_stack_may_fail(n_workers):
    jobs = [replace(job, on_epoch=failing_at(m % 3 + 1)) for m, job in enumerate(jobs_of(8))]
    outcomes = train_jobs(restarted(jobs))
    assert [o.args[0] for o in outcomes] == [m % 3 + 1 for m in range(8)]


def test_exit_is_no_failure_of_a_job(n_workers):
    """SystemExit goes to the caller, once no thread trains any more."""

    def leave(view):
        raise SystemExit(3)

    jobs = jobs_of(8, max_epochs=1000, patience=np.inf)
    jobs[5] = replace(jobs[5], on_epoch=leave)
    with pytest.raises(SystemExit):
        train_jobs(restarted(jobs))


# -- interrupts ----------------------------------------------------------------------------------


def endless(n):
    return restarted(jobs_of(n, max_epochs=10**7, patience=np.inf, tolerance=0.0))


def test_interrupted_before_it_began(n_workers):
    jobs = endless(9)
    for outcome, job in zip(train_jobs(jobs, lambda: True), jobs, strict=True):
        assert outcome.reason is StopReason.INTERRUPTED
        assert outcome.n_epochs == 0
        assert outcome.loss_curve == []
        np.testing.assert_array_equal(outcome.params, job.params)


def test_interrupted_on_the_way(n_workers):
    """Every job that runs has its best weights so far; those of other structures never begin."""
    epochs, half = [], min(40, 32 * n_workers) // 2
    deadline = time.monotonic() + 60

    def noting(m):
        def note(view):
            epochs.append(m)
            return False

        return note

    def interrupted():
        # Which threads a busy machine lets run first is not the engine's to say: wait for them.
        enough = len(epochs) > 200 and len(set(epochs)) >= half
        return enough or time.monotonic() > deadline

    jobs = [replace(job, on_epoch=noting(m)) for m, job in enumerate(endless(40))]
    outcomes = train_jobs(jobs, interrupted)
    assert all(o.reason is StopReason.INTERRUPTED for o in outcomes)
    assert sum(o.n_epochs for o in outcomes) == len(epochs)
    ran = [o for o in outcomes if o.n_epochs]
    assert len(ran) >= half
    for m, outcome in enumerate(outcomes):
        if outcome in ran:
            shorter = replace(jobs[m].train, max_epochs=int(np.argmin(outcome.loss_curve)) + 1)
            (best,) = run_jobs([fresh(replace(jobs[m], train=shorter, on_epoch=None), m)])
            np.testing.assert_allclose(outcome.params, best.params, rtol=1e-8, atol=1e-10)


def test_interrupted_within_an_epoch():
    """A long epoch does not have to come to its end."""
    calls = []

    def asked():
        calls.append(None)
        return len(calls) > 2

    (job,) = endless(1)
    rows = np.random.default_rng(0).integers(len(X), size=300_000)
    job = replace(job, data=replace(job.data, rows=rows, weight=None))
    (outcome,) = train_jobs([job], asked)
    assert outcome.n_epochs == 0
    assert outcome.reason is StopReason.INTERRUPTED


def test_lbfgs_is_interrupted_too(n_workers):
    calls = []

    def asked():
        calls.append(None)
        return len(calls) > 5

    jobs = jobs_of(3, kind=OptimizerKind.LBFGS, max_epochs=1000, tolerance=0.0)
    outcomes = train_jobs(jobs, asked)
    assert all(o.reason is StopReason.INTERRUPTED for o in outcomes)


@pytest.mark.parametrize("who", ["first stack", "last stack"])
def test_ctrl_c(two_workers, monkeypatch, who):
    """The signal reaches the main thread, whichever thread is at work; all end, nothing is lost."""
    monkeypatch.setattr(plan, "MOST_ON_CPU", 4)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sent = []

    def press(view):
        if view.epoch >= 3 and not sent:
            sent.append(view.epoch)
            os.kill(os.getpid(), signal.SIGINT)
        return False

    jobs = endless(8)
    place = 0 if who == "first stack" else 7
    jobs[place] = replace(jobs[place], on_epoch=press)
    try:
        outcomes = run_jobs(jobs)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sent
    assert all(o.reason is StopReason.INTERRUPTED for o in outcomes)
    assert all(np.isfinite(o.params).all() for o in outcomes)
    assert outcomes[place].n_epochs >= 3


def test_ctrl_c_while_waiting_for_helpers():
    """The calling thread has nothing left to do; its wait ends, and so does the helper's task."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt, begun = Interrupt(None), threading.Event()
    main = threading.main_thread()

    def long():
        if threading.current_thread() is main:
            begun.wait(60)
            return
        begun.set()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                interrupt.poll()
        finally:
            timer.join()

    try:
        run_all([long, long], 2, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupt.is_set


# -- threads -------------------------------------------------------------------------------------


def test_stacks_run_in_several_threads(two_workers):
    seen, meet = {}, threading.Barrier(2, timeout=60)

    def look(view):
        me = threading.get_ident()
        if me not in seen:
            seen[me] = {pool["num_threads"] for pool in threadpool_info()} | {
                torch.get_num_threads()
            }
            meet.wait()  # passes only if both are at work at the same time
        return False

    jobs = [replace(job, on_epoch=look) for job in jobs_of(6)]
    run_jobs(restarted(jobs))
    assert len(seen) == 2
    assert list(seen.values()) == [{1}, {1}]


def test_helpers_see_the_callers_context(two_workers):
    seen = []

    def look(view):
        seen.append(np.geterr()["under"])
        return False

    jobs = [replace(job, on_epoch=look) for job in jobs_of(6, max_epochs=1)]
    with np.errstate(under="raise"):
        run_jobs(restarted(jobs))
    assert seen == ["raise"] * 6


def test_available_threads_keeps_to_the_callers_limit():
    torch.get_num_threads()
    with threadpool_limits(1):
        assert available_threads() == 1
    assert 1 <= available_threads() <= os.cpu_count()


def test_tasks_begin_in_order():
    begun = []
    tasks = [lambda k=k: begun.append(k) for k in range(20)]
    run_all(tasks, 1, Interrupt(None))
    assert begun == list(range(20))


def test_large_networks_keep_blas_to_themselves(monkeypatch):
    """Two large jobs on eight cores: one after another, each with every core."""
    use_threads(monkeypatch, 8)
    monkeypatch.setattr(runner, "SINGLE_THREAD_FLOPS", 1.0)
    threads = set()

    def look(view):
        threads.add(threading.get_ident())
        return False

    jobs = [replace(job, on_epoch=look) for job in jobs_of(2)]
    run_jobs(restarted(jobs))
    assert threads == {threading.get_ident()}


@pytest.mark.skipif(compiled("steps") is None, reason="the compiled parts were not built here")
def test_compiled_stacks_use_every_thread(monkeypatch):
    monkeypatch.setattr(runner, "available_threads", lambda: 4)
    threads = set()

    def look(view):
        threads.add(threading.get_ident())
        return False

    jobs = jobs_of(8)
    outcomes = run_jobs(restarted([replace(job, on_epoch=look) for job in jobs]))
    assert len(threads) > 1
    check_alone(outcomes, jobs)


def test_little_work_stays_in_one_thread(monkeypatch):
    """Threads that take turns every few microseconds would be slower, and so are half stacks.

    Compiled steps hold no turn (`test_compiled_stacks_use_every_thread`).
    """
    leave_out_compiled(monkeypatch)
    monkeypatch.setattr(runner, "available_threads", lambda: 4)
    threads = set()

    def look(view):
        threads.add(threading.get_ident())
        return False

    jobs = [replace(job, on_epoch=look) for job in jobs_of(8)]
    run_jobs(restarted(jobs))
    assert threads == {threading.get_ident()}


def test_blas_has_one_thread_for_a_stack_of_small_networks(monkeypatch):
    """A stack of many small networks is much work, but each product of BLAS is small."""
    monkeypatch.setattr(runner, "available_threads", lambda: 1)
    jobs = jobs_of(8)
    of_one = 6 * layout_of(jobs[0].network).n_params * 32
    seen = []
    monkeypatch.setattr(
        runner,
        "training_threads",
        lambda flops, *, numpy_products: seen.append(flops) or nullcontext(),
    )
    run_jobs(restarted(jobs))
    assert seen == [of_one]


def test_float32_and_classes(n_workers):
    loss = SoftmaxCrossEntropy((3,))
    X32, y = make_data(loss, np.random.default_rng(1))
    jobs = [
        make_job(m, X32.astype(np.float32), y, loss, 3, kind=OptimizerKind.ADAM, max_epochs=3,
                 dtype=torch.float32, patience=10)
        for m in range(9)
    ]  # fmt: skip
    outcomes = train_jobs(restarted(jobs))
    for m, job in enumerate(jobs):
        (alone,) = run_jobs([fresh(job, m)])
        assert_same(outcomes[m], alone, rtol=1e-4)
