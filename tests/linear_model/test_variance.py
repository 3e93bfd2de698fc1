"""compare_variance: Delta in exact arithmetic, certificates, and when ridge wins."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import block_diag

from sknn_resid import OLS, Ridge, RidgeCV
from sknn_resid.linear_model import compare_variance, compare_variance_of


@pytest.fixture
def X():
    rng = np.random.default_rng(2)
    return rng.normal(size=(20, 4)) @ rng.normal(size=(4, 4)) + [1.0, 2.0, 0.0, -4.0]


COEF = np.array([1.0, -0.5, 2.0, 0.3])


def exact_inverse(M):
    """Gauss-Jordan over the rationals."""
    n = len(M)
    rows = [[*row, *(Fraction(int(i == j)) for j in range(n))] for i, row in enumerate(M)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for r in range(n):
            if r != i:
                rows[r] = [a - rows[r][i] * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [row[n:] for row in rows]


def product(A, B):
    return [
        [sum(a * b for a, b in zip(row, col, strict=True)) for col in zip(*B, strict=True)]
        for row in A
    ]


def exact_difference(X, alpha):
    """(X'X)^-1 - S^-1 X'X S^-1 of integer X without an intercept, rounded once."""
    columns = [[Fraction(int(v)) for v in column] for column in X.T]
    gram = [[sum(a * b for a, b in zip(u, v, strict=True)) for v in columns] for u in columns]
    S = [[g + (alpha if i == j else 0) for j, g in enumerate(row)] for i, row in enumerate(gram)]
    ols, inverse = exact_inverse(gram), exact_inverse(S)
    ridge = product(product(inverse, gram), inverse)
    pairs = zip(ols, ridge, strict=True)
    return np.array([[float(a - b) for a, b in zip(u, v, strict=True)] for u, v in pairs])


@pytest.mark.parametrize("power", [-100, -60, 0, 20])
@pytest.mark.parametrize("seed", range(4))
def test_difference_is_exact_for_any_alpha(power, seed):
    """At 2^-100 the difference of the two covariances in float64 is pure noise."""
    X = np.random.default_rng(seed).integers(-9, 10, size=(8, 4)).astype(float)
    found = compare_variance(X, 2.0**power, 1.0, fit_intercept=False)
    expected = exact_difference(X, Fraction(2) ** power)
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.abs((found.difference - expected) / size).max() < 1e-13
    assert (found.eigenvalues >= 0).all()
    assert found.is_positive_semidefinite


@pytest.mark.parametrize("theta", [None, [1.0, 3.0, 0.5, 2.0], [0.0, 1.0, 1.0, 2.0]])
def test_formulas(X, theta):
    """Variance, bias and error from dense inverses."""
    found = compare_variance(X, 2.5, 0.8, coef=COEF, penalty_weights=theta)
    Z = X - X.mean(axis=0)
    G = Z.T @ Z
    P = np.eye(4) if theta is None else np.diag(theta)
    inverse = np.linalg.inv(G + 2.5 * P)
    cov_ols, cov_ridge = 0.8 * np.linalg.inv(G), 0.8 * inverse @ G @ inverse
    bias = -2.5 * inverse @ P @ COEF
    np.testing.assert_allclose(found.cov_ols, cov_ols, rtol=1e-10)
    np.testing.assert_allclose(found.cov_ridge, cov_ridge, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.difference, cov_ols - cov_ridge, rtol=1e-8, atol=1e-13)
    np.testing.assert_array_equal(found.difference, found.difference.T)
    np.testing.assert_allclose(found.standard_errors_ols, np.sqrt(np.diag(cov_ols)), rtol=1e-11)
    np.testing.assert_allclose(found.standard_errors_ridge, np.sqrt(np.diag(cov_ridge)), rtol=1e-9)
    np.testing.assert_allclose(found.bias, bias, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.squared_bias, bias**2, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.mse_ridge, np.diag(cov_ridge) + bias**2, rtol=1e-9)
    np.testing.assert_allclose(found.mse_ols, np.diag(cov_ols), rtol=1e-10)
    np.testing.assert_allclose(found.total_mse_ridge, np.trace(cov_ridge) + bias @ bias, rtol=1e-9)
    eigenvalues = np.sort(np.linalg.eigvalsh(found.difference))[::-1]
    np.testing.assert_allclose(
        found.eigenvalues, eigenvalues, rtol=1e-8, atol=1e-12 * eigenvalues[0]
    )
    norm2 = COEF @ P @ COEF
    np.testing.assert_allclose(found.theobald_bound, 2 * 0.8 / norm2, rtol=1e-11)


@pytest.mark.parametrize("theta", [None, [1.0, 3.0, 0.5, 2.0], [0.0, 1.0, 1.0, 2.0]])
@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 1.0, 3.0, 100.0])
def test_when_ridge_wins(X, alpha, theta):
    """The criterion against the smallest eigenvalue of the difference of the MSE matrices."""
    found = compare_variance(X, alpha, 1.0, coef=COEF, penalty_weights=theta)
    matrix = found.difference - np.outer(found.bias, found.bias)
    smallest = np.linalg.eigvalsh(matrix)[0] / np.abs(matrix).max()
    assert found.ridge_wins_in_mse_matrix == (smallest > -1e-10)
    if alpha < found.theobald_bound:
        assert found.ridge_wins_in_mse_matrix
    text = found.conclusion
    assert "never grows" in text
    assert "need not" in text
    assert ("smaller" if found.total_mse_ridge < found.total_mse_ols else "larger") in text


def test_ridge_need_not_win():
    """Strong coefficients, little noise, a large penalty: less variance, more error."""
    X = np.random.default_rng(0).normal(size=(30, 3))
    found = compare_variance(X, 50.0, 0.01, coef=[5.0, -5.0, 5.0])
    assert found.is_positive_semidefinite
    assert (found.eigenvalues > 0).all()
    assert found.total_mse_ridge > found.total_mse_ols
    assert not found.ridge_wins_in_mse_matrix
    assert "larger" in found.conclusion


def test_alpha_zero_is_ols(X):
    found = compare_variance(X, 0.0, 1.0, coef=COEF)
    assert not found.difference.any()
    assert not found.eigenvalues.any()
    assert not found.bias.any()
    assert found.is_positive_semidefinite
    assert found.ridge_wins_in_mse_matrix
    np.testing.assert_array_equal(found.cov_ols, found.cov_ridge)


def test_variances_add_up_with_huge_and_tiny_alpha(X):
    for alpha in (1e-300, 1e300):
        found = compare_variance(X, alpha, 1.0, coef=COEF)
        total = found.standard_errors_ridge**2 + np.diag(found.difference)
        np.testing.assert_allclose(total, found.standard_errors_ols**2, rtol=1e-12)
        assert np.isfinite(found.mse_ridge).all()
    np.testing.assert_allclose(found.bias, -COEF, rtol=1e-12)


def test_deficient_rank(X):
    """Duplicated columns: OLS of minimum norm is biased, and no penalty outweighs that."""
    wide = np.column_stack([X, X[:, 0]])
    coef = np.r_[COEF, -1.0]
    found = compare_variance(wide, 1.0, 1.0, coef=coef)
    assert found.eigenvalues.shape == (5,)
    assert found.eigenvalues[-1] == 0.0
    assert (found.eigenvalues[:4] > 0).all()
    mean = (coef[0] + coef[4]) / 2
    expected = np.array([mean - coef[0], 0, 0, 0, mean - coef[4]])
    np.testing.assert_allclose(found.bias_ols, expected, atol=1e-12)
    Z = wide - wide.mean(axis=0)
    ridge = np.linalg.solve(Z.T @ Z + np.eye(5), Z.T @ Z @ coef) - coef
    np.testing.assert_allclose(found.bias, ridge, rtol=1e-9, atol=1e-12)
    assert not found.ridge_wins_in_mse_matrix
    # Seen by the rows entirely: then OLS is unbiased and ridge may win.
    even = compare_variance(wide, 1e-6, 1.0, coef=np.r_[0.5, COEF[1:], 0.5])
    assert not even.bias_ols.any()
    assert even.ridge_wins_in_mse_matrix


def test_deficient_rank_beside_a_free_column(X):
    wide = np.column_stack([X, X[:, 0]])
    theta = [1.0, 0.0, 1.0, 1.0, 1.0]
    found = compare_variance(wide, 1.0, 1.0, coef=np.r_[COEF, -1.0], penalty_weights=theta)
    Z, coef = wide - wide.mean(axis=0), np.r_[COEF, -1.0]
    ridge = np.linalg.solve(Z.T @ Z + np.diag(theta), Z.T @ Z @ coef) - coef
    np.testing.assert_allclose(found.bias, ridge, rtol=1e-8, atol=1e-11)


def test_no_direction_varies():
    found = compare_variance(np.ones((4, 2)), 1.0, 1.0, coef=[1.0, 2.0])
    assert not found.difference.any()
    assert found.is_positive_semidefinite
    assert "no direction" in found.certificate
    np.testing.assert_array_equal(found.bias, [-1.0, -2.0])
    repr(found)


def test_weights_are_repeated_rows(X):
    w = np.random.default_rng(0).integers(0, 4, size=20)
    weighted = compare_variance(X, 2.0, 1.0, sample_weight=w)
    repeated = compare_variance(np.repeat(X, w, axis=0), 2.0, 1.0)
    np.testing.assert_allclose(weighted.difference, repeated.difference, rtol=1e-11)


def test_a_monte_carlo_agrees(X):
    """The covariances and the bias are those of the estimates of many simulated samples."""
    rng = np.random.default_rng(7)
    Y = (X @ COEF)[:, None] + rng.normal(size=(20, 20_000)) * 0.5
    ridge, ols = Ridge(3.0).fit(X, Y).coef_, OLS().fit(X, Y).coef_
    found = compare_variance(X, 3.0, 0.25, coef=COEF)
    scale = np.abs(found.cov_ols).max()
    np.testing.assert_allclose(np.cov(ols.T), found.cov_ols, atol=0.05 * scale)
    scale = np.abs(found.cov_ridge).max()
    np.testing.assert_allclose(np.cov(ridge.T), found.cov_ridge, atol=0.05 * scale)
    error = found.standard_errors_ridge / np.sqrt(20_000)
    assert (np.abs(ridge.mean(axis=0) - COEF - found.bias) < 5 * error).all()


def test_from_fitted_estimators(X):
    rng = np.random.default_rng(0)
    Y = np.column_stack([X @ COEF + rng.normal(size=20), rng.normal(size=20)])
    ridge = Ridge([2.0, 5.0]).fit(X, Y)
    found = compare_variance_of(ridge, target=1)
    ols = OLS().fit(X, Y)
    assert found.alpha == 5.0
    np.testing.assert_allclose(found.sigma2, ols.sigma2_[1], rtol=1e-11)
    np.testing.assert_allclose(found.coef, ols.coef_[1], rtol=1e-10)
    np.testing.assert_allclose(found.cov_ols, ols.coef_covariance_[1], rtol=1e-10)
    assert found.plug_in
    assert "taking the estimate for the truth" in found.conclusion
    np.testing.assert_allclose(
        found.cov_ridge / found.sigma2,
        ridge.coef_covariance_[1] / ridge.sigma2_[1],
        rtol=1e-9,
        atol=1e-12,
    )
    chosen = RidgeCV().fit(X, Y[:, 0])
    assert compare_variance_of(chosen).alpha == chosen.alpha_
    given = compare_variance_of(ols, alpha=2.0, sigma2=1.0, coef=COEF)
    reference = compare_variance(X, 2.0, 1.0, coef=COEF)
    np.testing.assert_allclose(given.difference, reference.difference, rtol=1e-9)
    assert not given.plug_in
    streamed = OLS().partial_fit(X, Y[:, 0])
    np.testing.assert_allclose(
        compare_variance_of(streamed, alpha=2.0, sigma2=1.0).difference, given.difference, rtol=1e-9
    )


def test_table_and_text(X):
    frame = pd.DataFrame(X, columns=["age", "bmi", "<bp>", "s1"])
    found = compare_variance(frame, 2.0, 1.0, coef=COEF)
    table = found.to_frame()
    assert list(table.index) == ["age", "bmi", "<bp>", "s1"]
    saved = table["variance_ols"] - table["variance_ridge"]
    np.testing.assert_allclose(table["variance_saved"], saved, rtol=1e-9)
    np.testing.assert_allclose(table["share_saved"], saved / table["variance_ols"], rtol=1e-9)
    assert {"bias", "squared_bias", "mse_ols", "mse_ridge"} <= set(table.columns)
    assert "never grows" in repr(found)
    assert "<bp>" not in found._repr_html_()
    unknown = compare_variance(frame, 2.0, 1.0)
    assert "mse_ridge" not in unknown.to_frame().columns
    assert "coef=" in repr(unknown)
    with pytest.raises(AttributeError, match="coef"):
        unknown.bias  # noqa: B018 (reading it is what raises)


def test_columns_of_very_different_size():
    """A block of scale 2^40 and one of scale 2^-40: both parts to full accuracy."""
    rng = np.random.default_rng(0)
    A, B = rng.integers(-5, 6, size=(6, 2)), rng.integers(-5, 6, size=(6, 2))
    X = block_diag(A * 2.0**40, B * 2.0**-40)
    found = compare_variance(X, 1.0, 1.0, fit_intercept=False)
    large, small = exact_difference(A, Fraction(1, 2**80)), exact_difference(B, Fraction(2) ** 80)
    np.testing.assert_allclose(found.difference[:2, :2], large * 2.0**-80, rtol=1e-12)
    np.testing.assert_allclose(found.difference[2:, 2:], small * 2.0**80, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, "alpha.*negative.*-1"),
        ({"alpha": np.nan}, "alpha.*finite"),
        ({"alpha": [1.0, 2.0]}, "alpha.*one number"),
        ({"sigma2": -2.0}, "sigma2.*negative"),
        ({"sigma2": np.inf}, "sigma2.*finite"),
        ({"coef": [1.0]}, "coef.*4.*shape"),
        ({"coef": [1.0, np.nan, 1.0, 1.0]}, "coef.*NaN"),
        ({"penalty_weights": [1.0]}, "penalty_weights.*feature"),
        ({"sample_weight": [-1.0] * 20}, "sample_weight.*negative"),
    ],
)
def test_bad_arguments(X, change, message):
    arguments = {"alpha": 1.0, "sigma2": 1.0} | change
    with pytest.raises(ValueError, match=message):
        compare_variance(X, **arguments)


def test_what_a_fitted_estimator_cannot_know():
    X = np.random.default_rng(0).normal(size=(3, 4))
    model = Ridge(1.0).fit(X, X[:, 0])
    with pytest.raises(ValueError, match=r"sigma2: has to be given.*3 observations"):
        compare_variance_of(model)
    with pytest.raises(ValueError, match="alpha: has to be given"):
        compare_variance_of(OLS().fit(X.T, X.T[:, 0]))
    with pytest.raises(ValueError, match="target: must be from 0 to 0"):
        compare_variance_of(model, sigma2=1.0, target=1)
