"""`diagnose` on set-ups whose trouble is known: He, Balduzzi, Saxe and Glorot in small.

Networks are as ``fit`` would begin them, on 256 rows of the digits; none is trained.
"""

import math

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor, MLPResidualClassifier
from sknn_resid.inspection import diagnose, gradient_correlation, gradient_flow, jacobian_spectrum

WIDTH = 64
WORDS = ["vanishing", "exploding", "shattered", "rank-collapsed", "saturated", "dead units"]


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:256], y[:256]


def network(activation, normalization, init, skip, depth, seed=0, **params):
    """One network of ``depth`` layers: blocks of two, as in the paper, or without the identity."""
    return MLPResidualClassifier(
        skip=skip,
        n_blocks=(depth - 2) // 2,
        n_estimators=1,
        width=WIDTH,
        hidden_factor=1.0,
        preactivation=True,
        activation=activation,
        normalization=normalization,
        init=init,
        branch_scale=1.0,
        numeric_embedding=None,
        dtype="float64",
        random_state=seed,
        **params,
    )


# torch's nn.Linear draws with a standard deviation of 1 / sqrt(3 fan_in).
TORCH = {"init": "normal", "init_scale": 1 / math.sqrt(3 * WIDTH)}


def torchs(skip, depth, seed=0):
    return network("relu", None, skip=skip, depth=depth, seed=seed, **TORCH)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("make", "said", "not_said"),
    [
        (lambda seed: network("logistic", None, "glorot", "none", 20, seed), ["vanishing"], []),
        (lambda seed: network("logistic", None, "glorot", "none", 56, seed), ["vanishing"], []),
        (
            lambda seed: network("relu", "batch", "he", "none", 56, seed),
            ["exploding", "shattered"],
            ["vanishing", "saturated", "dead units"],
        ),
        (
            lambda seed: network("relu", "batch", "he", "none", 20, seed),
            ["shattered"],
            ["vanishing", "exploding", "saturated", "dead units"],
        ),
        (
            # gradients of normal length and alike among neighbours: only rank shows it
            lambda seed: network("tanh", None, "glorot", "none", 56, seed),
            ["rank-collapsed"],
            ["vanishing", "exploding", "shattered", "saturated", "dead units"],
        ),
        (lambda seed: torchs("none", 56, seed), ["vanishing", "dead units"], ["exploding"]),
        (lambda seed: torchs("none", 20, seed), ["vanishing", "dead units"], ["exploding"]),
        (
            lambda seed: network("relu", None, "he", "none", 56, seed),
            ["dead units"],
            ["vanishing", "exploding"],
        ),
        (
            # without a normalization x doubles in every block
            lambda seed: network("relu", None, "he", "identity", 56, seed),
            ["exploding"],
            ["vanishing"],
        ),
    ],
    ids=[
        "logistic-20",
        "logistic-56",
        "batch norm relu-56",
        "batch norm relu-20",
        "tanh-56",
        "torch relu-56",
        "torch relu-20",
        "he relu-56",
        "he relu-56 residual",
    ],
)
def test_known_trouble(digits, make, said, not_said, seed):
    verdicts = diagnose(make(seed), *digits).verdicts
    assert set(said) <= set(verdicts)
    assert not set(not_said) & set(verdicts)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize(
    "make",
    [
        lambda depth, seed: network("logistic", None, "glorot", "identity", depth, seed),
        lambda depth, seed: network("relu", "batch", "he", "identity", depth, seed),
        lambda depth, seed: network("relu", "layer", "he", "identity", depth, seed),
        lambda depth, seed: network("relu", None, "he", "rezero", depth, seed),
        lambda depth, seed: network("tanh", None, "orthogonal", "none", depth, seed),
        lambda depth, seed: torchs("identity", depth, seed),
    ],
    ids=["logistic", "batch norm relu", "layer norm relu", "rezero", "orthogonal", "torch relu"],
)
def test_the_cures(digits, make, depth, seed):
    assert diagnose(make(depth, seed), *digits).verdicts == ["healthy"]


def test_saturated_and_dead_units(digits):
    X, y = digits  # 0 to 16: unscaled
    net = MLPClassifier((50, 50), "tanh", random_state=0)
    assert diagnose(net, 5 * X, y).verdicts == ["saturated"]
    assert diagnose(net, X / 16, y).verdicts == ["healthy"]
    relu = MLPClassifier((50,), random_state=0, max_iter=1)
    with pytest.warns(match="Maximum iterations"):
        relu.fit(X, y)
    relu.intercepts_[0][:20] = -1e4
    found = diagnose(relu, X, y)
    assert found.verdicts == ["dead units"]
    table = found.to_frame().set_index("verdict")
    assert table.loc["dead units", "value"] >= 0.4
    assert "layer hidden_1" in table.loc["dead units", "note"]


def test_columns_of_another_scale(digits):
    X, y = digits
    net = MLPClassifier((64, 64), "tanh", random_state=0)
    for scale, verdict in ((1e-7, "vanishing"), (5.0, "saturated"), (1e4, "dead units")):
        assert diagnose(net, scale * X, y).verdicts == [verdict]
        pipe = make_pipeline(StandardScaler(), net)
        assert diagnose(pipe, scale * X, y).verdicts == ["healthy"]


def test_numbers_are_those_of_the_meters(digits):
    X, y = digits
    net = network("tanh", None, "glorot", "none", 20)
    table = diagnose(net, X, y).to_frame()
    values = dict(zip(table["meter"], table["value"], strict=True))
    norms = gradient_flow(net, X, y)["gradient_norm"]
    whole = jacobian_spectrum(net, X, y).iloc[0]
    expected = {
        "gradient norm of first over last layer": norms.iloc[0] / norms.iloc[-1],
        "mean squared singular value of the stack": whole["mean_square"],
        "effective rank of the stack": whole["effective_rank"],
        "correlation of neighbours' gradients": gradient_correlation(net, X, y),
    }
    for meter, value in expected.items():
        np.testing.assert_allclose(values[meter], value, rtol=1e-12)
    for row in table.itertuples():
        on_side = row.value < row.threshold if row.rule == "<" else row.value > row.threshold
        assert row.found == on_side
        assert row.verdict in WORDS


def test_a_fitted_network_is_not_judged_by_rank(digits):
    X, y = digits
    net = MLPClassifier((64,) * 6, "tanh", random_state=0, max_iter=60, tol=0)
    with pytest.warns(match="Maximum iterations"):
        net.fit(X / 16, y)
    assert net.score(X / 16, y) > 0.99
    found = diagnose(net, X / 16, y)
    assert found.verdicts == ["healthy"]
    assert "effective rank of the stack" in str(found)
    assert "not judged" in str(found)
    assert "fitted" in found.network
    assert "as fit would begin" in diagnose(clone(net), X / 16, y).network


def test_narrow_networks_are_not_judged_by_rank(digits):
    X, y = digits
    found = diagnose(MLPClassifier((5,) * 8, "tanh", random_state=0), X / 16, y)
    assert "rank-collapsed" not in found.verdicts
    assert "too narrow to tell" in str(found)


def test_readings_in_words(digits):
    X, y = digits
    found = diagnose(network("relu", "batch", "he", "none", 56), X, y)
    text = str(found)
    assert text.startswith("MLPResidualClassifier (as fit would begin): exploding, shattered")
    for word in found.verdicts:
        assert f"\n{word}:\n" in text
        assert found.help[word]
    assert text.count("mean squared singular value") == 1  # not once more as "not vanishing"
    assert "what usually helps: residual connections" in text
    assert max(map(len, text.splitlines())) <= 120
    assert repr(found).startswith("<Diagnosis exploding, shattered")
    assert "\n" not in repr(found)


def test_without_a_gradient(digits):
    X, y = digits
    net = MLPRegressor(hidden_layer_sizes=(5, 5), random_state=0, max_iter=1)
    with pytest.warns(match="Maximum iterations"):
        net.fit(X, y)
    for b in net.intercepts_[:-1]:
        b[:] = -1e6
    found = diagnose(net, X, y)
    assert "dead units" in found.verdicts
    assert "vanishing" in found.verdicts
    assert "no row has a gradient" in str(found)
    perfect = diagnose(net, X, net.predict(X))
    assert "all gradients are 0" in str(perfect)


def test_numbers_that_are_no_longer_finite(digits):
    X, y = digits
    net = network("relu", None, "normal", "none", 56, init_scale=1e10)
    assert "exploding" in diagnose(net, X, y).verdicts


def test_targets_are_needed(digits):
    with pytest.raises(ValueError, match="y is missing"):
        diagnose(MLPClassifier(), digits[0], None)
    with pytest.raises(TypeError, match="not a network of sknn_resid"):
        diagnose(StandardScaler(), *digits)
