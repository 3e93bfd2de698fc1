"""What early stopping watches, and validation rows handed to fit."""

import warnings

import numpy as np
import pytest
from neural_network.helpers import (
    assert_close,
    assert_same_fit,
    assert_same_weights,
    make_task,
    make_weights,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.metrics import accuracy_score, get_scorer, log_loss, make_scorer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor

TASKS = {"multiclass": MLPClassifier, "binary": MLPClassifier, "multi_regression": MLPRegressor}
SHORT = {"max_iter": 12, "batch_size": 32, "learning_rate_init": 0.02, "random_state": 0}


def parts(task, n_rows=150):
    """Rows to train on and fifty to watch."""
    X, y = make_task(task, n_rows=n_rows + 50)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def data_loss(model, X, y, weights=None):
    """The data term that the validation loss curve shows: no penalty."""
    if isinstance(model, MLPClassifier):
        labels = model.classes_
        return log_loss(y, model.predict_proba(X), labels=labels, sample_weight=weights)
    error = (model.predict(X).reshape(len(y), -1) - y.reshape(len(y), -1)) ** 2
    return 0.5 * np.average(error.mean(axis=1), weights=weights)


@pytest.mark.parametrize("task", TASKS)
def test_without_early_stopping_the_part_is_only_recorded(task):
    X, y, X_val, y_val = parts(task)
    plain = TASKS[task](**SHORT).fit(X, y)
    watched = TASKS[task](**SHORT).fit(X, y, X_val=X_val, y_val=y_val)
    assert plain.validation_loss_curve_ is None
    assert_same_weights(watched, plain, rtol=1e-12)
    assert watched.loss_curve_ == plain.loss_curve_
    assert watched.n_iter_ == plain.n_iter_ == 12
    assert len(watched.validation_loss_curve_) == 12
    assert len(watched.validation_scores_) == 12
    # The last entries are those of the model as it stands.
    assert_allclose(watched.validation_loss_curve_[-1], data_loss(plain, X_val, y_val), rtol=1e-9)
    assert_allclose(watched.validation_scores_[-1], plain.score(X_val, y_val), rtol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_with_early_stopping_no_split_is_made(task):
    """All rows of X train, and the best epoch by the given rows is kept."""
    X, y, X_val, y_val = parts(task)
    params = SHORT | {"max_iter": 30, "n_iter_no_change": 100}
    watched = TASKS[task](early_stopping=True, **params).fit(X, y, X_val=X_val, y_val=y_val)
    plain = TASKS[task](**params).fit(X, y)
    assert_close(watched.loss_curve_, plain.loss_curve_, 1e-12, "loss_curve_")
    assert watched.t_ == 30 * len(X)
    assert watched.best_validation_score_ == max(watched.validation_scores_)
    assert_allclose(watched.score(X_val, y_val), watched.best_validation_score_, rtol=1e-9)
    best_epoch = 1 + int(np.argmax(watched.validation_scores_))
    again = TASKS[task](**params | {"max_iter": best_epoch}).fit(X, y)
    assert_same_weights(watched, again, rtol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_handing_over_the_rows_of_the_split_gives_the_same_fit(task):
    """The split that early stopping makes inside, made outside from the same random stream."""
    X, y, *_ = parts(task)
    params = SHORT | {"shuffle": False, "n_iter_no_change": 100}
    inside = TASKS[task](early_stopping=True, validation_fraction=0.2, **params).fit(X, y)
    # The stream first gives the initial weights, without shuffling nothing else.
    stream = np.random.RandomState(params["random_state"])
    TASKS[task](**params | {"random_state": stream, "max_iter": 1}).fit(X, y)
    rows, held_out = train_test_split(
        np.arange(len(X)),
        test_size=0.2,
        random_state=stream,
        stratify=y if task == "binary" else None,
    )
    outside = TASKS[task](early_stopping=True, **params)
    outside.fit(X[rows], y[rows], X_val=X[held_out], y_val=y[held_out])
    assert_same_fit(outside, inside, rtol=1e-9)
    assert_allclose(outside.validation_loss_curve_, inside.validation_loss_curve_, rtol=1e-9)


def test_internal_split_has_a_loss_curve_too():
    X, y, *_ = parts("multiclass")
    model = MLPClassifier(early_stopping=True, validation_fraction=0.2, **SHORT).fit(X, y)
    assert len(model.validation_loss_curve_) == model.n_iter_
    assert np.isfinite(model.validation_loss_curve_).all()


@pytest.mark.parametrize("task", TASKS)
def test_validation_weights(task):
    X, y, X_val, y_val = parts(task)
    weights = make_weights(len(y_val))
    model = TASKS[task](**SHORT)
    model.fit(X, y, X_val=X_val, y_val=y_val, sample_weight_val=weights)
    expected = data_loss(model, X_val, y_val, weights)
    assert_allclose(model.validation_loss_curve_[-1], expected, rtol=1e-9)
    expected = model.score(X_val, y_val, sample_weight=weights)
    assert_allclose(model.validation_scores_[-1], expected, rtol=1e-9)
    # Rows without weight might as well not be there.
    kept = weights > 0
    again = TASKS[task](**SHORT)
    again.fit(X, y, X_val=X_val[kept], y_val=y_val[kept], sample_weight_val=weights[kept])
    assert_allclose(again.validation_loss_curve_, model.validation_loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_metric_loss(task):
    """The best epoch is the one with the smallest validation loss."""
    X, y, X_val, y_val = parts(task)
    params = SHORT | {"learning_rate_init": 0.05, "max_iter": 80, "n_iter_no_change": 5, "tol": 0}
    model = TASKS[task](early_stopping=True, early_stopping_metric="loss", **params)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    curve = model.validation_loss_curve_
    assert_allclose(data_loss(model, X_val, y_val), min(curve), rtol=1e-9)
    assert np.argmin(curve) < len(curve) - 1
    # Six epochs in a row without a new minimum end the fit: one more than it has patience for.
    assert model.n_iter_ == len(curve) == np.argmin(curve) + 1 + 6
    # Whatever it is called, higher is better in the scores.
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert_allclose(model.best_validation_score_, -min(curve), rtol=1e-9)


def macro_accuracy(estimator, X, y):
    """A scorer as a plain function."""
    return np.mean([np.mean(estimator.predict(X[y == label]) == label) for label in np.unique(y)])


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("multiclass", "score"),
        ("multiclass", "balanced_accuracy"),
        ("multiclass", "neg_log_loss"),
        ("binary", "roc_auc"),
        ("binary", make_scorer(accuracy_score)),
        ("multiclass", macro_accuracy),
        ("multi_regression", "neg_mean_absolute_error"),
        ("multi_regression", "score"),
    ],
)
def test_metric_is_a_scorer(task, metric):
    X, y, X_val, y_val = parts(task)
    params = SHORT | {"max_iter": 15, "n_iter_no_change": 100}
    if task != "multi_regression":
        y, y_val = np.array(list("abcd"))[y], np.array(list("abcd"))[y_val]
    model = TASKS[task](early_stopping=True, early_stopping_metric=metric, **params)
    model.fit(X, y, X_val=X_val, y_val=y_val)
    if metric == "score":
        score = model.score(X_val, y_val)
    else:
        scorer = get_scorer(metric) if isinstance(metric, str) else metric
        score = scorer(model, X_val, y_val)
    assert_allclose(score, model.best_validation_score_, rtol=1e-9)
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert len(model.validation_scores_) == 15


def test_scorer_sees_the_columns_by_name():
    pandas = pytest.importorskip("pandas")
    X, y, X_val, y_val = parts("binary")
    names = [f"column {i}" for i in range(X.shape[1])]
    frames = [pandas.DataFrame(part, columns=names) for part in (X, X_val)]

    def scorer(estimator, X, y):
        assert_array_equal(estimator.feature_names_in_, names)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return estimator.score(X, y)

    model = MLPClassifier(early_stopping=True, early_stopping_metric=scorer, **SHORT)
    model.fit(frames[0], y, X_val=frames[1], y_val=y_val)
    assert len(model.validation_scores_) == 12
    # And with the split that is made inside.
    model.fit(frames[0], y)


def test_partial_fit_with_early_stopping_watches_the_training_loss():
    X, y, *_ = parts("multiclass")
    stopping = MLPClassifier(early_stopping=True, batch_size=32, random_state=0)
    plain = MLPClassifier(batch_size=32, random_state=0)
    for _ in range(4):
        stopping.partial_fit(X, y, classes=[0, 1, 2, 3])
        plain.partial_fit(X, y, classes=[0, 1, 2, 3])
    assert_same_weights(stopping, plain, rtol=1e-12)
    assert stopping.loss_curve_ == plain.loss_curve_
    assert stopping.n_iter_ == 1
    assert stopping.t_ == 4 * len(X)


def test_partial_fit_after_fit_with_early_stopping():
    X, y, *_ = parts("binary")
    model = MLPClassifier(early_stopping=True, **SHORT).fit(X, y)
    scores, t = list(model.validation_scores_), model.t_
    model.partial_fit(X, y)
    assert model.t_ == t + len(X)
    assert model.validation_scores_ == scores
    assert len(model.loss_curve_) == 13


@pytest.mark.parametrize("n_rows", [5, 10, 30, 49])
def test_few_rows_serve_both_purposes(n_rows):
    """Where the split would leave under five rows to watch, all rows train and are watched."""
    X, y = make_task("regression", n_rows=n_rows)
    params = SHORT | {"early_stopping": True, "n_iter_no_change": 100, "batch_size": "auto"}
    model = MLPRegressor(**params)
    fraction = 4 / n_rows if n_rows > 5 else 0.5
    model.set_params(validation_fraction=fraction)
    with pytest.warns(RuntimeWarning, match="validation"):
        model.fit(X, y)
    given = MLPRegressor(**params).fit(X, y, X_val=X, y_val=y)
    assert_same_fit(model, given, rtol=1e-12)


def test_five_rows_to_watch_are_enough():
    X, y = make_task("regression", n_rows=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model = MLPRegressor(early_stopping=True, **SHORT).fit(X, y)
    assert model.t_ == 12 * 45


@pytest.mark.parametrize("name", ["X_val", "everything"])
def test_routed_through_a_pipeline(name):
    """A Pipeline transforms X_val as it transforms X, where it is told to."""
    X, y, X_val, y_val = parts("multiclass")
    weights = make_weights(len(y_val)) if name == "everything" else None
    with config_context(enable_metadata_routing=True):
        net = MLPClassifier(early_stopping=True, **SHORT)
        net.set_fit_request(X_val=True, y_val=True, sample_weight_val=True)
        pipeline = Pipeline([("scale", StandardScaler()), ("net", net)], transform_input=["X_val"])
        extra = {} if weights is None else {"sample_weight_val": weights}
        pipeline.fit(7 * X + 3, y, X_val=7 * X_val + 3, y_val=y_val, **extra)
    scaler = StandardScaler().fit(7 * X + 3)
    alone = MLPClassifier(early_stopping=True, **SHORT)
    X_scaled, X_val_scaled = scaler.transform(7 * X + 3), scaler.transform(7 * X_val + 3)
    alone.fit(X_scaled, y, X_val=X_val_scaled, y_val=y_val, **extra)
    assert_same_fit(pipeline[-1], alone, rtol=1e-9)


def test_not_requested_is_not_routed():
    X, y, X_val, y_val = parts("multiclass")
    with config_context(enable_metadata_routing=True):
        net = MLPClassifier(**SHORT).set_fit_request(X_val=False, y_val=False)
        pipeline = Pipeline([("scale", StandardScaler()), ("net", net)])
        with pytest.raises(TypeError, match="X_val"):
            pipeline.fit(X, y, X_val=X_val, y_val=y_val)


def test_validation_part_in_a_search():
    """Handed to every candidate whole, because it is not as long as X."""
    X, y, X_val, y_val = parts("multiclass")
    with config_context(enable_metadata_routing=True):
        net = MLPClassifier(**SHORT).set_fit_request(X_val=True, y_val=True)
        search = GridSearchCV(net, {"alpha": [1e-4, 1.0]}, cv=2)
        search.fit(X, y, X_val=X_val, y_val=y_val)
    best = search.best_estimator_
    expected = data_loss(best, X_val, y_val)
    assert_allclose(best.validation_loss_curve_[-1], expected, rtol=1e-9)


def test_validation_rows_may_be_sparse_or_float32():
    from scipy import sparse

    X, y, X_val, y_val = parts("multiclass")
    dense = MLPClassifier(**SHORT).fit(X, y, X_val=X_val, y_val=y_val)
    other = MLPClassifier(**SHORT).fit(X, y, X_val=sparse.csr_array(X_val), y_val=y_val)
    assert_allclose(other.validation_loss_curve_, dense.validation_loss_curve_, rtol=1e-9)
    other.fit(X, y, X_val=X_val.astype(np.float32), y_val=list(y_val))
    assert other.coefs_[0].dtype == np.float64
    assert_allclose(other.validation_loss_curve_, dense.validation_loss_curve_, rtol=1e-5)
