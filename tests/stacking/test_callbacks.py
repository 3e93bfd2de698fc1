"""Callbacks and scores of a network run in its own task: its thread, its configuration, its log."""

import threading
import warnings

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.callback import ScoringMonitor
from sklearn.model_selection import GridSearchCV, cross_validate
from stacking.programs import X, assert_same_network, net, networks, run, y

from sknn_resid import stacked


class Watch:
    """Notes what happens to each fit, and may stop or fail some of them."""

    def __init__(self, act=lambda estimator, epoch: None):
        self.act = act
        self.epochs, self.threads, self.configs = {}, {}, set()
        self.alive = []  # or another estimator would be found under the same id

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        if context.task_name == "fit":
            self.alive.append(estimator)
            self.threads[id(estimator)] = threading.get_ident()

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "fit":
            return None
        assert self.threads[id(estimator)] == threading.get_ident()
        epoch = self.epochs[id(estimator)] = self.epochs.get(id(estimator), 0) + 1
        self.configs.add(sklearn.get_config()["working_memory"])
        return self.act(estimator, epoch)


GRID = {"alpha": [1e-3, 1e-2, 1e-1]}


def search(model, **params):
    return GridSearchCV(model, GRID, cv=3, refit=False, **params).fit(X, y)


def test_callbacks_run_at_home_in_every_epoch(rounds):
    watch = Watch()
    with stacked(), sklearn.config_context(working_memory=77):
        run(search, net().set_callbacks(watch))
    assert rounds == [9]
    assert sorted(watch.epochs.values()) == [4] * 9
    assert watch.configs == {77}


def test_callback_stops_its_own_model():
    def stop(estimator, epoch):
        return epoch >= (2 if estimator.alpha == 1e-2 else 9)

    def program():
        search = GridSearchCV(net().set_callbacks(Watch(stop)), GRID, cv=2)
        return cross_validate(search, X, y, return_estimator=True)

    alone, _ = run(program)
    with stacked():
        together, _ = run(program)
    ours, theirs = networks(together), networks(alone)
    assert len(ours) == len(theirs) == 5
    for a, b in zip(ours, theirs, strict=True):
        assert_same_network(a, b)


@pytest.mark.parametrize("error", [LookupError, SystemExit])
def test_callback_that_raises_ends_its_own_fit(error):
    def fail(estimator, epoch):
        if estimator.alpha == 1e-2 and epoch == 2:
            raise error("from a callback")

    def task(alpha):
        model = net(alpha=alpha).set_callbacks(Watch(fail))
        try:
            return run(model.fit, X, y)[0]
        except error as raised:
            return str(raised)

    alone = [task(alpha) for alpha in GRID["alpha"]]
    with stacked():
        together = joblib.Parallel()(joblib.delayed(task)(alpha) for alpha in GRID["alpha"])
    assert together[1] == alone[1] == "from a callback"
    assert_same_network(together[0], alone[0])
    assert_same_network(together[2], alone[2])


def test_callbacks_that_fit_and_search(rounds):
    """A callback that needs the rendezvous itself would be waited for by those it waits for."""
    inner = []

    def fit_again(estimator, epoch):
        if epoch == 2:
            result, _ = run(cross_validate, net(), X, y)
            inner.append(result["test_score"])

    with stacked():
        run(search, net().set_callbacks(Watch(fit_again)))
    assert rounds[0] == 9
    assert len(inner) == 9
    np.testing.assert_array_equal(inner, [inner[0]] * 9)


def test_warnings_of_callbacks_reach_their_task():
    def warn(estimator, epoch):
        warnings.warn(f"alpha {estimator.alpha} epoch {epoch}", UserWarning, stacklevel=1)

    def task(alpha):
        with warnings.catch_warnings(record=True) as log:
            warnings.simplefilter("always")
            net(alpha=alpha).set_callbacks(Watch(warn)).fit(X, y)
        return [str(w.message) for w in log][:-1]

    with stacked():
        logs = joblib.Parallel()(joblib.delayed(task)(alpha) for alpha in GRID["alpha"])
    for alpha, log in zip(GRID["alpha"], logs, strict=True):
        assert log == [f"alpha {alpha} epoch {epoch}" for epoch in (1, 2, 3, 4)]


def test_scorer_of_early_stopping_runs_at_home():
    seen = []

    def scorer(estimator, X, y):
        seen.append((estimator.alpha, threading.get_ident()))
        return float((estimator.predict(X) == y).mean())

    model = net(early_stopping=True, early_stopping_metric=scorer, max_iter=5)
    with stacked():
        run(search, model)
    threads = {}
    for alpha, thread in seen:
        threads.setdefault(thread, set()).add(alpha)
    assert len(threads) == 9
    assert all(len(alphas) == 1 for alphas in threads.values())


def test_scoring_monitor_of_a_search():
    monitors = []
    for context in (None, stacked()):
        monitor = ScoringMonitor(scoring="accuracy")
        model = net().set_callbacks(monitor)
        if context is None:
            run(search, model)
        else:
            with context:
                run(search, model)
        rows = monitor.get_logs()
        monitors.append(rows[0].data if isinstance(rows, list) else rows.data)
    alone, together = monitors
    assert str(together) == str(alone)
