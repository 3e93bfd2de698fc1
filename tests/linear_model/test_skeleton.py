"""Leave-one-out from a few columns of the table of factors: as with all, and by refitting."""

import numpy as np
import pytest

from sknn_resid import Ridge, RidgeCV
from sknn_resid.linear_model import _loo
from sknn_resid.linear_model._filters import shrinkage
from sknn_resid.linear_model._least_squares import prepare

pytestmark = pytest.mark.usefixtures("with_and_without_kernels")

ALPHAS = np.geomspace(1e-4, 1e6, 80)


def _rows(weighted=False, spread=3.0, targets=2, n=2000):
    rng = np.random.default_rng(4)
    X = rng.normal(size=(n, 40)) * np.geomspace(1.0, spread, 40) + 5.0
    Y = X @ rng.normal(size=(40, targets)) + rng.normal(size=(n, targets))
    w = rng.choice([0.0, 0.5, 1.0, 3.0], n) if weighted else None
    return X, Y, w


def _whole_table(monkeypatch):
    monkeypatch.setattr(_loo, "COMPRESSED", 2**60)


@pytest.mark.parametrize("spread", [1.0, 3.0, 1e3, 1e6])
def test_the_table_is_its_skeleton(spread):
    X, Y, _ = _rows(spread=spread)
    factor = prepare(X, Y).factor
    alphas = np.concatenate([[0.0], ALPHAS, [1e300]])
    found = _loo.table(factor, alphas, len(X))
    if spread <= 3.0:
        assert found.mix is not None
        assert found.width < 20
    if found.mix is not None:
        F = shrinkage(factor, alphas)
        np.testing.assert_allclose(found.columns @ found.mix, F, rtol=0, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("targets", [1, 3])
def test_sums_and_leverages_are_those_of_the_whole_table(monkeypatch, weighted, targets):
    X, Y, w = _rows(weighted, targets=targets)
    factor = prepare(X, Y, sample_weight=w).factor
    assert _loo.table(factor, ALPHAS, len(X)).mix is not None
    found = _loo.loo_pass(factor, X, Y, ALPHAS, w)
    _whole_table(monkeypatch)
    whole = _loo.loo_pass(factor, X, Y, ALPHAS, w)
    for a, b in zip(found[:2], whole[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    number = np.array([3, 70])
    a, b = found[2].leverage(number), whole[2].leverage(number)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
    if weighted:
        assert (a[w == 0] == 0).all()


def test_rows_of_high_leverage_are_computed_with_the_whole_table(monkeypatch):
    X, Y, _ = _rows()
    X[7] *= 1e6
    X[1500, 3] = 1e9
    factor = prepare(X, Y).factor
    assert _loo.table(factor, ALPHAS, len(X)).mix is not None
    weighted, plain, squares = _loo.loo_pass(factor, X, Y, ALPHAS)
    assert squares is None
    _whole_table(monkeypatch)
    whole = _loo.loo_pass(factor, X, Y, ALPHAS)
    np.testing.assert_allclose(weighted, whole[0], rtol=1e-12)
    np.testing.assert_allclose(plain, whole[1], rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_those_of_refits(weighted):
    X, Y, w = _rows(weighted)
    factor = prepare(X, Y, sample_weight=w).factor
    assert _loo.table(factor, ALPHAS, len(X)).mix is not None
    errors = np.full((len(ALPHAS), *Y.shape), np.nan)
    for rows, part in _loo.loo_blocks(factor, X, Y, ALPHAS, w):
        errors[:, rows] = part
    weights = np.ones(len(X)) if w is None else w
    for i in np.flatnonzero(weights)[[0, 999, -1]]:
        keep = np.arange(len(X)) != i
        for a in (0, 40, 79):
            model = Ridge(ALPHAS[a]).fit(X[keep], Y[keep], sample_weight=weights[keep])
            left = Y[i] - model.predict(X[i : i + 1])[0]
            np.testing.assert_allclose(errors[a, i], left, rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per_target", [False, True])
def test_what_is_said_about_rows_is_what_ridge_says(weighted, per_target):
    X, Y, w = _rows(weighted)
    model = RidgeCV(ALPHAS, alpha_per_target=per_target).fit(X, Y, sample_weight=w)
    alone = Ridge(model.alpha_).fit(X, Y, sample_weight=w)
    np.testing.assert_allclose(model.leverage_, alone.leverage_, rtol=0, atol=1e-14)
    np.testing.assert_allclose(model.loo_residuals_, alone.loo_residuals_, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(model.coef_, alone.coef_)
