"""`forward_trace` and `gradients` of image networks: differences, SGD steps, torch, predictions."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import ResNetClassifier
from sknn_resid.inspection import forward_trace, gradient_flow, gradients

N = 12
NETWORKS = {
    "basic": {},
    "pre-activation": {"preactivation": True, "shortcut": "B"},
    "plain": {"shortcut": None, "label_smoothing": 0.1},
    "bottleneck": {"depth": 50, "stem": "imagenet_3x3", "width": 4},
    "maximum": {"depth": 18, "stem": "imagenet", "width": 4},
    "frozen": {"freeze": "layer1", "class_weight": "balanced"},
    "drop path": {"drop_path": 0.3},
}


@pytest.fixture(scope="module")
def images():
    X, y = load_digits(return_X_y=True)
    return X[:N].reshape(-1, 8, 8) / 16, y[:N] % 3


def network(**params):
    small = {"depth": 8, "width": 3, "random_state": 0, "dtype": "float64", "max_iter": 1}
    return ResNetClassifier(**small | {"augmentation": None, "batch_size": N} | params)


def moved(net, name, step):
    other = copy.deepcopy(net)
    other.state_dict_ = {**net.state_dict_, name: net.state_dict_[name] + step}
    return other


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("statistics", ["batch", "fitted"])
def test_gradients_are_the_change_of_the_objective(images, name, statistics):
    """Each parameter, and the pixels, in a random direction; the loss by weights of the rows."""
    X, y = images
    weight = np.arange(1.0, N + 1)
    rng, h = np.random.RandomState(1), 1e-7
    X = X + 0.1 * rng.standard_normal(X.shape)  # of equal pixels, no maximum has a derivative
    net = network(**NETWORKS[name]).fit(X, y, weight)
    for bias in [key for key in net.state_dict_ if key.endswith(".bias")]:
        # Behind a dead channel and a shift of 0 a relu stands at its kink, with no derivative.
        net = moved(net, bias, 0.1 * rng.standard_normal(net.state_dict_[bias].shape))
    g = gradients(net, X, y, weight, statistics=statistics)
    names = list(g.parameters)
    if len(names) > 40:  # deep: some
        names = [names[i] for i in rng.choice(len(names), 10, replace=False)]
    for parameter in names:
        direction = rng.standard_normal(g.parameters[parameter].shape)
        direction /= np.linalg.norm(direction)
        up, down = (
            gradients(moved(net, parameter, s * direction), X, y, weight, statistics=statistics)
            for s in (h, -h)
        )
        slope = np.sum(g.parameters[parameter] * direction)
        np.testing.assert_allclose((up.loss - down.loss) / (2 * h), slope, atol=1e-7, rtol=1e-7)
    direction = rng.standard_normal(X.shape)
    assert g.X.shape == X.shape
    up, down = (
        gradients(net, X + s * direction, y, weight, statistics=statistics).loss for s in (h, -h)
    )
    np.testing.assert_allclose((up - down) / (2 * h), np.sum(g.X * direction), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "drop path"])
def test_one_step_of_sgd_goes_down_these_gradients(images, name):
    X, y = images
    rate, weight = 0.05, np.arange(1.0, N + 1)
    params = {"momentum": 0.0, "weight_decay": 0.0, "learning_rate": "constant"}
    net = network(**params, **NETWORKS[name], learning_rate_init=rate)
    start = clone(net).set_params(learning_rate_init=1e-300).fit(X, y, weight)
    g = gradients(net, X, y, weight)  # as fit would begin
    net.fit(X, y, weight)
    for parameter, gradient in g.parameters.items():
        before, after = start.state_dict_[parameter], net.state_dict_[parameter]
        kept = name == "frozen" and not parameter.startswith(("layer2", "layer3", "fc"))
        step = np.zeros_like(gradient) if kept else -rate * gradient
        np.testing.assert_allclose(after - before, step, rtol=1e-7, atol=1e-12, err_msg=parameter)
    if name != "frozen":  # its statistics are kept, and a new network has none
        assert net.loss_ == pytest.approx(g.loss, rel=1e-10)
    at = gradients(net, X, y, weight)
    before = {parameter: net.state_dict_[parameter].copy() for parameter in at.parameters}
    if name != "frozen":
        net.partial_fit(X, y, weight)
        for parameter, gradient in at.parameters.items():
            step = net.state_dict_[parameter] - before[parameter]
            np.testing.assert_allclose(step, -rate * gradient, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trace_is_the_prediction(images, name):
    X, y = images
    net = network(**NETWORKS[name]).fit(X, y)
    trace = forward_trace(net, X)
    np.testing.assert_allclose(trace.z[-1], net.decision_function(X), rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(trace.v[-1], net.predict_proba(X), rtol=1e-9)
    assert trace.names == gradient_flow(net, X, y)["layer"].tolist()
    for layer, z, v, W, b in zip(
        trace.names, trace.z, trace.v, trace.coefs, trace.intercepts, strict=True
    ):
        np.testing.assert_array_equal(W, net.state_dict_[f"{layer}.weight"])
        assert z.shape[:2] == v.shape[:2] == (N, len(W))
        assert b.shape == ((3,) if layer == "fc" else (0,))
        assert layer == "fc" or v.min() == 0
    assert forward_trace(net, X).columns == []
    np.testing.assert_array_equal(trace.X, X)


def test_layers_obey_the_chain_rule(images):
    """z from what comes before, dJ/dW from delta and that, by torch's own functions."""
    X, y = images
    net = network().fit(X, y)
    trace, g = forward_trace(net, X, statistics="batch"), gradients(net, X, y)
    first = (X[:, None] - net.pixel_mean_) / net.pixel_std_
    where = {name: i for i, name in enumerate(trace.names)}
    one, two = where["conv1"], where["layer1.0.conv1"]
    for layer, v_in in ((one, first), (two, trace.v[one])):
        v, W, delta = (torch.from_numpy(a) for a in (v_in, trace.coefs[layer], g.deltas[layer]))
        z = torch.nn.functional.conv2d(v, W, padding=1)
        np.testing.assert_allclose(trace.z[layer], z, atol=1e-12)
        dW = torch.nn.grad.conv2d_weight(v, W.shape, delta, padding=1)
        np.testing.assert_allclose(g.coefs[layer], dW, atol=1e-12)
    W, delta = torch.from_numpy(trace.coefs[one]), torch.from_numpy(g.deltas[one])
    dv = torch.nn.grad.conv2d_input((N, 1, 8, 8), W, delta, padding=1)
    np.testing.assert_allclose(g.X, dv[:, 0].numpy() / net.pixel_std_, atol=1e-12)
    delta = (trace.v[-1] - np.eye(3)[y]) / N
    np.testing.assert_allclose(g.deltas[-1], delta, atol=1e-12)
    pooled = trace.v[where["layer3.0.conv2"]].mean((2, 3))
    np.testing.assert_allclose(g.coefs[-1], delta.T @ pooled, atol=1e-12)
    np.testing.assert_allclose(g.intercepts[-1], delta.sum(0), atol=1e-12)
    np.testing.assert_allclose(trace.z[-1], pooled @ trace.coefs[-1].T + trace.intercepts[-1])


def test_x_has_the_axes_of_the_user(images):
    y = images[1]
    rng = np.random.default_rng(0)
    last = rng.uniform(0, 255, (N, 8, 10, 3))
    base = gradients(network(channels="last"), last, y)
    assert base.X.shape == last.shape
    first = gradients(network(channels="first"), last.transpose(0, 3, 1, 2), y)
    np.testing.assert_allclose(first.X, base.X.transpose(0, 3, 1, 2), rtol=1e-9, atol=1e-15)
    fitted = network(channels="auto").fit(last, y)
    np.testing.assert_allclose(
        gradients(fitted, last.transpose(0, 3, 1, 2), y).X.transpose(0, 2, 3, 1),
        gradients(fitted, last, y).X,
        rtol=1e-9,
        atol=1e-15,
    )
    flat = gradients(network(image_shape=(8, 10, 3)), last.reshape(N, -1), y)
    np.testing.assert_allclose(flat.X, base.X.reshape(N, -1), rtol=1e-9, atol=1e-15)
    planes = last.transpose(0, 3, 1, 2).reshape(N, -1)
    flat = gradients(network(image_shape=(3, 8, 10)), planes, y)
    np.testing.assert_allclose(flat.X, first.X.reshape(N, -1), rtol=1e-9, atol=1e-15)
    assert flat.columns[:2] == ["x0", "x1"]
    assert base.columns == []
    assert repr(base).startswith("Gradients of loss")
    assert "12 images of 8 x 10 x 3" in repr(base)


def test_files(images, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="files need the extra 'images'")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{i}.png") for i in range(N)]
    for path, one in zip(paths, pixels, strict=True):
        image.fromarray(one).save(path)
    g = gradients(network(), paths, images[1])
    np.testing.assert_allclose(g.X, gradients(network(), pixels, images[1]).X, rtol=1e-12)


def test_rows_that_do_not_fill_the_square(images):
    X, y = images
    frame = pd.DataFrame(X.reshape(N, -1)[:, :60]).add_prefix("p")
    g = gradients(network(), frame, y)
    assert g.X.shape == frame.shape
    assert g.columns == list(frame)
    pipe = make_pipeline(StandardScaler(), network())
    for model in (pipe, clone(pipe).fit(frame, y)):
        before = pickle.dumps(model)
        g = gradients(model, frame, y)
        assert g.columns == list(frame)
        assert pickle.dumps(model) == before
        rows = StandardScaler().fit_transform(frame)
        np.testing.assert_allclose(g.X, gradients(model[-1], rows, y).X, rtol=1e-9, atol=1e-12)


def test_a_weight_of_two_is_a_row_twice(images):
    X, y = images
    net = network().fit(X, y)
    weight = np.where(np.arange(N) < 4, 2.0, 1.0)
    twice = np.r_[np.arange(N), np.arange(4)]
    a, b = gradients(net, X, y, weight), gradients(net, X[twice], y[twice])
    assert a.loss == pytest.approx(b.loss, rel=1e-12)
    for name, gradient in a.parameters.items():
        np.testing.assert_allclose(gradient, b.parameters[name], rtol=1e-9, atol=1e-13)


def test_tables_and_precision(images):
    X, y = images
    net = network(dtype="float32").fit(X, y)
    g, trace = gradients(net, X, y), forward_trace(net, X)
    assert g.coefs[0].dtype == trace.v[0].dtype == np.float64
    low = gradients(net, X, y, dtype="float32")
    assert low.coefs[0].dtype == low.X.dtype == np.float32
    # float32 against float64
    np.testing.assert_allclose(low.parameters["fc.weight"], g.parameters["fc.weight"], rtol=1e-3)
    table = g.to_frame()
    assert table.loc["layer2.0.conv1", ["n_in", "n_units"]].tolist() == [3, 6]
    np.testing.assert_allclose(
        table["coef_norm"], gradient_flow(net, X, y)["gradient_norm"], rtol=1e-12
    )
    assert trace.to_frame().loc["layer3.0.conv2", "n_units"] == 12
    assert repr(trace).startswith("ForwardTrace of 12 images of 8 x 8")


def test_errors_name_what_is_wrong(images):
    X, y = images
    net = network()
    with pytest.raises(ValueError, match="y is missing: this ResNetClassifier is not fitted"):
        forward_trace(net, X)
    with pytest.raises(ValueError, match="y is missing"):
        gradients(net, X, None)
    with pytest.raises(ValueError, match=r"statistics='fitted': this ResNetClassifier"):
        forward_trace(net, X, y, statistics="fitted")
    with pytest.raises(ValueError, match="member=1: ResNetClassifier is one network"):
        gradients(net, X, y, member=1)
    with pytest.raises(ValueError, match="dtype='half'"):
        gradients(net, X, y, dtype="half")
    with pytest.raises(ValueError, match="statistics='mine'"):
        gradients(net, X, y, statistics="mine")
