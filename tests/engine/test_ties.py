"""Tied weights in the engine: places, gradients, the penalty, stacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.builders import (
    LOSSES,
    Recorder,
    forward,
    make_job,
    make_model,
    make_problem,
)
from engine.residual_builders import relative_error

from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.layout import Layout, TiedLayout, dense_layout
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.spec import OptimizerKind, stack_key
from sknn_resid.engine.stack import Stack, new_member
from sknn_resid.engine.ties import Ties

# of a network of layers (4, 5, 4, n_outputs)
TIES = {
    "pair": Ties(places=(((0, 0, 0), (1, 2, 1)),)),
    "places": Ties(places=(((0, 0, 0), (0, 3, 4), (2, 1, 0)), ((1, 4, 3), (1, 0, 0)))),
    "output": Ties(places=(((2, 0, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0)),)),
    "transpose": Ties(layers=(((0, False), (1, True)),)),
    "transpose_back": Ties(layers=(((1, True), (0, False)),)),
    "both": Ties(places=(((2, 0, 0), (2, 1, 0)),), layers=(((0, True), (1, False)),)),
}


def tied_job(ties, m, loss="softmax", widths=(5, 4), **changes) -> TrainJob:
    """Job m whose weights are tied; rows, weights, penalties are each model's own."""
    problem = make_problem("tanh", loss, 2, widths=widths)
    model = make_model(problem, m)
    job = make_job(problem, model, **changes)
    layout = dense_layout(problem.sizes, ties)
    params = layout.pack(model.coefs, model.intercepts).astype(job.params.dtype)
    return replace(job, network=replace(job.network, ties=ties), params=params)


def places_of(ties, sizes):
    """Groups of (layer, row, column) by the definition, one place after another."""
    groups = [list(group) for group in ties.places]
    for layers in ties.layers:
        first, flipped = layers[0]
        shape = (sizes[first], sizes[first + 1])[:: -1 if flipped else 1]
        for i in range(shape[0]):
            for j in range(shape[1]):
                groups.append([(l, j, i) if t else (l, i, j) for l, t in layers])
    return groups


def tied_arrays(job):
    """coefs and intercepts of a job, every place filled."""
    return TiedLayout(job.network.layer_sizes, job.network.ties).unpack(job.params)


@pytest.mark.parametrize("name", TIES)
def test_every_place_of_a_group_is_one_number(name):
    ties, sizes = TIES[name], (4, 5, 4, 3)
    full, layout = Layout(sizes), TiedLayout(sizes, ties)
    groups = places_of(ties, sizes)
    saved = sum(len(group) - 1 for group in groups)
    assert layout.n_params == full.n_params - saved
    assert layout.n_weights == full.n_weights - saved
    free = np.random.default_rng(0).standard_normal(layout.n_params)
    coefs, intercepts = layout.unpack(free)
    for group in groups:
        assert len({coefs[l][i, j] for l, i, j in group}) == 1
    assert len(np.unique(np.concatenate([np.ravel(W) for W in coefs]))) == layout.n_weights
    np.testing.assert_array_equal(layout.pack(coefs, intercepts), free)
    # the first place of a group counts where others say something else
    other = [W.copy() for W in coefs]
    l, i, j = groups[0][-1]
    other[l][i, j] += 1
    np.testing.assert_array_equal(layout.pack(other, intercepts), free)


@pytest.mark.parametrize("stack", [[0], [1], [4, 3], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("name", TIES)
def test_gradients_by_autograd(name, stack):
    """d/dw of a network that is written with one number in several places, penalty included."""
    jobs = [tied_job(TIES[name], m) for m in stack]
    together = Stack([new_member(job) for job in jobs])
    recorder = Recorder(together)
    together.run_epoch([0.0] * len(jobs), [None] * len(jobs), range(len(jobs)))
    for at, (m, job) in enumerate(zip(stack, jobs, strict=True)):
        problem = make_problem("tanh", "softmax", 2, widths=(5, 4))
        model = make_model(problem, m)
        layout = TiedLayout(problem.sizes, TIES[name])
        ours = [g[at] for g, a in zip(recorder.gradients, recorder.active, strict=True) if a[at]]
        rows = np.arange(len(problem.X)) if model.rows is None else model.rows
        weight = np.ones(len(rows)) if model.weight is None else model.weight
        batches = [slice(k, k + problem.batch) for k in range(0, len(rows), problem.batch)]
        live = [part for part in batches if weight[part].any()]
        assert len(ours) == len(live)
        for gradient, part in zip(ours, live, strict=True):
            free = torch.tensor(job.params, requires_grad=True)
            coefs, intercepts = long_of(layout, free)
            flat = torch.cat([array.ravel() for array in [*coefs, *intercepts]])
            z, _ = forward(problem, flat, torch.from_numpy(problem.X[rows[part]]))
            w = torch.from_numpy(weight[part])
            y = torch.from_numpy(problem.y[rows[part]])
            J = (LOSSES["softmax"].torch(z, y, model.smoothing) * w).sum() / w.sum()
            penalty = (free[: layout.n_weights] ** 2).sum()
            J = J + 0.5 * model.penalty / w.sum() * penalty
            (wanted,) = torch.autograd.grad(J, free)
            assert relative_error(gradient, wanted.numpy()) < 1e-10


def long_of(layout, free):
    """Matrices and biases of a tensor of free numbers, differentiably."""
    full = layout.full
    numbers = full.unpack(np.arange(full.n_params))
    spread = torch.from_numpy(layout.spread)
    return [[free[spread[torch.from_numpy(n.copy())]] for n in part] for part in numbers]


@pytest.mark.parametrize("name", TIES)
def test_the_gradient_is_the_sum_over_the_places(name):
    """Against the same network untied, at the same weights."""
    job = tied_job(TIES[name], 1)
    coefs, intercepts = tied_arrays(job)
    sizes = job.network.layer_sizes
    untied = replace(
        job,
        network=replace(job.network, ties=None),
        params=Layout(sizes).pack(coefs, intercepts),
        train=replace(job.train, penalty=0.0),
    )
    job = replace(job, train=untied.train)
    gradients = []
    for one in (job, untied):
        stack = Stack([new_member(one)])
        recorder = Recorder(stack)
        stack.run_epoch([0.0], [None], range(1))
        gradients.append(recorder.gradients[0][0])
    ours, _ = TiedLayout(sizes, TIES[name]).unpack(gradients[0])
    alone, _ = Layout(sizes).unpack(gradients[1])
    wanted = [W.copy() for W in alone]
    for group in places_of(TIES[name], sizes):
        total = sum(alone[l][i, j] for l, i, j in group)
        for l, i, j in group:
            wanted[l][i, j] = total
    for a, b in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", [*list(OptimizerKind)[:3], OptimizerKind.LBFGS])
def test_a_stack_equals_its_members(kind):
    def job(m):
        made = tied_job(TIES["both"], m, kind=kind)
        train = replace(made.train, max_epochs=4, clip_norm=0.5, shuffle=True)
        if kind is OptimizerKind.LBFGS:
            train = replace(train, clip_norm=None)
        return replace(made, train=train, rng=np.random.RandomState(m))

    together = run_jobs([job(m) for m in range(5)])
    for m, result in enumerate(together):
        (alone,) = run_jobs([job(m)])
        np.testing.assert_allclose(result.params, alone.params, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(result.loss_curve, alone.loss_curve, rtol=1e-9)


def test_only_equal_ties_share_a_stack():
    keys = {stack_key(tied_job(ties, 0).network, tied_job(ties, 0).train) for ties in TIES.values()}
    problem = make_problem("tanh", "softmax", 2, widths=(5, 4))
    untied = make_job(problem, make_model(problem, 0))
    keys.add(stack_key(untied.network, untied.train))
    assert len(keys) == len(TIES) + 1
    jobs = [tied_job(ties, 0) for ties in TIES.values()]
    for job, result in zip(jobs, run_jobs(jobs), strict=True):
        (alone,) = run_jobs([replace(job, rng=np.random.RandomState(0))])
        np.testing.assert_allclose(result.params, alone.params, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "product", "bound"),
    [(torch.float32, torch.float32, 1e-5), (torch.float32, torch.bfloat16, 0.05)],
)
def test_low_precision(dtype, product, bound):
    gradients = []
    for types in ({}, {"dtype": dtype, "product_dtype": product}):
        stack = Stack([new_member(tied_job(TIES["both"], 0, **types))])
        recorder = Recorder(stack)
        stack.run_epoch([0.0], [None], range(1))
        gradients.append(recorder.gradients[0][0])
    assert 0 < relative_error(gradients[1], gradients[0]) < bound
