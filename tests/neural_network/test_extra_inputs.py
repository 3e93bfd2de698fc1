"""Kinds of X and y: several labels at once, sparse, memory-mapped, array API."""

import os
import tracemalloc
import warnings

import array_api_strict
import numpy as np
import pytest
import torch
from neural_network.helpers import (
    assert_close,
    assert_same_fit,
    assert_same_weights,
    make_task,
    make_weights,
)
from neural_network.torch_reference import assert_descends_like_autograd
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn import config_context
from sklearn.model_selection import cross_val_score
from torch.nn import functional as F

from sknn_resid import MLPClassifier, MLPRegressor

SHORT = {"max_iter": 8, "batch_size": 32, "random_state": 0}


# Several labels of several classes each


def two_labels(n_rows=130):
    """X, and y of shape (n_rows, 2): three and four classes, as strings."""
    X, first = make_task("multiclass", n_rows=n_rows)
    second = np.digitize(X[:, 0] + X[:, 1], [-0.5, 0.5])
    y = np.column_stack([np.array(list("dabc"))[first], np.array(list("xyz"))[second]])
    return X, y


def test_several_labels():
    X, y = two_labels()
    model = MLPClassifier(max_iter=150, learning_rate_init=0.02, random_state=0).fit(X, y)
    assert [list(classes) for classes in model.classes_] == [list("abcd"), list("xyz")]
    assert model.n_outputs_ == 7
    predicted = model.predict(X)
    assert predicted.shape == y.shape
    assert (predicted == y).mean() > 0.8
    probabilities = model.predict_proba(X)
    assert isinstance(probabilities, list)
    assert [p.shape for p in probabilities] == [(130, 4), (130, 3)]
    for label, (classes, p) in enumerate(zip(model.classes_, probabilities, strict=True)):
        assert_allclose(p.sum(axis=1), 1.0)
        assert_array_equal(classes[p.argmax(axis=1)], predicted[:, label])
    for log_p, p in zip(model.predict_log_proba(X), probabilities, strict=True):
        assert_allclose(log_p, np.log(p))


def test_several_labels_add_up_their_cross_entropies():
    X, first = make_task("multiclass")
    y = np.column_stack([first, np.digitize(X[:, 0], [-0.5, 0.5])])

    def row_loss(z, y):
        parts = z.split([4, 3], dim=1)
        losses = [F.cross_entropy(p, y[:, k], reduction="none") for k, p in enumerate(parts)]
        return losses[0] + losses[1]

    for weights in (None, make_weights(len(y))):
        model = MLPClassifier(hidden_layer_sizes=(7,), alpha=0.1)
        assert_descends_like_autograd(model, X, y, row_loss, sample_weight=weights)


def test_several_labels_score_the_rows_that_are_all_right():
    X, y = two_labels()
    model = MLPClassifier(max_iter=12, learning_rate_init=0.02, random_state=0).fit(X, y)
    right = (model.predict(X) == y).all(axis=1)
    assert 0 < right.mean() < 1
    assert_allclose(model.score(X, y), right.mean())
    weights = make_weights(len(y))
    assert_allclose(model.score(X, y, weights), np.average(right, weights=weights))


def test_several_labels_with_all_the_rest():
    X, y = two_labels()
    model = MLPClassifier(early_stopping=True, validation_fraction=0.2, **SHORT).fit(X, y)
    assert len(model.validation_scores_) == len(model.validation_loss_curve_) == 8
    model = MLPClassifier(**SHORT)
    for _ in range(2):
        model.partial_fit(X, y, classes=[list("abcd"), list("xyz")])
    assert model.t_ == 260
    model.fit(X, y, X_val=X, y_val=y)
    assert_allclose(model.validation_scores_[-1], model.score(X, y))
    assert model.transform(X).shape == (130, 100)


# Sparse X


@pytest.mark.parametrize("solver", ["adam", "sgd", "adamw", "lbfgs"])
@pytest.mark.parametrize("task", ["multiclass", "multi_regression"])
def test_sparse_equals_dense(task, solver):
    X, y = make_task(task)
    X = np.where(np.abs(X) > 0.8, X, 0.0)
    estimator_class = MLPClassifier if task == "multiclass" else MLPRegressor
    for params in ({}, {"hidden_layer_sizes": ()}, {"early_stopping": True}):
        dense = estimator_class(solver=solver, validation_fraction=0.2, **SHORT, **params)
        dense.fit(X, y, sample_weight=make_weights(len(y)))
        for container in (sparse.csr_array, sparse.csc_matrix):
            other = estimator_class(solver=solver, validation_fraction=0.2, **SHORT, **params)
            other.fit(container(X), y, sample_weight=make_weights(len(y)))
            assert_same_weights(other, dense, rtol=1e-7 if solver == "lbfgs" else 1e-9)
            assert_close(other.predict(container(X)), dense.predict(X), 1e-7, "predict")
            assert_close(other.transform(container(X)), dense.transform(X), 1e-7, "transform")


def test_sparse_rows_are_not_made_dense():
    """20,000 columns of which thirty are used in a row: dense batches only, never a dense X."""
    X = sparse.random(2000, 20_000, density=0.0015, format="csr", random_state=0)
    y = np.asarray(X[:, :500].sum(axis=1)).ravel()
    model = MLPRegressor(hidden_layer_sizes=(4,), max_iter=1, batch_size=50)
    tracemalloc.start()
    try:
        model.fit(X, y)
        model.predict(X)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.2 * 2000 * 20_000 * 8


# Memory-mapped X


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_map_is_read_without_a_full_copy(tmp_path, order):
    """What Python allocates while fitting and predicting stays far below the size of X."""
    n_rows, n_columns = 60_000, 50
    path = tmp_path / "X.npy"
    writable = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float64, shape=(n_rows, n_columns), fortran_order=order == "F"
    )
    writable[:] = np.random.RandomState(0).normal(size=(n_rows, n_columns))
    y = np.array(writable[:, 0] > 0, dtype=np.int64)
    writable.flush()
    X = np.load(path, mmap_mode="r")
    assert not X.flags.writeable
    model = MLPClassifier(hidden_layer_sizes=(4,), max_iter=1, batch_size=500, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Stochastic Optimizer")
        tracemalloc.start()
        try:
            model.fit(X, y)
            model.predict(X)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 0.5 * X.nbytes
    in_memory = MLPClassifier(hidden_layer_sizes=(4,), max_iter=1, batch_size=500, random_state=0)
    assert_same_fit(model, in_memory.fit(np.array(X), y), rtol=1e-12)


def test_data_is_left_as_it_is():
    X, y = make_task("multi_regression")
    weights = make_weights(len(y))
    copies = X.copy(), y.copy(), weights.copy()
    for dtype in (None, "float32"):
        model = MLPRegressor(dtype=dtype, early_stopping=True, **SHORT)
        model.fit(X, y, sample_weight=weights)
        model.fit(X, y, sample_weight=weights, X_val=X, y_val=y, sample_weight_val=weights)
        model.partial_fit(X, y, weights)
        model.predict(X)
        model.transform(X)
    for array, copy in zip((X, y, weights), copies, strict=True):
        assert_array_equal(array, copy)


def test_predicting_many_rows_needs_little_more_than_the_result():
    X, y = make_task("multiclass")
    model = MLPClassifier(hidden_layer_sizes=(300, 300), max_iter=1, random_state=0).fit(X, y)
    many = np.tile(X, (400, 1))
    expected = np.tile(model.predict_proba(X), (400, 1))
    tracemalloc.start()
    try:
        result = model.predict_proba(many)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_allclose(result, expected, rtol=1e-9)
    # Two hidden layers for all rows at once would be 250 MB, the result is 1.7 MB. The
    # largest part that may be seen here is the result itself and the check of X for NaN.
    assert peak < 20e6


# Array API


@pytest.fixture
def dispatch():
    """scikit-learn's array API dispatch, which needs SciPy's as well."""
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        pytest.fail("set SCIPY_ARRAY_API=1 before Python starts, as `make test` does")
    with config_context(array_api_dispatch=True):
        yield


NAMESPACES = {
    "torch": (torch.asarray, lambda array: array.numpy()),
    "array_api_strict": (array_api_strict.asarray, np.asarray),
}


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "multi_regression"])
def test_array_api(task, dtype, namespace, dispatch):
    """Array in, array of the same library, device and dtype out, with NumPy's values."""
    X, y = make_task(task)
    X = X.astype(dtype)
    estimator_class = MLPRegressor if task == "multi_regression" else MLPClassifier
    y = y.astype(dtype) if estimator_class is MLPRegressor else y
    convert, back = NAMESPACES[namespace]
    weights = make_weights(len(y)).astype(dtype)
    X_xp, y_xp, weights_xp = convert(X), convert(y), convert(weights)
    ours = estimator_class(**SHORT).fit(X_xp, y_xp, sample_weight=weights_xp)
    plain = estimator_class(**SHORT).fit(X, y, sample_weight=weights)
    rtol = 1e-3 if dtype == np.float32 else 1e-9
    for method in ("predict", "predict_proba", "predict_log_proba", "transform"):
        if not hasattr(plain, method):
            continue
        result, expected = getattr(ours, method)(X_xp), getattr(plain, method)(X)
        assert type(result) is type(X_xp), method
        assert result.device == X_xp.device
        assert back(result).dtype == expected.dtype, method
        assert_close(back(result), expected, rtol, method)
    score = ours.score(X_xp, y_xp)
    assert isinstance(score, float)
    # scikit-learn's own metrics count in float32 on torch.
    assert score == pytest.approx(plain.score(X, y), rel=max(rtol, 1e-6))
    assert_close(ours.loss_curve_, plain.loss_curve_, rtol, "loss_curve_")


def test_array_api_with_validation_part_and_partial_fit(dispatch):
    X, y = make_task("multiclass")
    X_t, y_t = torch.asarray(X), torch.asarray(y)
    ours = MLPClassifier(early_stopping=True, **SHORT).fit(X_t, y_t, X_val=X_t, y_val=y_t)
    plain = MLPClassifier(early_stopping=True, **SHORT).fit(X, y, X_val=X, y_val=y)
    assert_allclose(ours.validation_scores_, plain.validation_scores_)
    ours.partial_fit(X_t, y_t)
    plain.partial_fit(X, y)
    assert_close(ours.loss_curve_, plain.loss_curve_, 1e-9, "loss_curve_")


@pytest.mark.parametrize("given", [False, True])
def test_array_api_with_a_scorer_to_watch(given, dispatch):
    """X and y reach the scorer from one namespace, split off or handed over."""
    X, y = make_task("multiclass")
    models = []
    for convert in (np.asarray, torch.asarray):
        part = {"X_val": convert(X), "y_val": convert(y)} if given else {}
        model = MLPClassifier(early_stopping=True, early_stopping_metric="balanced_accuracy")
        models.append(model.set_params(**SHORT).fit(convert(X), convert(y), **part))
    plain, ours = models
    assert_allclose(ours.validation_scores_, plain.validation_scores_, rtol=1e-6)


def test_array_api_other_namespace_at_predict_is_refused(dispatch):
    X, y = make_task("binary")
    model = MLPClassifier(**SHORT).fit(torch.asarray(X), torch.asarray(y))
    message = r"MLPClassifier\.predict\(\) must use the same namespace"
    with pytest.raises(ValueError, match=message):
        model.predict(X)
    model = MLPClassifier(**SHORT).fit(X, y)
    with pytest.raises(ValueError, match=message):
        model.predict(torch.asarray(X))


def test_array_api_in_cross_validation(dispatch):
    X, y = make_task("multiclass")
    model = MLPClassifier(**SHORT)
    scores = cross_val_score(model, torch.asarray(X), torch.asarray(y), cv=3)
    # scikit-learn's own metrics count in float32 on torch.
    assert_allclose(scores, cross_val_score(model, X, y, cv=3), rtol=1e-6)


def test_tensors_without_dispatch_are_arrays():
    X, y = make_task("binary")
    model = MLPClassifier(**SHORT).fit(torch.asarray(X), torch.asarray(y))
    assert isinstance(model.predict(torch.asarray(X)), np.ndarray)
    assert_same_fit(model, MLPClassifier(**SHORT).fit(X, y), rtol=1e-12)
