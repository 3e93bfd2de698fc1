"""`record_gradients=True`: what is kept of a fit, whatever the fit goes through."""

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from neural_network.helpers import TASKS, build_pair, make_task, make_weights
from neural_network.residual_helpers import QUICK, mixed_table
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import (
    MLPClassifier,
    MLPRegressor,
    MLPResidualClassifier,
    MLPResidualRegressor,
    stacked,
)

NUMBERS = [
    "gradient_norm",
    "gradient_rms",
    "weight_norm",
    "update_ratio",
    "activation_mean",
    "activation_std",
    "saturated_fraction",
    "dead_fraction",
]
SMALL = {"hidden_layer_sizes": (7, 5), "max_iter": 4, "tol": 0.0, "random_state": 0}

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning"  # few epochs are enough here
)


def recorded(task="multiclass", **params):
    """Our estimator for a task, recording."""
    return build_pair(task, **SMALL)[0].set_params(record_gradients=True, **params)


def assert_same_history(a, b, rtol=0.0):
    assert a.layers == b.layers
    np.testing.assert_array_equal(a.epochs, b.epochs)
    np.testing.assert_array_equal(a.members, b.members)
    np.testing.assert_allclose(a.values, b.values, rtol=rtol)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_every_task_and_precision_and_nothing_else_changes(task, dtype):
    X, y = make_task(task)
    net = recorded(task, dtype=dtype).fit(X, y)
    plain = clone(net).set_params(record_gradients=False).fit(X, y)
    for ours, theirs in zip(net.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert net.loss_curve_ == plain.loss_curve_
    assert plain.gradient_history_ is None
    history = net.gradient_history_
    assert history.layers == ("hidden_1", "hidden_2", "output")
    assert len(history) == net.n_iter_
    for name in NUMBERS:
        hidden = history[name][:, :2]
        assert np.isfinite(hidden).all(), name
        assert (hidden >= 0).all() or name == "activation_mean"
    assert np.isnan(history["activation_std"][:, 2]).all()


def test_one_step_by_hand():
    """One batch of all rows and SGD: the update is known from the weights, the gradient from it."""
    X, y = make_task("regression", n_rows=50)
    params = {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1, "batch_size": 50}
    net = recorded("regression", alpha=0.0, warm_start=True, **params).set_params(max_iter=1)
    net.fit(X, y)
    before = [W.copy() for W in net.coefs_]
    net.fit(X, y)  # goes on
    for l, (old, new) in enumerate(zip(before, net.coefs_, strict=True)):
        moved = np.linalg.norm(new - old)
        row = {name: net.gradient_history_[name][1, l] for name in NUMBERS}
        np.testing.assert_allclose(row["weight_norm"], np.linalg.norm(old), rtol=1e-12)
        np.testing.assert_allclose(row["update_ratio"], moved / np.linalg.norm(old), rtol=1e-9)
        np.testing.assert_allclose(row["gradient_norm"], moved / 0.1, rtol=1e-9)
        np.testing.assert_allclose(row["gradient_rms"], moved / 0.1 / np.sqrt(old.size), rtol=1e-9)
    h = np.maximum(X @ before[0] + net.intercepts_[0], 0)  # nearly: the bias has moved on
    np.testing.assert_allclose(net.gradient_history_["activation_mean"][1, 0], h.mean(), rtol=0.05)


def test_the_penalty_does_not_hide_a_vanished_gradient():
    """20 logistic layers: g is 1e-12 in front, alpha |W| / B is 1e-3."""
    X, y = make_task("multiclass")
    net = recorded(hidden_layer_sizes=(30,) * 20, activation="logistic", alpha=0.1).fit(X, y)
    norms = net.gradient_history_["gradient_norm"][0]
    assert 0 < norms[0] < 1e-9 * norms[-1]


def test_a_weight_is_a_repeated_row():
    X, y = make_task("multiclass", n_rows=40)
    weight = np.arange(40) % 3
    params = {"batch_size": 80, "alpha": 0.0}
    with pytest.warns(UserWarning, match="batch_size"):
        once = recorded(**params).fit(X, y, sample_weight=weight)
    with pytest.warns(UserWarning, match="batch_size"):
        often = recorded(**params).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    assert_same_history(once.gradient_history_, often.gradient_history_, rtol=1e-7)


def test_sparse_rows_are_dense_ones():
    X, y = make_task("multiclass")
    X = np.where(X > 0.5, X, 0.0)
    dense = recorded().fit(X, y).gradient_history_
    assert_same_history(recorded().fit(scipy.sparse.csr_array(X), y).gradient_history_, dense, 1e-9)


def test_class_and_sample_weights_and_early_stopping():
    X, y = make_task("binary", n_rows=200)
    net = recorded("binary", early_stopping=True, class_weight="balanced", max_iter=30, tol=1e-2)
    net.fit(X, y, sample_weight=make_weights(200))
    assert len(net.gradient_history_) == net.n_iter_ < 30


def test_warm_start_and_partial_fit_go_on():
    X, y = make_task("binary")
    net = recorded("binary", warm_start=True).fit(X, y)
    first = net.gradient_history_
    net.fit(X, y)
    assert_same_history(type(first)(first.layers, net.gradient_history_.values[:4]), first)
    np.testing.assert_array_equal(net.gradient_history_.epochs, np.arange(1, 9))
    net.set_params(record_gradients=False).fit(X, y)
    assert len(net.gradient_history_) == 8
    net.set_params(record_gradients=True).partial_fit(X, y)
    np.testing.assert_array_equal(net.gradient_history_.epochs, [*range(1, 9), 13])
    assert len(net.loss_curve_) == 13
    net.set_params(warm_start=False).fit(X, y)
    assert_same_history(net.gradient_history_, first)


def test_partial_fit_from_the_start():
    X, y = make_task("binary")
    net = recorded("binary")
    for _ in range(3):
        net.partial_fit(X, y, classes=[0, 1])
    np.testing.assert_array_equal(net.gradient_history_.epochs, [1, 2, 3])


def test_lbfgs_is_refused():
    X, y = make_task("binary")
    with pytest.raises(ValueError, match=r"record_gradients=True needs a stochastic solver.*lbfgs"):
        recorded("binary", solver="lbfgs").fit(X, y)
    assert MLPClassifier(solver="lbfgs", max_iter=3).fit(X, y).gradient_history_ is None


@pytest.mark.parametrize("value", [1, "yes", None])
def test_only_true_and_false(value):
    X, y = make_task("binary")
    with pytest.raises(ValueError, match="record_gradients"):
        MLPClassifier(record_gradients=value).fit(X, y)


@pytest.mark.parametrize("make", [recorded, lambda: residual(MLPResidualClassifier)])
def test_pickle_save_and_load(make, tmp_path):
    X, y = make_task("multiclass")
    net = make().fit(X, y)
    history = net.gradient_history_
    assert_same_history(pickle.loads(pickle.dumps(net)).gradient_history_, history)
    net.save(tmp_path / "net.npz")
    again = type(net).load(tmp_path / "net.npz")
    assert_same_history(again.gradient_history_, history)
    net.set_params(record_gradients=False).fit(X, y).save(tmp_path / "net.npz")
    assert type(net).load(tmp_path / "net.npz").gradient_history_ is None


def test_folds_and_candidates_stacked_or_not():
    X, y = make_task("multiclass")
    net = make_pipeline(StandardScaler(), recorded(batch_size=50))
    grid = {"mlpclassifier__learning_rate_init": [0.001, 0.01], "mlpclassifier__max_iter": [2, 4]}

    def histories():
        found = cross_validate(net, X, y, cv=3, return_estimator=True)["estimator"]
        search = GridSearchCV(net, grid, cv=3).fit(X, y).best_estimator_
        return [fold[-1].gradient_history_ for fold in [*found, search]]

    alone = histories()
    with stacked():
        together = histories()
    for a, b in zip(alone, together, strict=True):
        assert len(a) in (2, 4)
        assert_same_history(a, b, rtol=1e-7)


def test_a_diverged_fit_shows_how():
    X, y = make_task("regression")
    net = recorded("regression", solver="sgd", learning_rate_init=3.0, max_iter=60, momentum=0.0)
    with np.errstate(all="ignore"):
        try:
            net.fit(1e3 * X, y)
        except ValueError:
            return  # not one finite epoch: nothing is fitted, nothing recorded
    assert len(net.gradient_history_) == len(net.loss_curve_)


def test_on_tensors():
    X, y = make_task("multiclass")
    tensors = torch.from_numpy(X)
    with config_context(array_api_dispatch=True):
        net = recorded().fit(tensors, torch.from_numpy(y))
    assert_same_history(net.gradient_history_, recorded().fit(X, y).gradient_history_, 1e-9)


# -- residual estimators --------------------------------------------------------------------------


def residual(cls, **params):
    """A quick ensemble, recording."""
    return cls(**QUICK | {"max_iter": 3, "record_gradients": True} | params)


@pytest.mark.parametrize("cls", [MLPResidualClassifier, MLPResidualRegressor])
@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("dtype", ["auto", "float64", "bfloat16"])
def test_residual_ensembles(cls, early_stopping, dtype):
    table, y_class, y_real = mixed_table()
    y = y_class if cls is MLPResidualClassifier else y_real
    weight = make_weights(len(y))
    net = residual(cls, early_stopping=early_stopping, dtype=dtype, n_blocks=2)
    net.fit(table, y, sample_weight=weight)
    plain = clone(net).set_params(record_gradients=False).fit(table, y, sample_weight=weight)
    np.testing.assert_array_equal(net.predict(table), plain.predict(table))
    assert plain.gradient_history_ is None
    history = net.gradient_history_
    assert history.layers[:3] == ("input", "block_1.linear_1", "block_1.linear_2")
    np.testing.assert_array_equal(history.members, np.repeat([0, 1], 3))
    np.testing.assert_array_equal(history.epochs, np.tile([1, 2, 3], 2))
    assert np.isfinite(history["gradient_norm"]).all()
    assert np.isfinite(history["dead_fraction"][:, history.layers.index("block_1.linear_1")]).all()


def test_a_member_alone_records_what_it_does_beside_others():
    """The first member of two is the ensemble of one: seeds are drawn one after another."""
    table, y, _ = mixed_table()
    two = residual(MLPResidualClassifier, embedding_scale=1.0).fit(table, y).gradient_history_
    params = {"embedding_scale": 1.0, "n_estimators": 1}
    one = residual(MLPResidualClassifier, **params).fit(table, y).gradient_history_
    # in float32, where an ensemble of two and one alone round differently in each step
    np.testing.assert_allclose(two.values[two.members == 0], one.values, rtol=1e-3)


def test_residual_networks_stacked():
    table, y, _ = mixed_table()
    net = residual(MLPResidualClassifier, dtype="float64")

    def histories():
        found = cross_validate(net, table, y, cv=2, return_estimator=True)["estimator"]
        return [fold.gradient_history_ for fold in found]

    alone = histories()
    with stacked():
        together = histories()
    for a, b in zip(alone, together, strict=True):
        assert_same_history(a, b, rtol=1e-7)


# -- the object -----------------------------------------------------------------------------------


def test_frame_and_names():
    X, y = make_task("regression")
    history = recorded("regression").fit(X, y).gradient_history_
    table = history.to_frame()
    assert list(table.columns) == ["member", "epoch", "layer", *NUMBERS]
    assert len(table) == 4 * 3
    row = table[(table["epoch"] == 3) & (table["layer"] == "hidden_2")]
    for name in NUMBERS:
        assert row[name].item() == history[name][2, 1]
    assert repr(history).startswith("GradientHistory(4 epochs, 3 layers")
    with pytest.raises(KeyError, match="'loss' is not recorded"):
        history["loss"]


def test_representations_of_the_estimator():
    X, y = make_task("regression")
    net = MLPRegressor(**SMALL, record_gradients=True).fit(X, y)
    assert "record_gradients=True" in repr(net)
    assert "MLPRegressor" in net._repr_html_()
