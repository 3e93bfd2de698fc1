"""The same optimisation path as scikit-learn's MLPClassifier and MLPRegressor.

Both estimators get the same data, parameters and random state; every comparison is between
the two fits, in float64 on standardised columns, to 1e-6 relative. There the path is stable:
a change of one unit in the last place of the initial weights stays far below 1e-9 over fifty
epochs, so a disagreement at 1e-6 is a different formula, never rounding.
"""

import numpy as np
import pandas as pd
import pytest
from neural_network.helpers import (
    TASKS,
    assert_close,
    assert_same_fit,
    assert_same_outputs,
    assert_same_weights,
    build_pair,
    make_task,
    make_weights,
)
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
# Patience beyond the number of epochs: the whole path is walked and compared.
FIFTY_EPOCHS = {"max_iter": 50, "n_iter_no_change": 100, "hidden_layer_sizes": (12,)}
SOLVERS = {
    "adam": {"solver": "adam", "learning_rate_init": 0.01},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.02},
}


def split_task(task, n_rows=130):
    """Training rows and thirty more to predict."""
    X, y = make_task(task, n_rows=n_rows + 30)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def fit_pair(task, params, sample_weight=None, n_rows=130):
    """Fit both, compare everything they show, return them."""
    X, y, X_new, y_new = split_task(task, n_rows)
    ours, theirs = build_pair(task, **params)
    ours.fit(X, y, sample_weight=sample_weight)
    theirs.fit(X, y, sample_weight=sample_weight)
    assert_same_fit(ours, theirs)
    assert_same_outputs(ours, theirs, X_new, y_new)
    return ours, theirs


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("task", TASKS)
def test_fifty_epochs(task, activation, solver, early_stopping):
    params = {"activation": activation, "early_stopping": early_stopping, "batch_size": 32}
    # A fifth of the rows, so that the validation part is well above five rows.
    params |= {"validation_fraction": 0.2, "random_state": 3}
    ours, theirs = fit_pair(task, FIFTY_EPOCHS | SOLVERS[solver] | params)
    assert ours.n_iter_ == 50
    assert len(ours.loss_curve_) == 50
    # The comparison means something only if the path leads somewhere.
    assert theirs.loss_ < theirs.loss_curve_[0]


@pytest.mark.parametrize("max_iter", [10, 30])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("task", TASKS)
def test_lbfgs(task, activation, max_iter):
    X, y, *_ = split_task(task)
    # The penalty keeps the problem well conditioned: lbfgs amplifies rounding.
    params = {"solver": "lbfgs", "activation": activation, "alpha": 1.0, "random_state": 3}
    ours, theirs = build_pair(task, hidden_layer_sizes=(12,), max_iter=max_iter, **params)
    ours.fit(X, y)
    theirs.fit(X, y)
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.t_ == theirs.t_ == 0
    assert_allclose(ours.loss_, theirs.loss_, rtol=1e-6)
    for name in ("loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"):
        assert not hasattr(theirs, name)
        assert not hasattr(ours, name), name


def test_lbfgs_weights_and_max_fun():
    X, y, X_new, y_new = split_task("multiclass")
    params = {"solver": "lbfgs", "random_state": 0, "alpha": 1.0, "max_fun": 6}
    ours, theirs = build_pair("multiclass", hidden_layer_sizes=(9, 5), **params)
    weights = make_weights(len(y))
    ours.fit(X, y, sample_weight=weights)
    theirs.fit(X, y, sample_weight=weights)
    assert ours.n_iter_ == theirs.n_iter_
    assert_allclose(ours.loss_, theirs.loss_, rtol=1e-6)
    # Six evaluations are few enough for the weights themselves to agree.
    assert_same_weights(ours, theirs, rtol=1e-6)
    assert_same_outputs(ours, theirs, X_new, y_new)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", TASKS)
def test_sample_weight(task, solver, early_stopping):
    params = FIFTY_EPOCHS | SOLVERS[solver] | {"max_iter": 20, "batch_size": 32}
    params |= {"early_stopping": early_stopping, "validation_fraction": 0.2, "random_state": 1}
    fit_pair(task, params, sample_weight=make_weights(130))


def test_integer_and_listed_weights():
    X, y, *_ = split_task("multiclass")
    weights = [1, 2] * (len(y) // 2)
    ours, theirs = build_pair("multiclass", max_iter=5, random_state=0)
    assert_same_fit(ours.fit(X, y, weights), theirs.fit(X, y, weights))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 130, "auto"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches(batch_size, shuffle):
    """Batches of one row, a short last batch, one batch; in and out of order."""
    params = {"batch_size": batch_size, "shuffle": shuffle, "random_state": 2, "max_iter": 8}
    fit_pair("multiclass", FIFTY_EPOCHS | SOLVERS["adam"] | params)
    fit_pair("regression", FIFTY_EPOCHS | SOLVERS["sgd"] | params)


def test_auto_batch_is_200_rows():
    params = {"max_iter": 6, "random_state": 2}
    fit_pair("binary", FIFTY_EPOCHS | SOLVERS["adam"] | params, n_rows=450)


def test_batch_larger_than_the_data_is_clipped_with_a_warning():
    X, y, *_ = split_task("binary")
    ours, theirs = build_pair("binary", batch_size=500, max_iter=4, random_state=0)
    message = "larger than sample size. It is going to be clipped"
    with pytest.warns(UserWarning, match=message):
        ours.fit(X, y)
    with pytest.warns(UserWarning, match=message):
        theirs.fit(X, y)
    assert_same_fit(ours, theirs)


@pytest.mark.parametrize("nesterovs_momentum", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("learning_rate", ["constant", "invscaling", "adaptive"])
@pytest.mark.parametrize("task", ["multiclass", "multi_regression"])
def test_sgd_schedules(task, learning_rate, momentum, nesterovs_momentum):
    params = {"learning_rate": learning_rate, "momentum": momentum, "power_t": 0.3}
    params |= {"nesterovs_momentum": nesterovs_momentum, "batch_size": 32, "random_state": 0}
    # A wide tolerance and little patience make "adaptive" divide its rate several times.
    params |= {"learning_rate_init": 0.05, "tol": 0.02, "n_iter_no_change": 2, "max_iter": 50}
    ours, theirs = fit_pair(task, {"solver": "sgd", "hidden_layer_sizes": (12,)} | params)
    assert_allclose(ours._optimizer.learning_rate, theirs._optimizer.learning_rate, rtol=1e-12)
    if learning_rate == "adaptive":
        assert theirs._optimizer.learning_rate < 0.05


def test_adaptive_ends_at_the_smallest_rate():
    params = {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.5, "max_iter": 400}
    ours, theirs = fit_pair("binary", params | {"random_state": 0, "hidden_layer_sizes": 5})
    assert ours.n_iter_ < 400
    assert ours._optimizer.learning_rate == pytest.approx(theirs._optimizer.learning_rate)


@pytest.mark.parametrize(
    "params",
    [
        {"alpha": 0.0},
        {"alpha": 10.0},
        {"beta_1": 0.5, "beta_2": 0.9},
        {"epsilon": 1e-2},
        {"beta_1": 0.0, "beta_2": 0.0},
        {"learning_rate_init": 0.2},
    ],
    ids=str,
)
def test_adam_settings(params):
    # A large epsilon tells apart the places where it can be added.
    params = {"batch_size": 32, "random_state": 5, "max_iter": 25} | params
    fit_pair("multiclass", FIFTY_EPOCHS | params)
    fit_pair("regression", FIFTY_EPOCHS | params)


@pytest.mark.parametrize("hidden", [(), 20, (20,), [16, 8], (16, 8), np.array([6, 5, 4])], ids=str)
@pytest.mark.parametrize("task", ["binary", "multiclass", "multi_regression"])
def test_hidden_layers(task, hidden):
    params = {"hidden_layer_sizes": hidden, "max_iter": 15, "random_state": 0, "batch_size": 32}
    ours, theirs = fit_pair(task, params)
    assert [w.shape for w in ours.coefs_] == [w.shape for w in theirs.coefs_]


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression"])
def test_tolerance_stops_at_the_same_epoch(task, early_stopping):
    params = {"tol": 5e-3, "n_iter_no_change": 3, "max_iter": 200, "random_state": 1}
    params |= {"early_stopping": early_stopping, "learning_rate_init": 0.02, "batch_size": 32}
    params |= {"validation_fraction": 0.3, "hidden_layer_sizes": (12,)}
    ours, _ = fit_pair(task, params)
    assert 3 < ours.n_iter_ < 200


def test_random_state_instance_is_left_where_scikit_learn_leaves_it():
    for params in ({}, {"early_stopping": True}, {"shuffle": False}, {"solver": "lbfgs"}):
        for task in ("binary", "multiclass", "regression"):
            X, y, *_ = split_task(task)
            states = np.random.RandomState(7), np.random.RandomState(7)
            for estimator, state in zip(build_pair(task, max_iter=6), states, strict=True):
                estimator.set_params(random_state=state, **params).fit(X, y)
            ours, theirs = (state.get_state() for state in states)
            assert_array_equal(ours[1], theirs[1], err_msg=f"{task} {params}")
            assert ours[2:] == theirs[2:], f"{task} {params}"


@pytest.mark.parametrize("seed", ["int", "instance"])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_warm_start(task, solver, early_stopping, seed):
    X, y, X_new, y_new = split_task(task)
    params = FIFTY_EPOCHS | SOLVERS[solver] | {"max_iter": 6, "batch_size": 32}
    params |= {"early_stopping": early_stopping, "validation_fraction": 0.2, "warm_start": True}
    if solver == "sgd":
        # The decay goes on from t_ where the optimizer itself starts again.
        params["learning_rate"] = "invscaling"
    ours, theirs = build_pair(task, **params)
    for estimator in (ours, theirs):
        estimator.set_params(random_state=4 if seed == "int" else np.random.RandomState(4))
    for _ in range(3):
        assert_same_fit(ours.fit(X, y), theirs.fit(X, y))
        if early_stopping:
            # scikit-learn's remembered best weights are the very arrays that the next call trains
            # in place, so that a call without a new best score ends with its last weights: a
            # named departure (docs/migration.md). Here they are given memory of their own.
            theirs._best_coefs = [w.copy() for w in theirs.coefs_]
            theirs._best_intercepts = [b.copy() for b in theirs.intercepts_]
    assert len(ours.loss_curve_) == 18
    assert_same_outputs(ours, theirs, X_new, y_new)


def test_warm_start_lbfgs():
    X, y, *_ = split_task("multiclass")
    params = {"solver": "lbfgs", "warm_start": True, "max_iter": 5, "alpha": 1.0}
    ours, theirs = build_pair("multiclass", random_state=0, hidden_layer_sizes=(12,), **params)
    for _ in range(3):
        ours.fit(X, y)
        theirs.fit(X, y)
        assert ours.n_iter_ == theirs.n_iter_
        assert_allclose(ours.loss_, theirs.loss_, rtol=1e-6)


@pytest.mark.parametrize("seed", ["int", "instance"])
@pytest.mark.parametrize("start", ["fresh", "after fit"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("task", TASKS)
def test_partial_fit(task, solver, start, seed):
    X, y, X_new, y_new = split_task(task)
    params = FIFTY_EPOCHS | SOLVERS[solver] | {"max_iter": 4, "batch_size": 32}
    ours, theirs = build_pair(task, **params)
    weights = make_weights(len(y))
    for estimator in (ours, theirs):
        estimator.set_params(random_state=9 if seed == "int" else np.random.RandomState(9))
        if start == "after fit":
            estimator.fit(X, y)
    first = {}
    if hasattr(theirs, "predict_proba") and start == "fresh":
        first = {"classes": np.arange(3) if task == "multilabel" else np.unique(y)}
    for call in range(6):
        # Parts of unequal length, weighted and not.
        rows = slice(None) if call % 2 else slice(0, 75)
        weight = weights[rows] if call > 3 else None
        keywords = first if call == 0 else {}
        for estimator in (ours, theirs):
            estimator.partial_fit(X[rows], y[rows], sample_weight=weight, **keywords)
        assert_same_fit(ours, theirs)
    assert ours.n_iter_ == 1
    assert_same_outputs(ours, theirs, X_new, y_new)


@pytest.mark.parametrize("learning_rate", ["invscaling", "adaptive"])
def test_partial_fit_keeps_the_schedule(learning_rate):
    X, y, *_ = split_task("regression")
    params = {"solver": "sgd", "learning_rate": learning_rate, "tol": 0.5, "n_iter_no_change": 2}
    ours, theirs = build_pair("regression", random_state=0, hidden_layer_sizes=(7,), **params)
    for _ in range(9):
        ours.partial_fit(X, y)
        theirs.partial_fit(X, y)
        assert_same_fit(ours, theirs)
        rates = ours._optimizer.learning_rate, theirs._optimizer.learning_rate
        assert_allclose(*rates, rtol=1e-12)
    assert rates[1] < 0.001


def test_fit_after_partial_fit_starts_again():
    X, y, *_ = split_task("binary")
    ours, theirs = build_pair("binary", max_iter=5, random_state=0)
    for estimator in (ours, theirs):
        estimator.partial_fit(X, y, classes=[0, 1])
        estimator.fit(X, y)
    assert_same_fit(ours, theirs)


def test_partial_fit_with_a_class_not_in_the_first_part():
    X, y, X_new, y_new = split_task("multiclass")
    order = np.argsort(y)
    ours, theirs = build_pair("multiclass", random_state=0)
    for call, rows in enumerate((order[:50], order[50:], order[20:90])):
        keywords = {"classes": [0, 1, 2, 3]} if call == 0 else {}
        ours.partial_fit(X[rows], y[rows], **keywords)
        theirs.partial_fit(X[rows], y[rows], **keywords)
        assert_same_fit(ours, theirs)
    assert_same_outputs(ours, theirs, X_new, y_new)


@pytest.mark.parametrize("container", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_sparse_rows(task, container):
    X, y, X_new, y_new = split_task(task)
    X = np.where(np.abs(X) > 0.8, X, 0.0)
    for params in (SOLVERS["adam"], SOLVERS["sgd"] | {"early_stopping": True}):
        ours, theirs = build_pair(task, max_iter=8, batch_size=32, random_state=0, **params)
        ours.fit(container(X), y)
        assert_same_fit(ours, theirs.fit(container(X), y))
        assert_same_outputs(ours, theirs, container(X_new), y_new)


@pytest.mark.parametrize("task", TASKS)
def test_float32(task):
    """Ten epochs in float32 stay within 1e-3.

    One float32 step is right to about 1e-7 of the largest entry; the orders of summation
    differ, adam divides by the root of small second moments and so turns that into a few
    1e-5 of a step, which add up over thirty steps.
    """
    X, y, X_new, _ = split_task(task)
    ours, theirs = build_pair(task, max_iter=10, batch_size=64, random_state=0)
    ours.fit(X.astype(np.float32), y)
    theirs.fit(X.astype(np.float32), y)
    assert ours.coefs_[0].dtype == np.float32
    assert_same_weights(ours, theirs, rtol=1e-3)
    assert_close(ours.loss_curve_, theirs.loss_curve_, 1e-3, "loss_curve_")
    if hasattr(theirs, "predict_proba"):
        ours, theirs = (e.predict_proba(X_new.astype(np.float32)) for e in (ours, theirs))
    else:
        ours, theirs = (e.predict(X_new.astype(np.float32)) for e in (ours, theirs))
    assert ours.dtype == theirs.dtype == np.float32
    assert_close(ours, theirs, 1e-3, "prediction")


@pytest.mark.parametrize("labels", [["no", "yes"], ["a", "b", "c", "d"], [-3, 11], [True, False]])
def test_labels_of_any_kind(labels):
    X, codes, X_new, codes_new = split_task("binary" if len(labels) == 2 else "multiclass")
    y, y_new = np.array(labels)[codes], np.array(labels)[codes_new]
    ours, theirs = build_pair("binary", max_iter=5, random_state=0, early_stopping=True)
    assert_same_fit(ours.fit(X, y), theirs.fit(X, y))
    assert_same_outputs(ours, theirs, X_new, y_new)


def test_pandas_names_and_integer_columns():
    X, y, X_new, y_new = split_task("binary")
    names = [f"column {i}" for i in range(X.shape[1])]
    X, X_new = (pd.DataFrame(np.rint(3 * part).astype(int), columns=names) for part in (X, X_new))
    ours, theirs = build_pair("binary", max_iter=5, random_state=0)
    assert_same_fit(ours.fit(X, pd.Series(y)), theirs.fit(X, pd.Series(y)))
    assert_array_equal(ours.feature_names_in_, theirs.feature_names_in_)
    assert ours.n_features_in_ == theirs.n_features_in_
    assert_same_outputs(ours, theirs, X_new, y_new)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_column_y_is_ravelled_with_a_warning(task):
    X, y, X_new, y_new = split_task(task)
    ours, theirs = build_pair(task, max_iter=5, random_state=0)
    with pytest.warns(UserWarning, match="A column-vector y was passed"):
        ours.fit(X, y[:, None])
    with pytest.warns(UserWarning, match="A column-vector y was passed"):
        theirs.fit(X, y[:, None])
    assert_same_fit(ours, theirs)
    assert_same_outputs(ours, theirs, X_new, y_new)


def test_refit_with_other_data_forgets_the_first():
    ours, theirs = build_pair("multiclass", max_iter=5, random_state=0)
    for task, n_columns in (("multiclass", 8), ("binary", 6), ("multilabel", 5)):
        X, y = make_task(task, n_columns=n_columns)
        assert_same_fit(ours.fit(X, y), theirs.fit(X, y))
        assert_same_outputs(ours, theirs, X, y)
