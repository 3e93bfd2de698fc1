"""What is refused, and that the message says what was wrong.

A message names the parameter or argument, and shows the rule or the value seen. Where
scikit-learn has a message for the same mistake, it is that one.
"""

import inspect
import re

import numpy as np
import pandas as pd
import pytest
import torch
from neural_network.helpers import make_task
from scipy import sparse
from sklearn.exceptions import NotFittedError

from sknn_resid import MLPClassifier, MLPRegressor

BOTH = pytest.mark.parametrize("estimator_class", [MLPClassifier, MLPRegressor])

# parameter -> values that are not allowed; what only one of the two has follows
BAD_VALUES = {
    "hidden_layer_sizes": [0, -3, 1.5],
    "activation": ["swish", 3],
    "solver": ["rmsprop", None],
    "alpha": [-0.1, "small"],
    "batch_size": [0, "all", 2.5],
    "learning_rate": ["exponential"],
    "learning_rate_init": [0.0, -1.0],
    "power_t": [-0.5],
    "max_iter": [0, 2.5],
    "shuffle": ["yes"],
    "random_state": ["seed"],
    "tol": [-1e-3],
    "verbose": ["loud"],
    "warm_start": ["yes"],
    "momentum": [1.5, -0.1],
    "nesterovs_momentum": ["yes"],
    "early_stopping": ["yes"],
    "validation_fraction": [1.0, -0.1],
    "beta_1": [1.0, -0.1],
    "beta_2": [1.0, -0.1],
    "epsilon": [0.0],
    "n_iter_no_change": [0, 2.5],
    "max_fun": [0],
    "device": ["abacus", 1.5],
    "dtype": ["int8", "float16"],
    "max_time": [0, -1.0, "long"],
    "early_stopping_metric": ["no_such_metric", 3],
    "dropout": [1.0, -0.1],
    "clip_norm": [0.0, -1.0],
    "warmup_fraction": [-0.1, 1.5],
    "n_layers": [0, -1, 1.5],
    "width": [0, -5, 2.5],
    "record_gradients": ["yes"],
    "tied_weights": ["transpose", 3],
}
BAD_CLASSIFIER_VALUES = {"class_weight": ["heavy", 2], "label_smoothing": [1.0, -0.1]}
BAD_REGRESSOR_VALUES = {
    "loss": ["hinge", None],
    "quantile": [0.0, 1.0, 1.5],
    "huber_delta": [0.0, -1.0],
}
CASES = [
    pytest.param(estimator_class, name, value, id=f"{estimator_class.__name__}-{name}-{value}")
    for estimator_class, own in (
        (MLPClassifier, BAD_CLASSIFIER_VALUES),
        (MLPRegressor, BAD_REGRESSOR_VALUES),
    )
    for name, values in {**BAD_VALUES, **own}.items()
    for value in values
]


@pytest.fixture
def data():
    """Twenty rows of four columns, labels 0 and 1."""
    X, y = make_task("binary", n_rows=20, n_columns=6)
    return X[:, :4], y


def small(estimator_class, **params):
    return estimator_class(hidden_layer_sizes=(5,), max_iter=3, **params)


def says(*parts):
    """A pattern for a message that holds every part, in any order, over any lines."""
    return "(?s)" + "".join(f"(?=.*{re.escape(str(part))})" for part in parts)


# Parameters


@pytest.mark.parametrize(("estimator_class", "name", "value"), CASES)
def test_parameter_value(estimator_class, name, value, data):
    with pytest.raises(ValueError, match=says(name, value)) as error:
        estimator_class(**{name: value}).fit(*data)
    assert estimator_class.__name__ in str(error.value) or name in str(error.value)


def test_every_parameter_has_a_bad_value():
    for estimator_class, own in (
        (MLPClassifier, BAD_CLASSIFIER_VALUES),
        (MLPRegressor, BAD_REGRESSOR_VALUES),
    ):
        names = set(inspect.signature(estimator_class).parameters)
        assert names == set(BAD_VALUES) | set(own)


@BOTH
def test_parameters_are_checked_in_partial_fit_too(estimator_class, data):
    with pytest.raises(ValueError, match=says("alpha", -1)):
        estimator_class(alpha=-1).partial_fit(*data)


@BOTH
@pytest.mark.parametrize("sizes", [(10, -3), (0,), (10, 0)])
def test_width_that_is_not_positive(estimator_class, sizes, data):
    with pytest.raises(ValueError, match=says("hidden_layer_sizes must be > 0, got", list(sizes))):
        estimator_class(hidden_layer_sizes=sizes).fit(*data)


@BOTH
def test_width_that_is_not_whole(estimator_class, data):
    with pytest.raises(ValueError, match=says("hidden_layer_sizes", 2.5)):
        estimator_class(hidden_layer_sizes=(4, 2.5)).fit(*data)


@BOTH
def test_activation_tuple(estimator_class, data):
    params = {"hidden_layer_sizes": (5, 4), "max_iter": 3}
    with pytest.raises(ValueError, match=says("activation", 3, 2)):
        estimator_class(activation=("relu", "tanh", "relu"), **params).fit(*data)
    with pytest.raises(ValueError, match=says("activation", 1, 2)):
        estimator_class(activation=("relu",), **params).fit(*data)
    with pytest.raises(ValueError, match=says("activation", "swish", "silu")):
        estimator_class(activation=("relu", "swish"), **params).fit(*data)
    # n_layers is what counts where it is given.
    with pytest.raises(ValueError, match=says("activation", 2, 3)):
        estimator_class(activation=("relu", "tanh"), n_layers=3, **params).fit(*data)


@BOTH
@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps"])
def test_device_that_is_not_there(estimator_class, device, data):
    present = torch.backends.mps.is_available() if device == "mps" else torch.cuda.is_available()
    if present and device != "cuda:99":
        pytest.skip(f"this machine has {device}")
    with pytest.raises(ValueError, match=says("device", device, "cpu")):
        small(estimator_class, device=device).fit(*data)


# X


@BOTH
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_value_that_is_not_finite(estimator_class, value, word, data):
    X, y = data
    broken = X.copy()
    broken[3, 1] = value
    for wrong in (broken, sparse.csr_array(broken), broken.astype(np.float32)):
        with pytest.raises(ValueError, match=f"Input X contains {word}"):
            small(estimator_class).fit(wrong, y)
        with pytest.raises(ValueError, match=f"Input X contains {word}"):
            small(estimator_class).partial_fit(wrong, y, None, *first_classes(estimator_class))
    fitted = small(estimator_class).fit(X, y)
    for method in ("predict", "predict_proba", "transform"):
        if hasattr(fitted, method):
            with pytest.raises(ValueError, match=f"Input X contains {word}"):
                getattr(fitted, method)(broken)


def first_classes(estimator_class):
    """The further argument of a first partial_fit."""
    return ([0, 1],) if estimator_class is MLPClassifier else ()


@BOTH
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.empty((0, 4)), "Found array with 0 sample(s) (shape=(0, 4)) while a minimum of 1"),
        (np.empty((20, 0)), "0 feature(s) (shape=(20, 0)) while a minimum of 1 is required by"),
        (np.zeros(20), "Expected 2D array, got 1D array instead"),
        (np.zeros((20, 2, 2)), "Found array with dim 3"),
        (np.zeros((20, 2), dtype=complex), "Complex data not supported"),
        (np.full((20, 2), "red"), "could not convert string to float"),
    ],
    ids=["no rows", "no columns", "1-D", "3-D", "complex", "strings"],
)
def test_shape_and_kind_of_X(estimator_class, X, message, data):
    y = data[1][: len(X)]
    with pytest.raises(ValueError, match=re.escape(message)):
        small(estimator_class).fit(X, y)


@BOTH
def test_number_of_columns(estimator_class, data):
    X, y = data
    fitted = small(estimator_class).fit(X, y)
    message = f"X has 3 features, but {estimator_class.__name__} is expecting 4 features as input"
    for method in ("predict", "predict_proba", "predict_log_proba", "transform"):
        if hasattr(fitted, method):
            with pytest.raises(ValueError, match=message):
                getattr(fitted, method)(X[:, :3])
    with pytest.raises(ValueError, match=message):
        fitted.partial_fit(X[:, :3], y)
    with pytest.raises(ValueError, match=message):
        fitted.set_params(warm_start=True).fit(X[:, :3], y)


@BOTH
def test_column_names(estimator_class, data):
    X, y = data
    frame = pd.DataFrame(X, columns=["age", "height", "weight", "income"])
    fitted = small(estimator_class).fit(frame, y)
    renamed = frame.rename(columns={"age": "years"})
    for call in (fitted.predict, fitted.transform, lambda X: fitted.partial_fit(X, y)):
        with pytest.raises(ValueError, match=says("feature names should match", "years", "age")):
            call(renamed)
        with pytest.raises(ValueError, match=says("feature names", "same order")):
            call(frame[frame.columns[::-1]])


# y


@BOTH
def test_lengths_differ(estimator_class, data):
    X, y = data
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[20, 19\]"):
        small(estimator_class).fit(X, y[:19])


@BOTH
def test_missing_y(estimator_class, data):
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        small(estimator_class).fit(data[0], None)


@BOTH
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_target_that_is_not_finite(estimator_class, value, word, data):
    X, y = data
    y = y.astype(float)
    y[2] = value
    with pytest.raises(ValueError, match=f"Input y contains {word}"):
        small(estimator_class).fit(X, y)


def test_unknown_target_type(data):
    X, y = data
    with pytest.raises(ValueError, match=r"(?i)unknown label type"):
        small(MLPClassifier).fit(X, y + 0.25 * X[:, 0])
    with pytest.raises(ValueError, match="could not convert string to float"):
        small(MLPRegressor).fit(X, np.where(y == 1, "high", "low"))
    for estimator_class in (MLPClassifier, MLPRegressor):
        with pytest.raises(ValueError, match="dim 3"):
            small(estimator_class).fit(X, np.zeros((20, 2, 2)))


def test_labels_of_partial_fit(data):
    X, y = data
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        small(MLPClassifier).partial_fit(X, y)
    message = says("`y` has classes not in", "[0 1]", 7)
    fitted = small(MLPClassifier).partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match=message):
        fitted.partial_fit(X, np.where(y == 1, 7, 0))
    with pytest.raises(ValueError, match=message):
        small(MLPClassifier).partial_fit(X, np.where(y == 1, 7, 0), classes=[0, 1])
    with pytest.raises(ValueError, match="is not the same as on last call to partial_fit"):
        fitted.partial_fit(X, y, classes=[0, 1, 2])
    # The refused calls changed nothing.
    assert fitted.t_ == 20


@BOTH
def test_number_of_targets_changes_in_partial_fit(estimator_class, data):
    X, y = data
    fitted = small(estimator_class).fit(X, np.column_stack([y, 1 - y]))
    with pytest.raises(ValueError, match=r"\by\b|layers"):
        fitted.partial_fit(X, np.column_stack([y, y, 1 - y]))


def test_partial_fit_needs_a_stochastic_solver(data):
    for estimator_class in (MLPClassifier, MLPRegressor):
        lbfgs = estimator_class(solver="lbfgs")
        assert not hasattr(lbfgs, "partial_fit")
        with pytest.raises(AttributeError, match="partial_fit"):
            lbfgs.partial_fit(*data)


def test_negative_counts(data):
    X, y = data
    with pytest.raises(ValueError, match=says("poisson", "y", "-2")):
        small(MLPRegressor, loss="poisson").fit(X, y - 2.0)
    with pytest.raises(ValueError, match=says("poisson", "y", "-2")):
        small(MLPRegressor, loss="poisson").partial_fit(X, y - 2.0)


# Weights


@BOTH
@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        (np.ones(19), ["sample_weight.shape == (19,), expected (20,)"]),
        (np.ones((20, 2)), ["Sample weights must be 1D array or scalar"]),
        (np.zeros(20), ["sample_weight", "zero"]),
        (np.r_[-1.5, np.ones(19)], ["egative", "sample_weight"]),
        (np.r_[np.nan, np.ones(19)], ["sample_weight contains NaN"]),
        (np.r_[np.inf, np.ones(19)], ["sample_weight contains infinity"]),
    ],
    ids=["length", "2-D", "all zero", "negative", "NaN", "inf"],
)
def test_weights(estimator_class, weights, parts, data):
    with pytest.raises(ValueError, match=says(*parts)):
        small(estimator_class).fit(*data, sample_weight=weights)
    with pytest.raises(ValueError, match=says(*parts)):
        small(estimator_class).partial_fit(*data, weights, *first_classes(estimator_class))


# A validation part handed to fit


@BOTH
def test_validation_part_must_be_complete(estimator_class, data):
    X, y = data
    for early_stopping in (False, True):
        estimator = small(estimator_class, early_stopping=early_stopping)
        with pytest.raises(ValueError, match=says("X_val", "y_val")):
            estimator.fit(X, y, X_val=X)
        with pytest.raises(ValueError, match=says("X_val", "y_val")):
            estimator.fit(X, y, y_val=y)
        with pytest.raises(ValueError, match=says("sample_weight_val", "X_val")):
            estimator.fit(X, y, sample_weight_val=np.ones(20))


@BOTH
def test_validation_part_must_fit_the_data(estimator_class, data):
    X, y = data
    estimator = small(estimator_class, early_stopping=True)
    nan = np.where(np.arange(80).reshape(20, 4) == 5, np.nan, X)
    for X_val, y_val, parts in (
        (X[:, :3], y, ["X_val", 3, 4]),
        (nan, y, ["X_val", "NaN"]),
        (X[:0], y[:0], ["X_val", "0 sample(s)"]),
        (X, y[:7], ["y_val", 20, 7]),
    ):
        with pytest.raises(ValueError, match=says(*parts)):
            estimator.fit(X, y, X_val=X_val, y_val=y_val)
    for weights, parts in (
        (np.ones(7), ["sample_weight_val", 7, 20]),
        (-np.ones(20), ["sample_weight_val", "egative"]),
        (np.zeros(20), ["sample_weight_val", "zero"]),
    ):
        with pytest.raises(ValueError, match=says(*parts)):
            estimator.fit(X, y, X_val=X, y_val=y, sample_weight_val=weights)


def test_validation_labels_and_names(data):
    X, y = data
    frame = pd.DataFrame(X, columns=list("abcd"))
    estimator = small(MLPClassifier)
    with pytest.raises(ValueError, match=says("y_val", 5)):
        estimator.fit(X, y, X_val=X, y_val=np.where(y == 1, 5, 0))
    with pytest.raises(ValueError, match=says("X_val", "feature names", "e")):
        estimator.fit(frame, y, X_val=frame.rename(columns={"a": "e"}), y_val=y)
    with pytest.raises(ValueError, match=says("y_val", "NaN")):
        small(MLPRegressor).fit(X, y, X_val=X, y_val=np.full(20, np.nan))


# A loss given as a function


def test_callable_loss_of_the_wrong_shape(data):
    X, y = data
    for loss, shape in (
        (lambda y_true, y_pred: ((y_true - y_pred) ** 2).mean(), "()"),
        (lambda y_true, y_pred: ((y_true - y_pred) ** 2)[:-1, 0], "(19,)"),
        (lambda y_true, y_pred: ((y_true - y_pred) ** 2).expand(20, 3), "(20, 3)"),
    ):
        with pytest.raises(ValueError, match=says("loss", shape, "(20,)")):
            small(MLPRegressor, loss=loss).fit(X, y)


def test_callable_loss_that_leaves_torch(data):
    def in_numpy(y_true, y_pred):
        return np.square(y_true.numpy() - y_pred.detach().numpy()).sum(axis=1)

    def detached(y_true, y_pred):
        return ((y_true - y_pred.detach()) ** 2).sum(dim=1)

    for loss in (in_numpy, detached):
        with pytest.raises((TypeError, ValueError), match=says("loss", "tensor")):
            small(MLPRegressor, loss=loss).fit(*data)


def test_callable_loss_that_is_not_a_number(data):
    def undefined(y_true, y_pred):
        return (y_true - y_pred).sum(dim=1) * float("nan")

    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        small(MLPRegressor, loss=undefined).fit(*data)


# Before fit


@BOTH
def test_not_fitted(estimator_class, data, tmp_path):
    calls = {"predict": data[:1], "transform": data[:1], "score": data}
    calls |= {"save": (tmp_path / "model.npz",), "to_sklearn": (), "get_feature_names_out": ()}
    if estimator_class is MLPClassifier:
        calls |= {"predict_proba": data[:1], "predict_log_proba": data[:1]}
    message = f"This {estimator_class.__name__} instance is not fitted yet"
    for method, arguments in calls.items():
        with pytest.raises(NotFittedError, match=message):
            getattr(estimator_class(), method)(*arguments)
    assert not list(tmp_path.iterdir())
