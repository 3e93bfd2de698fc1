"""transform, save and load, and the way to scikit-learn's estimators and back."""

import json
import zipfile

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
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from sklearn.neural_network import MLPRegressor as SklearnMLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor

SHORT = {"max_iter": 6, "hidden_layer_sizes": (9, 5), "batch_size": 32, "random_state": 0}


def fitted(task, **params):
    """Our estimator for a task, fitted, with its data."""
    X, y = make_task(task)
    model, _ = build_pair(task, **{**SHORT, **params})
    return model.fit(X, y), X, y


def outputs(model, X):
    """Everything a fitted model says about X."""
    names = ("predict", "predict_proba", "transform")
    return [getattr(model, name)(X) for name in names if hasattr(model, name)]


# transform


def test_transform_is_the_last_hidden_layer():
    model, X, _ = fitted("multiclass", activation="tanh")
    v = np.tanh(X @ model.coefs_[0] + model.intercepts_[0])
    v = np.tanh(v @ model.coefs_[1] + model.intercepts_[1])
    assert_allclose(model.transform(X), v, rtol=1e-9)
    z = v @ model.coefs_[2] + model.intercepts_[2]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert_allclose(model.predict_proba(X), p, rtol=1e-9)
    # With no hidden layer it is X.
    model, X, _ = fitted("regression", hidden_layer_sizes=())
    assert_array_equal(model.transform(X), X)
    assert model.get_feature_names_out().shape == (X.shape[1],)


def test_fit_transform_takes_the_fit_arguments():
    X, y = make_task("regression")
    weights = make_weights(len(y))
    both = MLPRegressor(**SHORT).fit_transform(X, y, sample_weight=weights)
    apart = MLPRegressor(**SHORT).fit(X, y, sample_weight=weights).transform(X)
    assert_array_equal(both, apart)


def test_names_and_frames():
    model, X, y = fitted("multiclass")
    names = [f"mlpclassifier{i}" for i in range(5)]
    assert_array_equal(model.get_feature_names_out(), names)
    frame = pd.DataFrame(X, index=range(100, 100 + len(X)))
    frame.columns = [f"column {i}" for i in range(X.shape[1])]
    model.set_output(transform="pandas").fit(frame, y)
    result = model.transform(frame)
    assert list(result.columns) == names
    assert list(result.index) == list(frame.index)


def test_transform_feeds_the_next_step_of_a_pipeline():
    X, y = make_task("binary")
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(**SHORT), LogisticRegression())
    pipeline.fit(X, y)
    assert pipeline[:-1].transform(X).shape == (len(X), 5)
    assert pipeline[-1].n_features_in_ == 5


# save and load


@pytest.mark.parametrize("task", TASKS)
def test_save_and_load(task, tmp_path):
    model, X, y = fitted(task, early_stopping=True, activation=("gelu", "tanh"))
    model.save(tmp_path / "model.npz")
    loaded = type(model).load(tmp_path / "model.npz")
    assert type(loaded) is type(model)
    assert loaded.get_params() == model.get_params()
    for a, b in zip(outputs(loaded, X), outputs(model, X), strict=True):
        assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert_same_fit(loaded, model, rtol=1e-15)
    assert loaded.validation_loss_curve_ == model.validation_loss_curve_
    assert loaded.score(X, y) == model.score(X, y)


LABELS = [["no", "yes"], ["ä", "日本"], [-1, 7], [True, False], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("labels", "dtype"), [(labels, None) for labels in LABELS] + [(LABELS[1], object)], ids=str
)
def test_labels_of_any_kind_are_kept(labels, dtype, tmp_path):
    X, codes = make_task("binary")
    y = np.array(labels, dtype=dtype)[codes]
    model = MLPClassifier(**SHORT).fit(X, y)
    model.save(tmp_path / "model.npz")
    loaded = MLPClassifier.load(tmp_path / "model.npz")
    assert_array_equal(loaded.classes_, model.classes_)
    assert loaded.classes_.dtype == model.classes_.dtype
    assert list(map(type, loaded.classes_)) == list(map(type, model.classes_))
    assert_array_equal(loaded.predict(X), model.predict(X))


def test_names_parameters_and_several_labels_are_kept(tmp_path):
    X, first = make_task("multiclass")
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])
    y = np.column_stack([first, first % 2])
    params = {"class_weight": None, "n_iter_no_change": np.inf, "width": 4, "dtype": "float32"}
    model = MLPClassifier(**SHORT, **params).fit(frame, y)
    model.save(tmp_path / "model.npz")
    loaded = MLPClassifier.load(tmp_path / "model.npz")
    assert loaded.get_params() == model.get_params()
    assert_array_equal(loaded.feature_names_in_, frame.columns)
    assert_array_equal(loaded.predict(frame), model.predict(frame))
    for a, b in zip(loaded.predict_proba(frame), model.predict_proba(frame), strict=True):
        assert_array_equal(a, b)


def test_file_holds_plain_arrays_only(tmp_path):
    X, codes = make_task("binary")
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])
    model = MLPClassifier(**SHORT).fit(frame, np.array(["no", "yes"], dtype=object)[codes])
    path = tmp_path / "model.npz"
    model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]
    with np.load(path, allow_pickle=False) as arrays:
        contents = {name: arrays[name] for name in arrays.files}
    assert all(array.dtype != object for array in contents.values())
    assert sum(a.shape == model.coefs_[0].shape for a in contents.values()) >= 1
    with zipfile.ZipFile(path) as archive:
        assert all(name.endswith(".npy") for name in archive.namelist())


def test_path_is_used_as_given(tmp_path):
    model, X, _ = fitted("regression")
    for path in (tmp_path / "no_suffix", str(tmp_path / "other.model")):
        model.save(path)
        assert_array_equal(MLPRegressor.load(path).predict(X), model.predict(X))


def test_loaded_model_goes_on(tmp_path):
    """After partial_fit the optimizer's memory is saved too; a fit is warm-started as usual."""
    for solver in ("adam", "sgd"):
        X, y = make_task("regression")
        model = MLPRegressor(solver=solver, **SHORT)
        model.partial_fit(X, y).partial_fit(X, y)
        model.save(tmp_path / "model.npz")
        loaded = MLPRegressor.load(tmp_path / "model.npz")
        for estimator in (model, loaded):
            estimator.partial_fit(X, y)
        assert_same_fit(loaded, model, rtol=1e-12)
        for estimator in (model, loaded):
            estimator.set_params(warm_start=True).fit(X, y)
        assert_same_fit(loaded, model, rtol=1e-12)


def test_foreign_files_are_refused(tmp_path):
    model, _, _ = fitted("binary")
    good = tmp_path / "good.npz"
    model.save(good)
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, weights=np.ones(3))
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"coefs_0": np.array([{"a": 1}], dtype=object)}, allow_pickle=True)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(good.read_bytes()[:200])
    for path in (foreign, text, pickled, cut):
        with pytest.raises(ValueError, match=path.name):
            MLPClassifier.load(path)
    with pytest.raises(FileNotFoundError):
        MLPClassifier.load(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=r"(?s)(?=.*MLPClassifier)(?=.*MLPRegressor)"):
        MLPRegressor.load(good)


def test_file_of_a_later_format_is_refused(tmp_path):
    """Whatever number stands for the format, a greater one is not guessed at."""
    model, _, _ = fitted("binary")
    path = tmp_path / "model.npz"
    model.save(path)
    with np.load(path, allow_pickle=False) as arrays:
        contents = {name: arrays[name] for name in arrays.files}
    changed = False
    for name, array in contents.items():
        if array.dtype.kind in "US" and array.ndim == 0:
            header = json.loads(str(array))
            for key, value in header.items():
                if "format" in key and isinstance(value, int):
                    header[key] = value + 1000
                    changed = True
            contents[name] = np.array(json.dumps(header))
    assert changed, "no number of the format in the header"
    np.savez(path, **contents)
    with pytest.raises(ValueError, match="format"):
        MLPClassifier.load(path)


def test_loss_that_is_a_function_cannot_be_saved_silently(tmp_path):
    X, y = make_task("regression")
    model = MLPRegressor(loss=lambda y_true, y_pred: (y_true - y_pred) ** 2, **SHORT).fit(X, y)
    with pytest.raises((TypeError, ValueError), match="loss"):
        model.save(tmp_path / "model.npz")
    assert not list(tmp_path.iterdir())


# scikit-learn's estimators


@pytest.mark.parametrize("task", TASKS)
def test_to_sklearn(task):
    model, X, y = fitted(task)
    theirs = model.to_sklearn()
    assert type(theirs) in (SklearnMLPClassifier, SklearnMLPRegressor)
    shared = theirs.get_params()
    assert shared == {name: model.get_params()[name] for name in shared}
    assert_same_weights(model, theirs, rtol=1e-15)
    for name in ("predict", "predict_proba"):
        if hasattr(theirs, name):
            assert_allclose(getattr(theirs, name)(X), getattr(model, name)(X), rtol=1e-12)
    assert theirs.score(X, y) == pytest.approx(model.score(X, y))


@pytest.mark.parametrize("task", TASKS)
def test_from_sklearn(task):
    X, y = make_task(task)
    _, theirs = build_pair(task, **SHORT)
    theirs.fit(X, y)
    estimator_class = MLPClassifier if hasattr(theirs, "predict_proba") else MLPRegressor
    model = estimator_class.from_sklearn(theirs)
    assert_same_fit(model, theirs, rtol=1e-15)
    for name in ("predict", "predict_proba"):
        if hasattr(theirs, name):
            assert_allclose(getattr(model, name)(X), getattr(theirs, name)(X), rtol=1e-12)


@pytest.mark.parametrize("way", ["to", "from"])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_training_goes_on_the_other_side(task, solver, way):
    """warm_start and partial_fit go on as if the model had always been there."""
    X, y = make_task(task)
    params = SHORT | {"solver": solver, "warm_start": True}
    ours, theirs = build_pair(task, **params)
    ours.fit(X, y)
    theirs.fit(X, y)
    if way == "to":
        moved, stayed = ours.to_sklearn(), theirs
    else:
        moved, stayed = type(ours).from_sklearn(theirs), ours
    for estimator in (moved, stayed):
        estimator.fit(X, y)
    pair = (stayed, moved) if way == "to" else (moved, stayed)
    assert_same_fit(*pair)
    # A new optimizer on both sides: scikit-learn's is private and is not carried over.
    for estimator in (ours.to_sklearn(), type(ours).from_sklearn(theirs)):
        before = estimator.t_
        estimator.partial_fit(X, y)
        assert estimator.t_ == before + len(X)


def test_early_stopping_state_is_carried():
    X, y = make_task("binary")
    ours, theirs = build_pair("binary", early_stopping=True, warm_start=True, **SHORT)
    ours.fit(X, y)
    theirs.fit(X, y)
    there = ours.to_sklearn()
    assert there.validation_scores_ == ours.validation_scores_
    assert there.best_validation_score_ == ours.best_validation_score_
    there.fit(X, y)
    here = MLPClassifier.from_sklearn(theirs)
    assert here.validation_scores_ == theirs.validation_scores_
    here.fit(X, y)
    assert len(here.validation_scores_) == len(there.validation_scores_) == 12


def test_copies_are_independent():
    model, X, _ = fitted("binary")
    theirs = model.to_sklearn()
    before = model.predict_proba(X)
    theirs.coefs_[0] += 1.0
    assert_array_equal(model.predict_proba(X), before)
    back = MLPClassifier.from_sklearn(theirs)
    theirs.coefs_[0] += 1.0
    assert not np.array_equal(back.coefs_[0], theirs.coefs_[0])


def test_names_and_classes_are_carried():
    X, codes = make_task("multiclass")
    frame = pd.DataFrame(X, columns=[f"column {i}" for i in range(X.shape[1])])
    y = np.array(list("abcd"))[codes]
    theirs = MLPClassifier(**SHORT).fit(frame, y).to_sklearn()
    assert_array_equal(theirs.feature_names_in_, frame.columns)
    assert set(theirs.predict(frame)) <= set("abcd")
    back = MLPClassifier.from_sklearn(theirs)
    assert_array_equal(back.feature_names_in_, frame.columns)
    assert_array_equal(back.predict(frame), theirs.predict(frame))


@pytest.mark.parametrize("activation", ["gelu", ("relu", "tanh")], ids=str)
def test_other_predictions_cannot_be_expressed(activation):
    X, y = make_task("regression")
    model = MLPRegressor(activation=activation, **SHORT).fit(X, y)
    with pytest.raises(ValueError, match="activation"):
        model.to_sklearn()


@pytest.mark.parametrize(
    "params", [{"loss": "huber"}, {"solver": "adamw"}, {"learning_rate": "cosine"}], ids=str
)
def test_other_training_is_warned_of(params):
    """The predictions are the same; only going on with training would differ."""
    X, y = make_task("regression")
    model = MLPRegressor(**SHORT, **params).fit(X, y)
    (name,) = params
    with pytest.warns(UserWarning, match=name):
        theirs = model.to_sklearn()
    assert_allclose(theirs.predict(X), model.predict(X), rtol=1e-12)


def test_one_activation_for_all_layers_may_be_a_tuple():
    X, y = make_task("regression")
    model = MLPRegressor(activation=("tanh", "tanh"), **SHORT).fit(X, y)
    theirs = model.to_sklearn()
    assert theirs.activation == "tanh"
    assert_allclose(theirs.predict(X), model.predict(X), rtol=1e-12)


def test_scalars_become_the_tuple():
    X, y = make_task("regression")
    theirs = MLPRegressor(n_layers=2, width=4, max_iter=3).fit(X, y).to_sklearn()
    assert tuple(theirs.hidden_layer_sizes) == (4, 4)


def test_several_labels_have_no_counterpart():
    X, y = make_task("multiclass")
    model = MLPClassifier(**SHORT).fit(X, np.column_stack([y, y % 2]))
    with pytest.raises(ValueError, match=r"(?i)output|label|target"):
        model.to_sklearn()


def test_from_the_wrong_kind_of_estimator():
    X, y = make_task("regression")
    with pytest.raises((TypeError, ValueError), match="MLPRegressor"):
        MLPClassifier.from_sklearn(SklearnMLPRegressor(max_iter=2).fit(X, y))
    with pytest.raises((TypeError, ValueError), match="LogisticRegression"):
        MLPClassifier.from_sklearn(LogisticRegression())
