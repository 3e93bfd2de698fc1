"""Prediction and initial parameters of residual networks against their definitions."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from engine.residual_builders import (
    STRUCTURES,
    make_job,
    make_params,
    make_rows,
    make_spec,
    reference_logits,
)

from sknn_resid.engine import residual_fitted
from sknn_resid.engine.data import TrainingData
from sknn_resid.engine.residual_fitted import FittedResidual, training_statistics
from sknn_resid.engine.residual_init import Init, InitSpec, initial_parameters
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import Normalization, Periodic, Skip


def fitted_members(spec, X, y, *, members=(0, 1, 2), scaled=True):
    """Members with statistics of their own rows and weights, and their jobs."""
    jobs = [make_job(spec, X, y, m, scaled=scaled) for m in members]
    params = np.stack([job.params for job in jobs])
    statistics = np.stack([training_statistics(job, job.params) for job in jobs])
    scale = np.stack([job.input_scale for job in jobs]) if scaled else None
    return FittedResidual(spec, params, statistics, scale), jobs


def training_outputs(job):
    """Raw outputs of the job's rows as one batch in training, by the reference."""
    n = job.data.n_rows
    rows = np.arange(n) if job.data.rows is None else job.data.rows
    weight = np.ones(n) if job.data.weight is None else job.data.weight
    r = torch.from_numpy(weight / weight.sum())
    scale = None if job.input_scale is None else torch.from_numpy(job.input_scale)
    flat = torch.from_numpy(job.params)[None]
    X = torch.from_numpy(job.data.X[rows])
    return rows, reference_logits(job.network, flat, X, r, scale=scale)[0].numpy()


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_logits_are_those_of_one_batch_of_the_training_rows(structure, activation):
    spec = make_spec(activation, **STRUCTURES[structure])
    X, y = make_rows()
    fitted, jobs = fitted_members(spec, X, y)
    together = fitted.logits(X)
    for m, job in enumerate(jobs):
        rows, expected = training_outputs(job)
        np.testing.assert_allclose(together[m, rows], expected, rtol=1e-9, atol=1e-11)
        one = FittedResidual(
            spec, fitted.params[m : m + 1], fitted.statistics[m : m + 1], job.input_scale[None]
        )
        np.testing.assert_allclose(one.logits(X)[0], together[m], rtol=1e-10, atol=1e-12)


def test_hidden_is_what_the_head_reads():
    spec = make_spec()
    X, y = make_rows()
    fitted, _ = fitted_members(spec, X, y)
    hidden, logits, outputs = fitted.hidden(X), fitted.logits(X), fitted.outputs(X)
    assert hidden.shape == (3, len(X), spec.width)
    for m in range(3):
        p = ResidualLayout(spec).unpack(fitted.params[m])
        np.testing.assert_allclose(hidden[m] @ p["head.W"].T + p["head.b"], logits[m])
    np.testing.assert_allclose(outputs.sum(2), 1)
    e = np.exp(logits - logits.max(2, keepdims=True))
    np.testing.assert_allclose(outputs, e / e.sum(2, keepdims=True))


def test_chunks_and_sparse_rows_change_nothing(monkeypatch):
    spec = make_spec()
    X, y = make_rows(n=50)
    X[np.abs(X) < 0.5] = 0.0
    fitted, _ = fitted_members(spec, X, y)
    whole = fitted.logits(X)
    monkeypatch.setattr(residual_fitted, "CHUNK_BYTES", 1)
    monkeypatch.setattr(residual_fitted, "MIN_CHUNK", 7)
    np.testing.assert_allclose(fitted.logits(X), whole, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(fitted.logits(scipy.sparse.csr_array(X)), whole, rtol=1e-11)
    before = fitted.params.copy()
    fitted.hidden(X)
    np.testing.assert_array_equal(fitted.params, before)


def test_statistics_of_many_rows_in_chunks(monkeypatch):
    """In sorted rows every chunk sees the whole: means of one pass come near those of one chunk."""
    spec = make_spec(n_blocks=1)
    X, y = make_rows(n=4000)
    order = np.argsort(X[:, 0])
    X, y = X[order], y[order]
    job = make_job(spec, X, y, 0, weighted=False)
    weight = np.random.default_rng(0).uniform(0, 2, len(X))
    job = replace(job, data=TrainingData(X, y, None, weight))
    exact = training_statistics(job, job.params)
    monkeypatch.setattr(residual_fitted, "MAX_CHUNK", 1000)
    near = training_statistics(job, job.params)
    # The first normalization reads the rows themselves: its moments are exact in any chunks.
    np.testing.assert_allclose(near[: 2 * spec.width], exact[: 2 * spec.width], rtol=1e-10)
    np.testing.assert_allclose(near, exact, rtol=0.02, atol=0.02)


def test_one_object_predicts_from_many_threads():
    spec = make_spec(n_blocks=3)
    X, y = make_rows(n=200)
    fitted, _ = fitted_members(spec, X, y)
    expected, found = fitted.logits(X), {}

    def predict(i):
        found[i] = [fitted.logits(X) for _ in range(5)]

    threads = [threading.Thread(target=predict, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for results in found.values():
        for result in results:
            np.testing.assert_array_equal(result, expected)


# -- initial parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Init)
def test_entries_have_the_variance_of_their_rule(kind):
    spec = make_spec(n_features=50, width=200, hidden=100, n_blocks=1, skip=Skip.GATED)
    flat = initial_parameters(spec, InitSpec(kind, scale=0.02), np.random.RandomState(0))
    p = ResidualLayout(spec).unpack(flat)
    for name in ("input.W", "block0.W1", "block0.W2", "block0.gate.W"):
        fan_in, fan_out = p[name].shape
        variance = {
            Init.HE: 2 / fan_in,
            Init.LECUN: 1 / fan_in,
            Init.GLOROT: 2 / (fan_in + fan_out),
            Init.ORTHOGONAL: 1 / max(fan_in, fan_out),
            Init.NORMAL: 0.02**2,
        }[kind]
        np.testing.assert_allclose(p[name].var(), variance, rtol=0.05, err_msg=name)
    if kind is Init.ORTHOGONAL:
        np.testing.assert_allclose(np.linalg.svd(p["block0.W1"], compute_uv=False), 1)
    assert (p["block0.gate.b"] == -2).all()
    assert (p["final.gamma"] == 1).all()
    assert (p["input.b"] == 0).all()


def test_zero_branches_begin_as_the_identity():
    """Four blocks that add nothing: the same network as without them."""
    X, _ = make_rows()
    short = make_spec(n_blocks=0, normalization=Normalization.NONE)
    deep = make_spec(n_blocks=4, normalization=Normalization.NONE)
    params = [
        initial_parameters(spec, InitSpec(branch_gain=0.0), np.random.RandomState(0))
        for spec in (short, deep)
    ]
    ends, whole = (
        ResidualLayout(spec).unpack(p) for spec, p in zip((short, deep), params, strict=True)
    )
    for name, array in ends.items():
        array[:] = whole[name]
    logits = [
        FittedResidual(spec, p[None], np.zeros((1, 0))).logits(X)
        for spec, p in zip((short, deep), params, strict=True)
    ]
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("periodic", [None, Periodic(2, 4)])
@pytest.mark.parametrize("sparse", [False, True])
def test_units_begin_with_equal_spread(periodic, sparse):
    """Each unit's pre-activation has weighted standard deviation 1 over the rows."""
    if sparse and periodic is not None:
        return
    spec = make_spec("identity", n_features=4, width=6, n_blocks=0, periodic=periodic)
    spec = replace(spec, normalization=Normalization.NONE)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 4)) * [1, 100, 0.01, 1] * (rng.random((80, 4)) > 0.3)
    weight, scale = rng.uniform(0, 2, 80), np.array([1, 0.1, 1, 2.0])
    flat = initial_parameters(
        spec,
        InitSpec(unit_inputs=True, input_bias=0.5),
        np.random.RandomState(1),
        X=scipy.sparse.csr_array(X) if sparse else X,
        weight=weight,
        input_scale=scale,
        column_gain=np.array([1, 1, 1, 0.5]),
        head_bias=np.array([1.0, 2.0, 3.0]),
    )
    x = FittedResidual(spec, flat[None], np.zeros((1, 0)), scale[None]).hidden(X)[0]
    w = weight / weight.sum()
    np.testing.assert_allclose(np.sqrt(w @ (x - w @ x) ** 2), 1, rtol=1e-10)
    np.testing.assert_array_equal(ResidualLayout(spec).unpack(flat)["head.b"], [1, 2, 3])


def test_units_of_constant_rows_stay_finite():
    spec = make_spec()
    flat = initial_parameters(
        spec, InitSpec(unit_inputs=True), np.random.RandomState(0), X=np.ones((5, 3))
    )
    assert np.isfinite(flat).all()


def test_equal_units_need_rows():
    with pytest.raises(ValueError, match="give X"):
        initial_parameters(make_spec(), InitSpec(unit_inputs=True), np.random.RandomState(0))


def test_dtype_of_the_parameters():
    spec = make_spec(dtype=torch.float32)
    flat = initial_parameters(spec, InitSpec(), np.random.RandomState(0))
    assert flat.dtype == np.float32
    X, y = make_rows()
    job = make_job(spec, X, y, 0)
    statistics = training_statistics(job, make_params(spec, 0).astype(np.float32))
    assert statistics.dtype == np.float32
    fitted = FittedResidual(spec, flat[None], statistics[None])
    assert fitted.outputs(X).dtype == np.float32
