"""``n_jobs`` inside `stacked`: processes that each train their share as one program."""

import os
import warnings

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_validate
from stacking.programs import (
    CLASSIFIER_PROGRAMS,
    REGRESSOR_PROGRAMS,
    X,
    assert_same_run,
    is_summary,
    net,
    piped,
    reg,
    run,
    said,
    y,
)

from sknn_resid import stacked

# The searches of these tables keep what they scored in this process; they are tested below.
ELSEWHERE = [name for name in CLASSIFIER_PROGRAMS if "earch" not in name] + ["nested search"]
GRID = {"alpha": [1e-4, 1e-2, 1.0], "max_iter": [2, 4]}


@pytest.fixture
def two_jobs():
    """What ``joblib.parallel_config(n_jobs=2), stacked()`` gives."""
    with joblib.parallel_config(n_jobs=2), stacked():
        yield


def where_and_with_whom(seed):
    """The process of a task, and how many networks the process trained at once."""
    from sknn_resid.engine import runner

    sizes = []
    real = runner.train_jobs

    def recorded(jobs, interrupted=None):
        sizes.append(len(jobs))
        return real(jobs, interrupted)

    runner.train_jobs = recorded
    try:
        run(net(random_state=seed).fit, X, y)
    finally:
        runner.train_jobs = real
    return os.getpid(), max(sizes, default=0)


def places(**params):
    return joblib.Parallel(**params)(joblib.delayed(where_and_with_whom)(s) for s in range(8))


def test_two_processes_each_with_half():
    with stacked():
        found = places(n_jobs=2)
    assert len({pid for pid, _ in found} - {os.getpid()}) == 2
    assert max(size for _, size in found) == 4


@pytest.mark.parametrize("params", [{}, {"n_jobs": 2, "require": "sharedmem"}, {"n_jobs": None}])
def test_this_process_where_several_are_not_asked_for(params):
    with stacked():
        found = places(**params)
    assert {pid for pid, _ in found} == {os.getpid()}
    assert max(size for _, size in found) == 8


@pytest.mark.parametrize("name", ELSEWHERE)
def test_programs(name, two_jobs):
    with joblib.parallel_config(backend="sequential"):
        alone = run(CLASSIFIER_PROGRAMS[name], piped(net()))
    assert_same_run(run(CLASSIFIER_PROGRAMS[name], piped(net())), alone)


@pytest.mark.parametrize("name", REGRESSOR_PROGRAMS)
def test_regressor_programs(name, two_jobs):
    with joblib.parallel_config(backend="sequential"):
        alone = run(REGRESSOR_PROGRAMS[name], reg())
    assert_same_run(run(REGRESSOR_PROGRAMS[name], reg()), alone)


def test_search_and_its_warnings():
    alone = run(lambda: [GridSearchCV(net(), GRID, cv=3).fit(X, y)])
    filters = warnings.filters
    with stacked():
        together = run(lambda: [GridSearchCV(net(), GRID, cv=3, n_jobs=2).fit(X, y)])
    assert warnings.filters is filters
    assert_same_run(together, alone)
    assert [is_summary(w) for w in together[1]].count(True) == 1
    (summary,) = [text for _, text in together[1] if is_summary((None, text))]
    assert summary.startswith("18 of 18 fits")
    assert "candidate 5 (alpha=1.0, max_iter=4) folds 0, 1, 2" in summary


class Brittle(ClassifierMixin, BaseEstimator):
    """A network that some parameters break, before or after it is trained."""

    def __init__(self, breaks=None):
        self.breaks = breaks

    def fit(self, X, y):
        if self.breaks == "before":
            raise LookupError("before")
        self.net_ = net(max_iter=2).fit(X, y)
        if self.breaks == "after":
            raise LookupError("after")
        self.classes_ = self.net_.classes_
        return self

    def predict(self, X):
        return self.net_.predict(X)


def test_an_error_is_its_own_fits():
    grid = {"breaks": [None, "before", "after"]}
    search = GridSearchCV(Brittle(), grid, cv=2, n_jobs=2, refit=False)
    with joblib.parallel_config(backend="sequential"):
        alone, warned_alone = run(search.fit, X, y)
    scores = alone.cv_results_["mean_test_score"]
    with stacked():
        together, warned = run(search.fit, X, y)
    np.testing.assert_array_equal(together.cv_results_["mean_test_score"], scores)
    np.testing.assert_array_equal(np.isnan(scores), [False, True, True])
    assert said(w for w in warned if not is_summary(w)) == said(warned_alone)
    with stacked(), pytest.raises(LookupError, match="before"):
        run(search.set_params(error_score="raise").fit, X, y)
    with stacked():  # and nothing is left of it
        _, warned = run(cross_validate, net(max_iter=2), X, y)
    assert len(warned) == 5 + 1


def test_a_warning_that_is_an_error():
    search = GridSearchCV(net(), {"alpha": [1e-4, 1.0]}, cv=2, n_jobs=2, refit=False)
    with warnings.catch_warnings(), stacked():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ValueError, match="All the 4 fits failed"):
            search.fit(X, y)


def test_bags_are_not_fitted_in_loops():
    """`BaggingClassifier` makes n_jobs loops of its members, unless told that all may run."""
    bags = BaggingClassifier(net(), n_estimators=6, random_state=0)
    alone, _ = run(bags.fit, X, y)
    expected = alone.predict_proba(X)
    for n_jobs in (None, 2):
        with stacked():
            together, _ = run(bags.set_params(n_jobs=n_jobs).fit, X, y)
        np.testing.assert_allclose(together.predict_proba(X), expected, rtol=1e-6)


def test_few_at_a_time():
    with stacked(max_stack=2):
        found = places(n_jobs=2)
    assert len(found) == 8
    assert max(size for _, size in found) == 2


def test_large_arrays_are_shared():
    """joblib maps arrays of a megabyte and more, here as without `stacked`: read-only."""
    rng = np.random.RandomState(0)
    big = rng.normal(size=(20_000, 10))
    search = GridSearchCV(net(max_iter=1), {"alpha": [1e-4, 1.0]}, cv=2, n_jobs=2, refit=False)
    with stacked():
        together, _ = run(search.fit, big, (big[:, 0] > 0).astype(int))
    assert np.isfinite(together.cv_results_["mean_test_score"]).all()
