"""`record_gradients=True` of image networks: what a fit keeps, whatever it goes through."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sknn_resid import ResNetClassifier, stacked
from sknn_resid.engine.image_flow import ImageFlowRecorder
from sknn_resid.engine.image_network import FlatNetwork
from sknn_resid.engine.resnet import build
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.inspection import GradientFlowDisplay, gradient_flow

N = 48
MEASURED = ["activation_mean", "activation_std", "saturated_fraction", "dead_fraction"]


@pytest.fixture(scope="module")
def images():
    X, y = load_digits(return_X_y=True)
    return X[:N].reshape(-1, 8, 8, 1), y[:N]


def recorded(**params):
    small = {"depth": 8, "width": 3, "batch_size": 20, "max_iter": 3, "random_state": 0}
    return ResNetClassifier(**small | {"dtype": "float64", "record_gradients": True} | params)


def assert_same_history(a, b, rtol=0.0):
    assert a.layers == b.layers
    np.testing.assert_array_equal(a.epochs, b.epochs)
    np.testing.assert_allclose(a.values, b.values, rtol=rtol, atol=1e-12 if rtol else 0.0)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"dtype": "float32", "preactivation": True, "solver": "adamw", "learning_rate_init": 0.01},
        {"accumulate_steps": 3, "mixup": 0.4, "augmentation": "crop", "drop_path": 0.2},
        {"early_stopping": True, "average_fraction": 0.2, "class_weight": "balanced"},
        {"depth": 50, "clip_norm": 0.1, "shortcut": None, "max_iter": 1},
        {"freeze": "layer1", "body_lr_factor": 0.5},
    ],
    ids=[
        "plain",
        "bfloat16",
        "float16",
        "pre-activation",
        "drawn",
        "early",
        "bottleneck",
        "frozen",
    ],
)
def test_training_goes_the_same_way(images, params):
    X, y = images
    net = recorded(**params).fit(X, y)
    still = clone(net).set_params(record_gradients=False).fit(X, y)
    assert still.gradient_history_ is None
    assert net.loss_curve_ == still.loss_curve_
    for name, array in net.state_dict_.items():
        np.testing.assert_array_equal(array, still.state_dict_[name], err_msg=name)
    history = net.gradient_history_
    assert len(history) == net.n_iter_
    assert list(history.layers) == gradient_flow(net, X, y)["layer"].tolist()
    inner = history.values[:, :-1]
    assert np.isfinite(inner).all()
    assert (history["activation_std"][:, :-1] > 0).all()
    assert np.isnan(history.values[:, -1, 4:]).all()  # no function follows the head
    frozen = [name.startswith(("conv1", "layer1")) for name in history.layers]
    moves = ~np.array(frozen) if "freeze" in params else np.ones(len(frozen), dtype=bool)
    assert (history["gradient_norm"][:, moves] > 0).all()
    assert (history["update_ratio"][:, moves] > 0).all()
    assert (history["update_ratio"][:, ~moves] == 0).all()
    assert (history["gradient_norm"][:, ~moves] == 0).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_numbers_are_those_of_the_step(images, parts, weighted):
    """One batch, steps of plain descent: `gradient_flow` of the start, and the step itself."""
    X, y = images
    weight = np.arange(1.0, N + 1) if weighted else None
    params = {"batch_size": N, "max_iter": 1, "momentum": 0.0, "learning_rate": "constant"}
    net = recorded(**params, accumulate_steps=parts, augmentation=None, weight_decay=0.5)
    net.set_params(clip_norm=1e-3, learning_rate_init=0.01)
    start = clone(net).set_params(accumulate_steps=1)
    flow = gradient_flow(start, X, y, weight)
    history = net.fit(X, y, weight).gradient_history_
    names = flow["layer"].tolist()
    assert list(history.layers) == names
    np.testing.assert_allclose(history["weight_norm"][0], flow["weight_norm"], rtol=1e-12)
    np.testing.assert_allclose(
        history["gradient_rms"] ** 2 * [net.state_dict_[f"{name}.weight"].size for name in names],
        history["gradient_norm"] ** 2,
    )
    still = clone(net).set_params(learning_rate_init=1e-300).fit(X, y, weight)
    for l, name in enumerate(names):
        before, after = (m.state_dict_[f"{name}.weight"] for m in (still, net))
        moved = np.linalg.norm(after - before) / np.linalg.norm(before)
        np.testing.assert_allclose(history["update_ratio"][0, l], moved, rtol=1e-9)
    if parts == 1:  # batch statistics of parts are those of other batches
        for column in ("gradient_norm", *MEASURED):
            np.testing.assert_allclose(history[column][0], flow[column], rtol=1e-8, err_msg=column)


def test_parts_add_up(images):
    """With frozen statistics a batch in parts is that batch."""
    X, y = images
    start = recorded(max_iter=2, record_gradients=False).fit(X, y)
    params = {"warm_start": True, "freeze": "layer3", "record_gradients": True, "batch_size": N}
    found = []
    for parts in (1, 3, 7):
        net = pickle.loads(pickle.dumps(start)).set_params(**params, accumulate_steps=parts)
        weight = np.arange(1.0, N + 1)
        found.append(net.fit(X, y, weight).gradient_history_)
        assert net.gradient_history_.epochs.tolist() == [3, 4]
    assert_same_history(found[1], found[0], rtol=1e-9)
    assert_same_history(found[2], found[0], rtol=1e-9)


def test_it_is_the_last_full_batch(images):
    """The last batch of 8 is not measured: other images there leave the first epoch as it is."""
    X, y = images
    params = {"shuffle": False, "max_iter": 1, "pixel_mean": 5.0, "pixel_std": 5.0}
    one = recorded(**params, augmentation=None).fit(X, y).gradient_history_
    other = X.copy()
    other[40:] = other[40:, ::-1]
    two = recorded(**params, augmentation=None).fit(other, y).gradient_history_
    assert_same_history(one, two)
    other[39] = other[39, ::-1]
    three = recorded(**params, augmentation=None).fit(other, y).gradient_history_
    assert not np.array_equal(one.values, three.values)


def test_dead_channels(images):
    X, y = images
    net = recorded(max_iter=1, learning_rate_init=1e-9, record_gradients=False).fit(X, y)
    net.state_dict_["bn1.bias"][0] = -1e3
    net.set_params(warm_start=True, record_gradients=True).fit(X, y)
    assert net.gradient_history_["dead_fraction"][0, 0] == pytest.approx(1 / 3)
    assert net.gradient_history_["saturated_fraction"][0, 0] == pytest.approx(1 / 3)


def test_what_is_no_longer_a_number():
    """Not 0, and not a dead channel."""
    network = FlatNetwork(build(ResNetSpec(8, 2, 1, 3), torch.Generator(), torch.float64).train())
    recorder = ImageFlowRecorder(network, [slice(0, 4)], 4, None)
    x = torch.ones((4, 1, 8, 8), dtype=torch.float64)
    x[0, 0, 3, 3] = torch.nan
    recorder.begin()
    with recorder.watching(torch.full((4,), 0.25)):
        network.module(x)
    recorder.before_update()
    recorder.after_update()
    assert np.isnan(recorder.epoch_LC[:, 4:]).all()
    assert (recorder.epoch_LC[:, 3] == 0).all()


def test_later_calls_append(images):
    X, y = images
    net = recorded(warm_start=True).fit(X, y)
    first = net.gradient_history_
    net.fit(X, y)
    np.testing.assert_array_equal(net.gradient_history_.epochs, [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(net.gradient_history_.values[:3], first.values)
    net.set_params(record_gradients=False).partial_fit(X, y)
    assert len(net.gradient_history_) == 6
    net.set_params(record_gradients=True).partial_fit(X, y)
    np.testing.assert_array_equal(net.gradient_history_.epochs, [1, 2, 3, 4, 5, 6, 8])
    net.set_params(warm_start=False).fit(X, y)
    assert_same_history(net.gradient_history_, first)


def test_files_and_checkpoints(images, tmp_path):
    X, y = images
    net = recorded().fit(X, y)
    history = net.gradient_history_
    assert_same_history(pickle.loads(pickle.dumps(net)).gradient_history_, history)
    net.save(tmp_path / "net.npz")
    assert_same_history(ResNetClassifier.load(tmp_path / "net.npz").gradient_history_, history)
    timed = clone(net).set_params(checkpoint_dir=str(tmp_path), max_time=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for epochs in (1, 2):
            timed.fit(X, y)
            assert len(timed.gradient_history_) == epochs
    assert_same_history(timed.set_params(max_time=None).fit(X, y).gradient_history_, history)


def test_in_many_fits(images):
    X, y = images
    flat = X.reshape(N, -1)
    pipe = make_pipeline(FunctionTransformer(), recorded(max_iter=2))

    def histories():
        found = cross_validate(pipe, flat, y % 2, cv=2, return_estimator=True)
        return [fold[-1].gradient_history_ for fold in found["estimator"]]

    alone = histories()
    with stacked():
        together = histories()
    for a, b in zip(alone, together, strict=True):
        assert_same_history(a, b)


def test_a_compiled_network_is_watched_beside_it(images, monkeypatch):
    X, y = images
    plain = recorded().fit(X, y)
    monkeypatch.setattr(torch, "compile", lambda module: lambda *inputs: module(*inputs))
    net = recorded(compile=True).fit(X, y)
    np.testing.assert_array_equal(
        net.state_dict_["conv1.weight"], plain.state_dict_["conv1.weight"]
    )
    assert_same_history(net.gradient_history_, plain.gradient_history_)


def test_pictures(images):
    plt = pytest.importorskip("matplotlib.pyplot", reason="Displays need the extra 'plot'")
    X, y = images
    net = recorded().fit(X, y)
    display = GradientFlowDisplay.from_history(net, quantity="update_ratio")
    history = net.gradient_history_
    assert len(display.lines_) == len(history.layers) == 8
    for l, line in enumerate(display.lines_):
        np.testing.assert_array_equal(line.get_xdata(), history.epochs)
        np.testing.assert_array_equal(line.get_ydata(), history["update_ratio"][:, l])
    deep = make_pipeline(FunctionTransformer(), recorded(depth=14)).fit(X.reshape(N, -1), y)
    shown = GradientFlowDisplay.from_history(deep)  # a heat map
    assert shown.image_.get_array().shape == (14, 3)
    plt.close("all")
