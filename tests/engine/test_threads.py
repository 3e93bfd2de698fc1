"""Thread counts of BLAS and OpenMP around a training loop: one inside, as before outside.

BLAS's count belongs to the process, OpenMP's to each thread. The tests set both to numbers that no
environment gives by chance, and look at them from within every thread that took part.
"""

from __future__ import annotations

import itertools
import queue
import threading

import pytest
import torch
from engine.builders import make_job, make_model, make_problem
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.threads import (
    SINGLE_THREAD_FLOPS,
    blas_threads_only,
    training_threads,
)

BLAS, OPENMP = 3, 2
SMALL, LARGE = 1.0, 2 * SINGLE_THREAD_FLOPS


def pools():
    """Counts that this thread sees, by library."""
    return {pool["filepath"]: (pool["user_api"], pool["num_threads"]) for pool in threadpool_info()}


def counts():
    return {n for _, n in pools().values()}


def set_counts(blas=None, openmp=None):
    """Set the counts that this thread sees, for good.

    threadpoolctl 3.8 lets one thread at a time rule OpenBLAS, the one that set its count first; the
    others' calls do nothing. This goes past that, so that no thread of a test is the ruler.
    """
    torch.get_num_threads()
    for library in ThreadpoolController().lib_controllers:
        n = {"blas": blas, "openmp": openmp}[library.user_api]
        if n is not None:
            getattr(library, "_real_set_num_threads", library.set_num_threads)(n)
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


@pytest.fixture
def counted():
    """This thread with known counts, and its view of them."""
    torch.get_num_threads()
    original = dict(pools().values())
    set_counts(BLAS, OPENMP)
    before = pools()
    assert set(before.values()) == {("blas", BLAS), ("openmp", OPENMP)}
    yield before
    set_counts(**original)


def test_one_thread_inside_as_before_outside(counted):
    with training_threads(SMALL, numpy_products=True):
        assert counts() == {1}
        assert torch.get_num_threads() == 1
    assert pools() == counted
    assert torch.get_num_threads() == OPENMP


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_restored_after_an_exception(counted, error):
    with pytest.raises(error), training_threads(SMALL, numpy_products=True):
        raise error
    assert pools() == counted


def blas_only(before):
    """What is left when torch's operations run on the calling thread."""
    return {path: (api, n if api == "blas" else 1) for path, (api, n) in before.items()}


def test_large_steps_keep_the_callers_setting(counted):
    """Products of torch: nothing is touched. Products of numpy: BLAS alone has the threads."""
    with training_threads(LARGE, numpy_products=False):
        assert pools() == counted
    with training_threads(LARGE, numpy_products=True):
        assert pools() == blas_only(counted)
    with blas_threads_only():
        assert pools() == blas_only(counted)
    assert pools() == counted


@pytest.mark.parametrize("inner", [SMALL, LARGE])
@pytest.mark.parametrize("fails", [False, True])
def test_nested(counted, inner, fails):
    """A callback may fit another network; leaving the inner loop does not end the outer limit."""
    with training_threads(SMALL, numpy_products=True):
        try:
            with training_threads(inner, numpy_products=True):
                assert counts() == {1}
                if fails:
                    raise ValueError
        except ValueError:
            pass
        assert counts() == {1}
    assert pools() == counted


def test_a_small_loop_inside_a_large_one(counted):
    with training_threads(LARGE, numpy_products=True):
        with training_threads(SMALL, numpy_products=True):
            assert counts() == {1}
        assert pools() == blas_only(counted)
    assert pools() == counted


def test_one_after_another(counted):
    for _ in range(3):
        with training_threads(SMALL, numpy_products=True):
            pass
        assert pools() == counted


def test_training_leaves_the_counts_alone(counted):
    problem = make_problem("relu", "softmax", 1)
    jobs = [make_job(problem, make_model(problem, m), max_epochs=2) for m in range(2)]
    run_jobs(jobs)
    assert pools() == counted


@pytest.mark.parametrize("flops", [SMALL, LARGE])
def test_inside_the_callers_own_limit(counted, flops):
    with threadpool_limits(2):
        with training_threads(flops, numpy_products=True):
            assert counts() == ({1} if flops == SMALL else {1, 2})
        assert counts() == {2}
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
        self.do(lambda: None)  # ready: it has set its own counts

    def run(self) -> None:
        set_counts(openmp=OPENMP)
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
            self._limit = training_threads(SMALL, numpy_products=True)
            self._limit.__enter__()

        self.do(order)

    def leave(self, *, fails: bool = False) -> None:
        def order():
            if not fails:
                self._limit.__exit__(None, None, None)
                return
            self._limit.__exit__(ValueError, ValueError(), None)

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
        assert actor.do(counts) == {1}
    for k, m in enumerate(leaving):
        actors[m].leave(fails=fails)
        for other in leaving[k + 1 :]:
            still = actors[other].do(counts)
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
        with training_threads(SMALL, numpy_products=True):
            actor.enter()
        actor.leave()
    else:
        actor.enter()
        with training_threads(SMALL, numpy_products=True):
            actor.leave()
            assert counts() == {1}
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
    assert first.do(counts) == {1}
    second.enter()
    first.leave()
    second.leave()
    assert (first.do(pools), second.do(pools)) == before
    assert pools() == counted


def test_others_may_set_limits_afterwards(actors, counted):
    """A finished fit leaves no claim on the process-wide pool of BLAS behind."""
    for fitting, other in [(actors[0], actors[1]), (actors[1], actors[0])]:
        fitting.enter()
        fitting.leave()

        def limited():
            with threadpool_limits(1):
                return counts()

        assert other.do(limited) == {1}
        assert other.do(pools) == counted
    with training_threads(SMALL, numpy_products=True):
        pass
    assert actors[2].do(limited) == {1}
    assert pools() == counted


def test_beside_a_thread_that_limits_for_itself(actors, counted):
    """The main thread's own limit holds while another thread trains, and ends as it should."""
    before = actors[0].do(pools)
    with threadpool_limits(1):
        actors[0].enter()
        assert actors[0].do(counts) == {1}
        actors[0].leave()
        assert counts() == {1}
    assert pools() == counted
    assert actors[0].do(pools) == before
