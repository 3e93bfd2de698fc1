"""What must not matter (order, grouping, repetition of rows), and odd but legal data."""

import numpy as np
import pytest
from neural_network.helpers import (
    ESTIMATORS,
    TASKS,
    assert_close,
    assert_same_fit,
    assert_same_outputs,
    assert_same_weights,
    build_pair,
    make_task,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from sknn_resid import MLPClassifier, MLPRegressor

# dtype -> how far two orders of summation may lie apart
PRECISION = {"float64": 1e-7, "float32": 1e-4, "bfloat16": 1e-2}
FULL_BATCH = {"max_iter": 30, "n_iter_no_change": 100, "random_state": 0, "batch_size": 200}
SOLVERS = {
    "adam": {"learning_rate_init": 0.01},
    "adamw": {"learning_rate_init": 0.01, "alpha": 1.0},
    "sgd": {"learning_rate_init": 0.05},
    "adam cosine": {"learning_rate_init": 0.01, "learning_rate": "cosine"},
    "lbfgs": {"alpha": 1.0},
}


def settings(solver):
    return {"solver": solver.split()[0], **FULL_BATCH, **SOLVERS[solver]}


def repeated(X, y, counts, seed=0):
    """Rows as often as `counts` says, in another order."""
    rows = np.repeat(np.arange(len(X)), counts)
    rows = np.random.RandomState(seed).permutation(rows)
    return X[rows], y[rows]


def result(model, X):
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)


@pytest.mark.filterwarnings("ignore:Got `batch_size`:UserWarning")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", TASKS)
def test_weights_are_repetitions(task, solver):
    """For at most one batch of rows; six of forty rows have weight zero."""
    X, y = make_task(task, n_rows=40)
    counts = np.random.RandomState(0).randint(0, 6, size=40)
    assert (counts == 0).sum() >= 4
    weighted, _ = build_pair(task)
    weighted.set_params(**settings(solver)).fit(X, y, sample_weight=counts.astype(float))
    plain, _ = build_pair(task)
    plain.set_params(**settings(solver)).fit(*repeated(X, y, counts))
    assert_allclose(result(weighted, X), result(plain, X), rtol=1e-7, atol=1e-9)
    assert_allclose(weighted.loss_, plain.loss_, rtol=1e-7)


@pytest.mark.filterwarnings("ignore:Got `batch_size`:UserWarning")
@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("task", TASKS)
def test_weights_are_repetitions_in_other_precisions(task, solver, dtype):
    X, y = make_task(task, n_rows=40)
    counts = np.random.RandomState(0).randint(0, 6, size=40)
    models = []
    for data in ((X, y, counts.astype(float)), repeated(X, y, counts)):
        model, _ = build_pair(task)
        # Few epochs: a path forks at the first unit whose sign rounding decides.
        model.set_params(**settings(solver) | {"max_iter": 5}, dtype=dtype)
        models.append(model.fit(*data))
    a, b = (result(model, X) for model in models)
    assert_allclose(a, b, rtol=PRECISION[dtype], atol=PRECISION[dtype])


@pytest.mark.filterwarnings("ignore:Got `batch_size`:UserWarning")
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_weights_are_repetitions_with_the_extras(task):
    X, y = make_task(task, n_rows=40)
    counts = np.random.RandomState(0).randint(0, 6, size=40)
    extras = [
        {"clip_norm": 0.1},
        {"learning_rate": "one_cycle", "warmup_fraction": 0.2},
        {"activation": ("gelu", "tanh"), "n_layers": 2, "width": 9},
    ]
    if task == "multiclass":
        extras += [{"class_weight": "balanced"}, {"label_smoothing": 0.1}]
    else:
        extras += [{"loss": "huber"}, {"loss": "quantile", "quantile": 0.3}]
    for extra in extras:
        models = []
        for data in ((X, y, counts.astype(float)), repeated(X, y, counts)):
            model, _ = build_pair(task)
            models.append(model.set_params(**settings("adam") | extra).fit(*data))
        a, b = (result(model, X) for model in models)
        assert_allclose(a, b, rtol=1e-7, atol=1e-9, err_msg=str(extra))


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_validation_weights_are_repetitions(task):
    X, y = make_task(task, n_rows=80)
    X, y, X_val, y_val = X[:40], y[:40], X[40:], y[40:]
    counts = np.random.RandomState(0).randint(0, 4, size=40)
    model, _ = build_pair(task, max_iter=10, random_state=0, early_stopping=True)
    model.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=counts.astype(float))
    other, _ = build_pair(task, max_iter=10, random_state=0, early_stopping=True)
    X_rep, y_rep = repeated(X_val, y_val, counts)
    other.fit(X, y, X_val=X_rep, y_val=y_rep)
    assert_same_fit(model, other, rtol=1e-9)
    assert_allclose(model.validation_loss_curve_, other.validation_loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("weights", ["equal", "scaled"])
def test_scale_of_the_weights_counts_only_against_the_penalty(weights):
    X, y = make_task("multiclass")
    params = {"max_iter": 10, "batch_size": 32, "random_state": 0}
    if weights == "equal":
        one = MLPClassifier(**params).fit(X, y)
        other = MLPClassifier(**params).fit(X, y, sample_weight=np.ones(len(y)))
    else:
        one = MLPClassifier(alpha=0.1, **params).fit(X, y)
        seven = np.full(len(y), 7.0)
        other = MLPClassifier(alpha=0.7, **params).fit(X, y, sample_weight=seven)
    assert_same_fit(other, one, rtol=1e-9)


@pytest.mark.parametrize("dtype", PRECISION)
def test_prediction_of_a_row_does_not_depend_on_its_neighbours(dtype):
    X, y = make_task("multiclass", n_rows=300)
    model = MLPClassifier(dtype=dtype, max_iter=3, random_state=0).fit(X, y)
    rtol = PRECISION[dtype]
    together = model.predict_proba(X)
    alone = np.vstack([model.predict_proba(X[k : k + 1]) for k in range(0, 300, 10)])
    assert_allclose(alone, together[::10], rtol=rtol, atol=rtol)
    order = np.random.RandomState(0).permutation(300)
    assert_allclose(model.predict_proba(X[order]), together[order], rtol=rtol, atol=rtol)
    hidden = model.transform(X)
    assert_allclose(model.transform(X[order]), hidden[order], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("task", ["multiclass", "multi_regression"])
def test_ways_of_storing_the_same_data(task, dtype):
    X, y = make_task(task)
    X = np.round(X, 2)
    estimator_class = ESTIMATORS[task][0]
    params = {"max_iter": 4, "batch_size": 32, "random_state": 0, "dtype": dtype}
    expected = result(estimator_class(**params).fit(X, y), X)
    wide = np.zeros((len(X), 2 * X.shape[1]))
    wide[:, ::2] = X
    for data in (
        np.asfortranarray(X),
        X.tolist(),
        wide[:, ::2],
        X[::-1][::-1],
        sparse.coo_array(X),
    ):
        other = estimator_class(**params).fit(data, y)
        rtol = PRECISION[dtype]
        assert_allclose(result(other, data), expected, rtol=rtol, atol=rtol)


# Odd but legal data, beside scikit-learn


@pytest.mark.parametrize("label", [1, "only"])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_one_class(label, early_stopping):
    X, _ = make_task("binary")
    y = np.full(len(X), label)
    params = {"max_iter": 5, "random_state": 0, "early_stopping": early_stopping}
    ours, theirs = build_pair("binary", **params)
    assert_same_fit(ours.fit(X, y), theirs.fit(X, y))
    assert_array_equal(ours.predict(X), y)
    assert_same_outputs(ours, theirs, X, y)


def test_one_class_among_those_named_in_partial_fit():
    X, y = make_task("multiclass")
    ours, theirs = build_pair("multiclass", random_state=0)
    for model in (ours, theirs):
        model.partial_fit(X[:30], np.full(30, 2), classes=[0, 1, 2, 3])
    assert_same_fit(ours, theirs)
    assert_same_outputs(ours, theirs, X, y)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("data", ["one column", "constant columns", "wide", "two rows"])
def test_unusual_shapes(task, data):
    X, y = make_task(task, n_rows=60)
    if data == "one column":
        X = X[:, :1]
    elif data == "constant columns":
        X = np.column_stack([np.zeros(60), X, np.full(60, 3.0)])
    elif data == "wide":
        X = np.tile(X, (1, 40))
    else:
        rows = [0, int(np.argmax(y != y[0]))] if y.ndim == 1 else [0, 1]
        X, y = X[rows], y[rows]
    ours, theirs = build_pair(task, max_iter=10, batch_size=min(32, len(X)), random_state=0)
    assert_same_fit(ours.fit(X, y), theirs.fit(X, y))
    assert_same_outputs(ours, theirs, X, y)


@pytest.mark.parametrize("task", ["regression", "multi_regression", "binary"])
def test_one_row(task):
    X, y = make_task(task, n_rows=40)
    ours, theirs = build_pair(task, max_iter=10, random_state=0)
    assert_same_fit(ours.fit(X[:1], y[:1]), theirs.fit(X[:1], y[:1]))
    assert_close(ours.predict(X), theirs.predict(X), 1e-6, "predict")


@pytest.mark.parametrize("scale", [1e-8, 1e4, 1e8])
def test_large_and_small_columns(scale):
    """The first steps from unscaled columns: finite, and those of scikit-learn."""
    X, y = make_task("multiclass")
    X = X * np.geomspace(1, scale, X.shape[1])
    ours, theirs = build_pair("multiclass", max_iter=3, random_state=0, batch_size=65)
    # The weights, not the loss: scikit-learn cuts the loss of a row off at 36, where a probability
    # rounds to 0; here it is computed from the logits. The gradients are the same.
    assert_same_weights(ours.fit(X, y), theirs.fit(X, y), rtol=1e-6)


def test_constant_target():
    X, _ = make_task("regression")
    ours, theirs = build_pair("regression", max_iter=20, random_state=0)
    y = np.full(len(X), 4.5)
    assert_same_fit(ours.fit(X, y), theirs.fit(X, y))


def test_saturated_probabilities_stay_inside():
    """Strictly between 0 and 1, also in float32 and where the logit is huge."""
    for task in ("binary", "multilabel"):
        X, y = make_task(task)
        for dtype in (np.float32, np.float64):
            model, _ = build_pair(task, max_iter=20, random_state=0)
            model.fit(X.astype(dtype), y)
            p = model.predict_proba((1e4 * X).astype(dtype))
            assert p.min() > 0
            assert p.max() < 1
            assert np.isfinite(model.predict_log_proba((1e4 * X).astype(dtype))).all()


def test_batch_of_zero_weight_is_skipped():
    """Batches of ten in order: the third has no weight and changes nothing but the row count."""
    X, y = make_task("regression", n_rows=50)
    weights = np.ones(50)
    weights[20:30] = 0.0
    kept = weights > 0
    for solver in ("sgd", "adam"):
        params = {"solver": solver, "shuffle": False, "batch_size": 10, "max_iter": 6}
        params |= {"alpha": 0.1, "random_state": 0}
        skipping = MLPRegressor(**params).fit(X, y, sample_weight=weights)
        without = MLPRegressor(**params).fit(X[kept], y[kept])
        assert_close(skipping.coefs_[0], without.coefs_[0], 1e-9, "coefs_")
        assert skipping.t_ == 6 * 50
