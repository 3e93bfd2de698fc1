"""Thread counts of BLAS and OpenMP around a training loop: one inside, as before outside.

BLAS's count belongs to the process, OpenMP's to each thread. The tests set both to numbers that no
environment gives by chance, and look at them from within every thread that took part.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import Counter

import pytest
import torch
from engine.builders import make_job, make_model, make_problem
from threadpoolctl import threadpool_info, threadpool_limits

from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.threads import SINGLE_THREAD_FLOPS, training_threads

BLAS, OPENMP = 3, 2
SMALL, LARGE = 1.0, 2 * SINGLE_THREAD_FLOPS


def pools():
    """Counts that this thread sees, by library."""
    return {pool["filepath"]: (pool["user_api"], pool["num_threads"]) for pool in threadpool_info()}


def counts(api):
    return {n for user_api, n in pools().values() if user_api == api}


@pytest.fixture
def counted():
    """This thread with known counts, and its view of them."""
    torch.get_num_threads()
    with threadpool_limits({"blas": BLAS, "openmp": OPENMP}):
        before = pools()
        assert Counter(api for api, _ in before.values()).keys() >= {"blas", "openmp"}
        assert set(before.values()) == {("blas", BLAS), ("openmp", OPENMP)}
        yield before


def test_one_thread_inside_as_before_outside(counted):
    with training_threads(SMALL):
        assert {n for _, n in pools().values()} == {1}
        assert torch.get_num_threads() == 1
    assert pools() == counted
    assert torch.get_num_threads() == OPENMP


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_restored_after_an_exception(counted, error):
    with pytest.raises(error), training_threads(SMALL):
        raise error
    assert pools() == counted


def test_large_steps_keep_the_callers_setting(counted):
    with training_threads(LARGE):
        assert pools() == counted
    assert pools() == counted


@pytest.mark.parametrize("inner", [SMALL, LARGE])
@pytest.mark.parametrize("fails", [False, True])
def test_nested(counted, inner, fails):
    """A callback may fit another network; leaving the inner loop does not end the outer limit."""
    with training_threads(SMALL):
        try:
            with training_threads(inner):
                assert {n for _, n in pools().values()} == {1}
                if fails:
                    raise ValueError
        except ValueError:
            pass
        assert {n for _, n in pools().values()} == {1}
    assert pools() == counted


def test_a_small_loop_inside_a_large_one(counted):
    with training_threads(LARGE):
        with training_threads(SMALL):
            assert {n for _, n in pools().values()} == {1}
        assert pools() == counted


def test_one_after_another(counted):
    for _ in range(3):
        with training_threads(SMALL):
            pass
        assert pools() == counted


def test_training_leaves_the_counts_alone(counted):
    problem = make_problem("relu", "softmax", 1)
    jobs = [make_job(problem, make_model(problem, m), max_epochs=2) for m in range(2)]
    run_jobs(jobs)
    assert pools() == counted


# -- several threads -----------------------------------------------------------------------------


class Actor(threading.Thread):
    """A thread that does what it is told, one thing at a time."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._orders: queue.Queue = queue.Queue()
        self._answers: queue.Queue = queue.Queue()
        self._limit = None
        self.start()

    def run(self) -> None:
        torch.get_num_threads()
        with threadpool_limits({"openmp": OPENMP}):
            while (order := self._orders.get()) is not None:
                try:
                    self._answers.put(order())
                except BaseException as error:
                    self._answers.put(error)

    def do(self, order):
        self._orders.put(order)
        answer = self._answers.get(timeout=60)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def enter(self) -> None:
        def order():
            self._limit = training_threads(SMALL)
            self._limit.__enter__()

        self.do(order)

    def leave(self, *, fails: bool = False) -> None:
        def order():
            if not fails:
                self._limit.__exit__(None, None, None)
                return
            error = ValueError()
            assert not self._limit.__exit__(ValueError, error, None)

        try:
            self.do(order)
        except ValueError:
            assert fails

    def end(self) -> None:
        self._orders.put(None)
        self.join(timeout=60)


@pytest.fixture
def actors(counted):
    troupe = [Actor() for _ in range(3)]
    yield troupe
    for actor in troupe:
        actor.end()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("leaving", list(itertools.permutations(range(3))))
def test_threads_that_overlap_in_any_order(actors, counted, leaving, fails):
    """Each has one thread while it trains; in the end every one has what it had."""
    before = [actor.do(pools) for actor in actors]
    for actor in actors:
        actor.enter()
        assert actor.do(lambda: {n for _, n in pools().values()}) == {1}, [a.do(pools) for a in actors]
    for k, m in enumerate(leaving):
        actors[m].leave(fails=fails)
        for other in leaving[k + 1 :]:
            still = actors[other].do(lambda: {n for _, n in pools().values()})
            assert still == {1}, f"{other} is still training when {m} has left"
    for m, actor in enumerate(actors):
        assert actor.do(pools) == before[m], f"as seen by thread {m}"
    assert pools() == counted, "as seen by the main thread"


@pytest.mark.parametrize("main_leaves_first", [True, False])
def test_the_main_thread_beside_another(actors, counted, main_leaves_first):
    """A fit in the main thread while another runs in the background."""
    actor = actors[0]
    before = actor.do(pools)
    if main_leaves_first:
        with training_threads(SMALL):
            actor.enter()
        actor.leave()
    else:
        actor.enter()
        with training_threads(SMALL):
            actor.leave()
            assert {n for _, n in pools().values()} == {1}
    assert pools() == counted, "as seen by the main thread"
    assert actor.do(pools) == before, "as seen by the other thread"


def test_coming_back_while_another_still_trains(actors, counted):
    first, second, _ = actors
    before = first.do(pools), second.do(pools)
    first.enter()
    second.enter()
    first.leave()
    first.enter()
    second.leave()
    assert first.do(lambda: {n for _, n in pools().values()}) == {1}
    second.enter()
    first.leave()
    second.leave()
    assert (first.do(pools), second.do(pools)) == before
    assert pools() == counted
    assert counts("blas") == {BLAS}
