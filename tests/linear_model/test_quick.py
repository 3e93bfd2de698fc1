"""One refinement step for well-conditioned problems: against rational arithmetic, and refusals."""

from dataclasses import replace

import numpy as np
import pytest
from linear_model import exact_oracle as oracle

from sknn_resid.linear_model import _quick
from sknn_resid.linear_model._least_squares import covariance, prepare, solve

pytestmark = pytest.mark.usefixtures("with_and_without_kernels")

OFFSETS = {"near 0": 0.0, "moved": 3.0, "far": 1e4}


def _rows(seed, offset, weighted, targets=2):
    rng = np.random.default_rng([41, seed])
    n, p = int(rng.integers(8, 16)), int(rng.integers(1, 4))
    X = rng.normal(size=(n, p)) * 10.0 ** rng.uniform(-0.5, 0.5, p) + offset
    Y = X @ rng.normal(size=(p, targets)) + rng.normal(size=(n, targets)) + 2.0 * offset
    weights = rng.choice([0.0, 0.3, 1.0, 2.0], n) if weighted else None
    if weights is not None:
        weights[: p + 3] = 1.0
    return X, Y, weights


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1e3])
@pytest.mark.parametrize("offset", OFFSETS.values(), ids=OFFSETS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_is_the_correctly_rounded_answer(alpha, offset, weighted, fit_intercept):
    taken = 0
    for seed in range(4):
        X, Y, w = _rows(seed, offset if fit_intercept else 0.0, weighted)
        settings = {"fit_intercept": fit_intercept}
        true = oracle.solve_exactly(X, Y, weights=w, alpha=alpha, **settings)
        problem = prepare(X, Y, sample_weight=w, **settings)
        if problem.quick is None:
            continue
        found = _quick.solve_quickly(problem.quick, np.full(2, alpha))
        if found is not None:
            taken += 1
            coef, intercept, rss, _ = found
            assert oracle.ulps(coef[0], true.coef) <= 1
            if fit_intercept:
                assert oracle.ulps(intercept[0], true.intercept) <= 1
            np.testing.assert_allclose(rss, [float(v) for v in true.rss], rtol=1e-15)
        spread = _quick.covariance_quickly(problem.quick)
        if alpha == 0 and spread is not None:
            own = int(fit_intercept)
            assert oracle.ulps(spread[own:, own:], true.covariance) <= 1
            if fit_intercept:
                assert oracle.ulps(spread[0, 0], true.intercept_variance) <= 1
                assert oracle.ulps(spread[0, 1:], true.intercept_covariance) <= 1
    assert taken >= 2


def test_a_penalty_for_each_target():
    X, Y, _ = _rows(3, 3.0, False)
    quick = prepare(X, Y).quick
    both = _quick.solve_quickly(quick, np.array([0.0, 5.0]))
    for k, alpha in enumerate([0.0, 5.0]):
        alone = oracle.solve_exactly(X, Y[:, [k]], alpha=alpha)
        assert oracle.ulps(both[0][0, k], alone.coef[0]) <= 1
        np.testing.assert_allclose(both[2][k], float(alone.rss[0]), rtol=1e-15)


@pytest.mark.parametrize("size", [(300, 20), (1500, 60)])
@pytest.mark.parametrize("alpha", [0.0, 30.0])
def test_equals_the_general_way_where_the_bits_suffice_for_typical_entries(size, alpha):
    rng = np.random.default_rng(5)
    X = rng.normal(size=size) + rng.choice([0.0, 20.0], size[1])
    Y = rng.normal(size=(size[0], 2))
    problem = prepare(X, Y)
    assert problem.quick is not None
    assert not problem.quick.strict
    general = replace(problem, quick=None, decomposition=problem.equations)
    a, b = solve(problem, alpha), solve(general, alpha)
    np.testing.assert_allclose(a.coef, b.coef, rtol=2.3e-16)
    np.testing.assert_allclose(a.intercept, b.intercept, rtol=2.3e-16)
    np.testing.assert_allclose(a.rss, b.rss, rtol=1e-15)
    a, b = covariance(problem, 0.0), covariance(general, 0.0)
    assert a.refined
    scale = np.sqrt(np.outer(np.diag(b.coef), np.diag(b.coef)))
    assert (np.abs(a.coef - b.coef) <= 2.3e-16 * (np.abs(b.coef) + 2.0**-12 * scale)).all()
    np.testing.assert_allclose(a.intercept_variance, b.intercept_variance, rtol=2.3e-16)
    np.testing.assert_array_equal(a.coef, a.coef.T)


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_assumed_rate_of_a_step_holds_at_the_limit_of_what_is_accepted(mean):
    rng = np.random.default_rng(9)
    n, p = 60, 10
    left = np.linalg.qr(rng.normal(size=(n, p)))[0]
    right = np.linalg.qr(rng.normal(size=(p, p)))[0]
    X = (left * np.geomspace(1.0, 28.0, p)) @ right
    X = X - X.mean(axis=0)
    X += mean * X.std(axis=0)
    quick = prepare(X, rng.normal(size=(n, 1)), fit_intercept=True).quick
    assert quick is not None
    assert not quick.sums.shift.any()
    A = oracle.fractions(np.column_stack([np.ones(n), X]) / quick.scale)
    B = oracle.fractions(quick.basis)
    S = oracle.product(oracle.transpose(A), A)
    M = oracle.product(B, oracle.transpose(B))
    one = np.eye(p + 1, dtype=int).astype(object)
    rest = (np.array(oracle.product(S, M), dtype=object) - one).astype(float)
    norms = quick.norms / quick.scale
    rate = np.abs(rest * norms / norms[:, None]).max()
    assert 0 < rate <= _quick.RATE * (p + 1) / 16


def test_a_coefficient_of_zero_is_left_to_the_general_way():
    """Its last bit is not certain with few bits; with many it is exactly 0."""
    X = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [2.0, 0.0], [-2.0, 0.0]])
    Y = X[:, :1] / 3.0 + np.array([[0.1, -0.1, -0.1, 0.1, 0.0, 0.0]]).T
    problem = prepare(X, Y)
    assert problem.quick is not None
    assert _quick.solve_quickly(problem.quick, np.zeros(1)) is None
    true = oracle.solve_exactly(X, Y)
    assert oracle.ulps(solve(problem).coef, true.coef) <= 4
    assert _quick.covariance_quickly(problem.quick) is None
    assert oracle.ulps(covariance(problem).coef, true.covariance) <= 4


def _unusual():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(20, 3))
    Y = rng.normal(size=(20, 1))
    wide = np.array([1.0, 1.0, 1e6])
    return {
        "scales": (X * wide, Y, {}),
        "dependent": (np.column_stack([X, X[:, 0] + X[:, 1]]), Y, {}),
        "ill-conditioned": (np.column_stack([X, X[:, 0] + 0.01 * X[:, 1]]), Y, {}),
        "constant column": (np.column_stack([X, np.ones(20)]), Y, {}),
        "column of zeros": (np.column_stack([X, np.zeros(20)]), Y, {}),
        "constant target": (X, np.ones((20, 1)), {}),
        "more columns than rows": (X[:3], Y[:3], {}),
        "penalties per feature": (X, Y, {"penalty": wide}),
        "not refined": (X, Y, {"refine": False}),
    }


@pytest.mark.parametrize("case", _unusual())
def test_the_unusual_takes_the_general_way(case):
    X, Y, settings = _unusual()[case]
    assert prepare(X, Y, **settings).quick is None


@pytest.mark.parametrize("alpha", [1e100, 1e280])
def test_a_huge_penalty_does_not_overflow(alpha):
    X, Y, _ = _rows(1, 0.0, False)
    true = oracle.solve_exactly(X, Y, alpha=alpha)
    assert oracle.ulps(solve(prepare(X, Y), alpha).coef, true.coef) <= 4
