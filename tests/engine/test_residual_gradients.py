"""Gradients of stacks of residual networks against finite differences and torch.autograd.

Every kind of block, alone and in stacks, with each model's own rows (whole batches, short ones,
padding), row weights (zeros, and a batch that holds nothing else), penalty, smoothing and masks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from engine.builders import ACTIVATIONS, LOSSES
from engine.residual_builders import (
    BATCH,
    LAYERNORM,
    STRUCTURES,
    make_job,
    make_params,
    make_rows,
    make_spec,
    reference_gradients,
    reference_logits,
    relative_error,
    stack_gradients,
)

from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import Normalization, Periodic, Skip

DIFFERENCES, AUTOGRAD = 1e-7, 1e-10
STACKS = ([0], [1], [4, 3], [0, 1, 2, 3, 4])


def check(jobs, references, bound, stacks=STACKS):
    for stack in stacks:
        gradients, loss_M = stack_gradients([jobs[m] for m in stack])
        assert np.isfinite(loss_M).all()
        for m, ours in zip(stack, gradients, strict=True):
            assert len(ours) == len(references[m])
            errors = map(relative_error, ours, references[m])
            assert max(errors) < bound, f"stack {stack}, model {m}"


@pytest.mark.parametrize("random", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_block_by_autograd(structure, random):
    spec = make_spec("gelu", **STRUCTURES[structure])
    X, y = make_rows()
    changes = {"dropout": 0.3, "drop_path": 0.4} if random else {}
    jobs = [make_job(spec, X, y, m, scaled=m % 2 == 1, **changes) for m in range(5)]
    check(jobs, [reference_gradients(job) for job in jobs], AUTOGRAD)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_block_by_finite_differences(structure):
    # Where one or two rows of a batch count, 1e-5 would bend the objective within one difference.
    spec = make_spec("tanh", norm_epsilon=0.1, **STRUCTURES[structure])
    X, y = make_rows()
    jobs = {m: make_job(spec, X, y, m, dropout=0.3, drop_path=0.4) for m in (1, 3, 4)}
    references = {m: reference_gradients(job, by_differences=True) for m, job in jobs.items()}
    check(jobs, references, DIFFERENCES, stacks=([1], [4, 3]))


@pytest.mark.parametrize("structure", ["tabular", "preactivation", "layer_inner", "no_norm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, structure):
    spec = make_spec(activation, **STRUCTURES[structure])
    X, y = make_rows()
    jobs = [make_job(spec, X, y, m, dropout=0.3) for m in range(2)]
    check(jobs, [reference_gradients(job) for job in jobs], AUTOGRAD, stacks=([0], [0, 1]))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss):
    spec = make_spec("tanh", loss)
    X, y = make_rows(loss)
    jobs = [make_job(spec, X, y, m) for m in range(5)]
    check(jobs, [reference_gradients(job) for job in jobs], AUTOGRAD)


@pytest.mark.parametrize("loss", ["softmax", "squared_3"])
def test_even_rows_without_weights(loss):
    spec = make_spec("tanh", loss)
    X, y = make_rows(loss)
    jobs = [make_job(spec, X, y, m, weighted=False) for m in range(3)]
    check(jobs, [reference_gradients(job) for job in jobs], AUTOGRAD, stacks=([1], [0, 1, 2]))


@pytest.mark.parametrize("structure", ["tabular", "no_norm", "gated"])
def test_sparse_rows(structure):
    spec = make_spec("tanh", **STRUCTURES[structure])
    X, y = make_rows()
    X[np.abs(X) < 0.5] = 0.0
    jobs = [make_job(spec, X, y, m, scaled=True) for m in range(5)]
    references = [reference_gradients(job) for job in jobs]
    jobs = [
        replace(job, data=replace(job.data, X=scipy.sparse.csr_array(job.data.X))) for job in jobs
    ]
    check(jobs, references, AUTOGRAD)


@pytest.mark.parametrize("structure", ["tied", "tied_gated", "tied_rezero"])
def test_tied_blocks_have_the_summed_gradient(structure):
    """The same weights written out once a block: the gradients of the copies add up exactly."""
    changes = STRUCTURES[structure]
    tied, free = make_spec(**changes), make_spec(**(changes | {"tie_blocks": False}))
    X, y = make_rows()
    shared = ResidualLayout(tied).unpack(make_params(tied, 1))
    flat = np.zeros(ResidualLayout(free).n_params)

    def source(name):
        head, _, tail = name.partition(".")
        return f"block0.{tail}" if head.startswith("block") else name

    for name, array in ResidualLayout(free).unpack(flat).items():
        array[:] = shared[source(name)]
    ((ours,), (written_out,)) = (
        stack_gradients([make_job(spec, X, y, 2, params=params, penalty=0.0)])[0][0]
        for spec, params in ((tied, make_params(tied, 1)), (free, flat))
    )
    summed = {name: np.zeros_like(array) for name, array in shared.items()}
    for name, array in ResidualLayout(free).unpack(written_out).items():
        summed[source(name)] += array
    for name, array in ResidualLayout(tied).unpack(ours).items():
        np.testing.assert_allclose(array, summed[name], rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_weights_are_repeated_rows(structure):
    """One batch that holds all rows: a weight of k is the row k times, to the last digits."""
    spec = make_spec("gelu", **STRUCTURES[structure])
    X, y = make_rows()
    counts = np.array([0, 1, 2, 3, 1, 2, 0, 4, 1, 1, 2])
    job = make_job(spec, X, y, 0, batch_size=100, dropout=0.3, drop_path=0.2, penalty=0.4)
    weighted = replace(job, data=replace(job.data, weight=counts.astype(float), rows=None))
    rows = np.repeat(np.arange(len(X)), counts)
    repeated = replace(job, data=replace(job.data, weight=None, rows=rows))
    ((ours,),), loss_ours = stack_gradients([weighted])
    ((theirs,),), loss_theirs = stack_gradients([repeated])
    assert relative_error(ours, theirs) < 1e-12
    np.testing.assert_allclose(loss_ours, loss_theirs, rtol=1e-12)


def test_reference_normalizations_are_torchs():
    """The reference itself: with equal weights it is batch_norm and layer_norm of torch."""
    X, _ = make_rows()
    X = torch.from_numpy(X[:BATCH])
    r = torch.full((BATCH,), 1 / BATCH, dtype=torch.float64)
    for normalization in (Normalization.BATCH, Normalization.LAYER):
        spec = make_spec("relu", n_blocks=0, normalization=normalization)
        flat = torch.from_numpy(make_params(spec, 0))[None]
        p = {name: view[0] for name, view in ResidualLayout(spec).views(flat).items()}
        x = X @ p["input.W"] + p["input.b"]
        if normalization is LAYERNORM:
            y = torch.nn.functional.layer_norm(x, (spec.width,), p["final.gamma"], p["final.beta"])
        else:
            y = torch.nn.functional.batch_norm(
                x, None, None, p["final.gamma"], p["final.beta"], training=True
            )
        expected = torch.relu(y) @ p["head.W"].T + p["head.b"]
        torch.testing.assert_close(reference_logits(spec, flat, X, r)[0], expected)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_layout_places_every_parameter_once(structure):
    layout = ResidualLayout(make_spec(**STRUCTURES[structure]))
    flat = np.zeros(layout.n_params)
    for array in layout.unpack(flat).values():
        array += 1
    assert (flat == 1).all()
    names = list(layout.entries)
    assert [e.stop for e in layout.entries.values()][-1] == layout.n_params
    decayed = [n for n in names if layout.entries[n].stop <= layout.n_weights]
    assert all(n.split(".")[-1].startswith("W") for n in decayed)
    assert not any(n.split(".")[-1].startswith("W") for n in set(names) - set(decayed))
    assert sum(run.count * run.shape[0] * run.shape[1] for run in layout.runs) == layout.n_matrices


def test_the_plain_twin_has_as_many_parameters():
    sizes = {ResidualLayout(make_spec(skip=skip)).n_params for skip in (Skip.IDENTITY, Skip.NONE)}
    assert len(sizes) == 1


def bfloat16_error(structure):
    """Error of bfloat16 products against float64 on a batch of 64 rows."""
    changes = STRUCTURES[structure] | {"width": 16, "hidden": 24}
    X, y = make_rows("squared_3", n=64)
    spec = make_spec("silu", "squared_3", **changes)
    params = make_params(spec, 0)
    for name, array in ResidualLayout(spec).unpack(params).items():
        if ".W" in name:
            array /= np.sqrt(array.shape[0])  # activations of about 1, as in a network that trains
    job = make_job(spec, X, y + 4, 0, weighted=False, batch_size=64, params=params)
    low = replace(spec, dtype=torch.float32, product_dtype=torch.bfloat16)
    (reference,) = reference_gradients(job)
    narrow = make_job(low, X, y + 4, 0, weighted=False, batch_size=64, params=job.params)
    ((ours,),), _ = stack_gradients([narrow])
    return relative_error(ours, reference)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_bfloat16_products_approximate_the_gradient(structure):
    """Three digits in every product, float32 in between: some percent of the whole gradient."""
    assert 1e-5 < bfloat16_error(structure) < 0.05


@pytest.mark.parametrize("structure", ["tabular", "layer", "rezero", "periodic"])
def test_float32(structure):
    X, y = make_rows()
    spec = make_spec("gelu", **STRUCTURES[structure])
    references = [reference_gradients(make_job(spec, X, y, m)) for m in range(5)]
    narrow = replace(spec, dtype=torch.float32, product_dtype=torch.float32)
    jobs = [make_job(narrow, X, y, m) for m in range(5)]
    check(jobs, references, 1e-4)


def test_periodic_features_of_sparse_rows_are_refused():
    spec = make_spec(periodic=Periodic(1, 2))
    X, y = make_rows()
    job = make_job(spec, X, y, 0)
    job = replace(job, data=replace(job.data, X=scipy.sparse.csr_array(X)))
    with pytest.raises(ValueError, match="dense"):
        stack_gradients([job])
