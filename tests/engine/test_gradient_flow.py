"""What is recorded of the flow of gradients, against definitions written out in numpy and torch.

Steps are unshuffled and made with SGD, so that the batch that is measured and the weights before
and after its step are known.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from engine.builders import (
    ACTIVATIONS,
    batches,
    flatten,
    forward,
    make_job,
    make_model,
    make_problem,
    objective,
)
from engine.residual_builders import STRUCTURES, make_params, make_rows, make_spec
from engine.residual_builders import make_job as make_residual_job

from sknn_resid.engine.activations import Activated, Elu
from sknn_resid.engine.gradient_flow import COLUMNS, Rows, Scratch, activation_numbers, steepest
from sknn_resid.engine.layout import Layout
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec


def column(flow, name):
    return flow[..., COLUMNS.index(name)]


def slopes(case, z):
    """f'(z) by autograd."""
    z = torch.from_numpy(z).requires_grad_()
    case.torch(z).sum().backward()
    return np.abs(z.grad.numpy())


def by_definition(case, z, r):
    """The four numbers about activations, row by row."""
    h, slope, live = case.numpy(z), slopes(case, z), r > 0
    share = r[:, None] / z.shape[1]
    mean = (share * h).sum()
    std = np.sqrt((share * (h - mean) ** 2).sum())
    grid = slopes(case, np.linspace(-8, 8, 160_001))
    flat = slope < 0.05 * grid.max()
    if case is ACTIVATIONS["logistic"] or case is ACTIVATIONS["tanh"]:
        saturated = (share * flat).sum()
    else:
        saturated = flat[live].all(axis=0).mean()
    return mean, std, saturated, (slope[live] == 0).all(axis=0).mean()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_steepest_slope(name):
    case = ACTIVATIONS[name]
    grid = slopes(case, np.linspace(-8, 8, 160_001))
    # a table of four digits, of which a twentieth is a threshold
    np.testing.assert_allclose(steepest(case.engine), grid.max(), rtol=1e-3)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_numbers_about_activations(name, spread):
    case, rng = ACTIVATIONS[name], np.random.default_rng(0)
    z = spread * rng.standard_normal((2, 7, 30)) - rng.uniform(0, 3 * spread, 30)
    weight = rng.uniform(0.1, 2, (2, 7))
    weight[0, 2] = 0
    z[0, 2] = 9.0  # alive everywhere, but it does not count
    r = weight / weight.sum(1, keepdims=True)
    zs = torch.from_numpy(z.copy())
    h = zs.clone() if case.engine.needs_input else zs
    for op in case.engine.bind_forward(zs, h):
        op()
    found = activation_numbers(
        [Activated(case.engine, zs, h)], Rows(torch.from_numpy(r)[:, None], Scratch())
    )
    for m in range(2):
        np.testing.assert_allclose(found[m], by_definition(case, z[m], r[m]), atol=1e-12)


def test_uses_of_a_shared_layer_are_taken_together():
    """Two uses are as one with twice the rows; a unit is dead where it is so in both."""
    case, rng = ACTIVATIONS["relu"], np.random.default_rng(1)
    z = rng.standard_normal((2, 9, 12)) - 1.5
    h = torch.from_numpy(z).relu()
    parts = [Activated(case.engine, part, part) for part in (h[:1], h[1:])]
    found = activation_numbers(
        parts, Rows(torch.full((1, 1, 9), 1 / 9, dtype=torch.float64), Scratch())
    )
    expected = by_definition(case, z.reshape(18, 12), np.full(18, 1 / 18))
    np.testing.assert_allclose(found[0], expected, atol=1e-12)
    assert 0 < expected[3] < (z[0] < 0).all(0).mean()


def test_elu_of_steep_left_side():
    assert steepest(Elu(alpha=2.0, scale=3.0)) == 6.0


def reference_flow(problem, model, job):
    """Rows (epochs, layers, columns) of a model trained step by step with autograd and SGD."""
    flat = torch.from_numpy(flatten(model.coefs, model.intercepts))
    rate, parts = job.train.optimizer.learning_rate, list(batches(problem, model))
    n_rows = sum(len(rows) for rows, _ in parts)
    at = max(0, n_rows // problem.batch - 1)
    shapes = [c.shape for c in model.coefs]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    records = []
    for _ in range(job.train.max_epochs):
        for b, (rows, weight) in enumerate(parts):
            if weight.sum() == 0:
                if b == at:
                    records.append(np.full((len(shapes), len(COLUMNS)), np.nan))
                continue
            own = flat.clone().requires_grad_()
            data, penalty = objective(problem, model, own, rows, weight)
            (g,) = torch.autograd.grad(data, own, retain_graph=True)
            (whole,) = torch.autograd.grad(data + penalty, own)
            after = flat - rate * whole
            if b == at:
                record = np.full((len(shapes), len(COLUMNS)), np.nan)
                r = weight / weight.sum()
                _, inner = forward(problem, flat.numpy(), problem.X[rows])
                for l, (i, j) in enumerate(pairwise(ends)):
                    W, D = flat[i:j].norm(), (after - flat)[i:j].norm()
                    norm = g[i:j].norm()
                    record[l, :4] = norm, norm / np.sqrt(j - i), W, D / W
                    if l < len(inner):
                        record[l, 4:] = by_definition(ACTIVATIONS[problem.activation], inner[l], r)
                records.append(record)
            flat = after
    return np.stack(records)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu"])
@pytest.mark.parametrize("alone", [True, False])
def test_recorded_is_what_autograd_says(activation, alone):
    """Five models that differ in rows, weights and penalty: one by one, and as one stack."""
    problem = make_problem(activation, "softmax", 2)
    models = [make_model(problem, m) for m in range(5)]
    rates = OptimizerSpec(OptimizerKind.SGD, 0.05, momentum=0.0, nesterov=False)
    changes = {"record_flow": True, "max_epochs": 3, "optimizer": rates}
    jobs = [make_job(problem, model, **changes) for model in models]
    results = [run_jobs([job])[0] for job in jobs] if alone else run_jobs(jobs)
    for model, job, result in zip(models, jobs, results, strict=True):
        expected = reference_flow(problem, model, job)
        live = np.isfinite(column(expected, "gradient_norm")).all(axis=1)
        assert live.any()
        np.testing.assert_allclose(result.flow[live], expected[live], rtol=1e-9, atol=1e-14)


def test_a_batch_without_weight_has_no_activations_and_moves_nothing():
    problem = make_problem("tanh", "squared", 1, n_rows=10)
    weight = np.ones(10)
    weight[5:] = 0
    model = replace(make_model(problem, 0, weighted=False), weight=weight)
    (result,) = run_jobs([make_job(problem, model, record_flow=True)])
    assert np.isnan(column(result.flow, "activation_mean")).all()
    assert (column(result.flow, "gradient_norm") == 0).all()
    assert (column(result.flow, "update_ratio") == 0).all()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("product_dtype", [None, torch.bfloat16])
def test_recording_changes_nothing(sparse, product_dtype):
    problem = make_problem("relu", "softmax", 2, n_rows=40)
    changes = {
        "sparse": sparse,
        "dtype": torch.float32,
        "product_dtype": product_dtype,
        "max_epochs": 4,
        "shuffle": True,
        "dropout": 0.3,
        "clip_norm": 0.1,
        "kind": OptimizerKind.ADAM,
    }
    models = [replace(make_model(problem, m), dropout=0.3) for m in range(4)]
    plain = run_jobs([make_job(problem, model, **changes) for model in models])
    flow = run_jobs([make_job(problem, model, record_flow=True, **changes) for model in models])
    for without, recorded in zip(plain, flow, strict=True):
        np.testing.assert_array_equal(without.params, recorded.params)
        assert without.loss_curve == recorded.loss_curve
        assert without.flow is None
        assert recorded.flow.shape == (4, 3, len(COLUMNS))
        hidden = recorded.flow[:, :2]
        assert np.isfinite(column(hidden, "gradient_norm")).all()


def test_a_model_that_stops_early_or_late_has_its_own_epochs():
    """Also across a compaction of the stack: the others stop after one epoch."""
    problem = make_problem("tanh", "squared", 1, n_rows=20)
    epochs = [1, 1, 1, 9]
    jobs = [
        make_job(problem, make_model(problem, m), record_flow=True, max_epochs=n)
        for m, n in enumerate(epochs)
    ]
    for job, n, result in zip(jobs, epochs, run_jobs(jobs), strict=True):
        assert len(result.flow) == n == len(result.loss_curve)
        np.testing.assert_allclose(result.flow, run_jobs([job])[0].flow, rtol=1e-9)


def test_jobs_on_one_path_each_have_their_record():
    problem = make_problem("tanh", "squared", 1)
    model = make_model(problem, 0, weighted=False)
    jobs = [make_job(problem, model, record_flow=True, max_epochs=n) for n in (2, 5)]
    short, long = run_jobs(jobs)
    np.testing.assert_array_equal(short.flow, long.flow[:2])


def test_small_gradients_do_not_vanish_from_the_record():
    """Squares of 1e-30 do not exist in float32; the norm does."""
    problem = make_problem("identity", "squared", 1)
    model = make_model(problem, 0, weighted=False)
    tiny = replace(model, coefs=[model.coefs[0], 1e-30 * model.coefs[1]])
    (result,) = run_jobs([make_job(problem, tiny, dtype=torch.float32, record_flow=True)])
    first = column(result.flow, "gradient_norm")[0, 0]
    assert 1e-32 < first < 1e-28


# -- residual networks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_residual_layers_norms_and_updates(name):
    """Gradient and update of every matrix, by their place in the flat row of parameters."""
    spec = make_spec(**STRUCTURES[name])
    X, y = make_rows()
    plain_sgd = OptimizerSpec(OptimizerKind.SGD, 0.05, momentum=0.0, nesterov=False)
    jobs = [
        make_residual_job(spec, X, y, m, record_flow=True, batch_size=len(X), optimizer=plain_sgd)
        for m in range(3)
    ]
    layout = ResidualLayout(spec)
    layers = layout.layers()
    assert next(iter(layers)) == "input"
    assert list(layers)[-1] == "output"
    assert set(layers.values()) == {n for n in layout.entries if n.endswith(("W", *_MATRICES))}
    for job, result in zip(jobs, run_jobs(jobs), strict=True):
        before, after = (layout.unpack(p) for p in (job.params, result.params))
        (flow,) = result.flow
        for l, matrix in enumerate(layers.values()):
            W, moved = before[matrix], after[matrix] - before[matrix]
            total = job.data.n_rows if job.data.weight is None else job.data.weight.sum()
            g = -moved / 0.05 - job.train.penalty / total * W
            np.testing.assert_allclose(flow[l, 0], np.linalg.norm(g), rtol=1e-6)
            np.testing.assert_allclose(flow[l, 1], np.sqrt((g**2).mean()), rtol=1e-6)
            np.testing.assert_allclose(flow[l, 2], np.linalg.norm(W), rtol=1e-12)
            ratio = np.linalg.norm(moved) / np.linalg.norm(W)
            np.testing.assert_allclose(flow[l, 3], ratio, rtol=1e-9)
        assert np.isnan(flow[-1, 4:]).all()
        measured = np.isfinite(column(flow, "activation_std"))
        assert measured[:-1].any()


_MATRICES = tuple(f"W{l}" for l in range(1, 10))


def test_residual_activations_are_those_behind_each_layer():
    """x_0 = X W + b meets the activation before the first matrix, x_L that before the head."""
    spec = make_spec(preactivate=True, normalization=STRUCTURES["tied_rezero"]["normalization"])
    spec = replace(spec, n_blocks=1)
    X, y = make_rows()
    params = make_params(spec, 1)
    job = make_residual_job(spec, X, y, 1, params=params, record_flow=True, batch_size=len(X))
    job = replace(job, data=replace(job.data, rows=None, weight=None))
    (flow,) = run_jobs([job])[0].flow
    p = ResidualLayout(spec).unpack(params)
    case = next(c for c in ACTIVATIONS.values() if c.engine == spec.activation)

    def norm(x, name):
        u = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + spec.norm_epsilon)
        return p[f"{name}.gamma"] * u + p[f"{name}.beta"]

    x0 = X @ p["input.W"] + p["input.b"]
    z1 = norm(x0, "block0.norm1")
    z2 = case.numpy(z1) @ p["block0.W1"] + p["block0.b1"]
    if spec.normalize_inner:
        z2 = norm(z2, "block0.norm2")
    x1 = x0 + case.numpy(z2) @ p["block0.W2"] + p["block0.b2"]
    r = np.full(len(X), 1 / len(X))
    for l, z in enumerate([z1, z2, norm(x1, "final")]):
        np.testing.assert_allclose(flow[l, 4:], by_definition(case, z, r), atol=1e-12)


@pytest.mark.parametrize("name", ["tied_rezero", "periodic", "no_blocks"])
def test_recording_changes_nothing_in_residual_networks(name):
    spec = make_spec(**STRUCTURES[name])
    X, y = make_rows(n=40)
    changes = {"max_epochs": 3, "shuffle": True, "dropout": 0.2, "average_horizon": 0.2}
    plain = run_jobs([make_residual_job(spec, X, y, m, **changes) for m in range(3)])
    jobs = [make_residual_job(spec, X, y, m, record_flow=True, **changes) for m in range(3)]
    for without, recorded in zip(plain, run_jobs(jobs), strict=True):
        np.testing.assert_array_equal(without.params, recorded.params)
        assert recorded.flow.shape[0] == 3


def test_names_of_layers():
    assert Layout((4, 3, 2)).layers() == ("hidden_1", "output")
    assert Layout((4, 2)).layers() == ("output",)
    spec = make_spec(**STRUCTURES["tied_rezero"])
    assert list(ResidualLayout(spec).layers()) == [
        "input",
        "blocks.linear_1",
        "blocks.linear_2",
        "output",
    ]
