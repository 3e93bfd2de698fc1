"""Each activation by itself: forward and derivative against torch, autograd and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine.builders import ACTIVATIONS

from sknn_resid.engine import activations
from sknn_resid.engine.activations import Activation, Elu, Relu, Softplus

FAR = [0.0, 1e-12, 30.0, 800.0]
GRID = np.unique([*FAR, *np.negative(FAR), *np.linspace(-25, 25, 101)])


def run(activation: Activation, z: torch.Tensor, delta: torch.Tensor):
    """f(z) and delta * f'(z), in memory laid out as the network lays it out."""
    z = z.clone()
    h = torch.full_like(z, torch.nan) if activation.needs_input else z
    d = delta.clone()
    backward = activation.bind_backward(z, h, d)  # bound before the forward pass has run
    before = z.clone()
    for op in activation.bind_forward(z, h):
        op()
    if activation.needs_input:
        assert z.equal(before) or z.isnan().any(), "z is needed again by the backward pass"
    result = h.clone()
    for op in backward:
        op()
    assert h.equal(result) or h.isnan().any(), "h is needed again by the layer above"
    return result, d


def test_every_activation_is_covered():
    """A new class must be added to the table that these tests go through."""
    classes = {
        value
        for value in vars(activations).values()
        if isinstance(value, type) and issubclass(value, Activation) and value is not Activation
    }
    assert {type(case.engine) for case in ACTIVATIONS.values()} == classes


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_against_torch_in_float64(name):
    """The grid holds 0, points beside it, and points where the function has saturated."""
    case = ACTIVATIONS[name]
    delta = torch.linspace(-2, 3, len(GRID), dtype=torch.float64)
    z = torch.from_numpy(GRID).requires_grad_()
    expected = case.torch(z)
    (slope,) = torch.autograd.grad(expected, z, delta)
    h, d = run(case.engine, z.detach(), delta)
    np.testing.assert_allclose(h, expected.detach(), rtol=1e-15, atol=0)
    # elu's slope is h + a: exact to the last bit of a, where a e^z is far smaller than that.
    atol = 5e-16 if isinstance(case.engine, Elu) else 0
    np.testing.assert_allclose(d, slope, rtol=1e-14, atol=atol)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_forward_against_the_formula(name):
    case = ACTIVATIONS[name]
    h, _ = run(case.engine, torch.from_numpy(GRID), torch.ones(len(GRID), dtype=torch.float64))
    np.testing.assert_allclose(h, case.numpy(GRID), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_against_differences(name):
    case = ACTIVATIONS[name]
    z = np.linspace(-8, 8, 160)  # no point at 0
    step = 2e-3
    expected = (
        8 * (case.numpy(z + step) - case.numpy(z - step))
        - (case.numpy(z + 2 * step) - case.numpy(z - 2 * step))
    ) / (12 * step)
    _, d = run(case.engine, torch.from_numpy(z), torch.ones(len(z), dtype=torch.float64))
    np.testing.assert_allclose(d, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["float32", "bfloat16"]
)
def test_low_precision(name, dtype, bound):
    """As in float64 to rounding, and finite where it has saturated."""
    case = ACTIVATIONS[name]
    z = torch.from_numpy(GRID[np.abs(GRID) > 1e-6]).to(dtype)
    ones = torch.ones(len(z), dtype=dtype)
    h, d = run(case.engine, z, ones)
    assert h.dtype == d.dtype == dtype
    expected_h, expected_d = run(case.engine, z.double(), ones.double())
    np.testing.assert_allclose(h.double(), expected_h, rtol=bound, atol=bound)
    np.testing.assert_allclose(d.double(), expected_d, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_stack_of_matrices(name):
    """The layers hand over (M, B, H) memory: the same numbers as for a vector."""
    case, rng = ACTIVATIONS[name], np.random.default_rng(0)
    z, delta = (torch.from_numpy(rng.normal(0, 3, (2, 5, 3))) for _ in range(2))
    whole = run(case.engine, z, delta)
    flat = run(case.engine, z.flatten(), delta.flatten())
    for a, b in zip(whole, flat, strict=True):
        np.testing.assert_allclose(a.flatten(), b, rtol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_not_a_number_goes_through(name):
    """A diverging model must show: no activation may turn NaN into a number."""
    z = torch.tensor([torch.nan, 1.0], dtype=torch.float64)
    h, _ = run(ACTIVATIONS[name].engine, z, torch.ones_like(z))
    assert torch.equal(h.isnan(), torch.tensor([True, False]))


def test_relu_has_slope_zero_at_zero():
    """scikit-learn's choice, also at -0.0 and where a sum has cancelled exactly."""
    z = torch.tensor([0.0, -0.0, 5e-324, -5e-324], dtype=torch.float64)
    _, d = run(Relu(), z, torch.full_like(z, 7.0))
    np.testing.assert_array_equal(d, [0, 0, 7, 0])


def test_softplus_is_exact_where_torchs_default_is_not():
    """torch's softplus becomes the identity beyond 20, off by 2e-9 there."""
    z = torch.tensor([-700.0, -40.0, -1.0, 20.1, 25.0, 30.0, 36.0, 49.9, 50.1, 700.0])
    z = z.double()
    h, d = run(Softplus(), z, torch.ones_like(z))
    expected = np.logaddexp(0, z.numpy())
    np.testing.assert_allclose(h, expected, rtol=1e-15, atol=0)
    with np.errstate(over="ignore"):
        slope = 1 / (1 + np.exp(-z.numpy()))
    np.testing.assert_allclose(d, slope, rtol=1e-15, atol=0)
    default = torch.nn.functional.softplus(z).numpy()
    assert np.abs(default / expected - 1).max() > 1e-12  # so the threshold matters


def test_activations_are_values():
    for case in ACTIVATIONS.values():
        twin = type(case.engine)(*vars(case.engine).values())
        assert twin == case.engine
        assert hash(twin) == hash(case.engine)
