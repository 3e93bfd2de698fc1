"""Against rational arithmetic: every entry within 4 units in the last place, whatever the data.

The cases are the ones that break float64 least squares: columns of very different scale, duplicated
and combined columns, offsets of 1e15, more columns than rows, weights of zero, one row, one column,
penalties from 0 to 2^60. The seeds are drawn from one root, so the cases are many and fixed.
"""

import os
from fractions import Fraction

import numpy as np
import pytest
from linear_model import exact_oracle as oracle

from sknn_resid.linear_model._least_squares import (
    covariance,
    prepare,
    prepare_stream,
    residuals,
    solve,
    stream,
    variance_difference,
)

ALPHAS = [0.0, 2.0**-100, 1.0, 2.0**60]
# Another root gives other cases; SKNN_RESID_EXACT_SEED runs more of them.
ROOT = int(os.environ.get("SKNN_RESID_EXACT_SEED", "7021"))


def _plain(rng):
    n, p = int(rng.integers(4, 10)), int(rng.integers(1, 5))
    return rng.integers(-9, 10, (n, p)).astype(float)


def _duplicated(rng):
    X = _plain(rng)
    extra = X[:, rng.integers(0, X.shape[1], 2)] * rng.choice([1.0, -2.0, 0.5], 2)
    X = np.column_stack([X, extra, X.sum(axis=1)])
    return X[:, rng.permutation(X.shape[1])]


def _scaled(rng):
    X = _plain(rng)
    return X * 2.0 ** rng.integers(-40, 41, X.shape[1])


def _scaled_and_duplicated(rng):
    X = _duplicated(rng)
    return X * 2.0 ** rng.integers(-40, 41, X.shape[1])


def _offset(rng):
    X = _plain(rng)
    X[:, 0] += 1e15
    return X


def _wide(rng):
    n = int(rng.integers(2, 5))
    return rng.integers(-9, 10, (n, n + int(rng.integers(1, 4)))).astype(float)


def _one_row(rng):
    return rng.integers(-9, 10, (1, int(rng.integers(1, 4)))).astype(float)


def _one_column(rng):
    return rng.integers(-9, 10, (int(rng.integers(2, 7)), 1)).astype(float)


def _constant_column(rng):
    X = _plain(rng)
    return np.column_stack([X, np.full(len(X), 3.0), np.zeros(len(X))])


def _nearly_dependent(rng):
    X = _plain(rng)
    nudge = 2.0**-24 * rng.integers(-3, 4, len(X))
    return np.column_stack([X, X[:, 0] + nudge])


def _real_numbers(rng):
    n, p = int(rng.integers(4, 10)), int(rng.integers(1, 5))
    return rng.normal(size=(n, p)) * 10.0 ** rng.integers(-3, 4, p) + rng.integers(-3, 4, p)


FAMILIES = [
    _plain,
    _duplicated,
    _scaled,
    _scaled_and_duplicated,
    _offset,
    _wide,
    _one_row,
    _one_column,
    _constant_column,
    _nearly_dependent,
    _real_numbers,
]


def _case(family, number):
    rng = np.random.default_rng([ROOT, FAMILIES.index(family), number])
    X = family(rng)
    Y = rng.integers(-20, 21, (len(X), int(rng.integers(1, 3)))).astype(float)
    weights = None
    if rng.random() < 0.5:
        weights = rng.choice([0.0, 1.0, 2.0, 0.3, 1e-3], len(X))
        weights[int(rng.integers(len(X)))] = 1.0
    return X, Y, weights, bool(rng.integers(2))


CASES = [(family, number) for family in FAMILIES for number in range(5)]


def _name(value):
    return value.__name__.strip("_") if callable(value) else str(value)


@pytest.mark.parametrize("alpha", ALPHAS, ids=["0", "2^-100", "1", "2^60"])
@pytest.mark.parametrize(("family", "number"), CASES, ids=_name)
def test_coefficients_covariance_and_variance_difference(family, number, alpha):
    X, Y, weights, fit_intercept = _case(family, number)
    true = oracle.solve_exactly(X, Y, weights=weights, fit_intercept=fit_intercept, alpha=alpha)
    problem = prepare(X, Y, sample_weight=weights, fit_intercept=fit_intercept)
    found = solve(problem, alpha)
    assert found.refined
    assert oracle.ulps(found.coef, true.coef) <= 4
    if fit_intercept:
        assert oracle.ulps(found.intercept, true.intercept) <= 4
    spread = covariance(problem, alpha)
    assert spread.refined
    assert oracle.ulps(spread.coef, true.covariance) <= 4
    if fit_intercept:
        assert oracle.ulps(spread.intercept_variance, true.intercept_variance) <= 4
        assert oracle.ulps(spread.intercept_covariance, true.intercept_covariance) <= 4
    else:
        assert np.isnan(spread.intercept_variance)
    lost = variance_difference(problem, alpha)
    exact = np.array(true.difference, dtype=object)
    scale = np.abs(exact).max(axis=1)  # relative to the row's largest: entries may be 0
    error = np.abs(np.array(oracle.fractions(lost.coef), dtype=object) - exact)
    for row, largest in zip(error, scale, strict=True):
        assert all(e <= Fraction(1e-14) * largest for e in row)
    assert (lost.eigenvalues >= 0).all()
    if alpha == 0:
        assert not lost.coef.any()


@pytest.mark.parametrize(("family", "number"), CASES[::3], ids=_name)
def test_penalty_per_feature(family, number):
    X, Y, weights, fit_intercept = _case(family, number)
    rng = np.random.default_rng([ROOT, number])
    penalty = rng.choice([0.25, 1.0, 3.7], X.shape[1])
    settings = {"fit_intercept": fit_intercept, "penalty": penalty}
    true = oracle.solve_exactly(X, Y, weights=weights, alpha=0.7, **settings)
    problem = prepare(X, Y, sample_weight=weights, **settings)
    found, spread = solve(problem, 0.7), covariance(problem, 0.7)
    assert found.refined
    assert oracle.ulps(found.coef, true.coef) <= 4
    assert oracle.ulps(spread.coef, true.covariance) <= 4


@pytest.mark.parametrize("number", range(8))
def test_free_features(number):
    X, Y, weights, fit_intercept = _case(_plain, number + 100)
    X = np.column_stack([X, np.arange(len(X)) ** 2.0, np.arange(len(X)) ** 3.0])[:, -3:]
    penalty = np.ones(X.shape[1])
    penalty[0] = 0.0
    settings = {"fit_intercept": fit_intercept, "penalty": penalty}
    weights = None if weights is None else weights + 1
    true = oracle.solve_exactly(X, Y, weights=weights, alpha=2.5, **settings)
    problem = prepare(X, Y, sample_weight=weights, **settings)
    found, spread = solve(problem, 2.5), covariance(problem, 2.5)
    assert found.refined
    assert oracle.ulps(found.coef, true.coef) <= 4
    assert oracle.ulps(spread.coef, true.covariance) <= 4
    assert oracle.ulps(variance_difference(problem, 2.5).coef, true.difference) <= 8


@pytest.mark.parametrize(("family", "number"), CASES[1::5], ids=_name)
def test_weights_are_repeated_rows_bit_for_bit(family, number):
    X, Y, _, fit_intercept = _case(family, number)
    weights = np.random.default_rng([ROOT, 5, number]).integers(0, 4, len(X)).astype(float)
    weights[0] = 2.0
    repeated = np.repeat(np.arange(len(X)), weights.astype(int))
    one = prepare(X, Y, sample_weight=weights, fit_intercept=fit_intercept)
    two = prepare(X[repeated], Y[repeated], fit_intercept=fit_intercept)
    a, b = solve(one), solve(two)
    true = oracle.solve_exactly(X, Y, weights=weights, fit_intercept=fit_intercept)
    zero = np.array([[v == 0 for v in row] for row in true.coef])
    assert (a.coef[~zero] == b.coef[~zero]).all()


@pytest.mark.parametrize(("family", "number"), CASES[2::5], ids=_name)
def test_stream_equals_all_rows(family, number):
    X, Y, weights, fit_intercept = _case(family, number)
    true = oracle.solve_exactly(X, Y, weights=weights, fit_intercept=fit_intercept, alpha=1.0)
    state = None
    for part in np.array_split(np.arange(len(X)), min(3, len(X))):
        w = None if weights is None else weights[part]
        state = stream(state, X[part], Y[part], sample_weight=w, fit_intercept=fit_intercept)
    found = solve(prepare_stream(state), 1.0)
    for got, exact in zip(found.coef, true.coef, strict=True):
        size = float(max(abs(v) for v in exact)) or 1.0
        np.testing.assert_allclose(got, [float(v) for v in exact], rtol=1e-12, atol=1e-12 * size)


@pytest.mark.parametrize(("family", "number"), CASES[::4], ids=_name)
def test_residuals_and_their_sum(family, number):
    X, Y, weights, fit_intercept = _case(family, number)
    true = oracle.solve_exactly(X, Y, weights=weights, fit_intercept=fit_intercept)
    found = solve(prepare(X, Y, sample_weight=weights, fit_intercept=fit_intercept))
    total = [sum(v * v for v in column) for column in zip(*oracle.fractions(Y), strict=True)]
    errors = residuals(found, X, Y)
    for k, (rss, all_of_it) in enumerate(zip(true.rss, total, strict=True)):
        got = Fraction(float(found.rss[k]))
        assert abs(got - rss) <= rss * Fraction(1e-15) + all_of_it * Fraction(2.0**-96)
        exact = [
            y[k] - true.intercept[k] - sum(a * b for a, b in zip(x, true.coef[k], strict=True))
            for x, y in zip(oracle.fractions(X), oracle.fractions(Y), strict=True)
        ]
        largest = max(abs(v) for v in exact)
        near = largest * Fraction(1e-11) + Fraction(2.0**-48) * max(1, all_of_it)
        assert all(
            abs(Fraction(float(e)) - v) <= near for e, v in zip(errors[:, k], exact, strict=True)
        )


@pytest.mark.parametrize("number", range(12))
def test_oracle_satisfies_penrose(number):
    """The oracle itself: the four conditions that define a pseudo-inverse hold exactly."""
    rng = np.random.default_rng(number)
    A = oracle.fractions(rng.integers(-3, 4, (4, 2)) @ rng.integers(-3, 4, (2, 3)))
    B = oracle.pseudo_inverse(A)
    AB, BA = oracle.product(A, B), oracle.product(B, A)
    assert oracle.product(AB, A) == A
    assert oracle.product(BA, B) == B
    assert oracle.transpose(AB) == AB
    assert oracle.transpose(BA) == BA
