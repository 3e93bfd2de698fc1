"""Bad and extreme input: a message that names what is wrong, or the right answer; never a guess."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

from sknn_resid import OLS, Ridge, RidgeCV
from sknn_resid.linear_model import ridge_path

ALL = [OLS(), Ridge(), RidgeCV()]
RANK = np.exceptions.RankWarning


@pytest.fixture
def rows():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(20, 3))
    return X, X @ [1.0, 2.0, 3.0] + rng.normal(size=20)


@pytest.mark.parametrize("model", ALL, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf(model, rows, value):
    X, y = rows
    bad = X.copy()
    bad[3, 1] = value
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        clone(model).fit(bad, y)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        clone(model).fit(X, np.where(np.arange(20) == 3, value, y))
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        clone(model).fit(X, y, sample_weight=np.where(np.arange(20) == 3, value, 1.0))
    fitted = clone(model).fit(X, y)
    for method in (fitted.predict, fitted.predict_interval):
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            method(bad)


@pytest.mark.parametrize("model", ALL, ids=str)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([-1.0] + [1.0] * 19, r"sample_weight: weights must not be negative.*-1 for row 0"),
        ([0.0] * 20, "zero"),
        ([1.0] * 19, "sample_weight"),
    ],
)
def test_weights(model, rows, weights, message):
    with pytest.raises(ValueError, match=message):
        clone(model).fit(*rows, sample_weight=weights)


@pytest.mark.parametrize("model", ALL, ids=str)
def test_sparse_says_what_to_do(model, rows):
    X, y = rows
    with pytest.raises(TypeError, match=r"X: sparse data.*toarray.*sklearn.linear_model.Ridge"):
        clone(model).fit(sparse.csr_array(X), y)
    with pytest.raises(TypeError, match=r"y: sparse targets.*toarray"):
        clone(model).fit(X, sparse.csr_array(y[:, None]))
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        clone(model).fit(X, y).predict(sparse.csr_array(X))


@pytest.mark.parametrize("model", ALL, ids=str)
def test_shapes(model, rows):
    X, y = rows
    with pytest.raises(ValueError, match="inconsistent"):
        clone(model).fit(X, y[:-1])
    with pytest.raises(ValueError, match="dim"):
        clone(model).fit(X, y[:, None, None])
    with pytest.raises(ValueError, match="Expected 2D array, got 1D"):
        clone(model).fit(y, y)
    with pytest.raises(ValueError, match=r"X has 2 features, but .* is expecting 3"):
        clone(model).fit(X, y).predict(X[:, :2])
    with pytest.raises(ValueError, match=r"[Cc]omplex"):
        clone(model).fit(X, y + 1j)


@pytest.mark.parametrize(
    "name",
    [
        *("standard_errors_", "t_values_", "p_values_", "sigma2_", "r2_", "aic_", "vif_"),
        *("leverage_", "loo_residuals_", "coef_covariance_", "condition_number_", "df_fit_"),
    ],
)
def test_nothing_before_fit(name):
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(OLS(), name)
    assert not hasattr(OLS(), name)
    for method in ("summary", "confidence_interval", "intercept_confidence_interval"):
        with pytest.raises(NotFittedError):
            getattr(OLS(), method)()


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (-1.0, "'alpha' parameter"),
        ([1.0, -2.0], r"alpha: must be finite and not negative, got -2"),
        ([1.0, np.nan], r"alpha: must be finite and not negative, got nan"),
        ([1.0, np.inf], r"alpha: must be finite and not negative, got inf"),
        ([1.0, 2.0, 3.0], r"alpha: must be one number, or one number per target \(2\).*\(3,\)"),
        ([[1.0, 2.0]], r"alpha: must be one number, or one number per target \(2\).*\(1, 2\)"),
        (["a", "b"], r"alpha: must be numbers"),
        ("strong", "'alpha' parameter"),
    ],
)
def test_alpha(rows, alpha, message):
    X, y = rows
    with pytest.raises((ValueError, InvalidParameterError), match=message):
        Ridge(alpha).fit(X, np.column_stack([y, y]))


def test_infinite_alpha(rows):
    with pytest.raises(ValueError, match=r"'alpha' parameter.*Got inf"):
        Ridge(np.inf).fit(*rows)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], r"penalty_weights: must have one number per feature \(3\).*\(2,\)"),
        ([1.0, 2.0, -1.0], r"penalty_weights: must be finite and not negative, got -1"),
        ([1.0, 2.0, np.nan], "penalty_weights: must be finite"),
    ],
)
@pytest.mark.parametrize("estimator", [Ridge, RidgeCV])
def test_penalty_weights(rows, estimator, weights, message):
    with pytest.raises(ValueError, match=message):
        estimator(penalty_weights=weights).fit(*rows)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ([1.0, -1.0], "alphas: must be finite and not negative, got -1"),
        ([], r"alphas: must be 'auto' or a list of at least one number, got shape \(0,\)"),
        ([[1.0]], r"alphas: must be 'auto' or a list"),
        ([np.nan], "alphas: must be finite"),
    ],
)
def test_alphas(rows, alphas, message):
    with pytest.raises(ValueError, match=message):
        RidgeCV(alphas).fit(*rows)
    with pytest.raises(ValueError, match=message):
        ridge_path(*rows, alphas)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (OLS(cov_type="HC4"), "cov_type"),
        (OLS(weight_type="aweights"), "weight_type"),
        (OLS(refine="yes"), "refine"),
        (Ridge(solver="cholesky"), "solver"),
        (RidgeCV(criterion="cp"), "criterion"),
        (RidgeCV(scoring="no_such_scorer"), "scoring"),
        (RidgeCV(criterion="gcv", scoring="r2"), "scoring='r2' and criterion='gcv' are incompat"),
    ],
    ids=str,
)
def test_parameters(rows, model, message):
    with pytest.raises(ValueError, match=message):
        model.fit(*rows)


def test_devices(rows):
    assert OLS(device="cpu").fit(*rows).device_ == "cpu"
    assert OLS().fit(*rows).device_ == "cpu"  # too small for anything else
    for model in (OLS(device="mps"), Ridge(device="mps"), RidgeCV(device="mps:0")):
        with pytest.raises(ValueError, match=r"device: .*mps.*float64.*device='cpu'"):
            model.fit(*rows)
    with pytest.raises(ValueError, match=r"device: .*'tpu'"):
        OLS(device="tpu").fit(*rows)


# Too few rows, too little variation


def test_one_row_with_an_intercept():
    with pytest.warns(RANK, match=r"rank 0 of 2: fewer rows \(1\)"):
        model = OLS().fit([[1.0, 2.0]], [3.0])
    assert model.coef_.tolist() == [0.0, 0.0]
    assert model.intercept_ == 3.0
    assert model.predict([[7.0, 8.0]]) == 3.0
    assert model.rank_ == 0
    with pytest.warns(RuntimeWarning, match="No residual degrees of freedom: 1 observations"):
        assert np.isnan(model.standard_errors_).all()
    ridge = Ridge(1.0).fit([[1.0, 2.0]], [3.0])
    assert ridge.intercept_ == 3.0
    assert ridge.loo_residuals_.tolist() == [np.inf]
    with pytest.raises(ValueError, match="n_samples = 1"):
        RidgeCV([1.0, 2.0]).fit([[1.0, 2.0]], [3.0])
    assert RidgeCV([2.0]).fit([[1.0, 2.0]], [3.0]).alpha_ == 2.0


NO_DF = [
    *("standard_errors_", "intercept_standard_error_", "coef_covariance_", "sigma2_"),
    *("intercept_variance_", "intercept_covariance_", "t_values_", "p_values_"),
    *("intercept_t_value_", "intercept_p_value_", "adjusted_r2_"),
]


@pytest.mark.parametrize("name", NO_DF)
def test_no_residual_degrees_of_freedom(name):
    """As many coefficients as rows: the fit is exact, and nothing is known about its error."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(4, 3)), rng.normal(size=4)
    model = OLS().fit(X, y)
    assert model.df_resid_ == 0.0
    np.testing.assert_allclose(model.predict(X), y, rtol=1e-12)
    with pytest.warns(RuntimeWarning, match="No residual degrees of freedom: 4 observations, rank"):
        assert np.isnan(getattr(model, name)).all()


def test_no_residual_degrees_of_freedom_in_methods():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(4, 3)), rng.normal(size=4)
    model = OLS().fit(X, y)
    for call in (
        model.confidence_interval,
        model.intercept_confidence_interval,
        lambda: model.predict_interval(X),
        lambda: model.predict(X, return_std=True)[1],
    ):
        with pytest.warns(RuntimeWarning, match="No residual degrees of freedom"):
            assert np.isnan(call()).all()
    with pytest.warns(RuntimeWarning, match="No residual degrees of freedom") as record:
        table = model.summary()
    assert len(record) == 1
    assert table["std_error"].isna().all()
    assert table["coef"].notna().all()
    assert "nan" in repr(table)
    for kind in ("HC0", "HC1", "HC2", "HC3"):
        robust = OLS(cov_type=kind).fit(X, y)
        with pytest.warns(RuntimeWarning, match="No residual degrees of freedom"):
            errors = robust.standard_errors_
        # Also here: HC0 would be exactly 0, because there are no residuals.
        assert np.isnan(errors).all(), kind


def test_ridge_has_residual_degrees_of_freedom_where_ols_has_none():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(6, 10)), rng.normal(size=6)
    model = Ridge(2.0).fit(X, y)
    assert 0 < model.df_resid_ < 6
    assert np.isfinite(model.standard_errors_).all()
    assert np.isinf(model.vif_).all()
    assert model.condition_number_ == np.inf


def test_a_row_that_determines_itself():
    """Leverage 1: the fit without it leaves its direction open."""
    X = np.column_stack([np.arange(6.0), [0.0, 0, 0, 0, 0, 1]])
    y = np.array([0.1, 1.0, 1.9, 3.2, 4.0, 9.0])
    model = OLS().fit(X, y)
    np.testing.assert_allclose(model.leverage_[5], 1.0, rtol=1e-12)
    assert np.isinf(model.loo_residuals_[5])
    assert np.isfinite(model.loo_residuals_[:5]).all()
    with pytest.warns(RuntimeWarning, match=r"HC3.*row 5.*leverage"):
        robust = OLS(cov_type="HC3").fit(X, y)
    assert np.isnan(robust.standard_errors_).all()
    assert np.isfinite(OLS(cov_type="HC1").fit(X, y).standard_errors_).all()
    chosen = RidgeCV([0.0, 1.0]).fit(X, y)
    assert chosen.alpha_ == 1.0
    assert chosen.scores_[0] == -np.inf


def test_constant_columns_are_named():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(10, 3)), columns=["a", "b", "c"])
    frame["flat"] = 7.25
    y = rng.normal(size=10)
    with pytest.warns(RANK, match=r"rank 3 of 4.*constant.*'flat'"):
        model = OLS().fit(frame, y)
    assert model.coef_[3] == 0.0
    reference = OLS().fit(frame[["a", "b", "c"]], y)
    np.testing.assert_allclose(model.coef_[:3], reference.coef_, rtol=1e-12)
    np.testing.assert_allclose(model.standard_errors_[:3], reference.standard_errors_, rtol=1e-11)
    assert model.df_resid_ == reference.df_resid_
    assert model.vif_[3] == np.inf
    np.testing.assert_allclose(model.vif_[:3], reference.vif_, rtol=1e-10)
    with pytest.warns(RANK):  # without an intercept it is the intercept
        OLS().fit(np.full((4, 1), 0.1), y[:4])
    np.testing.assert_allclose(
        OLS(fit_intercept=False).fit(np.full((4, 1), 0.5), y[:4]).coef_,
        [2 * y[:4].mean()],
        rtol=1e-13,
    )


def test_all_columns_constant():
    with pytest.warns(RANK, match="rank 0 of 2"):
        model = OLS().fit(np.full((5, 2), 0.1), np.arange(5.0))
    assert model.coef_.tolist() == [0.0, 0.0]
    assert model.intercept_ == 2.0
    assert model.df_resid_ == 4.0
    assert model.singular_values_.shape == (0,)
    assert model.standard_errors_.tolist() == [0.0, 0.0]
    np.testing.assert_allclose(model.intercept_standard_error_, np.sqrt(2.5 / 5), rtol=1e-13)
    chosen = RidgeCV().fit(np.full((5, 2), 0.1), np.arange(5.0))
    assert chosen.coef_.tolist() == [0.0, 0.0]


def test_dependent_columns_are_named_at_most_five():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 10))
    frame = pd.DataFrame(X, columns=[f"v{j}" for j in range(10)])
    frame["copy"] = frame["v2"]
    with pytest.warns(RANK, match="rank 10 of 11: linearly dependent .*columns: 'v2', 'copy'\\. "):
        OLS().fit(frame, X[:, 0])
    many = np.hstack([X, X])
    with pytest.warns(RANK) as record:
        OLS().fit(many, X[:, 0])
    text = str(record[0].message)
    assert text.count("'x") == 5
    assert "and 15 more" in text
    assert record[0].filename == __file__


def test_ridge_warns_only_where_nothing_determines_the_coefficients():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(10, 3))
    X = np.column_stack([X, X[:, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ridge(1e-3).fit(X, X[:, 1])
        Ridge(1.0, penalty_weights=[0, 1, 1, 1]).fit(X, X[:, 1])
        RidgeCV([1.0]).fit(X, X[:, 1])
    with pytest.warns(RANK):
        Ridge(0.0).fit(X, X[:, 1])
    with pytest.warns(RANK):
        Ridge([1.0, 0.0]).fit(X, X[:, 1:3])
    with pytest.warns(RANK):
        Ridge(1.0, penalty_weights=[0, 1, 1, 0]).fit(X, X[:, 1])
    with pytest.warns(RANK):
        RidgeCV([0.0]).fit(X, X[:, 1] + rng.normal(size=10))


# Extreme numbers


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e100, 1e150])
@pytest.mark.parametrize("model", [OLS(), OLS(refine=False), Ridge(0.0)], ids=str)
def test_columns_whose_squares_leave_the_range(rows, model, scale):
    """One column in units of 1e150: squares overflow, the answer does not."""
    X, y = rows
    units = np.array([1.0, 2.0 ** np.round(np.log2(scale)), 1.0])
    reference = clone(model).fit(X, y)
    extreme = clone(model).fit(X * units, y)
    np.testing.assert_allclose(extreme.coef_ * units, reference.coef_, rtol=1e-10)
    np.testing.assert_allclose(
        extreme.standard_errors_ * units, reference.standard_errors_, rtol=1e-10
    )
    np.testing.assert_allclose(extreme.predict(X * units), reference.predict(X), rtol=1e-10)
    assert extreme.rank_ == 3


def test_a_target_whose_squares_leave_the_range(rows):
    X, y = rows
    reference, extreme = OLS().fit(X, y), OLS().fit(X, y * 2.0**400)
    np.testing.assert_allclose(extreme.coef_ / 2.0**400, reference.coef_, rtol=1e-12)
    np.testing.assert_allclose(extreme.p_values_, reference.p_values_, rtol=1e-8)


def test_a_constant_target():
    X = np.random.default_rng(0).normal(size=(8, 2))
    model = OLS().fit(X, np.full(8, 3.0))
    np.testing.assert_array_equal(model.coef_, [0.0, 0.0])
    assert model.intercept_ == 3.0
    assert model.r2_ == 1.0
    assert np.isnan(model.t_values_).all()  # 0 / 0: nothing varies
    repr(model.summary())


def test_constant_weights_of_any_size(rows):
    X, y = rows
    for size in (1e-200, 1e200):
        model = OLS(weight_type="precision").fit(X, y, sample_weight=np.full(20, size))
        reference = OLS().fit(X, y)
        np.testing.assert_allclose(model.coef_, reference.coef_, rtol=1e-12)
        np.testing.assert_allclose(model.standard_errors_, reference.standard_errors_, rtol=1e-10)


def test_kind_of_interval(rows):
    with pytest.raises(ValueError, match="kind: must be 'observation' or 'mean', got 'both'"):
        OLS().fit(*rows).predict_interval(rows[0], kind="both")
    with pytest.raises(ValueError, match="level: must be strictly between 0 and 1, got 95"):
        OLS().fit(*rows).predict_interval(rows[0], 95)
    with pytest.raises(ValueError, match="level"):
        RidgeCV(keep_rows=True).fit(*rows).jackknife_plus_interval(rows[0], 1.5)
    with pytest.raises(AttributeError, match="keep_rows=True"):
        RidgeCV().fit(*rows).jackknife_plus_interval(rows[0])


def test_no_alpha_can_be_scored(rows):
    X, y = rows
    with pytest.raises(ValueError, match="No alpha has a finite score"):
        RidgeCV([1.0, 2.0], criterion="aic", penalty_weights=[0, 0, 0]).fit(X[:4], y[:4])


class _Strange(OLS):
    """Defined with a value that no check lets pass."""

    def __init__(self, refine="auto", cov_type="of my own"):
        super().__init__(refine=refine, cov_type=cov_type)


class _WithMore(Ridge):
    """With a parameter that has no constraint."""

    def __init__(self, alpha=1.0, note=None):
        super().__init__(alpha=alpha)
        self.note = note


@pytest.mark.parametrize("model", [OLS, Ridge, RidgeCV])
def test_parameters_are_checked_at_each_fit_though_defaults_are_known(model):
    X, y = np.arange(12.0).reshape(6, 2) ** 2, np.arange(6.0)
    fitted = model().fit(X, y)
    for name, value in [("fit_intercept", "yes"), ("refine", "much"), ("cov_type", "HC9")]:
        before = getattr(fitted, name)
        with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter of"):
            fitted.set_params(**{name: value}).fit(X, y)
        fitted.set_params(**{name: before}).fit(X, y)
    same = "".join(["au", "to"])  # equal to the default, and not the same object
    model(refine=same).fit(X, y)


def test_defaults_of_subclasses_are_checked_too():
    X, y = np.arange(12.0).reshape(6, 2) ** 2, np.arange(6.0)
    for _ in range(2):
        with pytest.raises(InvalidParameterError, match="The 'cov_type' parameter of _Strange"):
            _Strange().fit(X, y)
    _Strange(cov_type="HC1").fit(X, y)
    assert _WithMore(note=[1]).fit(X, y).note == [1]
    model = OLS()
    del model.refine
    with pytest.raises(AttributeError, match="refine"):
        model.fit(X, y)


@pytest.mark.parametrize("model", ALL, ids=str)
def test_numbers_that_are_not_aligned(model, rows):
    """Fields of packed records, and views that no processor would lay out like this."""
    X, y = rows
    table = np.zeros(20, dtype=[("flag", "i1"), ("x", "f8", 3), ("y", "f8"), ("w", "f8")])
    table["x"], table["y"], table["w"] = X, y, 1.0
    assert not table["x"].flags.aligned
    found = clone(model).fit(table["x"], table["y"], sample_weight=table["w"])
    np.testing.assert_array_equal(found.coef_, clone(model).fit(X, y).coef_)
    backwards = clone(model).fit(X[::-1, ::-1], y[::-1])
    np.testing.assert_array_equal(backwards.coef_[::-1], found.coef_)
    np.testing.assert_array_equal(backwards.leverage_[::-1] > 0, True)
    X.flags.writeable = y.flags.writeable = False
    np.testing.assert_array_equal(clone(model).fit(X, y).coef_, found.coef_)
