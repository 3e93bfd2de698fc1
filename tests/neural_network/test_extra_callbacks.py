"""scikit-learn's callbacks, and what `verbose` prints."""

import re

import numpy as np
import pandas as pd
import pytest
from neural_network.helpers import (
    TASKS,
    assert_same_fit,
    assert_same_weights,
    build_pair,
    make_task,
    make_weights,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor

SHORT = {"max_iter": 5, "batch_size": 32, "random_state": 0}


class Recorder:
    """Writes down every hook; stops the fit after `stop_after` epochs."""

    def __init__(self, stop_after=None):
        self.stop_after = stop_after
        self.hooks = []
        self.arguments = []
        self.scores = []

    def setup(self, estimator, context):
        self.hooks.append("setup")

    def teardown(self, estimator, context):
        self.hooks.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.hooks.append(f"begin {context.task_name}")
        self.arguments.append((X, y, metadata))

    def on_fit_task_end(
        self, estimator, context, *, X=None, y=None, metadata=None, fitted_estimator=None
    ):
        self.hooks.append(f"end {context.task_name}")
        self.arguments.append((X, y, metadata))
        self.scores.append(fitted_estimator.score(X, y))
        n_epochs = sum(hook.startswith("end") for hook in self.hooks)
        return self.stop_after is not None and n_epochs >= self.stop_after


@pytest.mark.parametrize("estimator_class", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_one_task_an_epoch(estimator_class, solver):
    X, y = make_task("binary")
    recorder = Recorder()
    model = estimator_class(solver=solver, **SHORT).set_callbacks(recorder)
    model.fit(X, y, sample_weight=make_weights(len(y)))
    epoch = recorder.hooks[2].removeprefix("begin ")
    epochs = [f"begin {epoch}", f"end {epoch}"] * 5
    assert recorder.hooks == ["setup", "begin fit", *epochs, "end fit", "teardown"]
    # Callbacks change nothing, and leave nothing behind.
    plain = estimator_class(solver=solver, **SHORT)
    plain.fit(X, y, sample_weight=make_weights(len(y)))
    assert_same_fit(model, plain, rtol=1e-12)
    assert set(vars(model)) - set(vars(plain)) == {"_skl_callbacks"}


def test_hooks_get_the_data_as_it_was_given():
    X, codes = make_task("multiclass")
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])
    y = pd.Series(np.array(list("dabc"))[codes])
    weights = make_weights(len(y))
    recorder = Recorder()
    model = MLPClassifier(**SHORT).set_callbacks(recorder)
    # A warning about column names would be an error here.
    model.fit(frame, y, sample_weight=weights)
    for given_X, given_y, metadata in recorder.arguments:
        assert_array_equal(given_X.columns, frame.columns)
        assert_array_equal(given_y, y)
        assert_array_equal(metadata["sample_weight"], weights)
    assert recorder.scores[-1] == model.score(frame, y)
    recorder = Recorder()
    MLPClassifier(**SHORT).set_callbacks(recorder).fit(X, codes)
    assert all(not metadata for _, _, metadata in recorder.arguments)


def test_fitted_estimator_is_the_model_after_the_epoch():
    """A fit of k epochs is what the callback sees after epoch k."""
    X, y = make_task("multi_regression")

    class Copies(Recorder):
        def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
            if context.task_name != "fit":
                models.append(fitted_estimator)

    models = []
    MLPRegressor(**SHORT).set_callbacks(Copies()).fit(X, y)
    assert len(models) == 5
    for k, seen in enumerate(models, start=1):
        alone = MLPRegressor(**SHORT | {"max_iter": k}).fit(X, y)
        assert_same_weights(seen, alone, rtol=1e-12)
        assert_allclose(seen.predict(X), alone.predict(X), rtol=1e-12)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_callback_stops_the_fit(early_stopping):
    X, y = make_task("multiclass")
    params = SHORT | {"max_iter": 100, "early_stopping": early_stopping}
    model = MLPClassifier(**params).set_callbacks(Recorder(stop_after=3)).fit(X, y)
    assert model.n_iter_ == len(model.loss_curve_) == 3
    assert np.isfinite(model.predict_proba(X)).all()
    plain = MLPClassifier(**params | {"max_iter": 3}).fit(X, y)
    assert_same_fit(model, plain, rtol=1e-12)


def test_callback_with_lbfgs():
    X, y = make_task("binary")
    recorder = Recorder(stop_after=4)
    model = MLPClassifier(solver="lbfgs", random_state=0).set_callbacks(recorder).fit(X, y)
    assert model.n_iter_ == 4
    plain = MLPClassifier(solver="lbfgs", random_state=0, max_iter=4).fit(X, y)
    assert_allclose(model.loss_, plain.loss_, rtol=1e-6)
    assert recorder.scores[-1] == model.score(X, y)


def test_error_in_a_callback_is_the_users():
    class Failing(Recorder):
        def on_fit_task_end(self, estimator, context):
            raise RuntimeError("the user's own mistake")

    X, y = make_task("binary")
    recorder = Failing()
    model = MLPClassifier(**SHORT).set_callbacks(recorder)
    with pytest.raises(RuntimeError, match="the user's own mistake"):
        model.fit(X, y)
    assert recorder.hooks[-1] == "teardown"
    with pytest.raises(NotFittedError):
        model.predict(X)
    model.set_callbacks().fit(X, y)


# The two callbacks that scikit-learn ships


def test_scoring_monitor_alone():
    X, y = make_task("multiclass")
    monitor = ScoringMonitor(scoring=["accuracy", "neg_log_loss"])
    model = MLPClassifier(**SHORT).set_callbacks(monitor).fit(X, y)
    log = monitor.get_logs().data_as_pandas
    epochs = log[log["task_name"] != "fit"]
    assert list(epochs["task_id_path"]) == [(0, k) for k in range(5)]
    for k, accuracy in enumerate(epochs["accuracy"], start=1):
        alone = MLPClassifier(**SHORT | {"max_iter": k}).fit(X, y)
        assert accuracy == pytest.approx(alone.score(X, y))
    assert set(log["estimator_name"]) == {"MLPClassifier"}
    assert (np.diff(epochs["neg_log_loss"]) > 0).all()
    assert np.isfinite(model.loss_)


def test_scoring_monitor_with_weights():
    X, y = make_task("binary")
    weights = make_weights(len(y))
    monitor = ScoringMonitor(scoring="accuracy")
    model = MLPClassifier(**SHORT).set_callbacks(monitor)
    model.fit(X, y, sample_weight=weights)
    log = monitor.get_logs().data_as_pandas
    assert log["accuracy"].iloc[-1] == pytest.approx(model.score(X, y, weights))


def test_scoring_monitor_in_a_pipeline_and_a_search():
    X, y = make_task("binary")
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])
    monitor = ScoringMonitor(scoring="accuracy")
    net = MLPClassifier(**SHORT).set_callbacks(monitor)
    pipeline = Pipeline([("scale", StandardScaler()), ("net", net)])
    pipeline.fit(frame, y)
    assert len(monitor.get_logs().data) >= 5
    search = GridSearchCV(pipeline, {"net__alpha": [1e-4, 1.0]}, cv=2).fit(frame, y)
    log = monitor.get_logs().data_as_pandas
    # Two candidates on two folds and the refit, five epochs each.
    epochs = log[[len(path) == 5 for path in log["task_id_path"]]]
    assert len(epochs) >= 4 * 5
    assert len(log[log["task_name"] != "fit"]) == 5 * 5
    assert np.isfinite(log["accuracy"]).all()
    assert search.best_estimator_["net"].n_iter_ == 5


def test_progress_bar(capsys):
    pytest.importorskip("rich")
    X, y = make_task("binary")
    MLPClassifier(**SHORT).set_callbacks(ProgressBar()).fit(X, y)
    printed = capsys.readouterr().out
    assert "MLPClassifier - fit" in printed
    assert "100%" in printed


@pytest.mark.parametrize("as_search", [False, True])
def test_progress_bar_of_what_is_around(capsys, as_search):
    pytest.importorskip("rich")
    X, y = make_task("binary")
    outer = Pipeline([("scale", StandardScaler()), ("net", MLPClassifier(**SHORT))])
    if as_search:
        outer = GridSearchCV(outer, {"net__alpha": [1e-4, 1.0]}, cv=2)
    outer.set_callbacks(ProgressBar(max_propagation_depth=None)).fit(X, y)
    printed = capsys.readouterr().out
    assert f"{type(outer).__name__} - fit" in printed
    assert "MLPClassifier - fit" in printed
    assert "100%" in printed


def test_progress_bar_when_fewer_epochs_are_run_than_planned(capsys):
    pytest.importorskip("rich")
    X, y = make_task("binary")
    model = MLPClassifier(max_iter=200, tol=1.0, n_iter_no_change=1, random_state=0)
    model.set_callbacks(ProgressBar()).fit(X, y)
    assert model.n_iter_ < 10
    assert "MLPClassifier - fit" in capsys.readouterr().out


# verbose


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_verbose_prints_the_lines_of_scikit_learn(task, early_stopping, capsys):
    X, y = make_task(task)
    printed = []
    for model in build_pair(task, verbose=True, early_stopping=early_stopping, **SHORT):
        model.set_params(tol=0.5, n_iter_no_change=2, max_iter=8).fit(X, y)
        printed.append(capsys.readouterr().out)
    ours, theirs = (re.sub(r"(\.\d{6})\d*", r"\1", text) for text in printed)
    assert ours == theirs
    assert ours.count("Iteration") >= 3


def test_verbose_tells_of_the_adaptive_rate(capsys):
    X, y = make_task("binary")
    params = {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.5, "n_iter_no_change": 2}
    printed = []
    for model in build_pair("binary", verbose=True, **SHORT | {"max_iter": 60}, **params):
        model.fit(X, y)
        printed.append(capsys.readouterr().out)
    ours, theirs = (re.sub(r"loss = \S+", "loss", text) for text in printed)
    assert ours == theirs
    assert "Setting learning rate to" in ours


def test_quiet_by_default(capfd):
    X, y = make_task("binary")
    for solver in ("adam", "lbfgs"):
        MLPClassifier(solver=solver, **SHORT).fit(X, y)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_verbose_in_partial_fit(capsys):
    X, y = make_task("regression")
    MLPRegressor(verbose=True, random_state=0).partial_fit(X, y)
    assert re.fullmatch(r"Iteration 1, loss = \d+\.\d{8}\n", capsys.readouterr().out)
