"""When a round begins although more tasks could be admitted, and who is in it."""

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from stacking.programs import X, assert_same_run, net, run, y

from sknn_resid import stacked
from sknn_resid._native import compiled
from sknn_resid.engine import runner
from sknn_resid.stacking import _outer, _round

ALPHAS = [1e-4, 1e-2, 1.0, 10.0]

needs_compiled = pytest.mark.skipif(
    compiled("steps") is None, reason="steps that are not compiled gain from every one that comes"
)


@pytest.fixture
def few_at_a_time(monkeypatch):
    """Rounds of four, as if X were large."""
    monkeypatch.setattr(_round, "ROUND_BYTES", 1)
    monkeypatch.setattr(_round, "FITS_PER_CORE", 0)
    monkeypatch.setattr(_round, "FEWEST_FITS", 4)


@pytest.fixture
def seen(monkeypatch):
    """The data of each round's jobs."""
    found = []
    real = runner.train_jobs

    def recorded(jobs, interrupted=None):
        found.append([job.data.X for job in jobs])
        return real(jobs, interrupted)

    monkeypatch.setattr(runner, "train_jobs", recorded)
    return found


def search(grid):
    return [GridSearchCV(net(), grid, cv=3, refit=False).fit(X, y)]


@needs_compiled
def test_a_full_round_does_not_wait_and_holds_one_fold(few_at_a_time, seen):
    with stacked():
        together = run(search, {"alpha": ALPHAS})
    assert [len(round_) for round_ in seen] == [4, 4, 4]
    for round_ in seen:
        for other in round_[1:]:
            np.testing.assert_array_equal(other, round_[0])
    seen.clear()
    assert_same_run(together, run(search, {"alpha": ALPHAS}))


@pytest.mark.parametrize("name", ["max_iter", "tol", "n_iter_no_change"])
def test_what_could_be_one_network_comes_together(few_at_a_time, rounds, name):
    with stacked():
        run(search, {"alpha": [1e-4, 1.0], name: [2, 4]})
    assert rounds == [12]


def test_steps_that_are_not_compiled_come_together(few_at_a_time, rounds, monkeypatch):
    monkeypatch.setattr("sknn_resid.engine.compiled.native.available", lambda *tensors: False)
    with stacked():
        run(search, {"alpha": ALPHAS})
    assert rounds == [12]


def test_small_data_come_together(rounds):
    with stacked():
        run(search, {"alpha": ALPHAS})
    assert rounds == [12]


@needs_compiled
def test_groups_of_a_worker_know_what_they_hold(rounds, monkeypatch):
    monkeypatch.setattr(_round, "ROUND_BYTES", 4 * (X.nbytes + y.nbytes))
    monkeypatch.setattr(_round, "FITS_PER_CORE", 0)
    monkeypatch.setattr(_round, "FEWEST_FITS", 1)

    def fit(X, y, alpha):
        return net(alpha=alpha).fit(X, y)

    groups = [[(fit, (X, y, alpha), {})] for alpha in np.logspace(-4, 0, 6)]
    plan, objects = _outer._flatten(groups, 256, None)
    returned = _outer.run_group(plan, *objects)
    assert len(returned) == 6
    assert rounds == [4, 2]


@pytest.mark.parametrize("n_tasks", [1, 2, 5, 17, 100, 1000])
@pytest.mark.parametrize("n_workers", [1, 2, 7])
@pytest.mark.parametrize("largest", [1, 10, 256])
@pytest.mark.parametrize("dividable", [False, True])
def test_groups_of_workers(n_tasks, n_workers, largest, dividable):
    bounds = _outer.group_bounds(n_tasks, n_workers, largest, dividable=dividable)
    assert bounds[0] == 0
    assert bounds[-1] == n_tasks
    sizes = np.diff(bounds)
    assert min(sizes) >= 1
    assert max(sizes) <= largest
    assert len(sizes) >= min(n_workers, n_tasks)
    if largest >= n_tasks >= 8 * n_workers:
        shares = [1 / 4] * n_workers * 2 if dividable else [1] * n_workers
        shares = [1 / 2] * n_workers + shares if dividable else shares
        np.testing.assert_allclose(sizes * n_workers / n_tasks, shares, atol=n_workers / n_tasks)
