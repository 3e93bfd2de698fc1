"""The formulas of inference, and intervals that cover at their level."""

import numpy as np
import pytest
from scipy import stats

from sknn_resid import OLS, Ridge
from sknn_resid.linear_model._inference import (
    information_criteria,
    r2_from_sums,
    ratio,
    row_norms,
    t_quantile,
    two_sided_p_value,
)


def test_p_values_are_those_of_students_t():
    t = np.array([0.0, -0.3, 2.0, 15.0])
    for df in (1.0, 3.0, 7.5, 200.0):
        expected = 2 * stats.t.sf(np.abs(t), df)
        np.testing.assert_allclose(two_sided_p_value(t, df), expected, rtol=1e-11)


def test_p_values_keep_their_digits_far_out():
    """With 2 df the tail is known: P(|T| > t) = 1 - t / sqrt(2 + t^2), here by its series."""
    t = 1e8
    np.testing.assert_allclose(two_sided_p_value(t, 2.0), 1 / t**2, rtol=1e-12)


@pytest.mark.parametrize("df", [0.0, -1.0, np.nan])
def test_no_degrees_of_freedom_give_nan(df):
    assert np.isnan(two_sided_p_value(1.0, df))
    assert np.isnan(t_quantile(0.9, df))


def test_quantiles_invert_p_values():
    for level in (0.5, 0.95, 0.999):
        q = t_quantile(level, np.array([1.0, 4.0, 33.3]))
        np.testing.assert_allclose(two_sided_p_value(q, [1.0, 4.0, 33.3]), 1 - level, rtol=1e-9)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, -0.5])
def test_level_out_of_range(level):
    with pytest.raises(ValueError, match=r"level: must be strictly between 0 and 1"):
        t_quantile(level, 5.0)


def test_criteria_are_the_normal_density():
    rng = np.random.default_rng(0)
    residual = rng.normal(size=12)
    rss = residual @ residual
    density = stats.norm(0, np.sqrt(rss / 12)).logpdf(residual).sum()
    found = information_criteria(np.array([rss]), 12, np.array([3.0]))
    np.testing.assert_allclose(found.log_likelihood, density, rtol=1e-13)
    np.testing.assert_allclose(found.aic, -2 * density + 6, rtol=1e-13)
    np.testing.assert_allclose(found.bic, -2 * density + 3 * np.log(12), rtol=1e-13)
    assert information_criteria(np.array([0.0]), 12, 3.0).log_likelihood == np.inf


def test_small_helpers():
    assert r2_from_sums([2.0], [8.0]) == 0.75
    assert ratio(1.0, 0.0) == np.inf
    matrix = np.array([[3e-200, 4e-200], [3e200, 4e200], [0.0, 0.0], [np.inf, 1.0]])
    np.testing.assert_allclose(row_norms(matrix), [5e-200, 5e200, 0.0, np.inf])
    assert row_norms(np.zeros((2, 0))).tolist() == [0.0, 0.0]


def simulated(n_repeats, seed, n=15):
    """Targets of one model with many draws of the noise, as many targets of one X."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 3)) + 4.0
    truth = X @ [1.0, -2.0, 0.5] + 3.0
    return X, truth[:, None] + rng.normal(size=(n, n_repeats)), rng


def test_confidence_intervals_cover():
    """20,000 samples: the share covered has a standard deviation of 0.0021 at 90 %."""
    X, Y, _ = simulated(20_000, 0)
    model = OLS().fit(X, Y)
    interval = model.confidence_interval(0.9)
    inside = (interval[..., 0] <= [1.0, -2.0, 0.5]) & (interval[..., 1] >= [1.0, -2.0, 0.5])
    np.testing.assert_allclose(inside.mean(axis=0), 0.9, atol=0.01)
    low, high = model.intercept_confidence_interval(0.9).T
    np.testing.assert_allclose(np.mean((low <= 3.0) & (high >= 3.0)), 0.9, atol=0.01)


@pytest.mark.parametrize("kind", ["observation", "mean"])
def test_prediction_intervals_cover(kind):
    X, Y, rng = simulated(20_000, 1)
    model = OLS().fit(X, Y)
    x = np.array([[6.0, 3.0, 5.0]])
    expected = x @ [1.0, -2.0, 0.5] + 3.0
    wanted = expected + (rng.normal(size=20_000) if kind == "observation" else 0.0)
    interval = model.predict_interval(x, 0.8, kind=kind)[0]
    inside = (interval[:, 0] <= wanted) & (wanted <= interval[:, 1])
    np.testing.assert_allclose(inside.mean(), 0.8, atol=0.012)


def test_p_values_are_uniform_without_an_effect():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(12, 2))
    p = OLS().fit(X, rng.normal(size=(12, 5_000))).p_values_
    assert stats.kstest(p[:, 0], "uniform").pvalue > 0.01


def test_ridge_intervals_cover_what_they_say():
    """The expectation of the ridge estimate; the true coefficients only where bias is small."""
    X, Y, _ = simulated(20_000, 3, n=40)
    model = Ridge(30.0).fit(X, Y)
    Z = X - X.mean(axis=0)
    expectation = np.linalg.solve(Z.T @ Z + 30.0 * np.eye(3), Z.T @ Z @ [1.0, -2.0, 0.5])
    interval = model.confidence_interval(0.9)
    inside = (interval[..., 0] <= expectation) & (expectation <= interval[..., 1])
    # The bias inflates the residual variance, so they are somewhat too wide, never too narrow.
    assert (inside.mean(axis=0) > 0.89).all()
    true = (interval[..., 0] <= [1.0, -2.0, 0.5]) & (interval[..., 1] >= [1.0, -2.0, 0.5])
    assert true.mean(axis=0).min() < 0.7


def test_robust_intervals_cover_with_unequal_variances():
    """Noise that grows with the column: the classical interval is too short, HC3 is not."""
    rng = np.random.default_rng(4)
    x = np.linspace(0.0, 1.0, 60) ** 2
    Y = 2.0 * x[:, None] + rng.normal(size=(60, 4_000)) * (0.1 + 3.0 * x[:, None] ** 2)
    shares = {}
    for kind in ("nonrobust", "HC3"):
        low, high = OLS(cov_type=kind).fit(x[:, None], Y).confidence_interval(0.95)[:, 0].T
        shares[kind] = np.mean((low <= 2.0) & (high >= 2.0))
    assert shares["nonrobust"] < 0.9
    assert 0.92 < shares["HC3"] < 0.98
