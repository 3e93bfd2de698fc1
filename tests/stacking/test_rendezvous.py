"""The rendezvous under plain joblib: errors, time limits, caps, generators, nesting."""

import multiprocessing
import threading
import time
from itertools import chain

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, cross_validate
from stacking.programs import X, assert_same_network, net, run, y

from sknn_resid import stacked
from sknn_resid.engine import runner
from sknn_resid.stacking import _rendezvous


def fit(seed, **params):
    model, _ = run(net(random_state=seed, **params).fit, X, y)
    return model


def parallel(function, values, **params):
    return joblib.Parallel(**params)(joblib.delayed(function)(value) for value in values)


def assert_same_models(together, seeds):
    for model, seed in zip(together, seeds, strict=True):
        assert_same_network(model, fit(seed))


@pytest.mark.parametrize("failing", [[0], [3], [0, 1, 2, 3, 4]])
def test_error_ends_the_call_and_nothing_hangs(failing):
    def task(seed):
        model = fit(seed)
        if seed in failing:
            raise LookupError(f"task {seed}")
        return model

    with stacked():
        with pytest.raises(LookupError, match=f"task {failing[0]}") as caught:
            parallel(task, range(5))
        assert "in task" in "".join(caught.value.__notes__)  # where it happened
        assert_same_models(parallel(fit, range(5)), range(5))  # and it goes on


def test_error_before_training():
    def task(seed):
        if seed == 2:
            raise LookupError("early")
        return fit(seed)

    with stacked(), pytest.raises(LookupError, match="early"):
        parallel(task, range(6))


def test_error_in_the_callers_generator():
    def tasks():
        yield joblib.delayed(fit)(0)
        yield joblib.delayed(fit)(1)
        raise LookupError("no more")

    for size in (1, 2, 5):
        with stacked(size), pytest.raises(LookupError, match="no more"):
            joblib.Parallel(pre_dispatch=1)(tasks())


def test_generator_that_fits_while_tasks_are_dispatched():
    """joblib asks for the next task in the thread of one that has ended, holding its lock."""

    def tasks():
        for seed in range(6):
            model = fit(seed)
            inner = parallel(fit, [seed, seed + 1])
            assert_same_network(model, inner[0])
            yield joblib.delayed(fit)(seed)

    with stacked(3):
        models = joblib.Parallel(pre_dispatch=2)(tasks())
    assert_same_models(models, range(6))


def test_tasks_that_fit_twice_never_or_after_others(rounds):
    def task(i):
        return [fit(10 * i + k) for k in range(i)]

    with stacked():
        found = parallel(task, range(4))
    assert rounds == [3, 2, 1]
    for i, models in enumerate(found):
        assert_same_models(models, [10 * i + k for k in range(i)])


def test_error_in_one_of_a_nested_call_reaches_its_parent_only():
    def inner(seed):
        if seed == 7:
            raise LookupError("inner")
        return fit(seed)

    def outer(seeds):
        try:
            return parallel(inner, seeds)
        except LookupError:
            return None

    with stacked():
        found = parallel(outer, [[0, 1], [6, 7, 8], [2, 3]])
    assert found[1] is None
    assert_same_models(found[0] + found[2], [0, 1, 2, 3])


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("size", [2, 3, 64])
def test_nested_calls_deeper_than_the_stack(depth, size):
    """Parents do not use up the cap on tasks, else all would wait for tasks that cannot begin."""

    def task(level, number):
        if level == 0:
            return [fit(number % 3)]
        models = joblib.Parallel()(
            joblib.delayed(task)(level - 1, 2 * number + side) for side in (0, 1)
        )
        return list(chain.from_iterable(models))

    with stacked(size):
        models = joblib.Parallel()(joblib.delayed(task)(depth - 1, i) for i in range(2))
    assert_same_models(chain.from_iterable(models), [i % 3 for i in range(2**depth)])


def test_time_limit_of_joblib():
    release = threading.Event()

    def slow(seed):
        if seed == 1:
            release.wait(0.5)
        return fit(seed)

    with stacked():
        with pytest.raises(multiprocessing.TimeoutError):
            parallel(slow, range(3), timeout=0.1)
        assert_same_models(parallel(fit, range(3), timeout=60), range(3))


def test_generators():
    with stacked():
        found = joblib.Parallel(return_as="generator")(
            joblib.delayed(fit)(seed) for seed in range(5)
        )
        models = []
        for model in found:
            models.append(model)
            if len(models) == 2:  # a call, and a fit, in the midst of another
                assert_same_models(parallel(fit, [5, 6]), [5, 6])
                fit(0)
        assert_same_models(models, range(5))
        unordered = joblib.Parallel(return_as="generator_unordered")(
            joblib.delayed(fit)(seed) for seed in range(5)
        )
        assert sorted(m.random_state for m in unordered) == [0, 1, 2, 3, 4]


def test_generator_inside_a_task():
    def task(seed):
        models = []
        for model in joblib.Parallel(return_as="generator")(
            joblib.delayed(fit)(seed + k) for k in range(3)
        ):
            models += [model, fit(seed)]
        return models

    with stacked():
        found = parallel(task, [0, 10])
    for seed, models in zip((0, 10), found, strict=True):
        assert_same_models(models[::2], [seed, seed + 1, seed + 2])
        assert_same_models(models[1::2], [seed] * 3)


@pytest.mark.parametrize("nested", [False, True])
def test_generator_that_another_thread_reads(nested):
    def task(seed):
        found = joblib.Parallel(return_as="generator")(
            joblib.delayed(fit)(seed + k) for k in range(3)
        )
        models = []
        reader = threading.Thread(target=lambda: models.extend(found), daemon=True)
        reader.start()
        reader.join(60)
        assert not reader.is_alive()
        return models

    with stacked():
        found = parallel(task, [0, 10]) if nested else [task(0), task(10)]
    for seed, models in zip((0, 10), found, strict=True):
        assert_same_models(models, [seed, seed + 1, seed + 2])


@pytest.mark.parametrize("used", [0, 2])
def test_generator_that_is_dropped(used):

    def program():
        found = joblib.Parallel(return_as="generator")(
            joblib.delayed(fit)(seed) for seed in range(12)
        )
        for _ in range(used):
            next(found)
        found.close()

    with stacked(3):
        run(program)  # joblib warns of "tasks which were still being processed"
        assert_same_models(parallel(fit, [1, 2]), [1, 2])


def test_tasks_are_admitted_by_bytes(monkeypatch, rounds):
    """Three tasks of 1 MB fit under a quarter of 14 MB, a large one is begun when it must."""
    monkeypatch.setattr(_rendezvous, "free_bytes", lambda: 14e6)

    def task(array, seed):
        return fit(seed)

    arrays = [np.zeros(125_000 * size) for size in (1, 1, 1, 1, 1, 50, 1)]
    with stacked():
        found = joblib.Parallel()(
            joblib.delayed(task)(array, seed) for seed, array in enumerate(arrays)
        )
    assert_same_models(found, range(7))
    assert rounds[:3] == [3, 2, 1]
    assert sum(rounds) == 7 + 7


def test_no_more_threads_than_tasks(monkeypatch):
    """Where the system refuses threads, those there are go on."""
    real, started = threading.Thread.start, []

    def start(thread):
        if thread.name.startswith("sknn_resid"):
            if len(started) >= 3:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with stacked():
        assert_same_models(parallel(fit, range(8)), range(8))


def test_a_stack_that_fails_is_tried_one_by_one(monkeypatch):
    """No memory for all at once is no failure of any of them."""
    real = runner.train_jobs

    def small(jobs, interrupted=None):
        if len(jobs) > 1:
            for job in jobs[:2]:
                job.rng.rand()  # whatever was drawn until then
            raise MemoryError
        if jobs[0].params[0] == hopeless:
            return [ValueError("this one")]
        return real(jobs, interrupted)

    captured = []
    monkeypatch.setattr(
        runner, "train_jobs", lambda jobs, interrupted=None: captured.extend(jobs) or real(jobs)
    )
    fit(2)
    hopeless = captured[0].params[0]
    monkeypatch.setattr(runner, "train_jobs", small)

    def task(seed):
        try:
            return fit(seed)
        except ValueError as error:
            return str(error)

    with stacked():
        found = parallel(task, range(4))
    monkeypatch.setattr(runner, "train_jobs", real)
    assert found[2] == "this one"
    assert_same_models([found[0], found[1], found[3]], [0, 1, 3])


def test_slow_tasks_keep_the_others_company(rounds):
    def task(seed):
        time.sleep(0.02 * (seed % 3))
        return fit(seed)

    with stacked():
        assert_same_models(parallel(task, range(6)), range(6))
    assert rounds[0] == 6


def test_context_of_the_caller_is_that_of_its_tasks():
    def task(_):
        return np.geterr()["over"]

    with stacked(), np.errstate(over="raise"):
        assert set(parallel(task, range(3))) == {"raise"}


def test_two_callers_at_the_same_time():
    """Each thread has its own rendezvous."""
    found = {}

    def caller(name):
        with stacked():
            found[name] = parallel(fit_quietly, range(4))

    def fit_quietly(seed):
        return net(random_state=seed, max_iter=500, tol=0.5, n_iter_no_change=1).fit(X, y)

    threads = [threading.Thread(target=caller, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for a, b in zip(found["a"], found["b"], strict=True):
        assert_same_network(a, b)


def test_error_score_of_a_search():
    grid = {"hidden_layer_sizes": [(3,), (-3,), (4,)]}
    search = GridSearchCV(net(), grid, cv=3, error_score=-2.0, refit=False)
    alone, _ = run(search.fit, X, y)
    expected = alone.cv_results_["mean_test_score"]
    assert (expected == -2.0).sum() == 1
    with stacked():
        together, _ = run(search.fit, X, y)
    np.testing.assert_array_equal(together.cv_results_["mean_test_score"], expected)


def test_diverging_fits_fail_alone():
    """A fit without one finite epoch raises; those trained with it do not notice."""
    grid = {"solver": ["sgd"], "learning_rate_init": [1e-2, 1e200], "momentum": [0.0]}
    search = GridSearchCV(net(), grid, cv=3, error_score=-2.0, refit=False)
    alone, _ = run(search.fit, 1e3 * X, y)
    with stacked():
        together, _ = run(search.fit, 1e3 * X, y)
    for key, value in alone.cv_results_.items():
        if key.endswith("test_score"):
            np.testing.assert_array_equal(together.cv_results_[key], value)


def test_partial_fit_inside_tasks(rounds):
    def task(seed):
        model = net(random_state=seed)
        for _ in range(3):
            model.partial_fit(X, y, classes=np.unique(y))
        return model

    with stacked():
        together = parallel(task, range(4))
    assert rounds == [4, 4, 4]
    for model, alone in zip(together, map(task, range(4)), strict=True):
        assert_same_network(model, alone)


def test_many_tasks_few_at_a_time(rounds):
    with stacked(4):
        run(cross_validate, net(), X, y)
        models = parallel(fit, range(23))
    assert max(rounds) == 4
    assert_same_models(models, range(23))
