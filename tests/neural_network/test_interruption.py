"""How a fit ends before its time: Ctrl-C, and a loss that runs away."""

import _thread
import signal
import threading
import warnings

import joblib
import numpy as np
import pytest
from neural_network.helpers import assert_same_fit, assert_same_weights, make_task
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor

# Ctrl-C


class Interrupt:
    """A callback that presses Ctrl-C after some epochs."""

    def __init__(self, after, press):
        self.after, self.press, self.n_epochs = after, press, 0

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        if context.task_name != "fit":
            self.n_epochs += 1
            if self.n_epochs == self.after:
                self.press()


def at_once():
    signal.raise_signal(signal.SIGINT)


def in_the_middle_of_an_epoch():
    threading.Timer(0.05, _thread.interrupt_main).start()


def long_fit(press, after=4, estimator_class=MLPRegressor, **params):
    """An estimator whose fit takes hours unless somebody interrupts it."""
    params = {"max_iter": 10**7, "n_iter_no_change": np.inf, "random_state": 0} | params
    model = estimator_class(**params)
    return model.set_callbacks(Interrupt(after, press))


@pytest.mark.parametrize("press", [at_once, in_the_middle_of_an_epoch])
@pytest.mark.parametrize("estimator_class", [MLPClassifier, MLPRegressor])
def test_interrupted_fit_is_a_model(estimator_class, press):
    X, y = make_task("binary", n_rows=400)
    model = long_fit(press, estimator_class=estimator_class, batch_size=10)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(X, y)
    assert model.n_iter_ >= 3
    assert len(model.loss_curve_) == model.n_iter_
    assert np.isfinite(model.predict(X)).all()
    assert model.score(X, y) > 0.3
    # And goes on.
    t = model.t_
    model.set_callbacks().partial_fit(X, y)
    assert model.t_ == t + 400


def test_interrupted_fit_keeps_the_best_weights():
    """A rate that is too high: the loss rises from epoch to epoch after the first."""
    X, y = make_task("regression")
    params = {"solver": "sgd", "momentum": 0.0, "nesterovs_momentum": False, "batch_size": len(X)}
    params |= {"hidden_layer_sizes": (), "activation": "identity", "learning_rate_init": 2.5}
    model = long_fit(at_once, after=6, **params)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(X, y)
    curve = np.array(model.loss_curve_)
    best = 1 + int(curve.argmin())
    assert best < len(curve)
    alone = MLPRegressor(**params, max_iter=best, random_state=0).fit(X, y)
    assert_same_weights(model, alone, rtol=1e-12)


def test_interrupted_with_early_stopping_keeps_the_best_by_score():
    X, y = make_task("multiclass", n_rows=300)
    params = {"estimator_class": MLPClassifier, "early_stopping": True}
    model = long_fit(at_once, after=8, learning_rate_init=0.05, **params)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(X, y)
    assert model.best_validation_score_ == max(model.validation_scores_)
    best = 1 + int(np.argmax(model.validation_scores_))
    alone = MLPClassifier(early_stopping=True, learning_rate_init=0.05, random_state=0)
    alone.set_params(max_iter=best).fit(X, y)
    assert_same_weights(model, alone, rtol=1e-12)


def test_interrupted_lbfgs_is_a_model():
    X, y = make_task("multiclass")
    model = long_fit(at_once, estimator_class=MLPClassifier, solver="lbfgs", tol=0, max_fun=10**7)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        model.fit(X, y)
    assert np.isfinite(model.loss_)
    assert np.isfinite(model.predict_proba(X)).all()
    assert model.n_iter_ >= 1


def test_interrupted_in_a_pipeline_is_a_model():
    X, y = make_task("regression")
    pipeline = make_pipeline(StandardScaler(), long_fit(at_once))
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        pipeline.fit(X, y)
    assert np.isfinite(pipeline.predict(X)).all()


def search(model, X, y):
    GridSearchCV(model, {"alpha": [0.1, 1.0]}, cv=2, n_jobs=None).fit(X, y)


def cross_validation(model, X, y):
    cross_validate(model, X, y, cv=2)


def plain_joblib(model, X, y):
    joblib.Parallel(n_jobs=1)(joblib.delayed(model.fit)(X, y) for _ in range(2))


@pytest.mark.parametrize("press", [at_once, in_the_middle_of_an_epoch])
@pytest.mark.parametrize("around", [search, cross_validation, plain_joblib])
def test_interrupt_goes_on_inside_other_things(around, press):
    X, y = make_task("regression")
    model = long_fit(press)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(KeyboardInterrupt):
            around(model, X, y)
    # The estimator is as good as new.
    model.set_callbacks().set_params(max_iter=3).fit(X, y)
    assert model.n_iter_ == 3


# Divergence


class StopAfter(Interrupt):
    """A callback that ends the fit after some epochs."""

    def on_fit_task_end(self, estimator, context):
        super().on_fit_task_end(estimator, context)
        return context.task_name != "fit" and self.n_epochs >= self.after


def diverging(**params):
    """Finite for an epoch or more, then larger and larger."""
    params = {"solver": "sgd", "momentum": 0.0, "nesterovs_momentum": False} | params
    params = {"learning_rate_init": 50.0, "activation": "identity", "batch_size": 130} | params
    return MLPRegressor(max_iter=400, n_iter_no_change=np.inf, random_state=0, **params)


def start_of_epoch(model, k, X, y):
    """`model` with the weights that epoch k begins with."""
    if k == 1:  # a rate too small to move anything
        return clone(model).set_params(learning_rate_init=1e-300, max_iter=1).fit(X, y)
    return clone(model).set_callbacks(StopAfter(k - 1, lambda: None)).fit(X, y)


@pytest.mark.parametrize("hidden", [(), (10,)])
@pytest.mark.parametrize("when", ["at once", "later"])
def test_diverged_fit_keeps_its_best_epoch(when, hidden):
    """The weights on which the lowest loss was measured: those its epoch began with.

    Those it ended with may already be the trouble, as where the first step is far too long.
    """
    X, y = make_task("regression")
    # With a warm-up the rate passes through good values on its way to the bad ones.
    model = diverging(hidden_layer_sizes=hidden, warmup_fraction=0.5 if when == "later" else 0.0)
    with pytest.warns(ConvergenceWarning, match=r"(?i)diverg"):
        model.fit(X, y)
    curve = np.array(model.loss_curve_)
    assert not np.isfinite(curve[-1])
    assert model.n_iter_ == len(curve) < 400
    best = 1 + int(np.nanargmin(curve))
    assert (best == 1) == (when == "at once")
    assert np.isfinite(model.predict(X)).all()
    assert_same_weights(model, start_of_epoch(model, best, X, y), rtol=1e-9)


def test_diverged_fit_can_be_fitted_again():
    X, y = make_task("regression")
    model = diverging()
    with pytest.warns(ConvergenceWarning, match=r"(?i)diverg"):
        model.fit(X, y)
    model.set_params(learning_rate_init=0.01, max_iter=20).fit(X, y)
    plain = diverging().set_params(learning_rate_init=0.01, max_iter=20).fit(X, y)
    assert_same_fit(model, plain, rtol=1e-12)


def test_no_finite_epoch_is_an_error_in_the_words_of_scikit_learn():
    X, y = make_task("regression")
    message = (
        "Solver produced non-finite parameter weights. The input data may contain large values and "
        "need to be preprocessed."
    )
    for solver in ("sgd", "adam", "lbfgs"):
        model = MLPRegressor(solver=solver, random_state=0, max_iter=5)
        with pytest.raises(ValueError, match=message):
            model.fit(1e300 * X, y)
        # Nothing half done is left.
        assert_allclose(model.fit(X, y).loss_, clone(model).fit(X, y).loss_)
