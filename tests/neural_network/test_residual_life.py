"""Residual estimators: losses, standard deviations, precision, files, callbacks, Ctrl-C."""

import signal

import joblib
import numpy as np
import pytest
from neural_network.residual_helpers import QUICK, TASKS, mixed_table, outputs, task
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.callback import ScoringMonitor
from sklearn.model_selection import GridSearchCV

from sknn_resid import MLPClassifier, MLPResidualClassifier, MLPResidualRegressor


def noisy_line(n_rows=400, seed=0):
    """y = 100 + 20 x + noise of standard deviation 5, a tenth of the rows far above."""
    rng = np.random.RandomState(seed)
    X = rng.rand(n_rows, 1)
    return X, 100 + 20 * X[:, 0] + 5 * rng.randn(n_rows), rng


# -- losses ---------------------------------------------------------------------------------------

FAIR = {"n_estimators": 2, "width": 16, "random_state": 0}


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_a_quantile_covers_its_share(quantile):
    X, y, _ = noisy_line()
    model = MLPResidualRegressor(loss="quantile", quantile=quantile, **FAIR).fit(X[:300], y[:300])
    assert np.mean(y[300:] <= model.predict(X[300:])) == pytest.approx(quantile, abs=0.11)


def test_robust_losses_do_not_follow_outliers():
    X, y, rng = noisy_line()
    wild = np.where(rng.rand(len(y)) < 0.1, y + 1000, y)
    off = {
        loss: np.abs(
            MLPResidualRegressor(loss=loss, **FAIR).fit(X, wild).predict(X) - 100 - 20 * X[:, 0]
        ).mean()
        for loss in ("squared_error", "absolute_error", "huber")
    }
    assert off["absolute_error"] < 5
    assert off["huber"] < 5
    assert off["squared_error"] > 50


def test_poisson_predicts_means():
    rng = np.random.RandomState(0)
    X = rng.rand(600, 1)
    mean = 1000 * np.exp(2 * X[:, 0])
    y = rng.poisson(mean / 1000) * 1000.0  # any unit will do
    model = MLPResidualRegressor(loss="poisson", clamp=False, **FAIR).fit(X, y)
    assert_allclose(np.average(model.predict(X) / mean), 1, atol=0.1)
    assert (model.predict(X) > 0).all()
    with pytest.raises(ValueError, match="not negative"):
        model.fit(X, y - 1e6)


def test_a_callable_loss_is_the_built_in_one():
    X, y, _ = noisy_line(80)

    def half_squares(y_true, y_pred):
        return 0.5 * (y_true - y_pred) ** 2

    # Adam, and Muon's direction, do not depend on the unit of the loss.
    own = MLPResidualRegressor(loss=half_squares, **QUICK, dtype=None, epsilon=1e-30).fit(X, y)
    built_in = MLPResidualRegressor(**QUICK, dtype=None, epsilon=1e-30).fit(X, y)
    assert_allclose(own.predict(X), built_in.predict(X), rtol=1e-4)
    with pytest.raises(ValueError, match="loss"):
        own.save("never.npz")


# -- standard deviations --------------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [True, False])
def test_standard_deviation_of_new_targets(early_stopping):
    X, y, _ = noisy_line(600)
    # Eight members leave out every row once: with two, an eighth of the rows tells the noise.
    fair = FAIR | {"n_estimators": 8}
    model = MLPResidualRegressor(early_stopping=early_stopping, max_iter=20, **fair)
    mean, std = model.fit(X[:300], y[:300]).predict(X[300:], return_std=True)
    assert_allclose(mean, model.predict(X[300:]))
    assert np.mean(std) == pytest.approx(5, rel=0.25)
    assert 0.9 < np.mean(np.abs(mean - y[300:]) < 2 * std) <= 1


def test_standard_deviation_of_several_targets_and_in_which_units():
    X, y, _ = noisy_line()
    model = MLPResidualRegressor(**FAIR).fit(X, np.column_stack([y, 1000 * y[::-1]]))
    mean, std = model.predict(X, return_std=True)
    assert mean.shape == std.shape == (400, 2)
    assert std[:, 1].mean() > 100 * std[:, 0].mean()


@pytest.mark.parametrize("loss", ["quantile", "poisson"])
def test_no_standard_deviation_where_it_means_nothing(loss):
    X, y, _ = noisy_line(40)
    model = MLPResidualRegressor(loss=loss, **QUICK).fit(X, y)
    with pytest.raises(ValueError, match=r"return_std.*loss="):
        model.predict(X, return_std=True)


# -- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_precisions_agree(dtype):
    cls, needed, X, y = task("multiclass", n_rows=200)
    params = {**QUICK, **needed, "width": 16, "max_iter": 20}
    exact = cls(**params, dtype="float64").fit(X, y)
    model = cls(**params, dtype=dtype).fit(X, y)
    assert model.dtype_ == dtype
    tolerance = {"float32": 0.01, "float64": 1e-12, "bfloat16": 0.15}[dtype]
    assert_allclose(model.predict_proba(X), exact.predict_proba(X), atol=tolerance)
    assert_allclose(model.predict_proba(X).sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize("kind", TASKS)
def test_float32_rows(kind):
    cls, needed, X, y = task(kind)
    model = cls(**QUICK, **needed, dtype=None).fit(X.astype(np.float32), y)
    assert model.dtype_ == "float32"
    assert model.transform(X.astype(np.float32)).dtype == np.float32
    assert model.encoder_.dtype_ == np.float32
    assert_array_equal(model.predict(X.astype(np.float32)).shape, np.shape(y))


def test_what_auto_means():
    cls, _, X, y = task("binary", n_rows=100)
    assert cls(**QUICK).fit(X[:60], y[:60]).dtype_ == "float64"
    assert cls(**QUICK).fit(X, y).dtype_ == "float32"
    # The number of distinct rows counts.
    assert cls(**QUICK).fit(np.tile(X[:60], (3, 1)), np.tile(y[:60], 3)).dtype_ == "float64"
    assert cls(**QUICK, dtype=None).fit(X, y).dtype_ == "float64"


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_saved_and_loaded(kind, tmp_path):
    cls, needed, X, y = task(kind)
    model = cls(**QUICK, **needed).fit(X, y)
    model.save(tmp_path / "model.npz")
    loaded = cls.load(tmp_path / "model.npz")
    for a, b in zip(outputs(loaded, X), outputs(model, X), strict=True):
        assert_array_equal(a, b)
    assert loaded.get_params() == model.get_params()
    public = {name for name in vars(model) if name.endswith("_")}
    assert public <= set(dir(loaded))
    assert loaded.summary().equals(model.summary())
    if kind == "regression":
        assert_array_equal(loaded.predict(X, return_std=True), model.predict(X, return_std=True))
    with np.load(tmp_path / "model.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


@pytest.mark.parametrize(
    "params",
    [
        {"numeric_embedding": "periodic", "n_frequencies": 3},
        {"numeric_embedding": None, "skip": "gated", "normalization": None},
        {"preactivation": True, "tie_blocks": True, "n_blocks": 2, "activation": "gelu"},
    ],
)
def test_raw_tables_are_saved_with_their_encoder(params, tmp_path):
    X, y, _ = mixed_table()
    model = MLPResidualClassifier(**QUICK, **params).fit(X, y)
    model.save(tmp_path / "model")
    loaded = MLPResidualClassifier.load(tmp_path / "model")
    assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert_array_equal(loaded.feature_names_in_, X.columns)
    with pytest.raises(ValueError, match="MLPResidualClassifier"):
        MLPResidualRegressor.load(tmp_path / "model")
    with pytest.raises(ValueError, match="MLPResidualClassifier"):
        MLPClassifier.load(tmp_path / "model")


# -- callbacks ------------------------------------------------------------------------------------


class Recorder:
    """Notes the score after each epoch; stops, or presses Ctrl-C, after some."""

    def __init__(self, stop_after=None, press_after=None):
        self.stop_after, self.press_after = stop_after, press_after
        self.scores = []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        if context.task_name == "fit":
            return False
        self.scores.append(fitted_estimator.score(X, y))
        if len(self.scores) == self.press_after:
            signal.raise_signal(signal.SIGINT)
        return len(self.scores) == self.stop_after


def test_callbacks_see_the_estimator_after_each_epoch():
    X, y, _ = mixed_table()
    recorder = Recorder()
    params = {**QUICK, "early_stopping": False, "calibrate": False}
    model = MLPResidualClassifier(**params).set_callbacks(recorder).fit(X, y)
    assert len(recorder.scores) == 12
    assert recorder.scores[-1] == model.score(X, y)
    plain = MLPResidualClassifier(**params).fit(X, y)
    assert_array_equal(plain.predict_proba(X), model.predict_proba(X))


def test_a_callback_stops_the_whole_ensemble():
    X, y, _ = mixed_table()
    model = MLPResidualClassifier(**QUICK).set_callbacks(Recorder(stop_after=5)).fit(X, y)
    assert model.n_iter_ == 5
    assert (model.best_iteration_ <= 5).all()


def test_scoring_monitor():
    X, _, y = mixed_table()
    monitor = ScoringMonitor(scoring="r2")
    MLPResidualRegressor(**QUICK).set_callbacks(monitor).fit(X, y)
    log = monitor.get_logs().data_as_pandas
    assert (log["task_name"] != "fit").sum() == 12
    assert np.isfinite(log["r2"]).all()


# -- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [MLPResidualClassifier, MLPResidualRegressor])
@pytest.mark.parametrize("early_stopping", [True, False])
def test_an_interrupted_fit_predicts(cls, early_stopping):
    _, _, X, y = task("multiclass")
    model = cls(**{**QUICK, "max_iter": 10**6, "n_iter_no_change": np.inf})
    model.set_params(early_stopping=early_stopping).set_callbacks(Recorder(press_after=4))
    with pytest.warns(UserWarning, match="interrupted"):
        model.fit(X, y)
    assert 1 <= model.n_iter_ <= 4
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize("how", ["search", "joblib"])
def test_an_interrupt_ends_a_whole_search(how):
    _, _, X, y = task("binary")
    model = MLPResidualClassifier(**{**QUICK, "max_iter": 10**6, "n_iter_no_change": np.inf})
    model.set_callbacks(Recorder(press_after=2))

    def search():
        GridSearchCV(model, {"width": [4, 8]}, cv=2).fit(X, y)

    def fits():
        joblib.Parallel(n_jobs=1)(joblib.delayed(model.fit)(X, y) for _ in range(3))

    with pytest.raises(KeyboardInterrupt):
        search() if how == "search" else fits()
