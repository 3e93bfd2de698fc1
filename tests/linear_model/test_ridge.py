"""Ridge beside its defining formulas, in dense matrices and without any factorisation."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from sknn_resid import OLS, Ridge
from sknn_resid.linear_model import RidgePath, ridge_path


@pytest.fixture
def rows():
    rng = np.random.default_rng(11)
    X = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5)) + [3.0, 0.0, -2.0, 10.0, 1.0]
    Y = X @ rng.normal(size=(5, 3)) + 2.0 + rng.normal(size=(30, 3))
    w = rng.uniform(0.3, 3.0, size=30)
    return X, Y, w


def dense(X, y, w, alpha, theta, fit_intercept=True):
    """Everything from S = A'WA + alpha diag(0, theta), A = [1, X], as the textbook has it."""
    A = np.column_stack([np.ones(len(X)), X]) if fit_intercept else X
    P = np.diag(np.r_[0.0, theta] if fit_intercept else theta)
    S = A.T @ (w[:, None] * A) + alpha * P
    inverse = np.linalg.inv(S)
    b = inverse @ A.T @ (w * y)
    root = np.sqrt(w)[:, None] * A
    H = root @ inverse @ root.T
    rss = np.sum(w * (y - A @ b) ** 2)
    df_resid = w.sum() - np.trace(2 * H - H @ H)
    unscaled = inverse @ A.T @ (w[:, None] * A) @ inverse
    return b, H, rss, df_resid, rss / df_resid * unscaled


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("theta", [None, [1.0, 2.0, 0.5, 4.0, 1.0], [0.0, 1.0, 3.0, 0.0, 1.0]])
@pytest.mark.parametrize("alpha", [0.0, 0.7, 40.0])
def test_equals_the_formulas(rows, alpha, theta, fit_intercept):
    X, Y, w = rows
    y = Y[:, 0]
    model = Ridge(alpha, penalty_weights=theta, fit_intercept=fit_intercept)
    model.fit(X, y, sample_weight=w)
    weights = np.ones(5) if theta is None else np.asarray(theta)
    b, H, rss, df_resid, covariance = dense(X, y, w, alpha, weights, fit_intercept)
    first = int(fit_intercept)
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(model.coef_, b[first:], rtol=1e-10)
    np.testing.assert_allclose(model.df_fit_, np.trace(H), rtol=1e-11)
    np.testing.assert_allclose(model.df_resid_, df_resid, rtol=1e-11)
    np.testing.assert_allclose(model.rss_, rss, rtol=1e-11)
    np.testing.assert_allclose(
        model.coef_covariance_, covariance[first:, first:], rtol=1e-9, atol=1e-12 * scale
    )
    np.testing.assert_allclose(model.leverage_, np.diag(H), rtol=1e-9)
    if fit_intercept:
        np.testing.assert_allclose(model.intercept_, b[0], rtol=1e-10)
        np.testing.assert_allclose(model.intercept_variance_, covariance[0, 0], rtol=1e-9)
        np.testing.assert_allclose(
            model.intercept_covariance_, covariance[0, 1:], rtol=1e-8, atol=1e-11 * scale
        )
    # The standard deviation of a prediction, from the whole covariance.
    a = np.r_[np.ones(first), [1.0, -2.0, 0.0, 4.0, 2.0]]
    _, std = model.predict(a[None, first:], return_std=True)
    np.testing.assert_allclose(std**2, model.sigma2_ + a @ covariance @ a, rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 1.0, 1e6])
def test_equals_scikit_learn(rows, alpha):
    X, Y, w = rows
    ours = Ridge(alpha).fit(X, Y, sample_weight=w)
    theirs = SklearnRidge(alpha, solver="svd").fit(X, Y, sample_weight=w)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-9)
    assert ours.coef_.shape == theirs.coef_.shape
    assert Ridge(alpha).fit(X, Y[:, :1]).coef_.shape == (1, 5)
    assert ours.solver_ == "svd"


def test_alpha_per_target(rows):
    X, Y, w = rows
    alphas = [0.0, 2.0, 2.0]
    together = Ridge(alphas, cov_type="HC3").fit(X, Y, sample_weight=w)
    assert together.shrinkage_.shape == (3, 5)
    assert together.leverage_.shape == (30, 3)
    assert together.df_fit_.shape == (3,)
    for t, alpha in enumerate(alphas):
        alone = Ridge(alpha, cov_type="HC3").fit(X, Y[:, t], sample_weight=w)
        np.testing.assert_allclose(together.coef_[t], alone.coef_, rtol=1e-12)
        np.testing.assert_allclose(together.leverage_[:, t], alone.leverage_, rtol=1e-12)
        np.testing.assert_allclose(together.standard_errors_[t], alone.standard_errors_, rtol=1e-11)
        np.testing.assert_allclose(together.df_resid_[t], alone.df_resid_, rtol=1e-13)
        found = together.predict_components(X)[:, t]
        np.testing.assert_allclose(found, alone.predict_components(X), rtol=1e-9, atol=1e-11)
    plain = Ridge(alphas).fit(X, Y)
    assert plain.coef_covariance_.shape == (3, 5, 5)
    expected = np.sqrt(np.diagonal(plain.coef_covariance_, axis1=1, axis2=2))
    np.testing.assert_allclose(plain.standard_errors_, expected, rtol=1e-12)


def test_robust_covariance_is_the_sandwich(rows):
    X, Y, _ = rows
    y = Y[:, 1]
    model = Ridge(3.0, cov_type="HC2").fit(X, y)
    A = np.column_stack([np.ones(30), X])
    inverse = np.linalg.inv(A.T @ A + 3.0 * np.diag([0.0, 1, 1, 1, 1, 1]))
    h = np.diag(A @ inverse @ A.T)
    residual = y - model.predict(X)
    sandwich = inverse @ A.T @ np.diag(residual**2 / (1 - h)) @ A @ inverse
    np.testing.assert_allclose(model.coef_covariance_, sandwich[1:, 1:], rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(model.intercept_variance_, sandwich[0, 0], rtol=1e-9)


def test_shrinkage_factors(rows):
    X, Y, _ = rows
    model = Ridge(5.0).fit(X, Y[:, 0])
    d = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    np.testing.assert_allclose(model.shrinkage_, d**2 / (d**2 + 5.0), rtol=1e-12)
    assert (np.diff(model.shrinkage_) < 0).all()


def test_components_are_the_shrunk_directions(rows):
    """On the training rows, component j is u_j f_j u_j'y with u_j from a plain SVD."""
    X, Y, _ = rows
    y = Y[:, 0]
    model = Ridge(5.0).fit(X, y)
    U, d, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    expected = U * (d**2 / (d**2 + 5.0)) * (U.T @ (y - y.mean()))
    found = model.predict_components(X)
    np.testing.assert_allclose(found[:, 0], y.mean(), rtol=1e-13)
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-9, atol=1e-12)
    new = X[:3] * 2 - 1
    np.testing.assert_allclose(
        model.predict_components(new).sum(axis=1), model.predict(new), rtol=1e-11
    )
    several = Ridge(5.0, fit_intercept=False).fit(X, Y)
    np.testing.assert_allclose(
        several.predict_components(new).sum(axis=-1), several.predict(new), rtol=1e-11
    )


def test_unpenalised_feature_is_partialled_out(rows):
    """Frisch, Waugh, Lovell: a free column is first projected out of y and of the others."""
    X, Y, _ = rows
    y = Y[:, 0]
    model = Ridge(4.0, penalty_weights=[0.0, 1, 1, 1, 1]).fit(X, y)
    free = np.column_stack([np.ones(30), X[:, 0]])
    project = np.eye(30) - free @ np.linalg.pinv(free)
    Z = project @ X[:, 1:]
    expected = np.linalg.solve(Z.T @ Z + 4.0 * np.eye(4), Z.T @ (project @ y))
    np.testing.assert_allclose(model.coef_[1:], expected, rtol=1e-10)
    assert model.singular_values_[0] == np.inf
    assert model.shrinkage_[0] == 1.0


def test_limits_of_alpha(rows):
    X, Y, _ = rows
    y = Y[:, 0]
    exact = OLS().fit(X, y)
    zero = Ridge(0.0).fit(X, y)
    np.testing.assert_array_equal(zero.coef_, exact.coef_)
    np.testing.assert_allclose(zero.standard_errors_, exact.standard_errors_, rtol=1e-14)
    np.testing.assert_allclose(Ridge(1e-12).fit(X, y).coef_, exact.coef_, rtol=1e-9)
    huge = Ridge(1e30).fit(X, y)
    assert np.abs(huge.coef_).max() < 1e-25
    np.testing.assert_allclose(huge.intercept_, y.mean(), rtol=1e-13)
    np.testing.assert_allclose(huge.df_fit_, 1.0, rtol=1e-13)


def test_summary_says_what_it_is_conditional_on(rows):
    X, Y, _ = rows
    table = Ridge(1.0).fit(X, Y[:, 0]).summary()
    text = repr(table)
    assert "conditional on alpha" in text
    assert "bias" in text
    assert "F" not in table.figures


def test_parameters_are_read_not_changed(rows):
    X, Y, _ = rows
    alpha, theta, before = np.array([1.0, 2.0, 3.0]), np.array([1.0, 1, 0, 2, 1]), X.copy()
    model = Ridge(alpha, penalty_weights=theta, copy_X=False).fit(X, Y)
    assert model.alpha is alpha
    assert alpha.tolist() == [1.0, 2.0, 3.0]
    assert theta.tolist() == [1.0, 1, 0, 2, 1]
    np.testing.assert_array_equal(X, before)
    alpha[:] = 99.0  # the fit does not hang on the user's array
    np.testing.assert_allclose(
        model.df_fit_, Ridge([1.0, 2.0, 3.0], penalty_weights=theta).fit(X, Y).df_fit_
    )


@pytest.mark.parametrize("single", [True, False])
def test_path_is_one_ridge_per_alpha(rows, single):
    X, Y, w = rows
    Y = Y[:, 0] if single else Y
    theta = [1.0, 0.0, 2.0, 1.0, 1.0]
    alphas = [10.0, 0.0, 0.5]
    path = ridge_path(X, Y, alphas, sample_weight=w, penalty_weights=theta)
    for a, alpha in enumerate(alphas):
        one = Ridge(alpha, penalty_weights=theta).fit(X, Y, sample_weight=w)
        np.testing.assert_allclose(path.coefs[a], one.coef_, rtol=1e-10)
        np.testing.assert_allclose(path.intercepts[a], one.intercept_, rtol=1e-10)
        np.testing.assert_allclose(path.rss[a], one.rss_, rtol=1e-10)
        df_fit = one.df_fit_ if single else one.df_fit_[0]
        df_resid = one.df_resid_ if single else one.df_resid_[0]
        np.testing.assert_allclose(path.df_fit[a], df_fit, rtol=1e-12)
        np.testing.assert_allclose(path.df_resid[a], df_resid, rtol=1e-12)
        n = w.sum()
        gcv = (one.rss_ / n) / (1 - df_fit / n) ** 2
        np.testing.assert_allclose(path.gcv[a], gcv, rtol=1e-10)
        loo = np.average(one.loo_residuals_**2, weights=w, axis=0)
        np.testing.assert_allclose(path.loo[a], loo, rtol=1e-10)
    frame = path.to_frame()
    assert frame.shape == (3, 6 if single else 18)
    np.testing.assert_array_equal(frame.index, alphas)


def test_path_from_a_fitted_estimator(rows):
    X, Y, _ = rows
    streamed = OLS().partial_fit(X[:12], Y[:12]).partial_fit(X[12:], Y[12:])
    path = RidgePath.from_estimator(streamed, [1.0, 20.0])
    reference = ridge_path(X, Y, [1.0, 20.0])
    assert path.loo is None
    for name in ("coefs", "intercepts", "df_fit", "rss", "gcv", "shrinkage"):
        np.testing.assert_allclose(getattr(path, name), getattr(reference, name), rtol=1e-9)
    assert RidgePath.from_estimator(streamed).alphas.shape == (100,)


def test_automatic_grid_spans_all_shrinkage(rows):
    X, Y, _ = rows
    path = ridge_path(X, Y[:, 0])
    assert path.shrinkage[0].max() < 0.0011
    assert path.shrinkage[-1].min() > 0.998
    constant = ridge_path(np.ones((5, 2)), np.arange(5.0))
    assert constant.alphas.tolist() == [1.0]
    assert not constant.coefs.any()
