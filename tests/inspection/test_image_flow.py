"""Gradient flow of image networks: against autograd through the module, and known trouble."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sknn_resid import MLPClassifier, ResNetClassifier
from sknn_resid.engine.resnet import ResNet, load_arrays
from sknn_resid.inspection import (
    ActivationDisplay,
    GradientFlowDisplay,
    LossCurveDisplay,
    compare_gradient_flow,
    diagnose,
    gradient_correlation,
    gradient_flow,
    jacobian_spectrum,
)

N = 40


@pytest.fixture(scope="module")
def images():
    X, y = load_digits(return_X_y=True)
    return X[:N].reshape(-1, 8, 8, 1), y[:N]


def network(**params):
    return ResNetClassifier(**{"depth": 8, "width": 4, "random_state": 0} | params)


@pytest.fixture(scope="module")
def fitted(images):
    X, y = images
    return network(max_iter=2, dtype="float64", batch_size=20).fit(X, y)


def module_of(net):
    module = ResNet(net._spec, torch.float64)
    load_arrays(module, net.state_dict_)
    return module.train()


def scaled(net, X):
    x = (torch.from_numpy(X) - torch.from_numpy(net.pixel_mean_)) / torch.from_numpy(net.pixel_std_)
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_the_module(images, fitted, weighted):
    X, y = images
    weight = np.arange(1.0, N + 1) if weighted else None
    r = np.full(N, 1 / N) if weight is None else weight / weight.sum()
    module = module_of(fitted)
    rows = torch.from_numpy(r)
    z = module(scaled(fitted, X), rows if weighted else None)
    losses = torch.nn.functional.cross_entropy(z, torch.from_numpy(y), reduction="none")
    (losses @ rows).backward()
    flow = gradient_flow(fitted, X, y, weight).set_index("layer")
    found = {n: p for n, p in module.named_parameters() if p.ndim > 1}
    assert list(flow.index) == [name.removesuffix(".weight") for name in found]
    for name, parameter in found.items():
        row = flow.loc[name.removesuffix(".weight")]
        np.testing.assert_allclose(row["gradient_norm"], parameter.grad.norm(), rtol=1e-9)
        np.testing.assert_allclose(row["weight_norm"], parameter.detach().norm(), rtol=1e-12)
    assert np.isnan(flow.loc["fc", "activation_mean"])


def test_activations_are_the_relus_behind(images, fitted):
    X, y = images
    flow = gradient_flow(fitted, X, y).set_index("layer")
    module = module_of(fitted)
    with torch.no_grad():
        stem = module.features(scaled(fitted, X), "stem")
        block = module.stage(0)[0]
        inner = torch.relu(block.bn1(block.conv1(stem)))
        last = block(stem, None, None)
    for name, h in (("conv1", stem), ("layer1.0.conv1", inner), ("layer1.0.conv2", last)):
        row = flow.loc[name]
        np.testing.assert_allclose(row["activation_mean"], h.mean(), rtol=1e-9)
        np.testing.assert_allclose(row["activation_std"], h.std(correction=0), rtol=1e-9)
        dead = (h.amax((0, 2, 3)) == 0).double().mean()
        np.testing.assert_allclose(row["dead_fraction"], dead)


def test_correlation_is_autograds(images, fitted):
    X, y = images
    rng = np.random.RandomState(5)
    near = X + 0.1 * X.std(axis=0) * rng.standard_normal(X.shape)

    def gradients(pixels):
        x = scaled(fitted, pixels).requires_grad_()
        z = module_of(fitted)(x)
        torch.nn.functional.cross_entropy(z, torch.from_numpy(y), reduction="sum").backward()
        return x.grad.flatten(1)

    cosine = torch.nn.functional.cosine_similarity(gradients(X), gradients(near))
    found = gradient_correlation(fitted, X, y, random_state=5)
    np.testing.assert_allclose(found, cosine.mean(), rtol=1e-9)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"preactivation": True},
        {"shortcut": None},
        {"depth": 50, "stem": "imagenet"},
        {"drop_path": 0.2, "label_smoothing": 0.1, "class_weight": "balanced"},
    ],
    ids=["basic", "pre-activation", "plain", "bottleneck", "options"],
)
def test_a_fresh_network_is_where_fit_begins(images, params):
    """A fit whose steps are of no length ends where it began."""
    X, y = images
    net = network(dtype="float64", **params)
    before = pickle.dumps(net)
    flow = gradient_flow(net, X, y)
    assert pickle.dumps(net) == before
    still = clone(net).set_params(learning_rate_init=1e-300, weight_decay=0.0, max_iter=1)
    after = gradient_flow(still.fit(X, y), X, y)
    assert flow["layer"].tolist() == after["layer"].tolist()
    for column in ("gradient_norm", "weight_norm", "activation_std", "dead_fraction"):
        np.testing.assert_allclose(flow[column], after[column], rtol=1e-8, err_msg=column)
    inner = flow["layer"] != "fc"
    assert np.isfinite(flow.loc[inner, "activation_mean"]).all()


@pytest.mark.parametrize(
    ("params", "verdicts"),
    [
        ({"depth": 56}, ["healthy"]),
        ({"depth": 56, "preactivation": True}, ["healthy"]),
        ({"depth": 56, "shortcut": None}, ["exploding", "shattered"]),
        ({"depth": 20}, ["healthy"]),
        ({"depth": 20, "shortcut": None}, ["shattered"]),
    ],
    ids=["residual-56", "pre-activation-56", "plain-56", "residual-20", "plain-20"],
)
def test_verdicts(params, verdicts):
    X, y = load_digits(return_X_y=True)
    X, y = X[:64].reshape(-1, 8, 8), y[:64]
    assert diagnose(network(width=8, **params), X, y).verdicts == verdicts


def test_flat_rows_and_pipelines(images, fitted):
    X, y = images
    flat = X.reshape(N, -1)
    double = FunctionTransformer(lambda A: 2 * A)
    pipe = make_pipeline(double, network(dtype="float64"))
    np.testing.assert_allclose(
        gradient_flow(pipe, flat, y)["gradient_norm"],
        gradient_flow(pipe[-1], 2 * flat, y)["gradient_norm"],
    )
    pipe = make_pipeline(double, network(dtype="float64", max_iter=1)).fit(flat, y)
    np.testing.assert_allclose(
        gradient_flow(pipe, flat, y)["gradient_norm"],
        gradient_flow(pipe[-1], 2 * flat, y)["gradient_norm"],
    )


def test_what_image_networks_refuse(images, fitted):
    X, y = images
    with pytest.raises(TypeError, match="Jacobian of an image network"):
        jacobian_spectrum(fitted, X, y)
    with pytest.raises(ValueError, match="y is missing"):
        diagnose(fitted, X, None)
    with pytest.raises(ValueError, match="y has labels that"):
        gradient_flow(fitted, X, np.full(N, 99))
    with pytest.raises(ValueError, match="noise: must be positive"):
        gradient_correlation(fitted, X, y, noise=-1)


def test_pictures(images, fitted):
    pytest.importorskip("matplotlib.pyplot", reason="Displays need the extra 'plot'")
    import matplotlib.pyplot as plt

    X, y = images
    nets = {"residual": fitted, "dense": MLPClassifier((5,), random_state=0)}
    with pytest.raises(ValueError, match=r"dim|axes"):
        compare_gradient_flow(nets, X, y)  # a dense network does not read images
    table = compare_gradient_flow(nets, X.reshape(N, -1), y)
    assert set(table["network"]) == {"residual", "dense"}
    display = GradientFlowDisplay.from_estimator(fitted, X, y)
    assert len(display.lines_[0].get_ydata()) == 8
    losses = LossCurveDisplay.from_estimator(fitted)
    np.testing.assert_array_equal(losses.training_[0].get_ydata(), fitted.loss_curve_)
    shown = ActivationDisplay.from_estimator(fitted, X, y)
    assert shown.table["layer"].tolist()[0] == "conv1"
    plt.close("all")
