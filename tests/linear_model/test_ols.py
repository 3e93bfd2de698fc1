"""OLS beside statsmodels, which computes the same quantities in another way."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.stats.outliers_influence import OLSInfluence, variance_inflation_factor

from sknn_resid import OLS
from sknn_resid.linear_model import SummaryFrame


@pytest.fixture
def rows():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)) + [5.0, 0.0, -3.0, 1.0]
    y = X @ [1.0, -2.0, 0.5, 0.0] + 3.0 + rng.normal(size=40)
    return X, y


PER_TARGET = [
    *("coef_", "intercept_", "coef_covariance_", "intercept_variance_", "intercept_covariance_"),
    *("standard_errors_", "intercept_standard_error_", "t_values_", "intercept_t_value_"),
    *("p_values_", "intercept_p_value_", "sigma2_", "rss_", "df_fit_", "df_resid_", "r2_"),
    *("adjusted_r2_", "aic_", "bic_", "log_likelihood_"),
]


def with_constant(X):
    return np.column_stack([np.ones(len(X)), X])


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_equals_statsmodels(rows, fit_intercept):
    X, y = rows
    ours = OLS(fit_intercept=fit_intercept).fit(X, y)
    theirs = sm.OLS(y, with_constant(X) if fit_intercept else X).fit()

    def joined(intercept, coef):
        return np.r_[intercept, coef] if fit_intercept else coef

    def same(found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300)

    same(joined(ours.intercept_, ours.coef_), theirs.params)
    same(joined(ours.intercept_standard_error_, ours.standard_errors_), theirs.bse)
    same(joined(ours.intercept_t_value_, ours.t_values_), theirs.tvalues)
    np.testing.assert_allclose(
        joined(ours.intercept_p_value_, ours.p_values_), theirs.pvalues, rtol=1e-9
    )
    covariance = theirs.cov_params()
    if fit_intercept:
        same(ours.intercept_variance_, covariance[0, 0])
        np.testing.assert_allclose(ours.intercept_covariance_, covariance[0, 1:], rtol=1e-10)
        covariance = covariance[1:, 1:]
    np.testing.assert_allclose(
        ours.coef_covariance_, covariance, rtol=1e-12, atol=1e-12 * np.abs(covariance).max()
    )
    same(ours.sigma2_, theirs.scale)
    same(ours.rss_, theirs.ssr)
    same(ours.r2_, theirs.rsquared)
    same(ours.adjusted_r2_, theirs.rsquared_adj)
    same(ours.log_likelihood_, theirs.llf)
    same(ours.aic_, theirs.aic)
    same(ours.bic_, theirs.bic)
    assert ours.df_resid_ == theirs.df_resid
    assert ours.df_fit_ == X.shape[1] + fit_intercept
    intervals = theirs.conf_int(0.1)
    expected = intervals[1:] if fit_intercept else intervals
    np.testing.assert_allclose(ours.confidence_interval(0.9), expected, rtol=1e-11)
    if fit_intercept:
        found = ours.intercept_confidence_interval(0.9)
        np.testing.assert_allclose(found, intervals[0], rtol=1e-11)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("kind", ["HC0", "HC1", "HC2", "HC3"])
def test_robust_covariances_equal_statsmodels(rows, kind, fit_intercept):
    X, y = rows
    ours = OLS(cov_type=kind, fit_intercept=fit_intercept).fit(X, y)
    theirs = sm.OLS(y, with_constant(X) if fit_intercept else X).fit(cov_type=kind)
    bse, covariance = theirs.bse, theirs.cov_params()
    if fit_intercept:
        np.testing.assert_allclose(ours.intercept_standard_error_, bse[0], rtol=1e-12)
        np.testing.assert_allclose(ours.intercept_covariance_, covariance[0, 1:], rtol=1e-9)
        bse, covariance = bse[1:], covariance[1:, 1:]
    np.testing.assert_allclose(ours.standard_errors_, bse, rtol=1e-12)
    np.testing.assert_allclose(ours.coef_covariance_, covariance, rtol=1e-9)
    # The same numbers in the variance of fitted values.
    x = np.array([[1.0, 2.0, 3.0, 4.0]])
    mean = theirs.get_prediction(with_constant(x) if fit_intercept else x).se_mean
    half = np.diff(ours.predict_interval(x, kind="mean"), axis=1).ravel() / 2
    factor = np.diff(ours.confidence_interval(), axis=1)[0] / 2 / ours.standard_errors_[0]
    np.testing.assert_allclose(half / factor, mean, rtol=1e-10)


def test_predictions_equal_statsmodels(rows):
    X, y = rows
    new = np.array([[4.0, 1.0, -2.0, 0.0], [50.0, -20.0, 0.0, 3.0]])
    ours = OLS().fit(X, y)
    theirs = sm.OLS(y, with_constant(X)).fit().get_prediction(with_constant(new))
    predicted, std = ours.predict(new, return_std=True)
    np.testing.assert_allclose(predicted, theirs.predicted_mean, rtol=1e-12)
    np.testing.assert_allclose(std, theirs.se_obs, rtol=1e-12)
    np.testing.assert_allclose(
        ours.predict_interval(new, 0.8), theirs.conf_int(obs=True, alpha=0.2), rtol=1e-11
    )
    np.testing.assert_allclose(
        ours.predict_interval(new, 0.8, kind="mean"), theirs.conf_int(alpha=0.2), rtol=1e-11
    )


def test_rows_and_design_equal_statsmodels(rows):
    X, y = rows
    ours = OLS().fit(X, y)
    influence = OLSInfluence(sm.OLS(y, with_constant(X)).fit())
    np.testing.assert_allclose(ours.leverage_, influence.hat_matrix_diag, rtol=1e-11)
    np.testing.assert_allclose(ours.loo_residuals_, influence.resid_press, rtol=1e-11)
    np.testing.assert_allclose(ours.leverage_.sum(), ours.df_fit_, rtol=1e-13)
    vif = [variance_inflation_factor(with_constant(X), j + 1) for j in range(4)]
    np.testing.assert_allclose(ours.vif_, vif, rtol=1e-10)
    centred = X - X.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=0)
    np.testing.assert_allclose(ours.condition_number_, np.linalg.cond(unit), rtol=1e-10)
    singular = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(ours.singular_values_, singular, rtol=1e-12)
    assert ours.rank_ == 4
    assert ours.rank_gap_ == np.inf


def test_precision_weights_equal_wls(rows):
    X, y = rows
    w = np.random.default_rng(0).uniform(0.2, 5.0, size=len(y))
    ours = OLS(weight_type="precision").fit(X, y, sample_weight=w)
    theirs = sm.WLS(y, with_constant(X), weights=w).fit()
    np.testing.assert_allclose(ours.coef_, theirs.params[1:], rtol=1e-11)
    np.testing.assert_allclose(ours.standard_errors_, theirs.bse[1:], rtol=1e-11)
    np.testing.assert_allclose(ours.intercept_standard_error_, theirs.bse[0], rtol=1e-11)
    np.testing.assert_allclose(ours.log_likelihood_, theirs.llf, rtol=1e-12)
    np.testing.assert_allclose(ours.aic_, theirs.aic, rtol=1e-12)
    np.testing.assert_allclose(ours.r2_, theirs.rsquared, rtol=1e-12)
    for kind in ("HC0", "HC1", "HC2", "HC3"):
        ours = OLS(weight_type="precision", cov_type=kind).fit(X, y, sample_weight=w)
        bse = sm.WLS(y, with_constant(X), weights=w).fit(cov_type=kind).bse
        np.testing.assert_allclose(ours.standard_errors_, bse[1:], rtol=1e-10)


def test_a_row_of_precision_zero_is_no_row(rows):
    """statsmodels counts it among the observations; it says nothing and must not."""
    X, y = rows
    w = np.ones(len(y))
    w[[0, 7]] = 0.0
    weighted = OLS(weight_type="precision").fit(X, y, sample_weight=w)
    without = OLS().fit(np.delete(X, [0, 7], 0), np.delete(y, [0, 7]))
    np.testing.assert_allclose(weighted.standard_errors_, without.standard_errors_, rtol=1e-13)
    assert weighted.df_resid_ == without.df_resid_
    assert weighted.leverage_[[0, 7]].tolist() == [0.0, 0.0]


def test_several_targets_are_each_alone(rows):
    X, y = rows
    Y = np.column_stack([y, y**2, X[:, 0]])
    together = OLS().fit(X, Y)
    assert together.coef_.shape == (3, 4)
    assert together.intercept_.shape == (3,)
    assert together.coef_covariance_.shape == (3, 4, 4)
    assert together.predict(X).shape == (40, 3)
    assert together.leverage_.shape == (40,)
    assert together.n_targets_ == 3
    interval = together.predict_interval(X)
    assert interval.shape == (40, 3, 2)
    for t in range(2):
        alone = OLS().fit(X, Y[:, t])
        for name in PER_TARGET:
            found, expected = getattr(together, name)[t], getattr(alone, name)
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-300, err_msg=name)
        np.testing.assert_allclose(together.loo_residuals_[:, t], alone.loo_residuals_, rtol=1e-9)
        np.testing.assert_allclose(interval[:, t], alone.predict_interval(X), rtol=1e-12)
        np.testing.assert_allclose(
            together.confidence_interval()[t], alone.confidence_interval(), rtol=1e-12
        )


def test_a_column_of_targets_keeps_its_axis(rows):
    X, y = rows
    column = OLS().fit(X, y[:, None])
    assert column.coef_.shape == (1, 4)
    assert column.intercept_.shape == (1,)
    assert column.predict(X).shape == (40, 1)
    assert column.predict(X, return_std=True)[1].shape == (40, 1)
    flat = OLS().fit(X, y)
    assert isinstance(flat.intercept_, float)
    assert flat.coef_.shape == (4,)
    np.testing.assert_array_equal(column.predict(X)[:, 0], flat.predict(X))


def test_no_intercept_has_no_uncertainty(rows):
    X, y = rows
    model = OLS(fit_intercept=False).fit(X, y)
    assert model.intercept_ == 0.0
    assert model.intercept_standard_error_ == 0.0
    assert not model.intercept_covariance_.any()


def test_exact_fit_has_zero_residuals():
    """Wampler's idea: integer data on an exact polynomial leave exactly nothing over."""
    x = np.arange(21.0)
    X = np.column_stack([x, x**2, x**3])
    model = OLS().fit(X, 1 + x + x**2 + x**3)
    np.testing.assert_array_equal(model.coef_, [1.0, 1.0, 1.0])
    assert model.intercept_ == 1.0
    assert model.rss_ < 1e-40  # of a total of 1e8
    assert model.r2_ == 1.0
    assert model.standard_errors_.max() < 1e-20


def test_names_of_columns_and_targets_reach_the_summary(rows):
    X, y = rows
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    table = OLS().fit(frame, y).summary()
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == ["(intercept)", "a", "b", "c", "d"]
    assert list(table.columns) == ["coef", "std_error", "t", "p", "0.025", "0.975", "vif"]
    both = OLS().fit(frame, pd.DataFrame({"height": y, "weight": 2 * y})).summary(level=0.9)
    assert list(both.index.get_level_values("target").unique()) == ["height", "weight"]
    assert list(both.columns[4:6]) == ["0.05", "0.95"]
    np.testing.assert_allclose(both.loc[("weight", "a"), "coef"], 2 * table.loc["a", "coef"])
    unnamed = OLS(fit_intercept=False).fit(X, y).summary()
    assert list(unnamed.index) == ["x0", "x1", "x2", "x3"]


def test_summary_has_statsmodels_numbers(rows):
    X, y = rows
    model = OLS().fit(X, y)
    table = model.summary()
    theirs = sm.OLS(y, with_constant(X)).fit()
    np.testing.assert_allclose(table["coef"], theirs.params, rtol=1e-12)
    np.testing.assert_allclose(table["std_error"], theirs.bse, rtol=1e-12)
    np.testing.assert_allclose(table["t"], theirs.tvalues, rtol=1e-12)
    np.testing.assert_allclose(table[["0.025", "0.975"]], theirs.conf_int(), rtol=1e-11)
    assert table.figures["F"] == f"{theirs.fvalue:.6g}"
    assert table.figures["p of F"] == f"{theirs.f_pvalue:.6g}"
    assert table.figures["AIC"] == f"{theirs.aic:.6g}"
    assert table.figures["observations"] == "40"


def test_summary_shows_its_context(rows):
    X, y = rows
    table = OLS(cov_type="HC1").fit(X, y).summary()
    text, html = repr(table), table._repr_html_()
    for shown in (text, html):
        assert "residual df" in shown
        assert "HC1" in shown
        assert "std_error" in shown
        assert "x3" in shown
    assert html.count("<table") == 2
    # What is computed from it is a plain table: the figures need not describe it any more.
    assert type(table[["coef"]]) is pd.DataFrame
    assert isinstance(table, SummaryFrame)


def test_html_is_escaped(rows):
    X, y = rows
    frame = pd.DataFrame(X, columns=["<b>", "b", "c", "d"])
    assert "<b>" not in OLS().fit(frame, y).summary()._repr_html_()
