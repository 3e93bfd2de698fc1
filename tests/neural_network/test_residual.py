"""MLPResidualClassifier and MLPResidualRegressor: raw tables in, and what a fit leaves behind."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from neural_network.residual_helpers import QUICK, TASKS, mixed_table, outputs, task
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sknn_resid import MLPResidualClassifier, MLPResidualRegressor
from sknn_resid.neural_network import TableEncoder

CLASSES = [MLPResidualClassifier, MLPResidualRegressor]


def fitted(kind, **params):
    cls, needed, X, y = task(kind)
    return cls(**{**QUICK, **needed, **params}).fit(X, y), X, y


# -- raw tables -----------------------------------------------------------------------------------


def test_a_raw_table_and_nothing_else():
    X, y, y_real = mixed_table(400)
    clf = MLPResidualClassifier(n_estimators=4, random_state=0).fit(X[:300], y[:300])
    assert clf.score(X[300:], y[300:]) > 0.85
    assert_array_equal(clf.classes_, ["low", "tall"])
    assert isinstance(clf.encoder_, TableEncoder)
    assert_array_equal(clf.feature_names_in_, X.columns)
    regr = MLPResidualRegressor(n_estimators=4, random_state=0).fit(X[:300], y_real[:300])
    assert regr.score(X[300:], y_real[300:]) > 0.8


def test_unknown_categories_and_missing_values_at_predict():
    X, y, _ = mixed_table()
    clf = MLPResidualClassifier(**QUICK).fit(X, y)
    new = X.iloc[:3].copy()
    new["kind"] = ["palm", None, "oak"]
    new["count"] = [np.nan, 1, 2]
    assert np.isfinite(clf.predict_proba(new)).all()


def test_in_a_pipeline_and_a_search():
    X, y, _ = mixed_table()
    model = make_pipeline(FunctionTransformer(), MLPResidualClassifier(**QUICK))
    search = GridSearchCV(model, {"mlpresidualclassifier__width": [4, 8]}, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(X).shape == y.shape
    assert (cross_val_score(MLPResidualClassifier(**QUICK), X, y, cv=3) > 0.5).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_sparse_rows(cls):
    rng = np.random.RandomState(0)
    dense = np.where(rng.rand(80, 6) < 0.6, 0, rng.randn(80, 6))
    y = (dense[:, 0] > 0).astype(int)
    one = cls(**QUICK).fit(dense, y)
    other = cls(**QUICK).fit(scipy.sparse.csr_array(dense), y)
    assert_allclose(other.predict(scipy.sparse.csr_array(dense)), one.predict(dense), atol=1e-9)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_refused(cls, value):
    X = pd.DataFrame({"good": np.arange(20.0), "bad": np.arange(20.0)})
    y = np.arange(20) % 2
    model = cls(**QUICK).fit(X, y)
    X.loc[3, "bad"] = value
    with pytest.raises(ValueError, match=r"infinity in column .bad"):
        model.predict(X)
    with pytest.raises(ValueError, match=r"infinity in column .bad"):
        cls(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match=r"X_val: .*infinity in column .bad"):
        cls(**QUICK).fit(X.drop(index=3), np.delete(y, 3), X_val=X, y_val=y)


def test_dates_and_missing_targets_are_refused():
    X = pd.DataFrame({"when": pd.date_range("2020-01-01", periods=20)})
    y = np.arange(20) % 2
    with pytest.raises(TypeError, match="when"):
        MLPResidualClassifier(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        MLPResidualRegressor(**QUICK).fit(np.eye(20), np.where(y, np.nan, 1.0))


def test_a_failed_fit_leaves_the_model_as_it_was():
    model, X, y = fitted("binary")
    before = outputs(model, X)
    with pytest.raises(ValueError, match="inf"):
        model.fit(np.where(X > 1, np.inf, X), y)
    for a, b in zip(outputs(model, X), before, strict=True):
        assert_array_equal(a, b)


def test_columns_of_predict_are_checked():
    X, y, _ = mixed_table()
    clf = MLPResidualClassifier(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(X[X.columns[::-1]])
    model, rows, _ = fitted("binary")
    with pytest.raises(ValueError, match="MLPResidualClassifier is expecting 4 features"):
        model.predict(rows[:, :2])
    with pytest.raises(NotFittedError):
        MLPResidualClassifier().predict(X)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("cls", CLASSES)
def test_few_rows(cls, n_rows):
    X = np.random.RandomState(0).randn(n_rows, 3)
    y = np.arange(n_rows) % 2
    model = cls(**QUICK).fit(X, y)
    assert all(np.isfinite(np.asarray(part, dtype=float)).all() for part in outputs(model, X))


@pytest.mark.parametrize(
    "column",
    [
        np.full(50, np.nan),
        np.full(50, 3.0),
        np.where(np.arange(50) % 2, np.nan, 3.0),
        np.arange(50) * 1e12,
        np.exp(6 * np.random.RandomState(0).randn(50)),
        np.where(np.arange(50) < 45, 0.0, 1.0),
        np.arange(50).astype(str),
    ],
    ids=["missing", "constant", "half missing", "large", "skewed", "sparse", "unique text"],
)
def test_odd_columns(column):
    X = pd.DataFrame({"odd": column, "usual": np.random.RandomState(1).randn(50)})
    y = (X["usual"] > 0).astype(int)
    model = MLPResidualClassifier(**QUICK).fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize("target", [np.full(40, 7.5), 1e9 + np.arange(40.0), np.zeros(40)])
def test_odd_targets(target):
    X = np.random.RandomState(0).randn(40, 2)
    predicted = MLPResidualRegressor(**QUICK).fit(X, target).predict(X)
    assert (predicted >= target.min()).all()
    assert (predicted <= target.max()).all()


def test_one_class():
    X = np.random.RandomState(0).randn(30, 2)
    model = MLPResidualClassifier(**QUICK).fit(X, ["only"] * 30)
    assert set(model.predict(X)) == {"only"}


# -- what a fit leaves behind ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_fitted_attributes(kind):
    model, X, _ = fitted(kind)
    assert model.n_iter_ <= 12
    assert len(model.loss_curve_) == model.n_iter_
    assert model.loss_ == model.loss_curve_[-1]
    assert len(model.validation_loss_curve_) == len(model.validation_iterations_)
    assert model.best_iteration_.shape == (2,)
    assert set(model.best_iteration_) <= set(model.validation_iterations_)
    assert model.member_weights_.sum() == pytest.approx(1)
    assert model.n_parameters_ == model.summary()["all members"].sum()
    assert model.n_features_in_ == X.shape[1]
    assert model.device_ == "cpu"
    assert model.dtype_ == "float32"  # more than 64 distinct rows


@pytest.mark.parametrize("kind", TASKS)
def test_outputs_have_the_shapes_of_scikit_learn(kind):
    model, X, y = fitted(kind)
    assert model.predict(X).shape == np.shape(y)
    assert model.transform(X).shape == (len(X), 2 * 8)
    assert 0 <= model.score(X, y) <= 1 or kind in ("regression", "poisson", "multi_regression")
    if hasattr(model, "predict_proba"):
        parts = model.predict_proba(X)
        for p in parts if isinstance(parts, list) else [parts]:
            assert (p > 0).all()
            assert (p < 1).all()
            if kind != "multilabel":
                assert_allclose(p.sum(1), 1, rtol=1e-12)


def test_predict_is_the_most_probable_class():
    for kind in ("binary", "multiclass"):
        model, X, _ = fitted(kind)
        assert_array_equal(model.classes_[model.predict_proba(X).argmax(1)], model.predict(X))
        assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X))


def test_the_ensemble_is_the_weighted_mean_of_its_members():
    params = {"n_estimators": 4, "calibrate": False, "validation_fraction": 0.3, "dtype": None}
    model, X, _ = fitted("multiclass", **params)
    assert model.temperature_ == 1
    members = model._ensemble.members.outputs(model.encoder_.transform(X))
    mean = np.tensordot(model.member_weights_, members, axes=1)
    assert_allclose(model.predict_proba(X), mean, rtol=1e-10)


def test_calibration_sharpens_or_flattens_the_average():
    one, X, _ = fitted("multiclass", calibrate=False, max_iter=40)
    two, _, _ = fitted("multiclass", calibrate=True, max_iter=40)
    p = one.predict_proba(X) ** two.temperature_
    assert_allclose(two.predict_proba(X), p / p.sum(1, keepdims=True), rtol=1e-10)
    assert two.temperature_ != 1


def test_transform_is_what_the_heads_read():
    model, X, _ = fitted("regression", clamp=False, dtype=None)
    members = model._ensemble.members
    hidden = model.transform(X).reshape(len(X), 2, 8)
    from sknn_resid.engine.residual_layout import ResidualLayout

    layout = ResidualLayout(members.spec)
    z = 0
    for m, weight in enumerate(model.member_weights_):
        named = layout.unpack(members.params[m])
        z = z + weight * (hidden[:, m] @ named["head.W"].T + named["head.b"])
    assert_allclose(model.predict(X), model._codec.to_user(z)[:, 0], rtol=1e-9)
    assert_array_equal(
        model.get_feature_names_out()[:2], ["mlpresidualregressor0", "mlpresidualregressor1"]
    )


def test_refits_are_bitwise_equal_and_seeds_differ():
    one, X, _ = fitted("regression")
    two, _, _ = fitted("regression")
    other, _, _ = fitted("regression", random_state=1)
    assert_array_equal(one.predict(X), two.predict(X))
    assert not np.array_equal(one.predict(X), other.predict(X))
    assert_array_equal(clone(one).fit(X, X[:, 0]).predict(X), clone(two).fit(X, X[:, 0]).predict(X))


def test_the_global_random_state_is_read_for_none_only():
    _, needed, X, y = task("binary")
    state = np.random.get_state()[1].copy()
    MLPResidualClassifier(**QUICK, **needed).fit(X, y)
    assert_array_equal(np.random.get_state()[1], state)
    np.random.seed(3)
    one = MLPResidualClassifier(**{**QUICK, "random_state": None}).fit(X, y)
    np.random.seed(3)
    two = MLPResidualClassifier(**{**QUICK, "random_state": None}).fit(X, y)
    assert_array_equal(one.predict_proba(X), two.predict_proba(X))


@pytest.mark.parametrize("kind", ["binary", "multi_regression"])
def test_pickles_small_and_predicts_from_threads(kind):
    model, X, _ = fitted(kind)
    copy = pickle.loads(pickle.dumps(model))
    for a, b in zip(outputs(copy, X), outputs(model, X), strict=True):
        assert_array_equal(a, b)
    size = model._ensemble.members.params.nbytes
    assert len(pickle.dumps(model._ensemble)) < size + 4000
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(model.predict, [X] * 8):
            assert_array_equal(found, model.predict(X))


def test_many_rows_are_predicted_in_pieces(monkeypatch):
    from sknn_resid.neural_network import _residual_prediction

    X, y, _ = mixed_table()
    model = MLPResidualClassifier(**QUICK, dtype=None).fit(X, y)
    whole = model.predict_proba(X)
    monkeypatch.setattr(_residual_prediction, "ROWS_AT_ONCE", 7)
    assert_allclose(model.predict_proba(X), whole, rtol=1e-12)
    model, rows, _ = fitted("regression", dtype=None)
    whole = model.predict(rows)
    assert_allclose(model.predict(scipy.sparse.coo_array(rows)), whole, rtol=1e-12)


# -- held-out rows --------------------------------------------------------------------------------


def test_members_leave_out_other_rows_and_none_is_lost():
    seen = []

    class Spy(MLPResidualRegressor):
        def _recipe(self, task, plan, judging):
            seen.append(judging.folds)
            return super()._recipe(task, plan, judging)

    X = np.repeat(np.random.RandomState(0).randn(60, 2), 2, axis=0)
    Spy(**QUICK).fit(X, X[:, 0])
    (folds,) = seen
    assert folds.n_folds == 8
    assert_array_equal(folds.of_row[::2], folds.of_row[1::2])  # copies are left out together


def test_given_validation_rows_are_judged_by():
    cls, needed, X, y = task("multiclass", n_rows=160)
    params = {**QUICK, **needed, "n_estimators": 1, "calibrate": False, "dtype": None}
    model = cls(**params).fit(X[:100], y[:100], X_val=X[100:], y_val=y[100:])
    best = int(np.argmin(model.validation_loss_curve_))
    assert model.validation_iterations_[best] == model.best_iteration_[0]
    expected = log_loss(y[100:], model.predict_proba(X[100:]))
    assert model.validation_loss_curve_[best] == pytest.approx(expected, rel=1e-9)
    weighted = cls(**params).fit(
        X[:100],
        y[:100],
        X_val=X[100:],
        y_val=y[100:],
        sample_weight_val=np.r_[np.ones(30), np.zeros(30)],
    )
    half = cls(**params).fit(X[:100], y[:100], X_val=X[100:130], y_val=y[100:130])
    assert_allclose(weighted.validation_loss_curve_, half.validation_loss_curve_)


def test_without_early_stopping_validation_rows_are_only_recorded():
    cls, needed, X, y = task("regression")
    params = {**QUICK, **needed, "early_stopping": False}
    plain = cls(**params).fit(X[:60], y[:60])
    recorded = cls(**params).fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert_array_equal(plain.predict(X), recorded.predict(X))
    assert plain.validation_loss_curve_ is None
    assert len(recorded.validation_loss_curve_) == recorded.n_iter_ == 12
    assert_array_equal(recorded.best_iteration_, [12, 12])


def test_validation_arguments_are_checked():
    cls, _, X, y = task("binary")
    with pytest.raises(ValueError, match="y_val"):
        cls(**QUICK).fit(X, y, X_val=X)
    with pytest.raises(ValueError, match="y_val has labels"):
        cls(**QUICK).fit(X, y, X_val=X, y_val=["never"] * len(y))
    with pytest.raises(ValueError, match="y_val has 1 target"):
        MLPResidualRegressor(**QUICK).fit(X, X[:, :2], X_val=X, y_val=X[:, 0])


def test_early_stopping_stops():
    rng = np.random.RandomState(0)
    X = rng.randn(200, 3)
    model = MLPResidualClassifier(n_estimators=2, max_iter=300, n_iter_no_change=6, random_state=0)
    model.fit(X, rng.randint(0, 2, 200))  # nothing to learn
    assert model.n_iter_ < 100
    assert (model.best_iteration_ < model.n_iter_).all()


def test_max_time():
    _, _, X, y = task("binary")
    model = MLPResidualClassifier(**{**QUICK, "max_iter": 100_000}, max_time=0.2)
    with pytest.warns(ConvergenceWarning, match=r"max_time=0\.2"):
        model.fit(X, y)
    assert 1 <= model.n_iter_ < 100_000


def test_verbose(capsys):
    fitted("binary", verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].startswith("Iteration 1, loss = ")
    assert "held-out loss" in lines[-1]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"embedding_scale": ()}, "embedding_scale"),
        ({"embedding_scale": (0.1, -1)}, "embedding_scale"),
        ({"warmup_fraction": 0.0}, "warmup_fraction"),
        ({"device": "cuda:99"}, "device"),
        ({"skip": "highway"}, "skip"),
        ({"n_blocks": -1}, "n_blocks"),
    ],
)
def test_bad_parameters(params, words):
    _, _, X, y = task("binary")
    with pytest.raises(ValueError, match=words):
        MLPResidualClassifier(**{**QUICK, **params}).fit(X, y)


def test_training_that_explodes_says_what_to_do():
    _, _, X, y = task("regression")
    params = {**QUICK, "learning_rate_init": 1e300, "normalization": None}
    model = MLPResidualRegressor(**params, batch_size=20)
    with pytest.raises(ValueError, match="learning_rate_init"):
        model.fit(X, y)
    assert not hasattr(model, "encoder_")
    # One step an epoch: the first loss, before any step, is finite, and so are those weights.
    model = MLPResidualRegressor(**params, batch_size=len(X))
    with pytest.warns(ConvergenceWarning, match="2 of 2 members diverged"):
        model.fit(X, y)
    assert np.isfinite(model.predict(X)).all()
