"""Muon against its definition: singular values, and a step written out in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.residual_builders import STRUCTURES, make_params, make_spec

from sknn_resid.engine.newton_schulz import ROUNDS, orthogonalize
from sknn_resid.engine.optimizers import make_optimizer
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_network import StackedResidualNetwork
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 4, 9), (5, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_values_come_near_one_and_vectors_stay(shape, dtype):
    G = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).to(dtype)
    ops, result = orthogonalize(G.clone())
    for op in ops:
        op()
    values = np.linalg.svd(result.numpy(), compute_uv=False)
    assert values.min() > 0.64
    assert values.max() < 1.342
    for ours, own in zip(result.double().numpy(), G.double().numpy(), strict=True):
        u, _, vt = np.linalg.svd(own, full_matrices=False)
        inner = u.T @ ours @ vt.T
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-4)


def test_every_singular_value_of_the_interval_comes_near_one():
    s = np.geomspace(0.008, 1, 10_000)
    for a, b, c in ROUNDS:
        s = a * s + b * s**3 + c * s**5
    assert s.min() > 0.64
    assert s.max() < 1.342


def with_spectrum(s, shape, seed=0):
    """A matrix with these singular values, its left and its right vectors."""
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.standard_normal((shape[0], shape[0])))[0][:, : len(s)]
    v = np.linalg.qr(rng.standard_normal((shape[1], shape[1])))[0][:, : len(s)]
    return u * s @ v.T, u, v


SPECTRA = {
    "wide": np.geomspace(1, 1e-7, 48),
    "one": np.r_[1.0, np.full(47, 1e-3)],
    "equal": np.ones(48),
    "low_rank": np.r_[np.linspace(1, 0.1, 5), np.zeros(43)],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n_columns", [48, 96, 200])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_rounds_on_the_small_matrices_are_the_rounds_on_the_matrix(spectrum, n_columns, scale):
    """float32 against the polynomials of the exact singular values, in float64."""
    s = SPECTRA[spectrum]
    G, u, v = with_spectrum(s, (48, n_columns))
    ops, result = orthogonalize(torch.from_numpy(G * scale).float()[None])
    for op in ops:
        op()
    x = s / np.sum(s**4) ** 0.25
    for a, b, c in ROUNDS:
        x = a * x + b * x**3 + c * x**5
    np.testing.assert_allclose(result[0].numpy(), u * x @ v.T, atol=3e-5)


def test_bound_of_the_largest_singular_value_is_one():
    """Whatever the matrix, the rounds begin within [0, 1]: nothing comes out above 1.35."""
    for seed, (i, j) in enumerate([(1, 1), (1, 50), (2, 2), (30, 30), (30, 90)]):
        for k in (1, i):
            G, _, _ = with_spectrum(np.r_[np.ones(k), np.zeros(i - k)], (i, j), seed)
            ops, result = orthogonalize(torch.from_numpy(G).float()[None])
            for op in ops:
                op()
            assert np.linalg.svd(result[0].numpy(), compute_uv=False)[0] < 1.35


def test_zeros_stay_zeros():
    ops, result = orthogonalize(torch.zeros(2, 3, 4, dtype=torch.float64))
    for op in ops:
        op()
    assert (result == 0).all()


def direction(G):
    """Newton and Schulz's rounds on one matrix as it stands, by numpy."""
    X = G / np.sqrt(np.linalg.norm(G @ G.T))
    for a, b, c in ROUNDS:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


def adamw(p, gradients, rate, spec, decay):
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m = spec.beta_1 * m + (1 - spec.beta_1) * g
        v = spec.beta_2 * v + (1 - spec.beta_2) * g**2
        p = p * (1 - rate * decay)
        step = rate * np.sqrt(1 - spec.beta_2**t) / (1 - spec.beta_1**t)
        p = p - step * m / (np.sqrt(v) + spec.epsilon)
    return p


@pytest.mark.parametrize("structure", ["tabular", "gated", "three_layers", "square", "no_blocks"])
@pytest.mark.parametrize("n_models", [1, 3])
def test_steps_are_what_the_formula_says(structure, n_models):
    """Hidden matrices step along the orthogonal direction, everything else by AdamW."""
    spec = make_spec(**STRUCTURES[structure])
    layout = ResidualLayout(spec)
    specs = [
        OptimizerSpec(
            OptimizerKind.MUON,
            0.01,
            hidden_learning_rate=0.02 + 0.01 * m,
            hidden_momentum=0.9,
            hidden_decay=0.1,
        )
        for m in range(n_models)
    ]
    decays = [0.03] * n_models
    params_MP = torch.from_numpy(np.stack([make_params(spec, m) for m in range(n_models)]))
    start = params_MP.numpy().copy()
    generators = [torch.Generator() for _ in specs]
    zeros, nothing = [0.0] * n_models, [None] * n_models
    network = StackedResidualNetwork(spec, params_MP, 4, zeros, zeros, generators, nothing)
    optimizer = make_optimizer(network, specs, decays, [None] * n_models)
    factor, gradients = 0.5, []
    for seed in range(3):
        g = np.random.default_rng(seed).standard_normal(start.shape)
        gradients.append(g)
        network.grads_MP.copy_(torch.from_numpy(g))
        optimizer.step([factor * s.learning_rate for s in specs], None)
    for m, own in enumerate(specs):
        ours = layout.unpack(network.params_MP[m].numpy().copy())
        before = layout.unpack(start[m].copy())
        for name, entry in layout.entries.items():
            steps = [layout.unpack(g[m].copy())[name] for g in gradients]
            if entry.stop <= layout.n_matrices:
                W, v = before[name], np.zeros(entry.shape)
                rate = factor * own.hidden_learning_rate
                for g in steps:
                    v = own.hidden_momentum * v + g
                    W = W * (1 - rate * own.hidden_decay)
                    scale = max(1.0, entry.shape[1] / entry.shape[0]) ** 0.5
                    W = W - rate * scale * direction(g + own.hidden_momentum * v)
                expected = W
            else:
                decay = 0.03 if entry.stop <= layout.n_weights else 0.0
                expected = adamw(before[name], steps, factor * own.learning_rate, own, decay)
            np.testing.assert_allclose(ours[name], expected, rtol=1e-8, atol=1e-10, err_msg=name)


def test_muon_is_for_residual_networks():
    from engine.builders import make_job, make_model, make_problem, stack_gradients

    problem = make_problem("tanh", "squared", 1)
    job = make_job(problem, make_model(problem, 1), kind=OptimizerKind.MUON)
    with pytest.raises(TypeError, match="residual"):
        stack_gradients([job])


def test_lbfgs_is_not():
    from engine.residual_builders import make_job, make_rows

    from sknn_resid.engine.runner import run_jobs

    X, y = make_rows()
    job = make_job(make_spec(), X, y, 0)
    optimizer = replace(job.train.optimizer, kind=OptimizerKind.LBFGS)
    with pytest.raises(TypeError, match="L-BFGS"):
        run_jobs([replace(job, train=replace(job.train, optimizer=optimizer))])
