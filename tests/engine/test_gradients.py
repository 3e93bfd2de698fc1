"""Gradients of stacks against finite differences and torch.autograd.

Every activation with every loss, on networks of 0, 1 and 2 hidden layers, alone and in stacks of 2
and 5, on dense and sparse rows. Each model has its own weights, rows (whole batches, short ones,
padding), row weights (zeros among them, and a batch that holds nothing else), penalty and label
smoothing; gradients come out of `Stack`, batch by batch, as the optimizer would get them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import torch
from engine.builders import (
    ACTIVATIONS,
    BATCH,
    LOSSES,
    batches,
    flatten,
    make_job,
    make_model,
    make_problem,
    objective,
    stack_gradients,
    unflatten,
)

from sknn_resid.engine import kernels, lbfgs, slots
from sknn_resid.engine.layout import Layout
from sknn_resid.engine.spec import OptimizerKind

DIFFERENCES, AUTOGRAD = 1e-7, 1e-11
N_MODELS = 5
STACKS = ([0], [1], [4, 3], [0, 1, 2, 3, 4])  # M = 1, 1, 2, 5

# Without hidden layers the activation plays no part.
STRUCTURES = [("identity", 0)] + [(name, n) for name in ACTIVATIONS for n in (1, 2)]


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """|ours - reference| / |reference| of whole vectors."""
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def difference_gradient(problem, model, rows, weight, *, masks=None, step=2e-4) -> np.ndarray:
    """Central differences of J, once extrapolated (error of order step^4)."""
    flat = model.flat
    moves = step * np.eye(len(flat))

    def J(shift):
        return sum(objective(problem, model, flat + shift * moves, rows, weight, masks=masks))

    return (8 * (J(1) - J(-1)) - (J(2) - J(-2))) / (12 * step)


def autograd_gradient(problem, model, rows, weight, *, masks=None) -> np.ndarray:
    """Gradient of J by torch.autograd."""
    flat = torch.from_numpy(model.flat).requires_grad_()
    sum(objective(problem, model, flat, rows, weight, masks=masks)).backward()
    return flat.grad.numpy()


def live_batches(problem, model):
    return [(rows, w) for rows, w in batches(problem, model) if w.sum() > 0]


def check_stacks(problem, models, references):
    """Each model's gradients in each stack, dense and sparse, against every list of references."""
    for stack in STACKS:
        for sparse in (False, True):
            jobs = [make_job(problem, models[m], sparse=sparse) for m in stack]
            gradients, _ = stack_gradients(jobs)
            for by_model, bound in references:
                for m, ours in zip(stack, gradients, strict=True):
                    assert len(ours) == len(by_model[m])
                    errors = map(relative_error, ours, by_model[m])
                    assert max(errors) < bound, f"stack {stack}, sparse {sparse}, model {m}"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("activation", "n_hidden"), STRUCTURES)
def test_gradients(activation, n_hidden, loss):
    problem = make_problem(activation, loss, n_hidden)
    models = [make_model(problem, m) for m in range(N_MODELS)]
    by_hand = [
        [difference_gradient(problem, model, *batch) for batch in live_batches(problem, model)]
        for model in models
    ]
    by_torch = [
        [autograd_gradient(problem, model, *batch) for batch in live_batches(problem, model)]
        for model in models
    ]
    assert len(by_hand[4]) == 1  # its second batch weighs nothing: no step is made
    check_stacks(problem, models, [(by_hand, DIFFERENCES), (by_torch, AUTOGRAD)])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("models", [[0], [0, 1, 2]])
def test_even_rows_without_weights(models, loss):
    """Equal numbers of rows, no weights: row weights are then constants of the stack."""
    problem = make_problem("tanh", loss, 1)
    own = [make_model(problem, m, weighted=False) for m in models]
    gradients, loss_M = stack_gradients([make_job(problem, model) for model in own])
    for m, model in enumerate(own):
        for g, (rows, w) in zip(gradients[m], batches(problem, model), strict=True):
            assert relative_error(g, difference_gradient(problem, model, rows, w)) < DIFFERENCES
        np.testing.assert_allclose(loss_M[m], reported_loss(problem, model), rtol=1e-13)


def reported_loss(problem, model):
    """Epoch loss as scikit-learn reports it: batches weighed by their rows, not their weights.

    A batch without weight, where scikit-learn fails, is left out with its rows.
    """
    total, n = 0.0, 0
    for rows, w in batches(problem, model):
        if w.sum() > 0:
            data, penalty = objective(problem, model, model.flat, rows, w)
            total += (data * LOSSES[problem.loss].scale + penalty) * len(rows)
            n += len(rows)
    return total / n


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sparse", [False, True])
def test_reported_loss(loss, sparse):
    problem = make_problem("tanh", loss, 2)
    models = [make_model(problem, m) for m in range(N_MODELS)]
    for stack in STACKS:
        _, loss_M = stack_gradients([make_job(problem, models[m], sparse=sparse) for m in stack])
        expected = [reported_loss(problem, models[m]) for m in stack]
        np.testing.assert_allclose(loss_M, expected, rtol=1e-13)


@pytest.mark.parametrize("n_hidden", [0, 1, 2])
@pytest.mark.parametrize("loss", ["squared_3", "softmax", "binary"])
def test_both_product_kernels(loss, n_hidden, monkeypatch):
    """numpy's products give what torch's give; small shapes take torch's by default."""
    problem = make_problem("gelu", loss, n_hidden)
    model = make_model(problem, 1)
    (torch_gradients,), _ = stack_gradients([make_job(problem, model)])
    monkeypatch.setattr(kernels, "TINY_PRODUCT", 0)
    monkeypatch.setattr(kernels, "NARROW", 0)
    (numpy_gradients,), _ = stack_gradients([make_job(problem, model)])
    for a, b in zip(torch_gradients, numpy_gradients, strict=True):
        assert relative_error(a, b) < 1e-14


@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_segments_of_any_length(n_slots, monkeypatch):
    """How many batches are gathered at once changes nothing, the last bit included."""
    problem = make_problem("relu", "softmax", 2)
    models = [make_model(problem, m) for m in range(N_MODELS)]
    problem = replace(problem, batch=2)
    jobs = [make_job(problem, model) for model in models]
    whole, loss_M = stack_gradients(jobs)
    monkeypatch.setattr(slots, "MAX_SLOTS", n_slots)
    parts, loss_parts_M = stack_gradients(jobs)
    np.testing.assert_allclose(loss_parts_M, loss_M, rtol=1e-15)
    for ours, expected in zip(parts, whole, strict=True):
        assert len(ours) == len(expected)
        for a, b in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(a, b)


# -- penalty, clipping, dropout ------------------------------------------------------------------


def test_adamw_leaves_the_penalty_out_of_the_gradient():
    problem = make_problem("tanh", "squared", 1)
    models = [make_model(problem, m) for m in (1, 2)]
    jobs = [make_job(problem, model, kind=OptimizerKind.ADAMW) for model in models]
    gradients, loss_M = stack_gradients(jobs)
    for m, model in enumerate(models):
        free = replace(model, penalty=0.0)
        for g, batch in zip(gradients[m], live_batches(problem, free), strict=True):
            assert relative_error(g, autograd_gradient(problem, free, *batch)) < AUTOGRAD
        np.testing.assert_allclose(loss_M[m], reported_loss(problem, free), rtol=1e-13)


@pytest.mark.parametrize("stack", STACKS)
def test_clipping_is_per_model(stack):
    """Norm of the whole gradient, penalty included; a gradient within the bound is not touched."""
    problem = make_problem("tanh", "squared_3", 1)
    models = {m: make_model(problem, m) for m in stack}
    free, _ = stack_gradients([make_job(problem, models[m]) for m in stack])
    limits = [0.5 * np.linalg.norm(free[k][0]) if k % 2 == 0 else 1e6 for k in range(len(stack))]
    jobs = [
        make_job(problem, models[m], clip_norm=limit)
        for m, limit in zip(stack, limits, strict=True)
    ]
    clipped, _ = stack_gradients(jobs)
    for ours, whole, limit in zip(clipped, free, limits, strict=True):
        for a, b in zip(ours, whole, strict=True):
            factor = min(1.0, limit / np.linalg.norm(b))
            np.testing.assert_allclose(a, factor * b, rtol=1e-13, atol=0)


def dropout_masks(problem, model):
    """The masks that a generator with the model's seed gives, batch by batch, layer by layer."""
    generator = torch.Generator().manual_seed(model.seed)
    keep = 1 - model.dropout
    for rows, _ in batches(problem, model):
        yield [
            torch.empty(len(rows), width, dtype=torch.float64)
            .bernoulli_(keep, generator=generator)
            .div_(keep)
            .numpy()
            for width in problem.hidden
        ]


@pytest.mark.parametrize("activation", ["relu", "gelu", "softplus"])
@pytest.mark.parametrize("n_hidden", [1, 2])
def test_dropout_with_known_masks(activation, n_hidden):
    problem = make_problem(activation, "softmax", n_hidden)
    models = [
        replace(make_model(problem, m), dropout=0.1 + 0.15 * m, seed=m) for m in range(N_MODELS)
    ]
    references = {autograd_gradient: [], difference_gradient: []}
    for model in models:
        steps = [
            (*batch, masks)
            for batch, masks in zip(
                batches(problem, model), dropout_masks(problem, model), strict=True
            )
            if batch[1].sum() > 0
        ]
        for gradient, by_model in references.items():
            by_model.append([gradient(problem, model, r, w, masks=k) for r, w, k in steps])
    pairs = [(references[autograd_gradient], AUTOGRAD)]
    if not ACTIVATIONS[activation].kinked:  # the masks may have moved a point onto a kink
        pairs.append((references[difference_gradient], DIFFERENCES))
    check_stacks(problem, models, pairs)


def test_dropout_keeps_the_expected_activation():
    """Kept units are scaled by 1 / (1 - p): over many draws the mean of the logits stays."""
    problem = make_problem("identity", "squared", 1)
    model = replace(make_model(problem, 1), dropout=0.4, weight=None, penalty=0.0)
    # With identity hidden units and the squared error, dJ/db of the output is the mean of z - y.
    expected = autograd_gradient(
        problem, replace(model, dropout=0.0), *next(batches(problem, model))
    )
    draws = [
        stack_gradients([make_job(problem, replace(model, seed=seed))])[0][0][0][-1]
        for seed in range(400)
    ]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - expected[-1]) < 4 * error


# -- memory that nobody wrote to -----------------------------------------------------------------


@contextmanager
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Let torch fill the memory that it hands out with NaN: reading it unwritten then shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory by default
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("activation", "n_hidden"), [("identity", 0), ("relu", 1), ("softplus", 2), ("mish", 2)]
)
@pytest.mark.parametrize("loss", ["poisson", "softmax"])
def test_no_unwritten_memory_is_read(loss, activation, n_hidden, dropout, sparse):
    """Padding rows weigh nothing, but 0 * NaN is NaN: what they hold must have been written."""
    problem = make_problem(activation, loss, n_hidden)
    models = [replace(make_model(problem, m), dropout=dropout) for m in range(N_MODELS)]
    for stack in STACKS:
        with uninitialised_memory_is_nan():
            jobs = [make_job(problem, models[m], sparse=sparse) for m in stack]
            gradients, loss_M = stack_gradients(jobs)
        assert np.isfinite(loss_M).all(), f"loss of stack {stack}"
        for m, ours in zip(stack, gradients, strict=True):
            assert all(np.isfinite(g).all() for g in ours), f"stack {stack}, model {m}"


# -- low precision -------------------------------------------------------------------------------

PRECISIONS = [
    pytest.param(torch.float32, torch.float32, 1e-4, id="float32"),
    pytest.param(torch.float32, torch.bfloat16, 1e-2, id="bfloat16"),
]


def larger_problem(activation, loss):
    """Gradients that bfloat16 can hold to a hundredth.

    The batches have 40 rows and the targets lie on one side of the predictions, so that the
    gradients of the rows add up: where they cancel, what is left is the noise of the products. Nor
    is any pre-activation within that noise of a kink, where it has the one slope or the other.
    """
    problem = make_problem(activation, loss, 2, widths=(16, 12), n_rows=60, batch=40)
    y = problem.y + 4 if loss == "squared_3" else np.zeros_like(problem.y)
    problem = replace(problem, y=y)
    return problem, [make_model(problem, m, away_from_kinks=0.02) for m in range(N_MODELS)]


@pytest.mark.parametrize(("dtype", "product_dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["squared_3", "binary", "softmax"])
def test_stack_equals_solo_in_low_precision(activation, loss, dtype, product_dtype, bound):
    problem, models = larger_problem(activation, loss)
    jobs = [make_job(problem, m, dtype=dtype, product_dtype=product_dtype) for m in models]
    together, loss_M = stack_gradients(jobs)
    for m, job in enumerate(jobs):
        (alone,), loss_1 = stack_gradients([job])
        np.testing.assert_allclose(loss_M[m], loss_1[0], rtol=bound)
        for a, b in zip(together[m], alone, strict=True):
            assert relative_error(a, b) < bound


@pytest.mark.parametrize(("dtype", "product_dtype", "bound"), PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["squared_3", "binary", "softmax"])
def test_weights_are_repeated_rows(activation, loss, dtype, product_dtype, bound):
    """Integer weights within one batch: the gradient of the rows written out that often."""
    problem, (model, *_) = larger_problem(activation, loss)
    problem = replace(problem, batch=1000)
    counts = np.random.default_rng(0).integers(0, 4, len(problem.X))
    weighted = replace(model, weight=counts.astype(float), penalty=0.4)
    rows = np.arange(len(counts)) if model.rows is None else model.rows
    repeated = replace(weighted, weight=None, rows=np.repeat(rows, counts))
    options = {"dtype": dtype, "product_dtype": product_dtype}
    ((ours,),), loss_ours = stack_gradients([make_job(problem, weighted, **options)])
    ((theirs,),), loss_theirs = stack_gradients([make_job(problem, repeated, **options)])
    assert relative_error(ours, theirs) < bound
    np.testing.assert_allclose(loss_ours, loss_theirs, rtol=bound)


@pytest.mark.parametrize(("dtype", "product_dtype", "bound"), PRECISIONS)
def test_low_precision_approximates_the_gradient(dtype, product_dtype, bound):
    """Master weights are float32; only the products round to bfloat16."""
    problem, models = larger_problem("tanh", "softmax")
    jobs = [make_job(problem, m, dtype=dtype, product_dtype=product_dtype) for m in models]
    gradients, _ = stack_gradients(jobs)
    for model, ours in zip(models, gradients, strict=True):
        for g, batch in zip(ours, live_batches(problem, model), strict=True):
            assert relative_error(g, autograd_gradient(problem, model, *batch)) < bound


# -- layout, and L-BFGS's own pass ---------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4, 1), (3, 5, 2, 4)])
def test_layout_packs_every_parameter_once(sizes):
    layout = Layout(sizes)
    flat = np.arange(layout.n_params, dtype=float)
    coefs, intercepts = unflatten(flat, sizes)
    assert sorted(layout.pack(coefs, intercepts)) == sorted(flat)
    back = layout.unpack(layout.pack(coefs, intercepts))
    np.testing.assert_array_equal(flatten(*back), flat)
    assert [c.shape for c in back[0]] == list(pairwise(sizes))
    # Weights lie before biases, so that the penalty is one operation.
    packed = layout.pack(coefs, [np.full_like(b, -1.0) for b in intercepts])
    assert (packed[: layout.n_weights] >= 0).all()
    assert (packed[layout.n_weights :] == -1).all()


def test_unpack_gives_views():
    layout = Layout((3, 4, 2))
    flat = np.zeros(layout.n_params)
    coefs, intercepts = layout.unpack(flat)
    for array in [*coefs, *intercepts]:
        array[:] = 1.0
    assert (flat == 1).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("chunk", [4, BATCH + 100])
def test_full_batch_objective_of_lbfgs(loss, sparse, chunk, monkeypatch):
    """All rows, in chunks or at once: scikit-learn's figure with the gradient of J."""
    monkeypatch.setattr(lbfgs, "CHUNK_ROWS", chunk)
    problem = replace(make_problem("tanh", loss, 1), batch=100)
    model = make_model(problem, 1)
    ((rows, w),) = batches(problem, model)
    J = lbfgs._Objective(make_job(problem, model, sparse=sparse, kind=OptimizerKind.LBFGS))
    packed = Layout(problem.sizes).pack(model.coefs, model.intercepts)
    for _ in range(2):  # the second call finds the rows loaded
        value, gradient = J(packed)
        data, penalty = objective(problem, model, model.flat, rows, w)
        np.testing.assert_allclose(value, data * LOSSES[loss].scale + penalty, rtol=1e-13)
        ours = flatten(*Layout(problem.sizes).unpack(gradient))
        assert relative_error(ours, difference_gradient(problem, model, rows, w)) < DIFFERENCES
        assert relative_error(ours, autograd_gradient(problem, model, rows, w)) < AUTOGRAD


def test_reference_formulas_agree_with_scipy():
    """The references themselves: the squared error's gradient without hidden layer is known."""
    problem = make_problem("identity", "binary", 0)
    model = replace(make_model(problem, 1), smoothing=0.0, penalty=0.0)
    rows, w = next(batches(problem, model))
    X, y = problem.X[rows], problem.y[rows]
    residual = scipy.special.expit(X @ model.coefs[0] + model.intercepts[0]) - y
    known = flatten([X.T @ (w[:, None] * residual)], [w @ residual]) / w.sum()
    assert relative_error(difference_gradient(problem, model, rows, w), known) < 1e-9
    assert relative_error(autograd_gradient(problem, model, rows, w), known) < 1e-13
