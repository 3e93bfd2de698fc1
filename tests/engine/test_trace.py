"""A watched pass: what it shows, against torch.autograd and finite differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from engine.builders import ACTIVATIONS, LOSSES, flatten, forward, make_model, make_problem
from engine.residual_builders import (
    LAYERNORM,
    STRUCTURES,
    make_params,
    make_rows,
    make_spec,
    reference_logits,
    relative_error,
)

from sknn_resid.engine.layout import Layout
from sknn_resid.engine.residual_fitted import FittedResidual
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.spec import NetworkSpec
from sknn_resid.engine.trace import Subject, trace
from sknn_resid.engine.watch import seen

AUTOGRAD, DIFFERENCES = 1e-10, 1e-7


def derivative(function, step=2e-4):
    """f'(0) by four points: the error is of order step^4."""
    near = (function(step) - function(-step)) / (2 * step)
    far = (function(2 * step) - function(-2 * step)) / (4 * step)
    return (4 * near - far) / 3


def dense(activation, loss, n_hidden, m=1):
    """A dense subject with rows, targets, weights, and its reference model."""
    problem = make_problem(activation, loss, n_hidden)
    model = make_model(problem, m)
    spec = NetworkSpec(
        problem.sizes,
        (ACTIVATIONS[activation].engine,) * n_hidden,
        LOSSES[loss].engine,
        torch.float64,
        torch.float64,
    )
    params = Layout(problem.sizes).pack(model.coefs, model.intercepts)
    rows = np.arange(len(problem.X)) if model.rows is None else model.rows
    subject = Subject(spec, params, label_smoothing=model.smoothing)
    return subject, problem.X[rows], problem.y[rows], model.weight, problem, model


def loss_of_logits(loss, z, y, w, smoothing):
    return (LOSSES[loss].torch(z, torch.from_numpy(y), smoothing) * w).sum() / w.sum()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n_hidden", [0, 2])
def test_dense_pass_by_autograd(activation, loss, n_hidden):
    subject, X, y, weight, problem, model = dense(activation, loss, n_hidden)
    shot = trace(subject, X, y, weight)
    flat = torch.tensor(model.flat, requires_grad=True)
    X_t = torch.tensor(X, requires_grad=True)
    z, inner = forward(problem, flat, X_t)
    w = torch.from_numpy(weight)
    J = loss_of_logits(loss, z, y, w, model.smoothing)
    wanted = torch.autograd.grad(J, [flat, X_t, z, *inner])
    rows = LOSSES[loss].numpy(z.detach().numpy(), y, model.smoothing)
    assert shot.loss == pytest.approx(np.average(rows, weights=weight), rel=1e-12)
    ours = flatten(*Layout(problem.sizes).unpack(shot.gradient))
    assert relative_error(ours, wanted[0].numpy()) < AUTOGRAD
    assert relative_error(shot.seen["X", "dv"], wanted[1].numpy()) < AUTOGRAD
    assert relative_error(shot.seen["output", "delta"], wanted[2].numpy()) < AUTOGRAD
    for l, (z_l, delta) in enumerate(zip(inner, wanted[3:], strict=True), 1):
        assert relative_error(shot.seen[f"hidden_{l}", "z"], z_l.detach().numpy()) < 1e-12
        assert relative_error(shot.seen[f"hidden_{l}", "delta"], delta.numpy()) < AUTOGRAD
        v_l = ACTIVATIONS[activation].torch(z_l).detach().numpy()
        assert relative_error(shot.seen[f"hidden_{l}", "v"], v_l) < 1e-12


@pytest.mark.parametrize("n_hidden", [0, 1, 2])
def test_sparse_rows(n_hidden):
    subject, X, y, weight, *_ = dense("tanh", "softmax", n_hidden)
    one, two = (trace(subject, rows, y, weight) for rows in (X, scipy.sparse.csr_array(X)))
    assert one.seen.keys() - two.seen.keys() == {("X", "dv")}
    for key, array in two.seen.items():
        np.testing.assert_allclose(array, one.seen[key], rtol=1e-12, atol=1e-14)


def residual(structure, loss="softmax", **changes):
    spec = make_spec("gelu", loss, **{**STRUCTURES[structure], **changes})
    X, y = make_rows(loss)
    rng = np.random.default_rng(3)
    weight = rng.uniform(0.2, 3, len(X))
    weight[2] = 0
    scale = np.array([1.0, 0.5, 2.0])
    return Subject(spec, make_params(spec, 0), input_scale=scale), X, y, weight


@pytest.mark.parametrize("structure", STRUCTURES)
def test_residual_pass_by_autograd(structure):
    subject, X, y, weight = residual(structure)
    shot = trace(subject, X, y, weight)
    flat = torch.tensor(subject.params[None], requires_grad=True)
    X_t, w = torch.tensor(X, requires_grad=True), torch.from_numpy(weight)
    scale = torch.from_numpy(subject.input_scale)
    z = reference_logits(subject.network, flat, X_t, w / w.sum(), scale=scale)
    J = loss_of_logits("softmax", z[0], y, w, 0.0)
    wanted = torch.autograd.grad(J, [flat, X_t, z])
    assert shot.loss == pytest.approx(J.item(), rel=1e-12)
    assert relative_error(shot.gradient, wanted[0][0].numpy()) < AUTOGRAD
    if subject.network.periodic is None:
        assert relative_error(shot.seen["X", "dv"], wanted[1].numpy()) < AUTOGRAD
    assert relative_error(shot.seen["output", "delta"], wanted[2][0].numpy()) < AUTOGRAD


@pytest.mark.parametrize("kept", [False, True], ids=["batch", "kept"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_delta_is_the_change_of_the_loss(structure, kept):
    """A nudge put in at each place of the forward pass changes J by what the backward pass says."""
    subject, X, y, weight = residual(structure, norm_epsilon=0.1)
    if kept:
        rng = np.random.default_rng(8)
        n = ResidualLayout(subject.network).n_statistics
        subject = replace(subject, statistics=rng.uniform(0.3, 1.5, n))
    shot = trace(subject, X, y, weight)
    rng, checked = np.random.default_rng(4), set()
    pairs = {"delta": "z", "dv": "v"}
    for (layer, what), slope in shot.seen.items():
        if what not in pairs or layer == "X":
            continue
        place = (layer, pairs[what])
        D = rng.standard_normal(slope.shape)
        change = derivative(
            lambda t, place=place, D=D: (
                trace(subject, X, y, weight, {place: shot.seen[place] + t * D}).loss
            )
        )
        assert change == pytest.approx((slope * D).sum(), rel=1e-7, abs=1e-10)
        checked.add(place)
    blocks = {(f"block_{b + 1}", "v") for b in range(subject.network.n_blocks)}
    assert {("input", "z"), ("output", "z"), *blocks} <= checked


@pytest.mark.parametrize("structure", STRUCTURES)
def test_dx_is_the_change_of_the_loss(structure):
    subject, X, y, weight = residual(structure, norm_epsilon=0.1)
    D = np.random.default_rng(5).standard_normal(X.shape)
    dX = trace(subject, X, y, weight).seen["X", "dv"]
    change = derivative(lambda t: trace(subject, X + t * D, y, weight).loss)
    assert change == pytest.approx((dX * D).sum(), rel=1e-7)


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s != "no_blocks"])
def test_kept_statistics_give_the_outputs_of_prediction(structure):
    subject, X, *_ = residual(structure)
    statistics = np.random.default_rng(8).uniform(
        0.3, 1.5, ResidualLayout(subject.network).n_statistics
    )
    shot = trace(replace(subject, statistics=statistics), X)
    fitted = FittedResidual(
        subject.network, subject.params[None], statistics[None], subject.input_scale[None]
    )
    np.testing.assert_allclose(shot.logits, fitted.logits(X)[0], rtol=1e-11, atol=1e-12)
    assert shot.loss == 0.0  # there were no targets
    assert not shot.gradient.any()


@pytest.mark.parametrize("structure", ["tabular", "layer_inner", "rezero", "periodic", "gated"])
def test_rows_are_independent_with_kept_statistics(structure):
    """Each row alone gives its own part of dJ/dX."""
    subject, X, y, _ = residual(structure)
    n = ResidualLayout(subject.network).n_statistics
    subject = replace(subject, statistics=np.full(n, 0.7))
    whole = trace(subject, X, y).seen["X", "dv"] * len(X)
    alone = np.concatenate(
        [trace(subject, X[i : i + 1], y[i : i + 1]).seen["X", "dv"] for i in range(len(X))]
    )
    np.testing.assert_allclose(alone, whole, rtol=1e-10, atol=1e-13)


def test_a_seed_begins_the_backward_pass_elsewhere():
    """Rows of the Jacobian of the blocks, by seeds at their end, against autograd's."""
    subject, X, *_ = residual("layer", n_blocks=2)
    assert subject.network.normalization is LAYERNORM
    width = subject.network.width
    J_ours = []
    for k in range(width):
        seed = np.zeros((len(X), width))
        seed[:, k] = 1
        shot = trace(subject, X, seeds={("block_2", "dv"): seed})
        J_ours.append(shot.seen["input", "dv"])
    x0 = shot.seen["input", "v"]
    step, D = 1e-6, np.random.default_rng(0).standard_normal(x0.shape)
    ends = [
        trace(subject, X, seeds={("input", "v"): x0 + s * step * D}).seen["block_2", "v"]
        for s in (1, -1)
    ]
    np.testing.assert_allclose(
        (ends[0] - ends[1]) / (2 * step),
        np.einsum("knj,nj->nk", np.stack(J_ours), D),
        rtol=1e-7,
        atol=1e-8,
    )


def test_low_precision_is_shown_as_float32():
    subject, X, y, *_ = dense("gelu", "softmax", 2)
    spec = replace(subject.network, dtype=torch.float32, product_dtype=torch.bfloat16)
    low = trace(replace(subject, network=spec, params=subject.params.astype(np.float32)), X, y)
    exact = trace(subject, X, y)
    for key, array in low.seen.items():
        assert array.dtype == np.float32
        assert relative_error(array, exact.seen[key]) < 0.1, key


def test_nobody_looking_binds_nothing():
    assert seen(None, "output", "z", torch.zeros(1)) == []
