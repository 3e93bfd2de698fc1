"""What must not make a difference: weights or repeated rows, stacking, units, batches, order."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from sknn_resid import OLS, Ridge, RidgeCV

SCALARS = [
    *("sigma2_", "rss_", "df_fit_", "df_resid_", "r2_", "adjusted_r2_", "log_likelihood_"),
    *("aic_", "bic_", "intercept_", "intercept_standard_error_", "intercept_p_value_"),
]
ARRAYS = ["coef_", "standard_errors_", "t_values_", "p_values_", "coef_covariance_", "vif_"]
MODELS = [
    OLS(),
    OLS(fit_intercept=False),
    OLS(refine=False),
    OLS(cov_type="HC3"),
    OLS(cov_type="HC1"),
    Ridge(2.0),
    Ridge(0.0),
    Ridge(2.0, cov_type="HC2", fit_intercept=False),
    Ridge(3.0, penalty_weights=[0.0, 1.0, 2.0]),
    RidgeCV([1.0, 2.0], criterion="gcv"),
    RidgeCV([1.0, 2.0], criterion="bic"),
]


def same(one, other, rtol=1e-10):
    for name in SCALARS + ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        scale = np.abs(b).max() if np.size(b) and np.isfinite(b).all() else 1.0
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-13 * scale, err_msg=name)


@pytest.fixture
def rows():
    rng = np.random.default_rng(8)
    X = rng.normal(size=(30, 3)) + np.array([10.0, 0.0, -3.0])
    y = X @ [1.0, 2.0, -1.0] + 3.0 + rng.normal(size=30)
    w = rng.integers(0, 4, size=30)
    return X, y, w


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_weights_are_repeated_rows(model, rows):
    X, y, w = rows
    index = np.random.default_rng(0).permutation(np.repeat(np.arange(30), w))
    weighted = clone(model).fit(X, y, sample_weight=w)
    repeated = clone(model).fit(X[index], y[index])
    same(weighted, repeated)
    new = X[:5] + 1.0
    for a, b in zip(
        weighted.predict(new, return_std=True), repeated.predict(new, return_std=True), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-11)
    # One of w_i copies has 1 / w_i of the leverage of the weighted row.
    np.testing.assert_allclose(weighted.leverage_[index] / w[index], repeated.leverage_, rtol=1e-9)


def test_minimum_norm_with_weights_is_that_of_repeated_rows():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(6, 9)), rng.normal(size=6)
    w = np.array([1, 3, 0, 2, 2, 1])
    with pytest.warns(np.exceptions.RankWarning):
        weighted = OLS().fit(X, y, sample_weight=w)
    with pytest.warns(np.exceptions.RankWarning):
        repeated = OLS().fit(np.repeat(X, w, axis=0), np.repeat(y, w))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-11)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-10)
    Z = np.delete(X, 2, axis=0) - np.average(X, axis=0, weights=w)
    centred = np.delete(y, 2) - np.average(y, weights=w)
    root = np.sqrt(np.delete(w, 2))
    expected = np.linalg.pinv(root[:, None] * Z, rcond=1e-12) @ (root * centred)
    np.testing.assert_allclose(weighted.coef_, expected, rtol=1e-9)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_precision_weights_have_no_unit(rows, factor):
    X, y, w = rows
    w = w + 0.5
    one = OLS(weight_type="precision").fit(X, y, sample_weight=w)
    other = OLS(weight_type="precision").fit(X, y, sample_weight=factor * w)
    np.testing.assert_allclose(one.standard_errors_, other.standard_errors_, rtol=1e-11)
    np.testing.assert_allclose(one.p_values_, other.p_values_, rtol=1e-9)
    np.testing.assert_allclose(one.aic_, other.aic_, rtol=1e-11)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_order_of_rows_and_columns(model, rows):
    X, y, w = rows
    rng = np.random.default_rng(1)
    order, columns = rng.permutation(30), rng.permutation(3)
    one = clone(model).fit(X, y, sample_weight=w)
    params = {}
    if getattr(model, "penalty_weights", None) is not None:
        params["penalty_weights"] = np.asarray(model.penalty_weights)[columns]
    other = clone(model).set_params(**params)
    other.fit(X[np.ix_(order, columns)], y[order], sample_weight=w[order])
    for name in SCALARS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-9)
    np.testing.assert_allclose(one.coef_[columns], other.coef_, rtol=1e-10)
    np.testing.assert_allclose(one.standard_errors_[columns], other.standard_errors_, rtol=1e-10)


def test_hstack_halves_the_coefficients(rows):
    """X beside itself: OLS of minimum norm shares equally; ridge is ridge with half the penalty."""
    X, y, _ = rows
    twice = np.hstack([X, X])
    with pytest.warns(np.exceptions.RankWarning, match="rank 3 of 6"):
        wide = OLS().fit(twice, y)
    one = OLS().fit(X, y)
    np.testing.assert_allclose(wide.coef_, np.r_[one.coef_, one.coef_] / 2, rtol=1e-12)
    np.testing.assert_allclose(wide.intercept_, one.intercept_, rtol=1e-11)
    np.testing.assert_allclose(wide.sigma2_, one.sigma2_, rtol=1e-11)
    wide, one = Ridge(3.0).fit(twice, y), Ridge(1.5).fit(X, y)
    np.testing.assert_allclose(wide.coef_, np.r_[one.coef_, one.coef_] / 2, rtol=1e-11)
    np.testing.assert_allclose(wide.df_fit_, one.df_fit_, rtol=1e-12)


def test_vstack_doubles_the_penalty(rows):
    X, y, _ = rows
    twice = Ridge(3.0).fit(np.vstack([X, X]), np.r_[y, y])
    np.testing.assert_allclose(twice.coef_, Ridge(1.5).fit(X, y).coef_, rtol=1e-12)
    same_coef = OLS().fit(np.vstack([X, X]), np.r_[y, y]).coef_
    np.testing.assert_allclose(same_coef, OLS().fit(X, y).coef_, rtol=1e-12)


def test_units_of_columns_and_target(rows):
    X, y, _ = rows
    units = np.array([1e-6, 1.0, 4e7])
    one, other = OLS().fit(X, y), OLS().fit(X * units, 100.0 * y)
    np.testing.assert_allclose(other.coef_, 100.0 * one.coef_ / units, rtol=1e-11)
    np.testing.assert_allclose(other.t_values_, one.t_values_, rtol=1e-10)
    np.testing.assert_allclose(other.vif_, one.vif_, rtol=1e-10)
    np.testing.assert_allclose(other.condition_number_, one.condition_number_, rtol=1e-10)


def test_shifted_columns_change_the_intercept_only(rows):
    X, y, _ = rows
    X = np.round(X * 8) / 8  # so that the shift is exact
    for model in (OLS(), Ridge(2.0)):
        one, other = clone(model).fit(X, y), clone(model).fit(X + 2.0**40, y)
        np.testing.assert_allclose(other.coef_, one.coef_, rtol=1e-11)
        np.testing.assert_allclose(other.standard_errors_, one.standard_errors_, rtol=1e-11)
        np.testing.assert_allclose(other.leverage_, one.leverage_, rtol=1e-9)


def test_a_column_of_zero_penalty_is_an_intercept(rows):
    X, y, _ = rows
    with_column = Ridge(2.0, fit_intercept=False, penalty_weights=[0.0, 1.0, 1.0, 1.0])
    with_column.fit(np.column_stack([np.ones(30), X]), y)
    model = Ridge(2.0).fit(X, y)
    np.testing.assert_allclose(with_column.coef_, np.r_[model.intercept_, model.coef_], rtol=1e-10)
    np.testing.assert_allclose(with_column.df_fit_, model.df_fit_, rtol=1e-12)
    np.testing.assert_allclose(
        with_column.standard_errors_[0], model.intercept_standard_error_, rtol=1e-9
    )


def test_penalty_weights_are_units_of_columns(rows):
    """Penalty theta_j on b_j is the plain penalty on columns divided by sqrt(theta_j)."""
    X, y, _ = rows
    theta = np.array([0.5, 3.0, 2.0])
    one = Ridge(2.0, penalty_weights=theta).fit(X, y)
    other = Ridge(2.0).fit(X / np.sqrt(theta), y)
    np.testing.assert_allclose(one.coef_, other.coef_ / np.sqrt(theta), rtol=1e-11)
    np.testing.assert_allclose(one.leverage_, other.leverage_, rtol=1e-10)
    np.testing.assert_allclose(one.singular_values_, other.singular_values_, rtol=1e-11)
    same_as_plain = Ridge(2.0, penalty_weights=np.ones(3)).fit(X, y)
    np.testing.assert_array_equal(same_as_plain.coef_, Ridge(2.0).fit(X, y).coef_)


def test_leave_one_out_is_refitting(rows):
    X, y, w = rows
    for model in (OLS(), Ridge(4.0), Ridge(4.0, penalty_weights=[0.0, 1.0, 2.0])):
        weights = w + 0.25
        full = clone(model).fit(X, y, sample_weight=weights)
        for i in range(0, 30, 7):
            kept = np.delete(np.arange(30), i)
            part = clone(model).fit(X[kept], y[kept], sample_weight=weights[kept])
            error = y[i] - part.predict(X[i : i + 1])[0]
            np.testing.assert_allclose(full.loo_residuals_[i], error, rtol=1e-9)


STREAMED = [
    OLS(),
    OLS(fit_intercept=False),
    Ridge(2.0),
    Ridge(3.0, penalty_weights=[0.0, 1.0, 2.0], fit_intercept=False),
]


# Batches, or all rows, may be fewer than the columns: said, and tested in test_bad_input.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.RankWarning")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("cuts", [[15], [1, 2, 3, 10], list(range(1, 30))], ids=len)
@pytest.mark.parametrize("model", STREAMED, ids=str)
def test_streaming_is_all_at_once(model, cuts, weighted, rows):
    X, y, w = rows
    w = w + 0.5 if weighted else None
    streamed = clone(model)
    for part in np.split(np.arange(30), cuts):
        streamed.partial_fit(X[part], y[part], sample_weight=None if w is None else w[part])
    whole = clone(model).fit(X, y, sample_weight=w)
    same(streamed, whole)
    a, b = streamed.predict(X, return_std=True), whole.predict(X, return_std=True)
    np.testing.assert_allclose(a, b, rtol=1e-11)
    assert list(streamed.summary().index) == list(whole.summary().index)


# Batches, or all rows, may be fewer than the columns: said, and tested in test_bad_input.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.RankWarning")
@pytest.mark.parametrize("model", STREAMED, ids=str)
@pytest.mark.parametrize("first", [20, 3])
def test_streaming_goes_on_after_fit(model, first, rows):
    X, y, w = rows
    w = w + 0.5
    Y = np.column_stack([y, y**2])
    if first == 3 and getattr(model, "penalty_weights", None) and model.fit_intercept:
        pytest.skip("three rows do not determine the free column beside an intercept")
    streamed = clone(model).fit(X[:first], Y[:first], sample_weight=w[:first])
    streamed.partial_fit(X[first:], Y[first:], sample_weight=w[first:])
    whole = clone(model).fit(X, Y, sample_weight=w)
    for name in ("coef_", "standard_errors_", "sigma2_", "df_resid_", "aic_"):
        np.testing.assert_allclose(
            getattr(streamed, name), getattr(whole, name), rtol=1e-9, err_msg=name
        )


def test_what_needs_the_rows_says_so(rows):
    X, y, _ = rows
    model = OLS(cov_type="HC3").partial_fit(X, y)
    for name in ("leverage_", "loo_residuals_", "standard_errors_", "coef_covariance_"):
        with pytest.raises(AttributeError, match="needs the rows, which partial_fit does not keep"):
            getattr(model, name)
    model.set_params(cov_type="nonrobust")
    assert model.fit(X, y).leverage_.shape == (30,)
    assert model.df_resid_ == 26


def test_a_stream_keeps_its_shape(rows):
    X, y, _ = rows
    model = OLS().partial_fit(X[:10], y[:10])
    with pytest.raises(ValueError, match=r"number of targets.*1 in earlier calls and is 2"):
        model.partial_fit(X, np.column_stack([y, y]))
    with pytest.raises(ValueError, match="one axis"):
        model.partial_fit(X, y[:, None])
    with pytest.raises(ValueError, match="fit_intercept"):
        clone(model).partial_fit(X, y).set_params(fit_intercept=False).partial_fit(X, y)
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :2], y)
    before = model.coef_.copy()
    model.fit(X, y)  # starts anew
    assert not np.array_equal(before, model.coef_)
    np.testing.assert_array_equal(model.coef_, OLS().fit(X, y).coef_)


def test_penalty_may_change_within_a_stream(rows):
    X, y, _ = rows
    model = Ridge(100.0).partial_fit(X[:20], y[:20]).set_params(alpha=0.5)
    model.partial_fit(X[20:], y[20:])
    np.testing.assert_allclose(model.coef_, Ridge(0.5).fit(X, y).coef_, rtol=1e-11)


@pytest.mark.parametrize("model", [OLS(), Ridge(), RidgeCV(keep_rows=True)], ids=str)
def test_pickle_keeps_everything(model, rows):
    X, y, _ = rows
    model = clone(model).fit(X, y)
    loaded = pickle.loads(pickle.dumps(model))
    same(loaded, model, rtol=0)
    np.testing.assert_array_equal(loaded.leverage_, model.leverage_)
    assert repr(loaded.summary()) == repr(model.summary())


def test_a_fit_does_not_keep_the_rows(rows):
    X = np.random.default_rng(0).normal(size=(5000, 3))
    for model in (OLS(), Ridge(), RidgeCV()):
        size = len(pickle.dumps(clone(model).fit(X, X[:, 0] + 1.0)))
        # Two numbers per row (leverage, leave-one-out residual), not the three of X.
        assert size < 5000 * 2 * 8 + 20_000


# Batches, or all rows, may be fewer than the columns: said, and tested in test_bad_input.
@pytest.mark.filterwarnings("ignore::numpy.exceptions.RankWarning")
@pytest.mark.parametrize("model", [OLS(refine=False), Ridge(), RidgeCV(keep_rows=True)], ids=str)
@pytest.mark.parametrize("shape", [(30, 3), (8, 30)])
def test_a_fit_does_not_hang_on_the_users_arrays(model, shape):
    """Arrays that are overwritten after the fit, as a buffer is, change nothing of it."""
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=shape), rng.normal(size=shape[0]), rng.uniform(1, 2, size=shape[0])
    new = X.copy()
    reference = clone(model).fit(X.copy(), y.copy(), sample_weight=w.copy())
    fitted = clone(model).fit(X, y, sample_weight=w)
    X[:], y[:], w[:] = 99.0, -5.0, 3.0
    np.testing.assert_array_equal(fitted.predict(new), reference.predict(new))
    np.testing.assert_array_equal(fitted.leverage_, reference.leverage_)
    np.testing.assert_array_equal(fitted.singular_values_, reference.singular_values_)
    if reference.df_resid_ > 0:
        same(fitted, reference, rtol=0)


def test_kinds_of_arrays(rows):
    X, y, _ = rows
    reference = OLS().fit(X, y)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    by_frame = OLS().fit(frame, pd.Series(y))
    assert by_frame.feature_names_in_.tolist() == ["a", "b", "c"]
    for other in (
        by_frame,
        OLS().fit(np.asfortranarray(X), y),
        OLS().fit(X.tolist(), y.tolist()),
        OLS().fit(np.repeat(X, 2, axis=0)[::2], y),
        OLS().fit(X.astype(object), y.astype(object)),
    ):
        np.testing.assert_allclose(other.coef_, reference.coef_, rtol=1e-14)
    integers = OLS().fit(np.round(X).astype(int), np.round(y).astype(int))
    np.testing.assert_array_equal(integers.coef_, OLS().fit(np.round(X), np.round(y)).coef_)
    single = OLS().fit(X.astype(np.float32), y.astype(np.float32))
    expected = OLS().fit(X.astype(np.float32).astype(float), y.astype(np.float32).astype(float))
    np.testing.assert_array_equal(single.coef_, expected.coef_)
    assert single.coef_.dtype == np.float64
