"""Each warning reaches the fit that gave it, and the state of the process is as before."""

import threading
import warnings

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_validate
from stacking.programs import X, is_summary, net, run, said, y

from sknn_resid import stacked


class Loud(ClassifierMixin, BaseEstimator):
    """A network whose fit warns before and after training, in a log of its own if asked to."""

    def __init__(self, name="", own_log=False, alpha=1e-4):
        self.name, self.own_log, self.alpha = name, own_log, alpha

    def fit(self, X, y):
        self.heard_ = []
        if self.own_log:
            with warnings.catch_warnings(record=True) as log:
                warnings.simplefilter("always")
                self._fit(X, y)
            self.heard_ = [str(w.message) for w in log]
        else:
            self._fit(X, y)
        return self

    def _fit(self, X, y):
        warnings.warn(f"{self.name} before", UserWarning, stacklevel=2)
        self.net_ = net(alpha=self.alpha).fit(X, y)
        warnings.warn(f"{self.name} after", UserWarning, stacklevel=2)
        self.classes_ = self.net_.classes_

    def predict(self, X):
        return self.net_.predict(X)


def test_every_warning_arrives():
    grid = {"name": [f"model {i}" for i in range(8)]}
    search = GridSearchCV(Loud(), grid, cv=2, refit=False)
    _, alone = run(search.fit, X, y)
    assert len(alone) == 8 * 2 * 3
    with stacked():
        _, together = run(search.fit, X, y)
    assert said(w for w in together if not is_summary(w)) == said(alone)


def test_each_fit_hears_its_own_and_only_that():
    grid = {"name": [f"model {i}" for i in range(8)], "own_log": [True]}
    heard = {}

    def scorer(model, X, y):
        heard.setdefault(model.name, []).append(model.heard_)
        return 0.0

    with stacked():
        _, outside = run(GridSearchCV(Loud(), grid, cv=2, refit=False, scoring=scorer).fit, X, y)
    assert sorted(heard) == grid["name"]
    for name, logs in heard.items():
        for log in logs:
            assert [text for text in log if "Stochastic" not in text] == [
                f"{name} before",
                f"{name} after",
            ]
            assert len(log) == 3
    assert [is_summary(w) for w in outside] == [True]


def test_ignored_warnings_do_not_leak():
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("ignore")
        with stacked():
            GridSearchCV(Loud(), {"alpha": [0.1, 1.0]}, cv=3, refit=False).fit(X, y)
    assert log == []


def test_errors_made_of_warnings_fail_their_fit_only():
    """As with pytest: the warning is an error, and the search notes a failed fit."""

    def program():
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            grid = {"max_iter": [2, 400], "tol": [0.5]}
            return GridSearchCV(net(), grid, cv=2, refit=False, error_score=-1.0).fit(X, y)

    alone, _ = run(program)
    with stacked():
        together, warned = run(program)
    assert alone.cv_results_["mean_test_score"][0] == -1.0
    for key in ("mean_test_score", "rank_test_score"):
        np.testing.assert_array_equal(together.cv_results_[key], alone.cv_results_[key])
    assert not any(is_summary(w) for w in warned)


def test_filters_are_the_same_object_during_and_after():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = warnings.filters
        state = (warnings.showwarning, warnings._showwarnmsg_impl)
        with stacked():
            cross_validate(net(), X, y)
            assert warnings.filters is before
        assert warnings.filters is before
        assert state == (warnings.showwarning, warnings._showwarnmsg_impl)


def test_filters_are_the_same_object_after_failures():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = warnings.filters
        grid = {"hidden_layer_sizes": [(3,), (-3,), (4,)]}
        search = GridSearchCV(net(), grid, cv=3, error_score="raise")
        with stacked(), pytest.raises(ValueError, match="hidden_layer_sizes"):
            search.fit(X, y)
        assert warnings.filters is before


def test_a_task_that_changes_filters_for_good_does_so_as_in_a_loop():
    def task(i):
        if i == 1:
            warnings.filterwarnings("ignore", message="mine")
        warnings.warn(f"mine {i}", UserWarning, stacklevel=1)

    def program():
        joblib.Parallel()(joblib.delayed(task)(i) for i in range(4))

    _, alone = run(program)
    with stacked():
        _, together = run(program)
    assert [text for _, text in alone] == ["mine 0"]
    assert together == alone


def test_one_summary_per_search():
    """A halving search calls joblib once an iteration; candidates are counted as in cv_results_."""
    grid = {"alpha": [1e-4, 1e-2, 1.0], "learning_rate_init": [0.01, 0.1]}
    search = HalvingGridSearchCV(net(), grid, cv=2, random_state=0, min_resources=30)
    with stacked():
        _, warned = run(search.fit, X, y)
    (summary,) = [text for category, text in warned if is_summary((category, text))]
    n_rows = len(search.cv_results_["params"])
    assert n_rows == 6 + 2
    assert summary.startswith(f"{2 * n_rows} of {2 * n_rows} fits")
    for row, params in enumerate(search.cv_results_["params"]):
        rest = ", learning_rate_init=" + str(params["learning_rate_init"])
        assert f"candidate {row} (alpha={params['alpha']}{rest}) folds 0, 1" in summary


def test_summary_of_nested_searches_and_of_ensembles_in_a_search():
    inner = GridSearchCV(net(), {"alpha": [0.1, 1.0]}, cv=2)
    with stacked():
        _, warned = run(cross_validate, inner, X, y)
    texts = [text for category, text in warned if is_summary((category, text))]
    # one for each inner search, one for the refits, which belong to the outer folds
    assert sorted(text.split(" fits")[0] for text in texts) == ["4 of 4"] * 5 + ["5 of 5"]
    assert any("folds 0, 1, 2, 3, 4" in text for text in texts)


def test_no_summary_where_all_converged():
    with stacked():
        _, warned = run(cross_validate, net(max_iter=500, tol=0.1, n_iter_no_change=1), X, y)
    assert warned == []


def test_long_summaries_are_cut():
    grid = {"alpha": list(np.logspace(-4, 0, 14))}
    with stacked():
        _, warned = run(GridSearchCV(net(max_iter=1), grid, cv=2, refit=False).fit, X, y)
    (summary,) = [text for category, text in warned if is_summary((category, text))]
    assert "; and 4 more candidates" in summary


def test_threads_of_their_own_do_not_disturb():
    """A task whose own thread fits a network: it trains there, and nobody waits for it."""

    def task(seed):
        model = net(random_state=seed)
        thread = threading.Thread(target=lambda: run(model.fit, X, y))
        thread.start()
        thread.join(30)
        assert not thread.is_alive()
        return model.loss_

    with stacked():
        losses = joblib.Parallel()(joblib.delayed(task)(seed) for seed in range(3))
    alone = [run(net(random_state=seed).fit, X, y)[0].loss_ for seed in range(3)]
    np.testing.assert_allclose(losses, alone)
