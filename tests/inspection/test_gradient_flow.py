"""`gradient_flow`, `jacobian_spectrum`, `gradient_correlation`: against autograd and products."""

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from neural_network.helpers import build_pair, make_task, make_weights
from neural_network.residual_helpers import QUICK, mixed_table
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor, MLPResidualClassifier, MLPResidualRegressor
from sknn_resid.inspection import (
    compare_gradient_flow,
    gradient_correlation,
    gradient_flow,
    jacobian_spectrum,
)

COLUMNS = [
    "layer",
    "gradient_norm",
    "gradient_rms",
    "weight_norm",
    "ratio",
    "activation_mean",
    "activation_std",
    "saturated_fraction",
    "dead_fraction",
]

pytestmark = pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning"  # few epochs are enough here
)


def autograd_loss(net, X, y, *, weight=None):
    """Leaf tensors of the matrices, activations by layer, and the loss, as torch sees them."""
    coefs = [torch.from_numpy(W.astype(float)).requires_grad_() for W in net.coefs_]
    v, hidden = torch.from_numpy(X), []
    for W, b in zip(coefs, net.intercepts_, strict=True):
        z = v @ W + torch.from_numpy(b.astype(float))
        v = torch.tanh(z)
        hidden.append(v)
    w = torch.ones(len(X)) if weight is None else torch.from_numpy(weight)
    rows = ((z - torch.from_numpy(y).reshape(len(y), -1)) ** 2).sum(1) / 2
    return coefs, hidden[:-1], (rows * w).sum() / w.sum()


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_and_activations_are_autograds(dtype, weighted):
    X, y = make_task("multi_regression", n_rows=60)
    weight = make_weights(60) if weighted else None
    net = MLPRegressor(
        hidden_layer_sizes=(9, 7), activation="tanh", random_state=0, max_iter=20, dtype=dtype
    ).fit(X, y)
    flow = gradient_flow(net, X, y, weight)
    assert list(flow.columns) == COLUMNS
    assert flow["layer"].tolist() == ["hidden_1", "hidden_2", "output"]
    coefs, hidden, loss = autograd_loss(net, X, y, weight=weight)
    r = np.full(60, 1 / 60) if weight is None else weight / weight.sum()
    for l, g in enumerate(torch.autograd.grad(loss, coefs)):
        row, W = flow.iloc[l], coefs[l].detach()
        rtol = {"rtol": 1e-9}
        np.testing.assert_allclose(row["gradient_norm"], g.norm(), **rtol)
        np.testing.assert_allclose(row["gradient_rms"], g.square().mean().sqrt(), **rtol)
        np.testing.assert_allclose(row["weight_norm"], W.norm(), **rtol)
        np.testing.assert_allclose(row["ratio"], g.norm() / W.norm(), **rtol)
        if l == 2:
            assert np.isnan(row[COLUMNS[5:]].to_numpy(float)).all()
            continue
        h = hidden[l].detach().numpy()
        mean = r @ h.mean(1)
        np.testing.assert_allclose(row["activation_mean"], mean, **rtol)
        std = np.sqrt(r @ ((h - mean) ** 2).mean(1))
        np.testing.assert_allclose(row["activation_std"], std, **rtol)
        np.testing.assert_allclose(
            row["saturated_fraction"], r @ (1 - h**2 < 0.05).mean(1), atol=1e-12
        )
        assert row["dead_fraction"] == 0


EVERY = {
    "mlp": MLPClassifier((6, 5), random_state=0),
    "one hidden layer": MLPClassifier((6,), random_state=0),
    "tied weights": MLPClassifier(
        (6, 6, 5), random_state=0, tied_weights=[[(0, 0, 0), (0, 1, 1)], [(1, 2, 3), (2, 2, 3)]]
    ),
    "residual": MLPResidualClassifier(**QUICK, n_blocks=2, dropout=0.0),
    "gated, tied": MLPResidualClassifier(
        **QUICK, n_blocks=3, skip="gated", tie_blocks=True, dropout=0.0
    ),
    "rezero, layer": MLPResidualClassifier(
        **QUICK, n_blocks=2, skip="rezero", normalization="layer", dropout=0.0
    ),
    "pre-activation": MLPResidualClassifier(
        **QUICK, n_blocks=2, skip="none", preactivation=True, dropout=0.0
    ),
    "periodic": MLPResidualClassifier(**QUICK, numeric_embedding="periodic", dropout=0.0),
    "no block": MLPResidualClassifier(**QUICK, n_blocks=0, dropout=0.0),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_fresh_network_is_what_the_first_step_records(name):
    """Two ways to the same numbers: a pass that is watched, and memory read in a training step."""
    X, y = make_task("multiclass", n_rows=60)
    net = clone(EVERY[name]).set_params(max_iter=1, batch_size=60, dtype="float64")
    if "early_stopping" in net.get_params() and "n_blocks" in net.get_params():
        net.set_params(early_stopping=False)
    flow = gradient_flow(net, X, y)
    history = net.set_params(record_gradients=True).fit(X, y).gradient_history_
    assert tuple(flow["layer"]) == history.layers
    for column in set(COLUMNS[1:]) - {"ratio"}:
        np.testing.assert_allclose(flow[column], history[column][0], rtol=1e-8, err_msg=column)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("fitted", [False, True])
def test_estimator_is_left_as_it_is(name, fitted):
    X, y = make_task("multiclass", n_rows=80)
    net = clone(EVERY[name]).set_params(max_iter=2)
    if fitted:
        net.fit(X, y)
    before = pickle.dumps(net)
    flow = gradient_flow(net, X, y)
    gradient_correlation(net, X, y)
    if name not in ("one hidden layer", "no block"):
        jacobian_spectrum(net, X, y)
    assert pickle.dumps(net) == before
    pd.testing.assert_frame_equal(flow, gradient_flow(net, X, y))


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression", "poisson"])
def test_every_task(task):
    X, y = make_task(task)
    net = build_pair(task, hidden_layer_sizes=(6, 5), random_state=0, max_iter=3)[0]
    for est in (net, clone(net).fit(X, y)):
        flow = gradient_flow(est, X, y)
        assert (flow["gradient_norm"] > 0).all()
        assert -1 <= gradient_correlation(est, X, y) <= 1


@pytest.mark.parametrize("cls", [MLPResidualClassifier, MLPResidualRegressor])
def test_raw_tables_and_members(cls):
    table, y_class, y_real = mixed_table()
    y = y_class if cls is MLPResidualClassifier else y_real
    net = cls(**QUICK, n_blocks=2).fit(table, y)
    flows = [gradient_flow(net, table, y, member=m) for m in range(2)]
    assert not np.allclose(flows[0]["gradient_norm"], flows[1]["gradient_norm"])
    assert len(jacobian_spectrum(net, table, member=1)) == 2
    assert gradient_correlation(net, table, y, member=1) > 0
    with pytest.raises(ValueError, match="member=2"):
        gradient_flow(net, table, y, member=2)


def test_sparse_rows_are_dense_ones():
    X, y = make_task("multiclass")
    X = np.where(X > 0.3, X, 0.0)
    net = MLPClassifier((6, 5, 4), random_state=0)
    sparse = scipy.sparse.csr_array(X)
    dense = gradient_flow(net, X, y)
    pd.testing.assert_frame_equal(gradient_flow(net, sparse, y), dense, rtol=1e-10)
    pd.testing.assert_frame_equal(
        jacobian_spectrum(net, sparse, y), jacobian_spectrum(net, X, y), rtol=1e-8
    )
    a, b = gradient_correlation(net, sparse, y), gradient_correlation(net, X, y)
    np.testing.assert_allclose(a, b, rtol=1e-10)


def test_a_weight_is_a_repeated_row():
    X, y = make_task("multiclass", n_rows=30)
    weight = np.arange(30) % 3
    net = MLPResidualClassifier(**QUICK, n_blocks=2).fit(X, y)
    flow = gradient_flow(net, X, y, weight)
    often = gradient_flow(net, np.repeat(X, weight, axis=0), np.repeat(y, weight))
    pd.testing.assert_frame_equal(flow, often, rtol=1e-9)


@pytest.mark.parametrize("fitted", [False, True])
def test_in_a_pipeline(fitted):
    X, y = make_task("multiclass")
    X = 50 * X + 7
    pipe = make_pipeline(StandardScaler(), MLPClassifier((6, 5), random_state=0, max_iter=3))
    if fitted:
        pipe.fit(X, y)
    scaled = StandardScaler().fit_transform(X)
    flow = gradient_flow(pipe, X, y)
    pd.testing.assert_frame_equal(flow, gradient_flow(pipe[-1], scaled, y), rtol=1e-9)
    expected = gradient_correlation(pipe[-1], scaled, y)
    np.testing.assert_allclose(gradient_correlation(pipe, X, y), expected, rtol=1e-6)


def test_vanished_gradients_are_numbers_still():
    """56 logistic layers: 1e-35, beyond what squares in float32 can hold."""
    X, y = make_task("multiclass")
    deep = MLPClassifier((20,) * 56, "logistic", random_state=0, dtype="float32")
    norms = gradient_flow(deep, X, y)["gradient_norm"].to_numpy()
    assert (norms > 0).all()
    assert norms[0] < 1e-30 * norms[-1]
    assert (np.diff(np.log(norms[:-2])) > 0).mean() > 0.95  # layer by layer


def test_a_matrix_of_zeros():
    X, y = make_task("multiclass")
    net = MLPResidualClassifier(**QUICK, n_blocks=1, normalization=None)  # branches begin at zero
    flow = gradient_flow(net, X, y).set_index("layer")
    assert flow.loc["block_1.linear_2", "weight_norm"] == 0
    assert np.isinf(flow.loc["block_1.linear_2", "ratio"])
    assert flow.loc["block_1.linear_1", "gradient_norm"] == 0


def test_comparison_and_names():
    X, y = make_task("binary")
    nets = [MLPClassifier((4,) * n, random_state=0) for n in (1, 3)]
    table = compare_gradient_flow(nets, X, y)
    assert list(table.columns) == ["network", "layer", "depth", *COLUMNS[1:]]
    assert table["network"].unique().tolist() == ["MLPClassifier 1", "MLPClassifier 2"]
    own = table[table["network"] == "MLPClassifier 2"]
    np.testing.assert_allclose(own["depth"], [0, 1 / 3, 2 / 3, 1])
    expected = gradient_flow(nets[1], X, y)
    pd.testing.assert_frame_equal(own[COLUMNS].reset_index(drop=True), expected)
    by_name = compare_gradient_flow({"a": nets[0], "b": nets[1]}, X, y)
    assert by_name["network"].unique().tolist() == ["a", "b"]
    mixed = [nets[0], make_pipeline(StandardScaler(), MLPResidualClassifier(**QUICK))]
    names = compare_gradient_flow(mixed, X, y)["network"].unique().tolist()
    assert names == ["MLPClassifier", "MLPResidualClassifier"]
    with pytest.raises(ValueError, match="names: needs 2 different names"):
        compare_gradient_flow(nets, X, y, names=["a", "a"])
    with pytest.raises(ValueError, match="at least one network"):
        compare_gradient_flow([], X, y)


@pytest.mark.parametrize("function", [gradient_flow, gradient_correlation])
def test_without_targets(function):
    X, y = make_task("binary")
    with pytest.raises(ValueError, match="y is missing"):
        function(MLPClassifier(max_iter=3).fit(X, y), X, None)


@pytest.mark.parametrize("function", [gradient_flow, gradient_correlation, jacobian_spectrum])
def test_other_estimators_are_refused(function):
    X, y = make_task("binary")
    with pytest.raises(TypeError, match="not a network of sknn_resid"):
        function(LogisticRegression(), X, y)


# -- the way from depth to depth ------------------------------------------------------------------


def singular_values(*matrices):
    return np.linalg.svd(np.linalg.multi_dot(matrices), compute_uv=False)


def check_row(row, values):
    np.testing.assert_allclose(row["mean_square"], (values**2).mean(), rtol=1e-8)
    np.testing.assert_allclose(row["largest"], values[0], rtol=1e-8)
    np.testing.assert_allclose(row["smallest"], values[-1], rtol=1e-6)
    np.testing.assert_allclose(row["condition"], values[0] / values[-1], rtol=1e-6)
    p = values**2 / (values**2).sum()
    np.testing.assert_allclose(row["effective_rank"], np.exp(-(p * np.log(p)).sum()), rtol=1e-8)


def test_linear_layers_are_products():
    """Without an activation J is the product of the matrices, at every row."""
    X, y = make_task("multiclass")
    net = MLPClassifier((7, 6, 5, 9), "identity", random_state=0, max_iter=3).fit(X, y)
    spectrum = jacobian_spectrum(net, X)
    assert spectrum["layer"].tolist() == ["hidden_1", "hidden_2", "hidden_3"]
    last = spectrum.iloc[2]
    check_row(last, np.linalg.svd(net.coefs_[3], compute_uv=False))
    for l in (1, 2):  # through 5 units
        values = singular_values(*net.coefs_[l:-1])[:5]
        row = spectrum.iloc[l - 1]
        assert row["smallest"] == 0
        assert np.isinf(row["condition"])
        n = min(net.coefs_[l].shape[0], 9)
        np.testing.assert_allclose(row["mean_square"], (values**2).sum() / n, rtol=1e-8)
        np.testing.assert_allclose(row["largest"], values[0], rtol=1e-8)
    narrow = spectrum["effective_rank"] / spectrum["rank_fraction"]
    np.testing.assert_allclose(narrow, [5, 5, 5])


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("normalization", ["batch", None])
def test_residual_blocks_are_products(normalization, fitted):
    """J = prod (I + S W_1 W_2), S the slope of a batch normalization with constant statistics."""
    X, y = make_task("multiclass")
    net = MLPResidualClassifier(
        n_estimators=1,
        n_blocks=3,
        width=8,
        activation="identity",
        normalization=normalization,
        branch_scale=0.5,
        init="glorot",
        random_state=0,
        max_iter=2,
        dtype="float64",
        numeric_embedding=None,
        embedding_scale=1.0,
        average_fraction=0.0,
        early_stopping=False,
    )
    # a fresh network has the weights that a fit of no movement ends with
    fit = clone(net) if fitted else clone(net).set_params(learning_rate_init=1e-300, solver="sgd")
    fit.fit(X, y)
    spectrum = jacobian_spectrum(fit if fitted else net, X, y)
    assert spectrum["layer"].tolist() == ["input", "block_1", "block_2"]
    members = fit._ensemble.members
    from sknn_resid.engine.residual_layout import ResidualLayout

    p = ResidualLayout(members.spec).unpack(members.params[0])
    variances = members.statistics[0].reshape(-1, 2, 8)[:, 1] if normalization else None
    steps = []
    for b in range(3):
        W = p[f"block{b}.W1"] @ p[f"block{b}.W2"]
        if normalization:
            slope = p[f"block{b}.norm1.gamma"] / np.sqrt(variances[b] + members.spec.norm_epsilon)
            W = slope[:, None] * W
        steps.append(np.eye(8) + W)
    for b in range(2):
        check_row(spectrum.iloc[b], singular_values(*steps[b:]))


def test_nonlinear_layers_are_autograds():
    X, y = make_task("multiclass")
    net = MLPClassifier((7, 6, 5), "tanh", random_state=0, max_iter=3).fit(X, y)
    spectrum = jacobian_spectrum(net, X, n_rows=3)
    picked = X[np.linspace(0, len(X) - 1, 3).astype(int)]
    largest, squares = [], []
    for x in np.tanh(picked @ net.coefs_[0] + net.intercepts_[0]):

        def rest(v):
            for W, b in zip(net.coefs_[1:3], net.intercepts_[1:3], strict=True):
                v = torch.tanh(v @ torch.from_numpy(W) + torch.from_numpy(b))
            return v

        J = torch.autograd.functional.jacobian(rest, torch.from_numpy(x))
        values = torch.linalg.svdvals(J).numpy()
        largest.append(values[0])
        squares.append((values**2).mean())
    np.testing.assert_allclose(spectrum["mean_square"][0], np.mean(squares), rtol=1e-9)
    np.testing.assert_allclose(spectrum["largest"][0], np.exp(np.log(largest).mean()), rtol=1e-9)


def test_orthogonal_plain_blocks_keep_every_direction():
    X, y = make_task("multiclass")
    net = MLPResidualClassifier(
        n_estimators=1,
        n_blocks=10,
        width=16,
        hidden_factor=1.0,
        activation="identity",
        skip="none",
        normalization=None,
        init="orthogonal",
        branch_scale=1.0,
        random_state=0,
        dtype="float64",
    )
    whole = jacobian_spectrum(net, X, y).iloc[0]
    np.testing.assert_allclose(whole["mean_square"], 1, rtol=1e-9)
    np.testing.assert_allclose(whole["condition"], 1, rtol=1e-9)
    np.testing.assert_allclose(whole["rank_fraction"], 1, rtol=1e-9)


def test_a_stack_that_is_dead_altogether():
    X, y = make_task("binary")
    net = MLPClassifier((4, 4, 4), random_state=0, max_iter=2).fit(X, y)
    for b in net.intercepts_[:-1]:
        b[:] = -1e3
    whole = jacobian_spectrum(net, X).iloc[0]
    assert whole["mean_square"] == whole["largest"] == whole["effective_rank"] == 0
    assert np.isnan(gradient_correlation(net, X, y))
    assert (gradient_flow(net, X, y)["dead_fraction"][:3] == 1).all()


@pytest.mark.parametrize(
    "net",
    [MLPClassifier((5,)), MLPResidualClassifier(**QUICK, n_blocks=0)],
    ids=["mlp", "residual"],
)
def test_there_must_be_a_way(net):
    X, y = make_task("binary")
    with pytest.raises(ValueError, match="one hidden layer or no block"):
        jacobian_spectrum(net, X, y)


@pytest.mark.parametrize("n_rows", [0, -1])
def test_number_of_rows(n_rows):
    X, y = make_task("binary")
    with pytest.raises(ValueError, match=f"n_rows: must be at least 1, got {n_rows}"):
        jacobian_spectrum(MLPClassifier((4, 4)), X, y, n_rows=n_rows)
    assert len(jacobian_spectrum(MLPClassifier((4, 4)), X[:2], y[:2], n_rows=8)) == 1


# -- gradients of neighbours ----------------------------------------------------------------------


def test_a_linear_network_has_one_gradient():
    """dl/dx = (f - y) w': one direction for all rows that lie on one side of their targets."""
    X, y = make_task("regression")
    net = MLPRegressor(
        hidden_layer_sizes=(5,), activation="identity", random_state=0, max_iter=2
    ).fit(X, y)
    np.testing.assert_allclose(gradient_correlation(net, X, y + 1e6), 1, rtol=1e-12)


def test_correlation_is_autograds():
    X, y = make_task("regression", n_rows=40)
    net = MLPRegressor(
        hidden_layer_sizes=(6, 5), activation="tanh", random_state=0, max_iter=5
    ).fit(X, y)
    rng = np.random.RandomState(3)
    near = X + 0.2 * X.std(axis=0) * rng.standard_normal(X.shape)

    def gradients(rows):
        v = x = torch.from_numpy(rows).requires_grad_()
        for l, (W, b) in enumerate(zip(net.coefs_, net.intercepts_, strict=True)):
            v = v @ torch.from_numpy(W) + torch.from_numpy(b)
            v = torch.tanh(v) if l < 2 else v
        ((v[:, 0] - torch.from_numpy(y)) ** 2).sum().backward()
        return x.grad

    cosine = torch.nn.functional.cosine_similarity(gradients(X), gradients(near))
    found = gradient_correlation(net, X, y, noise=0.2, random_state=3)
    np.testing.assert_allclose(found, cosine.mean(), rtol=1e-9)


def test_noise_must_be_positive():
    X, y = make_task("binary")
    with pytest.raises(ValueError, match="noise: must be positive, got 0"):
        gradient_correlation(MLPClassifier(), X, y, noise=0)
