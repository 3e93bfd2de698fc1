"""Update rules against their formulas in numpy, model by model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from sknn_resid.engine.losses import SquaredError
from sknn_resid.engine.network import StackedNetwork
from sknn_resid.engine.optimizers import OptimizerState, make_optimizer
from sknn_resid.engine.spec import NetworkSpec, OptimizerKind, OptimizerSpec

SGD, ADAM, ADAMW = OptimizerKind.SGD, OptimizerKind.ADAM, OptimizerKind.ADAMW
N_WEIGHTS, N_STEPS = 6, 7  # parameters: the weights and one bias
DTYPES = [(np.float64, 1e-13), (np.float32, 2e-6)]


def make_specs(kind, n_models, nesterov=True):
    """Other numbers for each model."""
    return [
        OptimizerSpec(
            kind,
            learning_rate=0.01 * (m + 1),
            momentum=0.5 + 0.1 * m,
            nesterov=nesterov,
            beta_1=0.7 + 0.05 * m,
            beta_2=0.9 + 0.02 * m,
            epsilon=10.0 ** (-8 + m),
        )
        for m in range(n_models)
    ]


def plain_network(params_MP: np.ndarray) -> StackedNetwork:
    """A stack without hidden layer whose flat parameters are the rows of ``params_MP``."""
    dtype = torch.from_numpy(params_MP).dtype
    spec = NetworkSpec((N_WEIGHTS, 1), (), SquaredError(), dtype, dtype)
    M = len(params_MP)
    generators = [torch.Generator() for _ in range(M)]
    return StackedNetwork(spec, torch.from_numpy(params_MP.copy()), 1, [0.0] * M, generators)


class Reference:
    """One model's updates in numpy float64."""

    def __init__(self, params, spec, decay=0.0):
        self.p = params.astype(float)
        self.spec, self.decay, self.t = spec, decay, 0
        self.v, self.m = np.zeros_like(self.p), np.zeros_like(self.p)

    def step(self, g, rate):
        self.t += 1
        s = self.spec
        if s.kind is SGD:
            self.v = s.momentum * self.v - rate * g
            self.p = self.p + (s.momentum * self.v - rate * g if s.nesterov else self.v)
            return
        if s.kind is ADAMW:
            self.p[:N_WEIGHTS] *= 1 - rate * self.decay
        self.m = s.beta_1 * self.m + (1 - s.beta_1) * g
        self.v = s.beta_2 * self.v + (1 - s.beta_2) * g**2
        scale = rate * np.sqrt(1 - s.beta_2**self.t) / (1 - s.beta_1**self.t)
        self.p = self.p - scale * self.m / (np.sqrt(self.v) + s.epsilon)


def setup(specs, decays=None, states=None, dtype=np.float64, seed=0):
    """A stack without hidden layer, its optimizer, and a stream of gradients."""
    rng = np.random.default_rng(seed)
    n = len(specs)
    params_MP = rng.standard_normal((n, N_WEIGHTS + 1)).astype(dtype)
    network = plain_network(params_MP)
    optimizer = make_optimizer(network, specs, decays or [0.0] * n, states or [None] * n)
    grads = rng.standard_normal((N_STEPS, n, N_WEIGHTS + 1)) * 10.0 ** rng.integers(-3, 3, (n, 1))
    return network, optimizer, grads.astype(dtype), params_MP


def advance(network, optimizer, g_MP, rates, active=None):
    network.grads_MP.copy_(torch.from_numpy(g_MP))
    optimizer.step(rates, active)


def without_fused_kernel(optimizer):
    """Let Adam take torch's public operations, as where the private kernel is missing."""
    optimizer._rule._fused = None


@pytest.mark.parametrize("n_models", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "nesterov", "fused"),
    [
        (SGD, True, True),
        (SGD, False, True),
        (ADAM, True, True),
        (ADAM, True, False),
        (ADAMW, True, True),
        (ADAMW, True, False),
    ],
)
@pytest.mark.parametrize(("dtype", "rtol"), DTYPES, ids=["float64", "float32"])
def test_against_the_formula(kind, nesterov, fused, n_models, dtype, rtol):
    """Several steps with rates that change; every number is the model's own."""
    specs = make_specs(kind, n_models, nesterov)
    decays = [0.05 * m for m in range(n_models)]
    network, optimizer, grads, params_MP = setup(specs, decays, dtype=dtype)
    if not fused:
        without_fused_kernel(optimizer)
    references = [Reference(params_MP[m], specs[m], decays[m]) for m in range(n_models)]
    for k, g_MP in enumerate(grads):
        rates = [spec.learning_rate * 0.9**k for spec in specs]
        advance(network, optimizer, g_MP, rates)
        for m, reference in enumerate(references):
            reference.step(g_MP[m].astype(float), rates[m])
            np.testing.assert_allclose(network.params_MP[m], reference.p, rtol=rtol, atol=rtol)
    assert optimizer.steps.tolist() == [N_STEPS] * n_models


@pytest.mark.parametrize("kind", [SGD, ADAM])
def test_against_scikit_learns_classes(kind):
    (spec,) = make_specs(kind, 1)
    network, optimizer, grads, params_MP = setup([spec])
    theirs = [params_MP[0].copy()]
    if kind is SGD:
        reference = SGDOptimizer(theirs, spec.learning_rate, momentum=spec.momentum)
    else:
        reference = AdamOptimizer(
            theirs, spec.learning_rate, spec.beta_1, spec.beta_2, spec.epsilon
        )
    for g_MP in grads:
        advance(network, optimizer, g_MP, [spec.learning_rate])
        reference.update_params(theirs, [g_MP[0]])
        np.testing.assert_allclose(network.params_MP[0], theirs[0], rtol=1e-13)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-2, 1.0])
def test_epsilon_is_not_bias_corrected(epsilon):
    """A large epsilon tells scikit-learn's rule from torch's in the first step already."""
    spec = replace(make_specs(ADAM, 1)[0], epsilon=epsilon)
    for fused in (True, False):
        network, optimizer, grads, params_MP = setup([spec])
        if not fused:
            without_fused_kernel(optimizer)
        reference = Reference(params_MP[0], spec)
        advance(network, optimizer, grads[0], [0.1])
        reference.step(grads[0][0], 0.1)
        np.testing.assert_allclose(network.params_MP[0], reference.p, rtol=1e-13)


@pytest.mark.parametrize("kind", [ADAM, ADAMW])
@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize(("dtype", "rtol"), DTYPES, ids=["float64", "float32"])
def test_both_paths_of_adam_agree(kind, n_models, dtype, rtol):
    specs, decays = make_specs(kind, n_models), [0.1] * n_models
    results = []
    for fused in (True, False):
        network, optimizer, grads, _ = setup(specs, decays, dtype=dtype)
        assert optimizer._rule._fused is not None, (
            "torch lost its kernel: the fallback serves alone"
        )
        if not fused:
            without_fused_kernel(optimizer)
        for g_MP in grads:
            advance(network, optimizer, g_MP, [spec.learning_rate for spec in specs])
        results.append([network.params_MP, *optimizer.moments])
    for ours, public in zip(*results, strict=True):
        np.testing.assert_allclose(ours, public, rtol=rtol, atol=rtol * 1e-2)


@pytest.mark.parametrize("beta", [0.0, 0.999999])
def test_adam_at_the_ends_of_beta(beta):
    """0 keeps no memory at all: each step is rate * sign(g), but for epsilon."""
    for fused in (True, False):
        spec = replace(make_specs(ADAM, 1)[0], beta_1=beta, beta_2=beta)
        network, optimizer, grads, params_MP = setup([spec])
        if not fused:
            without_fused_kernel(optimizer)
        reference = Reference(params_MP[0], spec)
        for g_MP in grads:
            advance(network, optimizer, g_MP, [0.01])
            reference.step(g_MP[0], 0.01)
        # 1 - beta^t has lost ten digits at 0.999999: both sides carry that rounding.
        np.testing.assert_allclose(network.params_MP[0], reference.p, rtol=1e-9)


def test_adam_of_a_gradient_of_zero_stays():
    for fused in (True, False):
        network, optimizer, grads, params_MP = setup(make_specs(ADAM, 2))
        if not fused:
            without_fused_kernel(optimizer)
        advance(network, optimizer, np.zeros_like(grads[0]), [0.1, 0.1])
        np.testing.assert_array_equal(network.params_MP, params_MP)


# -- who takes part ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("same_numbers", [True, False])
def test_a_model_left_out_does_not_move(kind, fused, same_numbers):
    """Neither its parameters nor its moments nor its step count; the others never notice."""
    n = 5
    specs = make_specs(kind, n)
    if same_numbers:
        specs = [specs[0]] * n
    network, optimizer, grads, params_MP = setup(specs, [0.1] * n)
    if not fused and kind is not SGD:
        without_fused_kernel(optimizer)
    references = [Reference(params_MP[m], specs[m], 0.1) for m in range(n)]
    pattern = np.random.default_rng(3).random((N_STEPS, n)) > 0.4
    pattern[2], pattern[3] = False, True
    for g_MP, active in zip(grads, pattern.tolist(), strict=True):
        before = [network.params_MP.clone(), *[b.clone() for b in optimizer.moments]]
        advance(network, optimizer, g_MP, [spec.learning_rate for spec in specs], active)
        after = [network.params_MP, *optimizer.moments]
        for m in range(n):
            if active[m]:
                references[m].step(g_MP[m], specs[m].learning_rate)
            else:
                for old, new in zip(before, after, strict=True):
                    assert torch.equal(old[m], new[m])
    assert optimizer.steps.tolist() == pattern.sum(0).tolist()
    for m, reference in enumerate(references):
        np.testing.assert_allclose(network.params_MP[m], reference.p, rtol=1e-13)


def test_a_single_model_left_out():
    network, optimizer, grads, params_MP = setup(make_specs(ADAM, 1))
    advance(network, optimizer, grads[0], [0.1], [False])
    np.testing.assert_array_equal(network.params_MP, params_MP)
    assert optimizer.steps.tolist() == [0]


def test_gradients_of_a_model_left_out_are_not_read():
    """It may have diverged: its NaN stays its own."""
    for kind in (SGD, ADAM):
        specs = [make_specs(kind, 1)[0]] * 3
        network, optimizer, grads, _ = setup(specs)
        g_MP = grads[0].copy()
        g_MP[1] = np.nan
        advance(network, optimizer, g_MP, [0.1] * 3, [True, False, True])
        assert network.params_MP.isfinite().all()
        advance(network, optimizer, g_MP, [0.1] * 3, None)
        assert network.params_MP.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW])
def test_neighbours_with_the_same_numbers_equal_solo(kind):
    """Neighbours are updated by one call; each gets the very numbers it would get alone."""
    spec = make_specs(kind, 1)[0]
    specs = [spec] * 4 + [replace(spec, epsilon=1e-3, momentum=0.1)]
    decays = [0.1, 0.1, 0.2, 0.2, 0.2]
    network, optimizer, grads, params_MP = setup(specs, decays)
    rates = [0.1, 0.1, 0.1, 0.05, 0.05]
    for g_MP in grads:
        advance(network, optimizer, g_MP, rates)
    for m in range(5):
        alone = plain_network(params_MP[m : m + 1])
        solo = make_optimizer(alone, [specs[m]], [decays[m]], [None])
        for g_MP in grads:
            advance(alone, solo, g_MP[m : m + 1], [rates[m]])
        np.testing.assert_allclose(network.params_MP[m], alone.params_MP[0], rtol=1e-15)


def test_decay_belongs_to_adamw_and_to_weights():
    g_0 = np.zeros((1, N_WEIGHTS + 1))
    for kind, shrunk in [(ADAMW, 1 - 0.1 * 0.5), (ADAM, 1.0), (SGD, 1.0)]:
        network, optimizer, _, params_MP = setup(make_specs(kind, 1), [0.5])
        advance(network, optimizer, g_0, [0.1])
        weights, bias = params_MP[:, :N_WEIGHTS], params_MP[:, N_WEIGHTS:]
        np.testing.assert_allclose(network.params_MP[:, :N_WEIGHTS], shrunk * weights, rtol=1e-15)
        np.testing.assert_array_equal(network.params_MP[:, N_WEIGHTS:], bias)


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_resuming_is_bitwise_the_same(kind, fused, dtype):
    """Export after three steps, a new stack in another order, and on."""
    n, pause = 3, 3
    specs, decays = make_specs(kind, n), [0.1] * n
    rates = [spec.learning_rate for spec in specs]

    def switch(optimizer):
        if not fused and kind is not SGD:
            without_fused_kernel(optimizer)

    network, optimizer, grads, params_MP = setup(specs, decays, dtype=dtype)
    switch(optimizer)
    for g_MP in grads:
        advance(network, optimizer, g_MP, rates)

    first = plain_network(params_MP)
    start = make_optimizer(first, specs, decays, [None] * n)
    switch(start)
    for g_MP in grads[:pause]:
        advance(first, start, g_MP, rates)
    states = [start.export(m, rates[m]) for m in range(n)]
    order = [2, 0, 1]
    second = plain_network(first.params_MP.numpy()[order])
    resumed = make_optimizer(second, [specs[m] for m in order], decays, [states[m] for m in order])
    switch(resumed)
    for g_MP in grads[pause:]:
        advance(second, resumed, g_MP[order], [rates[m] for m in order])
    np.testing.assert_array_equal(second.params_MP, network.params_MP[order])
    for ours, theirs in zip(resumed.moments, optimizer.moments, strict=True):
        np.testing.assert_array_equal(ours, theirs[order])
    assert resumed.steps.tolist() == [N_STEPS] * n


def test_export_is_a_copy_with_the_rate_it_is_given():
    network, optimizer, grads, _ = setup(make_specs(ADAM, 2))
    advance(network, optimizer, grads[0], [0.1, 0.2])
    state = optimizer.export(1, 0.125)
    assert (state.kind, state.learning_rate, state.steps) == (ADAM, 0.125, 1)
    kept = [moment.copy() for moment in state.moments]
    advance(network, optimizer, grads[1], [0.1, 0.2])
    for moment, old in zip(state.moments, kept, strict=True):
        assert moment.shape == (N_WEIGHTS + 1,)
        np.testing.assert_array_equal(moment, old)


def test_a_state_of_another_rule_is_not_taken_over():
    """SGD's velocity is no moment of Adam's: a changed solver starts afresh."""
    state = OptimizerState(SGD, 0.1, 5, (np.ones(N_WEIGHTS + 1),))
    _, optimizer, _, _ = setup(make_specs(ADAM, 1), states=[state])
    assert optimizer.steps.tolist() == [0]
    assert all((moment == 0).all() for moment in optimizer.moments)
