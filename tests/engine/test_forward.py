"""The compiled forward pass against the formulas in float64, and against the way without it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sknn_resid._native import compiled
from sknn_resid.engine import forward as module
from sknn_resid.engine.activations import Gelu, Identity, Logistic, Relu, Tanh
from sknn_resid.engine.fitted import FittedNetwork
from sknn_resid.engine.forward import LARGEST, LOGITS, POSITIVE, forward_pass, link_of
from sknn_resid.engine.losses import (
    AbsoluteError,
    BinaryCrossEntropy,
    Poisson,
    SoftmaxCrossEntropy,
    SquaredError,
)

needs_it = pytest.mark.skipif(compiled("forward") is None, reason="the compiled part is missing")
DTYPES = ("float32", "float64")
# Fewer rows than vectors, than a panel, one more; before and after weights are packed.
ROWS = (1, 2, 5, 7, 8, 9, 15, 16, 17, 33, 127, 128, 129, 300)
NETS = [
    ((4, 1), ()),
    ((1, 3, 2), (Identity(),)),
    ((7, 33, 20, 3), (Tanh(), Logistic())),
    ((64, 100, 10), (Relu(),)),
    ((5, 300, 6, 5), (Relu(), Tanh())),
    ((400, 260, 7), (Logistic(),)),
]


def network(sizes, activations, dtype, loss=None, seed=0):
    rng = np.random.default_rng(seed)
    shapes = list(itertools.pairwise(sizes))
    coefs = [(rng.standard_normal(s) / np.sqrt(s[0])).astype(dtype) for s in shapes]
    intercepts = [rng.standard_normal(s[1]).astype(dtype) for s in shapes]
    return FittedNetwork(coefs, intercepts, activations, loss or SquaredError())


def rows_of(n, width, dtype, seed=1):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(dtype)


def wide_logits(net, X):
    """The definition, in float64."""
    h = X.astype(float)
    functions = {
        Identity: lambda z: z,
        Relu: lambda z: np.maximum(z, 0),
        Tanh: np.tanh,
        Logistic: lambda z: 1 / (1 + np.exp(-z)),
    }
    activations = (*net.activations, Identity())
    for w, b, activation in zip(net.coefs, net.intercepts, activations, strict=True):
        h = functions[type(activation)](h @ w.astype(float) + b)
    return h


def wide_outputs(net, X):
    z = wide_logits(net, X)
    if isinstance(net.loss, SoftmaxCrossEntropy):
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)
    if isinstance(net.loss, BinaryCrossEntropy):
        return 1 / (1 + np.exp(-z))
    return np.exp(z) if isinstance(net.loss, Poisson) else z


def tolerance(dtype):
    return 100 * np.finfo(dtype).eps


def ran(net, X, out, link, **options):
    return forward_pass(net.coefs, net.intercepts, net.activations, X, out, link, **options)


@needs_it
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "activations"), NETS)
def test_logits_of_any_number_of_rows(sizes, activations, dtype):
    net = network(sizes, activations, dtype)
    for n in ROWS:
        X = rows_of(n, sizes[0], dtype)
        for laid_out in (X, np.asfortranarray(X), X.repeat(2, 0)[::2], X[::-1]):
            z = np.full((n, sizes[-1]), np.nan, dtype)
            assert ran(net, laid_out, z, LOGITS)
            right = wide_logits(net, laid_out)
            np.testing.assert_allclose(z, right, rtol=tolerance(dtype), atol=tolerance(dtype))


@needs_it
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "loss",
    [SquaredError(), AbsoluteError(), Poisson(), BinaryCrossEntropy(), SoftmaxCrossEntropy((6,))],
    ids=lambda loss: type(loss).__name__,
)
@pytest.mark.parametrize("n", [1, 40, 200])
def test_links_and_codes(loss, dtype, n):
    net = network((9, 21, 6), (Relu(),), dtype, loss)
    X = rows_of(n, 9, dtype)
    right, z = wide_outputs(net, X), wide_logits(net, X)
    outputs = net.compiled(X, link_of(loss))
    assert outputs.dtype == dtype
    np.testing.assert_allclose(outputs, right, rtol=tolerance(dtype), atol=tolerance(dtype))
    np.testing.assert_array_equal(net.compiled(X, LARGEST), z.argmax(axis=1))
    np.testing.assert_array_equal(net.compiled(X, POSITIVE), z > 0)


@needs_it
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_company(dtype):
    """Bit for bit: so neither on the number of threads nor on how rows are cut into calls."""
    net = network((30, 300, 41, 5), (Tanh(), Relu()), dtype, SoftmaxCrossEntropy((5,)))
    X = rows_of(300, 30, dtype)
    whole = net.outputs(X)
    for size in (1, 3, 16, 50, 129):
        parts = [net.outputs(X[first : first + size]) for first in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@needs_it
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_short_calls(threads, monkeypatch):
    monkeypatch.setattr(module, "CALL_FLOPS", 2e5)
    monkeypatch.setattr(module, "SINGLE_THREAD_FLOPS", 1e4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    net = network((20, 50, 4), (Relu(),), "float64")
    for n in (1, 5, 64, 1000):
        X = rows_of(n, 20, "float64")
        np.testing.assert_allclose(net.logits(X), wide_logits(net, X), rtol=1e-12, atol=1e-12)


@needs_it
def test_rows_of_another_type_are_converted(monkeypatch):
    monkeypatch.setattr(module, "CONVERTED_ROWS", 70)
    net = network((20, 50, 4), (Relu(),), "float32")
    X = rows_of(300, 20, "float64")
    np.testing.assert_array_equal(net.logits(X), net.logits(X.astype("float32")))


@needs_it
@pytest.mark.parametrize("layout", [np.asfortranarray, lambda w: w[:, ::1].copy()])
def test_weights_column_by_column(layout):
    net = network((20, 50, 4), (Tanh(),), "float64")
    other = FittedNetwork([layout(w) for w in net.coefs], net.intercepts, net.activations, net.loss)
    for n in (1, 9, 200):
        X = rows_of(n, 20, "float64")
        np.testing.assert_allclose(other.logits(X), net.logits(X), rtol=1e-13, atol=1e-13)


@needs_it
@pytest.mark.parametrize("n", [1, 20, 200])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_ends_at_what_is_not_finite(n, bad):
    net = network((20, 50, 4), (Relu(),), "float64")
    X, out = rows_of(n, 20, "float64"), np.empty((n, 4))
    assert ran(net, X, out, LOGITS, only_finite=True)
    X[n - 1, 19] = bad
    assert not ran(net, X, out, LOGITS, only_finite=True)
    assert ran(net, X, out, LOGITS)
    assert np.isfinite(out[:-1]).all()
    assert not np.isfinite(out[-1]).all()
    X[n - 1, 19] = np.finfo(float).max  # large is not infinite
    assert ran(net, X, out, LOGITS, only_finite=True)


@needs_it
@pytest.mark.parametrize("n", [1, 20, 200])
@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy((4,)), BinaryCrossEntropy(), Poisson()])
def test_weights_that_are_no_numbers_show(n, loss):
    net = network((20, 50, 4), (Relu(),), "float64", loss)
    net.coefs[0][0, 0] = np.nan
    assert np.isnan(net.outputs(rows_of(n, 20, "float64"))).all()


@needs_it
@pytest.mark.parametrize("dtype", DTYPES)
def test_first_of_equals_and_no_number_as_argmax(dtype):
    z = np.zeros((40, 5), dtype)
    z[1, 3] = z[2, 1] = z[2, 4] = 1
    z[3] = -np.inf
    z[4, 2], z[5] = np.nan, np.nan
    z[6, 3], z[6, 4] = np.nan, np.inf
    # The logits are X itself: no hidden layer, the identity as weights would make NaN of 0 * inf.
    for k in (None, 20):
        part = z[:k]
        codes = np.empty(len(part), np.int64)
        net = FittedNetwork([np.zeros((1, 5), dtype)], [np.zeros(5, dtype)], (), SquaredError())
        for row in range(len(part)):
            shown = FittedNetwork(net.coefs, [part[row]], (), SquaredError())
            assert shown.compiled(np.zeros((1, 1), dtype), LARGEST)[0] == part[row].argmax()
            many = shown.compiled(np.zeros((len(part), 1), dtype), LARGEST)
            np.testing.assert_array_equal(many, np.full_like(codes, part[row].argmax()))


@needs_it
def test_saturated_logistic_stays_inside():
    for dtype in DTYPES:
        net = FittedNetwork(
            [np.ones((1, 1), dtype)], [np.zeros(1, dtype)], (), BinaryCrossEntropy()
        )
        X = np.array([[-1e4], [1e4]], dtype).repeat(30, axis=0)
        p = net.outputs(X)[:, 0]
        assert (p > 0).all()
        assert (p < 1).all()


def test_the_way_without_it(monkeypatch):
    """Same results without the compiled part, for every link and activation it knows."""
    losses = [SquaredError(), Poisson(), BinaryCrossEntropy(), SoftmaxCrossEntropy((4,))]
    cases = [(loss, a) for loss in losses for a in (Identity(), Relu(), Tanh(), Logistic())]
    nets = [network((12, 30, 4), (a,), "float64", loss) for loss, a in cases]
    X = rows_of(150, 12, "float64")
    with_it = [(net.outputs(X), net.logits(X), net.hidden(X)) for net in nets]
    monkeypatch.setattr(module, "compiled", lambda _name: None)
    for net, results in zip(nets, with_it, strict=True):
        others = net.outputs(X), net.logits(X), net.hidden(X)
        for result, other in zip(results, others, strict=True):
            np.testing.assert_allclose(result, other, rtol=1e-12, atol=1e-13)


def test_what_it_leaves_to_others():
    net = network((12, 30, 4), (Gelu(),), "float64")
    X, out = rows_of(20, 12, "float64"), np.empty((20, 4))
    assert not ran(net, X, out, LOGITS)  # an activation it does not know
    net = network((12, 30, 4), (Relu(),), "float64")
    assert not ran(net, X, out, link_of(SoftmaxCrossEntropy((2, 2))))  # two heads
    assert not ran(net, X.astype("float16"), out, LOGITS)
    assert not ran(net, X[:, :-1], out, LOGITS)  # a matter for numpy's own message
    assert not ran(net, X, out[:, :-1].copy(), LOGITS)
    assert not ran(net, X, out.astype("float32"), LOGITS)
    assert not ran(net, X[:0], out[:0], LOGITS)
    large = network((1000, 1000), (), "float64")
    assert not ran(large, rows_of(2, 1000, "float64"), np.empty((2, 1000)), LOGITS)
