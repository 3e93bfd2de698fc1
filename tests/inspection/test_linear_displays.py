"""Displays of the linear models: what is drawn is what was computed."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from sknn_resid import OLS, Ridge, RidgeCV
from sknn_resid.inspection import (
    RidgePathDisplay,
    ShrinkageDisplay,
    VarianceComparisonDisplay,
)
from sknn_resid.linear_model import compare_variance, compare_variance_of, ridge_path

plt = pytest.importorskip("matplotlib.pyplot", reason="Displays need the extra 'plot'")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def frame():
    return load_diabetes(return_X_y=True, as_frame=True)


def test_path_draws_one_line_a_feature_and_marks_the_chosen_penalty(frame):
    X, y = frame
    model = RidgeCV(alphas=[1e-3, 1e-2, 1e-1]).fit(X, y)
    display = RidgePathDisplay.from_estimator(model, alphas=[0.01, 0.1, 1.0])
    assert [line.get_label() for line in display.lines_] == list(X.columns)
    for j, line in enumerate(display.lines_):
        np.testing.assert_array_equal(line.get_xdata(), [0.01, 0.1, 1.0])
        expected = [Ridge(alpha=a).fit(X, y).coef_[j] for a in (0.01, 0.1, 1.0)]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-10)
    assert set(display.chosen_line_.get_xdata()) == {model.alpha_}
    assert display.ax_.get_xscale() == "log"
    assert display.figure_ is display.ax_.figure


def test_path_of_ols_has_no_penalty_to_mark(frame):
    display = RidgePathDisplay.from_estimator(OLS().fit(*frame))
    assert display.chosen_line_ is None


def test_path_draws_into_given_axes_and_returns_itself(frame):
    _, ax = plt.subplots()
    path = ridge_path(*frame, alphas=[0.1, 1.0])
    display = RidgePathDisplay.from_path(path, ax=ax, line_kw={"linewidth": 3.0})
    assert display.ax_ is ax
    assert {line.get_linewidth() for line in display.lines_} == {3.0}
    assert display.plot(ax=ax) is display


def test_path_puts_a_penalty_of_zero_at_the_edge(frame):
    X, y = frame
    path = ridge_path(X, y, alphas=[0.0, 0.1, 1.0])
    display = RidgePathDisplay.from_path(path)
    (dots,) = display.ax_.collections
    np.testing.assert_allclose(dots.get_offsets()[:, 1], OLS().fit(X, y).coef_, rtol=1e-9)


def test_path_of_several_targets_takes_one(frame):
    X, y = frame
    path = ridge_path(X, np.column_stack([y, -2 * y]), alphas=[0.1, 1.0])
    display = RidgePathDisplay.from_path(path, target=1)
    np.testing.assert_array_equal(display.coefs, path.coefs[:, 1])
    with pytest.raises(ValueError, match="target: must be from 0 to 1, got 2"):
        RidgePathDisplay.from_path(path, target=2)
    with pytest.raises(ValueError, match="For several targets pass those of one"):
        RidgePathDisplay(path.alphas, path.coefs).plot()


def test_path_names_the_largest_of_many():
    rng = np.random.RandomState(0)
    X, y = rng.standard_normal((60, 30)), rng.standard_normal(60)
    display = RidgePathDisplay.from_path(ridge_path(X, y, alphas=[0.1, 1.0]))
    named = [line for line in display.lines_ if not line.get_label().startswith("_")]
    assert len(display.lines_) == 30
    assert len(named) == 12
    size = np.abs(display.coefs).max(0)
    others = [j for j, line in enumerate(display.lines_) if line not in named]
    assert size[others].max() <= min(
        size[j] for j, line in enumerate(display.lines_) if line in named
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RidgePathDisplay([0.0], [[1.0]]).plot(), "at least one must be positive"),
        (lambda: RidgePathDisplay([1.0], [1.0]).plot(), "must have the shape"),
        (
            lambda: RidgePathDisplay([1.0], [[1.0, 2.0]], feature_names=["a"]).plot(),
            "one name for each of the 2 features, got 1",
        ),
        (lambda: ShrinkageDisplay([1.0, 2.0], [0.5]).plot(), "one factor for each of the 2"),
        (lambda: ShrinkageDisplay([1.0], [0.5], alphas=[1, 2]).plot(), "each of the 1 curves"),
        (lambda: ShrinkageDisplay([np.inf], [1.0]).plot(), "no direction is penalised"),
        (
            lambda: VarianceComparisonDisplay([1.0], [0.5], [0.75], 1.0).plot(kind="pie"),
            "must be 'standard_error' or 'eigenvalue', got 'pie'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_shrinkage_is_the_formula(frame):
    X, y = frame
    alpha = 0.2
    display = ShrinkageDisplay.from_estimator(Ridge(alpha=alpha).fit(X, y))
    d = np.linalg.svd(X - X.mean(), compute_uv=False)
    points = np.asarray(display.points_[0].get_offsets())
    np.testing.assert_allclose(points[:, 0], d, rtol=1e-10)
    np.testing.assert_allclose(points[:, 1], d**2 / (d**2 + alpha), rtol=1e-10)
    (curve,) = display.curves_
    x, f = curve.get_data()
    np.testing.assert_allclose(f, x**2 / (x**2 + alpha), rtol=1e-10)


def test_shrinkage_of_a_path_has_a_curve_for_each_penalty(frame):
    path = ridge_path(*frame, alphas=np.geomspace(1e-3, 10, 9))
    display = ShrinkageDisplay.from_path(path, n_curves=3)
    assert display.alphas == [path.alphas[0], path.alphas[4], path.alphas[8]]
    assert len(display.points_) == len(display.curves_) == 3
    with pytest.raises(ValueError, match="n_curves: must be at least 1, got 0"):
        ShrinkageDisplay.from_path(path, n_curves=0)


def test_shrinkage_of_ols_is_refused(frame):
    with pytest.raises(TypeError, match="got OLS, which shrinks nothing"):
        ShrinkageDisplay.from_estimator(OLS().fit(*frame))


def test_shrinkage_of_several_targets_takes_one(frame):
    X, y = frame
    model = Ridge(alpha=[0.1, 10.0]).fit(X, np.column_stack([y, y]))
    display = ShrinkageDisplay.from_estimator(model, target=1)
    assert display.alphas == [10.0]
    with pytest.raises(ValueError, match="target: must be from 0 to 1"):
        ShrinkageDisplay.from_estimator(model, target=2)


def test_variances_are_those_of_the_comparison(frame):
    X, y = frame
    model = Ridge(alpha=0.05).fit(X, y)
    display = VarianceComparisonDisplay.from_estimator(model)
    comparison = compare_variance_of(model)
    ols, ridge = (np.asarray(a.get_offsets())[:, 0] for a in (display.ols_, display.ridge_))
    np.testing.assert_array_equal(ols, comparison.standard_errors_ols)
    np.testing.assert_array_equal(ridge, comparison.standard_errors_ridge)
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == list(X.columns)
    assert "alpha = 0.05" in display.ridge_.get_label()


def test_eigenvalues_of_delta_are_drawn(frame):
    X, _ = frame
    comparison = compare_variance(X.to_numpy(), 0.1, 1.0)
    display = VarianceComparisonDisplay.from_comparison(comparison, kind="eigenvalue")
    drawn = np.asarray(display.eigenvalues_.get_offsets())[:, 1]
    np.testing.assert_array_equal(drawn, comparison.eigenvalues)
    assert drawn.min() >= 0


def test_only_the_coefficients_that_vary_most_are_shown_of_many():
    rng = np.random.RandomState(0)
    comparison = compare_variance(rng.standard_normal((80, 50)), 1.0, 1.0)
    display = VarianceComparisonDisplay.from_comparison(comparison)
    assert len(display.ols_.get_offsets()) == 30
    assert "30 of 50" in display.ax_.get_xlabel()


def test_ols_needs_a_penalty_to_compare_with(frame):
    with pytest.raises(ValueError, match="alpha: has to be given"):
        VarianceComparisonDisplay.from_estimator(OLS().fit(*frame))
    VarianceComparisonDisplay.from_estimator(OLS().fit(*frame), alpha=0.1)
