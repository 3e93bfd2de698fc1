"""The parameters that scikit-learn's MLP does not have, each against what it claims to be.

References are formulas, torch.autograd, or the same model written with scikit-learn's parameters.
What concerns losses, schedules, validation parts, inputs, saving and callbacks stands in files of
its own (test_extra_*.py).
"""

import numpy as np
import pytest
import torch
from neural_network.helpers import assert_close, assert_same_fit, make_task, make_weights
from neural_network.torch_reference import (
    ACTIVATIONS,
    assert_descends_like_autograd,
    raw_outputs,
    weights_of,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from sknn_resid import MLPClassifier, MLPRegressor

ALL_ACTIVATIONS = tuple(ACTIVATIONS)


def half_squared_error(output, y):
    return 0.5 * ((output - y.reshape(output.shape)) ** 2).sum(dim=1)


def cross_entropy(output, y):
    return F.cross_entropy(output, y, reduction="none")


# class_weight


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("with_weights", [False, True])
def test_class_weight_is_a_weight_of_the_rows(task, with_weights):
    X, y = make_task(task)
    y = np.where(np.arange(len(y)) % 3 > 0, 0, y)  # unbalanced
    classes = np.unique(y)
    sample_weight = make_weights(len(y)) if with_weights else np.ones(len(y))
    balanced = compute_class_weight("balanced", classes=classes, y=y, sample_weight=sample_weight)
    for class_weight, values in (
        ("balanced", balanced),
        ({0: 0.5, 1: 3.0}, [0.5, 3.0, 1.0, 1.0]),
    ):
        weighted = MLPClassifier(class_weight=class_weight, max_iter=8, random_state=0)
        weighted.fit(X, y, sample_weight=sample_weight if with_weights else None)
        plain = MLPClassifier(max_iter=8, random_state=0)
        plain.fit(X, y, sample_weight=sample_weight * np.asarray(values)[y])
        assert_same_fit(weighted, plain, rtol=1e-9)


def test_class_weight_with_string_labels_and_lbfgs():
    X, y = make_task("binary")
    labels = np.array(["no", "yes"])[y]
    weighted = MLPClassifier(class_weight={"yes": 4.0}, solver="lbfgs", max_iter=5, random_state=0)
    weighted.fit(X, labels)
    plain = MLPClassifier(solver="lbfgs", max_iter=5, random_state=0)
    plain.fit(X, labels, sample_weight=np.where(y == 1, 4.0, 1.0))
    assert_allclose(weighted.loss_, plain.loss_, rtol=1e-9)


def test_class_weight_in_partial_fit():
    X, y = make_task("binary")
    weighted = MLPClassifier(class_weight={0: 3.0, 1: 1.0}, random_state=0)
    plain = MLPClassifier(random_state=0)
    for _ in range(3):
        weighted.partial_fit(X, y, classes=[0, 1])
        plain.partial_fit(X, y, classes=[0, 1], sample_weight=np.where(y == 0, 3.0, 1.0))
    assert_same_fit(weighted, plain, rtol=1e-9)


# label_smoothing


def test_label_smoothing():
    e = 0.2
    X, y = make_task("multiclass")
    assert_descends_like_autograd(
        MLPClassifier(label_smoothing=e, hidden_layer_sizes=(7,)),
        X,
        y,
        lambda z, y: F.cross_entropy(z, y, reduction="none", label_smoothing=e),
    )
    for task in ("binary", "multilabel"):
        X, y = make_task(task)
        assert_descends_like_autograd(
            MLPClassifier(label_smoothing=e, hidden_layer_sizes=(7,)),
            X,
            y,
            lambda z, y: F.binary_cross_entropy_with_logits(
                z, y.double().reshape(z.shape) * (1 - e) + e / 2, reduction="none"
            ).sum(dim=1),
        )


def test_label_smoothing_keeps_probabilities_from_the_ends():
    X, y = make_task("binary", n_rows=60)
    params = {"solver": "lbfgs", "alpha": 0.0, "max_iter": 300, "random_state": 0}
    smooth = MLPClassifier(label_smoothing=0.2, **params).fit(X, y)
    sharp = MLPClassifier(**params).fit(X, y)
    # The best any row can do is probability 0.9 of its own label.
    assert_allclose(smooth.predict_proba(X).max(axis=1), 0.9, atol=0.01)
    assert sharp.predict_proba(X).max(axis=1).min() > 0.99


# dropout


def test_dropout_is_inverted_and_drops_the_stated_part():
    """With weights that stand still the mean loss has a closed form.

    For a linear network, f = sum_j m_j h_j w_j + b with m_j = Bernoulli(1 - p) / (1 - p) has the
    mean of the network without dropout, and variance p / (1 - p) sum_j h_j^2 w_j^2: without the
    division the mean, with another p the variance, and with dropped inputs both would differ.
    """
    p = 0.3
    X, y = make_task("regression", n_rows=60)
    model = MLPRegressor(
        dropout=p,
        activation="identity",
        hidden_layer_sizes=(9,),
        solver="sgd",
        learning_rate_init=1e-15,
        alpha=0.0,
        max_iter=800,
        n_iter_no_change=np.inf,
        random_state=0,
    ).fit(X, y)
    hidden = X @ model.coefs_[0] + model.intercepts_[0]
    plain = hidden @ model.coefs_[1][:, 0] + model.intercepts_[1][0]
    variance = p / (1 - p) * (hidden**2) @ (model.coefs_[1][:, 0] ** 2)
    expected = np.mean(0.5 * (plain - y) ** 2 + 0.5 * variance)
    curve = np.array(model.loss_curve_)
    standard_error = curve.std() / np.sqrt(len(curve))
    assert standard_error < 0.01 * expected
    assert abs(curve.mean() - expected) < 4 * standard_error
    # Each epoch draws anew, and prediction draws nothing.
    assert len(np.unique(curve)) == len(curve)
    assert_allclose(model.predict(X), plain, rtol=1e-12)


def test_dropout_draws_from_random_state_only():
    X, y = make_task("multiclass")
    params = {"dropout": 0.4, "max_iter": 5, "hidden_layer_sizes": (20, 10)}
    first = MLPClassifier(random_state=1, **params).fit(X, y)
    torch.manual_seed(99)
    np.random.seed(99)
    again = MLPClassifier(random_state=1, **params).fit(X, y)
    other = MLPClassifier(random_state=2, **params).fit(X, y)
    assert first.loss_curve_ == again.loss_curve_
    assert_array_equal(first.coefs_[0], again.coefs_[0])
    assert first.loss_curve_ != other.loss_curve_
    # Without hidden units there is nothing to drop.
    params["hidden_layer_sizes"] = ()
    linear = MLPClassifier(random_state=1, **params).fit(X, y)
    params["dropout"] = 0.0
    assert_same_fit(linear, MLPClassifier(random_state=1, **params).fit(X, y), rtol=1e-9)


def test_dropout_goes_back_through_the_same_units():
    """The mean gradient over many masks, against its closed form.

    In the linear network above, with f' = f without dropout, the mean of m_j (f - y) is
    (f' - y) + p / (1 - p) h_j w_j. The second term is there only if the gradient passes through
    the units that the forward pass kept.
    """
    p, rate, n_epochs = 0.5, 1e-9, 3000
    X, y = make_task("regression", n_rows=60)
    params = {"activation": "identity", "hidden_layer_sizes": (5,), "solver": "sgd", "alpha": 0.0}
    params |= {"momentum": 0.0, "nesterovs_momentum": False, "random_state": 0, "batch_size": 60}
    still = MLPRegressor(max_iter=1, learning_rate_init=1e-300, **params).fit(X, y)
    (W, w), (b, c) = still.coefs_, still.intercepts_
    hidden = X @ W + b
    error = hidden @ w + c - y[:, None]
    plain = X.T @ error @ w.T / 60
    expected = plain + p / (1 - p) * X.T @ (hidden * w[:, 0]) * w[:, 0] / 60
    model = MLPRegressor(dropout=p, max_iter=n_epochs, learning_rate_init=rate, **params)
    model.set_params(n_iter_no_change=np.inf).fit(X, y)
    mean_gradient = (W - model.coefs_[0]) / (rate * n_epochs)
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(plain - expected) > 0.1 * scale
    assert np.linalg.norm(mean_gradient - expected) < 0.02 * scale


# clip_norm


def test_clip_norm_bounds_the_whole_gradient():
    X, y = make_task("multiclass")
    # The gradient is about 0.5 at first: clipped, and never clipped.
    for clip_norm in (0.05, 1e6):
        assert_descends_like_autograd(
            MLPClassifier(clip_norm=clip_norm, hidden_layer_sizes=(7,), alpha=3.0),
            X,
            y,
            cross_entropy,
        )


def test_clip_norm_bounds_each_step():
    X, y = make_task("regression")
    model = MLPRegressor(clip_norm=0.01, solver="sgd", momentum=0, batch_size=len(X), max_iter=1)
    model.set_params(learning_rate_init=0.5, warm_start=True, random_state=0).fit(X, 1e6 * y)
    for _ in range(3):
        before = [a.copy() for a in model.coefs_ + model.intercepts_]
        model.fit(X, 1e6 * y)
        after = model.coefs_ + model.intercepts_
        move = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True)))
        assert_allclose(move, 0.5 * 0.01, rtol=1e-6)


# max_time


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("estimator_class", [MLPClassifier, MLPRegressor])
def test_max_time_stops_with_a_warning_and_a_model(estimator_class, solver):
    X, y = make_task("binary")
    model = estimator_class(max_time=0.05, max_iter=10**6, max_fun=10**7, tol=0, solver=solver)
    model.set_params(n_iter_no_change=np.inf, random_state=0, hidden_layer_sizes=(200, 200))
    with pytest.warns(ConvergenceWarning, match="max_time"):
        model.fit(X, y)
    # A million epochs would take hours.
    assert 1 <= model.n_iter_ < 10**6
    assert np.isfinite(model.loss_)
    assert np.isfinite(model.predict(X)).all()


def test_max_time_that_is_not_reached_changes_nothing():
    X, y = make_task("multiclass")
    limited = MLPClassifier(max_time=3600.0, max_iter=5, random_state=0).fit(X, y)
    assert_same_fit(limited, MLPClassifier(max_iter=5, random_state=0).fit(X, y), rtol=1e-12)


# n_layers and width


@pytest.mark.parametrize(
    ("given", "same_as"),
    [
        ({"n_layers": 3, "width": 7}, (7, 7, 7)),
        ({"n_layers": 1, "width": 4}, (4,)),
        ({"width": 6, "hidden_layer_sizes": (5, 3)}, (6, 6)),
        ({"n_layers": 2, "hidden_layer_sizes": (5,)}, (5, 5)),
        ({"n_layers": 2, "width": 4, "hidden_layer_sizes": (9, 9, 9)}, (4, 4)),
    ],
    ids=str,
)
def test_scalars_win_over_the_tuple(given, same_as):
    X, y = make_task("binary")
    scalars = MLPClassifier(max_iter=4, random_state=0, **given)
    before = scalars.get_params()
    scalars.fit(X, y)
    assert scalars.get_params() == before
    assert clone(scalars).get_params() == before
    tuple_ = MLPClassifier(max_iter=4, random_state=0, hidden_layer_sizes=same_as).fit(X, y)
    assert [w.shape[1] for w in scalars.coefs_[:-1]] == list(same_as)
    assert_same_fit(scalars, tuple_, rtol=1e-12)


def test_scalars_are_tuned_by_a_search():
    X, y = make_task("regression")
    grid = {"n_layers": [1, 2], "width": [3, 5]}
    search = GridSearchCV(MLPRegressor(max_iter=5, random_state=0), grid, cv=2).fit(X, y)
    best = search.best_estimator_
    assert len(best.coefs_) == search.best_params_["n_layers"] + 1
    assert best.coefs_[0].shape[1] == search.best_params_["width"]


# activation


@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_activation(activation):
    """Training against autograd, prediction against torch.nn.functional."""
    X, y = make_task("multi_regression")
    model = MLPRegressor(activation=activation, hidden_layer_sizes=(7, 5))
    assert_descends_like_autograd(model, X, y, half_squared_error, reported=1 / 3)
    output, hidden = raw_outputs(*weights_of(model), torch.from_numpy(3 * X), (activation,) * 2)
    assert_close(model.predict(3 * X), output.detach(), 1e-10, "predict")
    assert_close(model.transform(3 * X), hidden.detach(), 1e-10, "transform")


@pytest.mark.parametrize("activation", [("gelu", "tanh"), ("relu", "silu"), ["mish", "identity"]])
def test_one_activation_per_layer(activation):
    X, y = make_task("multiclass")
    model = MLPClassifier(activation=activation, hidden_layer_sizes=(7, 5))
    assert_descends_like_autograd(model, X, y, cross_entropy)
    output, _ = raw_outputs(*weights_of(model), torch.from_numpy(X), activation)
    assert_close(model.predict_proba(X), output.softmax(dim=1).detach(), 1e-10, "predict_proba")


def test_equal_activations_in_a_tuple_are_the_same_as_one():
    X, y = make_task("binary")
    for name in ("relu", "logistic", "gelu"):
        params = {"max_iter": 5, "hidden_layer_sizes": (6, 4), "random_state": 0}
        one = MLPClassifier(activation=name, **params).fit(X, y)
        assert_same_fit(MLPClassifier(activation=(name, name), **params).fit(X, y), one, 1e-12)


@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_activations_survive_large_inputs(activation):
    X, y = make_task("regression", n_rows=20)
    model = MLPRegressor(activation=activation, max_iter=1, random_state=0).fit(X, y)
    assert np.isfinite(model.predict(1e3 * X)).all()
    assert np.isfinite(model.predict(-1e3 * X)).all()


# dtype


@pytest.mark.parametrize("given", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
@pytest.mark.parametrize("estimator_class", [MLPClassifier, MLPRegressor])
def test_dtype(estimator_class, dtype, given):
    X, y = make_task("binary", n_rows=60)
    X = X.astype(given)
    model = estimator_class(dtype=dtype, max_iter=5, random_state=0).fit(X, y)
    expected = np.dtype(given if dtype is None else dtype)
    assert np.dtype(model.dtype_) == expected
    assert {a.dtype for a in model.coefs_ + model.intercepts_} == {expected}
    assert model.transform(X).dtype == expected
    same = estimator_class(max_iter=5, random_state=0).fit(X.astype(expected), y)
    rtol = 1e-4 if expected == np.float32 else 1e-7
    assert_close(model.coefs_[0], same.coefs_[0], rtol, "coefs_")


def test_bfloat16_keeps_float32_weights_and_stays_near():
    """Products to 8 bits: a loss curve within 2 % over thirty epochs, weights of float32."""
    X, y = make_task("multiclass", n_rows=300)
    params = {"max_iter": 30, "hidden_layer_sizes": (64, 64), "random_state": 0}
    half = MLPClassifier(dtype="bfloat16", **params).fit(X, y)
    full = MLPClassifier(dtype="float32", **params).fit(X, y)
    assert str(half.dtype_) == "bfloat16"
    assert {a.dtype for a in half.coefs_ + half.intercepts_} == {np.dtype(np.float32)}
    assert_allclose(half.loss_curve_, full.loss_curve_, rtol=0.02)
    assert half.predict_proba(X).dtype in (np.float32, np.float64)
    assert half.score(X, y) > full.score(X, y) - 0.05


def test_device_is_stated():
    X, y = make_task("binary", n_rows=40)
    for device in ("cpu", "auto"):
        model = MLPClassifier(device=device, max_iter=3, random_state=0).fit(X, y)
        assert str(model.device_).split(":")[0] in ("cpu", "cuda", "mps")
    assert str(MLPClassifier(max_iter=3).fit(X, y).device_) == "cpu"
