"""The sums of a torch device are those of numpy: shown on torch's CPU, and on CUDA where it is."""

import dataclasses

import numpy as np
import pytest
import torch

from sknn_resid import OLS, Ridge
from sknn_resid.linear_model._accelerator import gram_on, prepare_on, resolve
from sknn_resid.linear_model._gram import choose_shifts, gram
from sknn_resid.linear_model._least_squares import covariance, prepare_stream, solve, stream

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def problem(n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4)) * [1.0, 1e-7, 1e9, 3.0] + [0.0, 5.0, 0.0, 1e6]
    Y = np.column_stack([X[:, 0] + X[:, 3], rng.normal(size=n)])
    return X, Y, rng.uniform(0.0, 2.0, size=n) * (rng.uniform(size=n) > 0.2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [5, 1024, 4000])
@pytest.mark.parametrize("slices", [2, 3, 4])
def test_sums_are_numpys(slices, n, weighted, device):
    X, Y, w = problem(n)
    w = w if weighted else None
    shift, y_shift = choose_shifts(X, Y, w)
    found = gram_on(device, X, Y, w, shift, y_shift, slices)
    expected = gram(X, Y, w, shift, y_shift, slices)
    assert found.n_rows == expected.n_rows
    for name in ("xx", "xy", "yy"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.shape == b.shape
        # Relative to the norms of the columns, which the errors of the sums are relative to.
        size = np.sqrt(np.diagonal(expected.xx[0]))
        other = {"xx": size, "xy": np.sqrt(expected.yy[0]), "yy": np.sqrt(expected.yy[0])}[name]
        scale = other**2 if name == "yy" else np.outer(size, other)
        difference = np.abs(((a[0] - b[0]) + (a[1:].sum(axis=0) - b[1:].sum(axis=0))) / scale)
        assert difference.max() < 2.0 ** (4.0 - expected.precision)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_solutions_are_equal(fit_intercept, device):
    X, Y, w = problem(300)
    Y = Y[:, 1:]  # of the other, some coefficients are nothing but rounding
    arguments = {"sample_weight": w, "fit_intercept": fit_intercept, "penalty": None}
    found = prepare_on(device, X, Y, refine="auto", **arguments)
    # The same sums from numpy.
    state = stream(None, X, Y, sample_weight=w, fit_intercept=fit_intercept)
    expected = prepare_stream(state)
    for alpha in (0.0, 0.5):
        a, b = solve(found, alpha), solve(expected, alpha)
        np.testing.assert_allclose(a.coef, b.coef, rtol=1e-15)
        np.testing.assert_allclose(a.intercept, b.intercept, rtol=1e-15)
        np.testing.assert_allclose(
            covariance(found, alpha).coef, covariance(expected, alpha).coef, rtol=1e-14
        )


def test_a_row_of_weight_zero_may_hold_anything():
    X, Y, w = problem(50)
    X[w == 0] = 1e300
    found = gram_on("cpu", X, Y, w, np.zeros(4), np.zeros(2), 3)
    kept = w > 0
    expected = gram(X[kept], Y[kept], w[kept], np.zeros(4), np.zeros(2), 3)
    np.testing.assert_allclose(found.xx[0], expected.xx[0], rtol=1e-15)
    assert dataclasses.asdict(found).keys() == dataclasses.asdict(expected).keys()


def test_auto_is_the_host_for_small_and_for_wide_problems():
    assert resolve("auto", 1000, 50) == "cpu"
    assert resolve("auto", 5000, 100_000) == "cpu"
    large = resolve("auto", 10_000_000, 100)
    assert large == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ValueError, match=r"device: 'cuda' was asked for, but 0 CUDA devices"):
        OLS(device="cuda").fit([[0.0], [1.0], [3.0]], [1.0, 2.0, 3.0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_estimators_on_cuda():
    X, Y, w = problem(3000)
    for model in (OLS, Ridge):
        there, here = model(device="cuda").fit(X, Y, w), model(device="cpu").fit(X, Y, w)
        assert there.device_ == "cuda"
        np.testing.assert_allclose(there.coef_, here.coef_, rtol=1e-14)
        np.testing.assert_allclose(there.standard_errors_, here.standard_errors_, rtol=1e-12)
