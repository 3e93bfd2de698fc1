"""Losses of the regressor that scikit-learn's does not have, and losses given as functions."""

import numpy as np
import pytest
import torch
from neural_network.helpers import assert_close, assert_same_fit, make_task, make_weights
from neural_network.torch_reference import assert_descends_like_autograd
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.linear_model import LinearRegression, QuantileRegressor
from torch.nn import functional as F

from sknn_resid import MLPRegressor

TARGETS = ["regression", "multi_regression"]


def absolute(output, y):
    return (output - y.reshape(output.shape)).abs().sum(dim=1)


def huber(output, y, delta=0.7):
    return F.huber_loss(output, y.reshape(output.shape), reduction="none", delta=delta).sum(dim=1)


def pinball(output, y, q=0.8):
    u = y.reshape(output.shape) - output
    return torch.maximum(q * u, (q - 1) * u).sum(dim=1)


def poisson(output, y):
    """Half the deviance, from the raw output: the mean is exp(output)."""
    y = y.reshape(output.shape)
    return (torch.xlogy(y, y) - y * output - y + output.exp()).sum(dim=1)


REFERENCES = {
    "absolute_error": (absolute, {}),
    "huber": (huber, {"huber_delta": 0.7}),
    "quantile": (pinball, {"quantile": 0.8}),
}


# Losses that are functions of the user: (n, n_outputs) in, (n,) or (n, n_outputs) out.


def squared_by_hand(y_true, y_pred):
    return 0.5 * (y_true - y_pred) ** 2


def squared_by_row(y_true, y_pred):
    return 0.5 * ((y_true - y_pred) ** 2).sum(dim=1)


def huber_by_hand(y_true, y_pred):
    return F.huber_loss(y_pred, y_true, reduction="none", delta=0.7)


def log_cosh(y_true, y_pred):
    u = y_pred - y_true
    return (u + F.softplus(-2 * u, threshold=50) - np.log(2.0)).sum(dim=1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("loss", REFERENCES)
def test_loss_against_autograd(loss, task, weighted):
    X, y = make_task(task)
    row_loss, params = REFERENCES[loss]
    assert_descends_like_autograd(
        MLPRegressor(loss=loss, hidden_layer_sizes=(7,), alpha=0.5, **params),
        X,
        y,
        row_loss,
        # As for the squared error, the figure shown is the mean over the outputs.
        reported=1 / 3 if task == "multi_regression" else 1.0,
        sample_weight=make_weights(len(y)) if weighted else None,
    )


def test_poisson_with_several_targets():
    X, y = make_task("multi_regression")
    assert_descends_like_autograd(
        MLPRegressor(loss="poisson", hidden_layer_sizes=(7,)), X, np.floor(np.exp(y)), poisson
    )


def test_huber_between_its_limits():
    """A wide threshold is the squared error; a narrow one is the absolute error, scaled."""
    X, y = make_task("regression")
    params = {"solver": "sgd", "max_iter": 10, "batch_size": 32, "alpha": 0.0, "random_state": 0}
    wide = MLPRegressor(loss="huber", huber_delta=1e6, **params).fit(X, y)
    squared = MLPRegressor(**params).fit(X, y)
    assert_same_fit(wide, squared, rtol=1e-9)
    narrow = MLPRegressor(loss="huber", huber_delta=1e-9, learning_rate_init=1e6, **params)
    absolute = MLPRegressor(loss="absolute_error", learning_rate_init=1e-3, **params)
    # Only rows within the threshold differ, and none comes that near.
    assert_close(narrow.fit(X, y).coefs_[0], absolute.fit(X, y).coefs_[0], 1e-6, "coefs_")


def test_half_quantile_is_half_the_absolute_error():
    X, y = make_task("multi_regression")
    params = {"solver": "sgd", "max_iter": 10, "batch_size": 32, "alpha": 0.0, "random_state": 0}
    median = MLPRegressor(loss="quantile", learning_rate_init=0.02, **params).fit(X, y)
    absolute = MLPRegressor(loss="absolute_error", learning_rate_init=0.01, **params).fit(X, y)
    assert_close(median.coefs_[0], absolute.coefs_[0], 1e-9, "coefs_")
    assert_allclose(2 * np.array(median.loss_curve_), absolute.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("quantile", [0.1, 0.75])
def test_constant_network_finds_the_quantile(quantile):
    """With nothing to learn from, the best constant is the quantile of y."""
    y = np.sort(np.random.RandomState(0).exponential(size=101))
    X = np.zeros((101, 1))
    model = MLPRegressor("quantile", (), quantile=quantile, solver="sgd", momentum=0.0)
    model.set_params(learning_rate="cosine", learning_rate_init=0.5, max_iter=400, alpha=0.0)
    model.set_params(n_iter_no_change=np.inf, random_state=0).fit(X, y)
    assert_allclose(model.predict(X[:1])[0], np.quantile(y, quantile), atol=0.02)


def test_linear_quantile_regression():
    """No hidden layer and the pinball loss: scikit-learn's linear programme is the optimum."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(150, 2))
    y = X @ [1.0, -2.0] + rng.standard_t(3, size=150)
    reference = QuantileRegressor(quantile=0.7, alpha=0.0).fit(X, y)
    model = MLPRegressor("quantile", (), quantile=0.7, learning_rate="cosine", alpha=0.0)
    model.set_params(learning_rate_init=0.05, max_iter=800, n_iter_no_change=np.inf)
    model.set_params(random_state=0).fit(X, y)
    assert_allclose(model.coefs_[0][:, 0], reference.coef_, atol=0.02)
    assert_allclose(model.intercepts_[0][0], reference.intercept_, atol=0.02)


@pytest.mark.parametrize("loss", ["absolute_error", "huber"])
def test_outliers_count_for_little(loss):
    rng = np.random.RandomState(1)
    X = rng.normal(size=(200, 1))
    y = 2 * X[:, 0]
    y[:10] += 1000
    model = MLPRegressor(loss, (), learning_rate="cosine", learning_rate_init=0.1, max_iter=300)
    model.set_params(random_state=0, n_iter_no_change=np.inf, alpha=0.0).fit(X, y)
    assert_allclose(model.coefs_[0], 2.0, atol=0.1)
    assert abs(LinearRegression().fit(X, y).intercept_) > 10
    assert abs(model.intercepts_[0][0]) < 0.2


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("task", TARGETS)
def test_function_equals_the_loss_of_that_name(task, solver):
    X, y = make_task(task)
    params = {"solver": solver, "max_iter": 8, "batch_size": 32, "random_state": 0}
    for functions, name in (
        ((squared_by_hand, squared_by_row), "squared_error"),
        ((huber_by_hand,), "huber"),
    ):
        named = MLPRegressor(loss=name, huber_delta=0.7, **params)
        named.fit(X, y, sample_weight=make_weights(len(y)))
        for function in functions:
            given = MLPRegressor(loss=function, **params)
            given.fit(X, y, sample_weight=make_weights(len(y)))
            assert_allclose(given.loss_, named.loss_, rtol=1e-8)
            assert_close(given.predict(X), named.predict(X), 1e-7, "predict")
            if solver != "lbfgs":
                assert_same_fit(given, named, rtol=1e-9)


def test_function_with_a_shape_of_its_own():
    X, y = make_task("multi_regression")
    assert_descends_like_autograd(
        MLPRegressor(loss=log_cosh, hidden_layer_sizes=(7,)),
        X,
        y,
        lambda output, y: log_cosh(y, output),
        reported=1 / 3,
    )


def test_function_gets_targets_and_predictions_in_rows():
    seen = set()

    def loss(y_true, y_pred):
        seen.add((y_true.shape[1:], y_pred.shape[1:], y_true.dtype, y_pred.dtype))
        assert y_true.shape == y_pred.shape
        return squared_by_row(y_true, y_pred)

    X, y = make_task("multi_regression")
    MLPRegressor(loss=loss, max_iter=2, random_state=0).fit(X, y)
    assert seen == {((3,), (3,), torch.float64, torch.float64)}
    seen.clear()
    MLPRegressor(loss=loss, max_iter=2, random_state=0).fit(X.astype(np.float32), y[:, 0])
    assert seen == {((1,), (1,), torch.float32, torch.float32)}


def test_function_may_give_zero_weight_rows_no_number():
    """A row without weight has no influence, not even where its loss is not a number."""

    def root(y_true, y_pred):
        return torch.sqrt(y_true + 1e-6).sum(dim=1) * 0 + squared_by_row(y_true, y_pred)

    X, y = make_task("regression")
    y = np.abs(y)
    weights = np.ones(len(y))
    y[:5], weights[:5] = -1.0, 0.0
    params = {"max_iter": 5, "random_state": 0, "batch_size": len(y), "shuffle": False}
    model = MLPRegressor(loss=root, **params).fit(X, y, sample_weight=weights)
    reference = MLPRegressor(**params).fit(X, y, sample_weight=weights)
    assert_same_fit(model, reference, rtol=1e-9)


def test_parameters_of_a_model_with_a_function_are_kept():
    model = MLPRegressor(loss=log_cosh, max_iter=3)
    assert clone(model).loss is log_cosh
    X, y = make_task("regression")
    assert model.fit(X, y).out_activation_ == "identity"
    assert model.loss is log_cosh
