"""What is computed on demand: the same before and after, pickled or not, without the rows."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from sknn_resid import OLS, Ridge, RidgeCV
from sknn_resid.linear_model._least_squares import covariance, prepare

NAMES = ["standard_errors_", "coef_covariance_", "intercept_variance_", "intercept_covariance_"]
MODELS = [OLS(), Ridge(3.0), RidgeCV([0.1, 1.0, 10.0])]
SIZES = [(30, 3), (500, 20)]  # kept at once, and on demand


def _rows(size):
    rng = np.random.default_rng(2)
    X = rng.normal(size=size) + 1.0
    return X, X @ rng.normal(size=size[1]) + rng.normal(size=size[0])


def _said(model):
    return [np.asarray(getattr(model, name)) for name in NAMES]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_copies_say_the_same_whenever_they_were_made(model, size):
    model = clone(model).fit(*_rows(size))
    before = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    said = _said(model)
    after = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    for other in (model, *before, *after):
        for a, b in zip(said, _said(other), strict=True):
            np.testing.assert_array_equal(a, b)
    fresh = clone(model)
    assert not hasattr(fresh, "coef_")


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_covariances_are_those_that_the_fit_would_have_computed(model):
    X, y = _rows((500, 20))
    model = clone(model).fit(X, y)
    alpha = float(getattr(model, "alpha_", getattr(model, "alpha", 0.0)))
    found = covariance(prepare(X, y[:, None]), alpha)
    np.testing.assert_array_equal(model.coef_covariance_, model.sigma2_ * found.coef)
    assert model.intercept_variance_ == model.sigma2_ * found.intercept_variance


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_predictions_leave_the_model_as_it_is(model):
    X, y = _rows((500, 20))
    model = clone(model).fit(X, y)
    before, state = dict(model.__dict__), dict(model._fitted.refined.__dict__)
    model.predict(X)
    assert model.__dict__ == before
    assert model._fitted.refined.__dict__ == state


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_no_rows_are_kept(model, size):
    X, y = _rows(size)
    expected = _said(clone(model).fit(X.copy(), y.copy()))
    model = clone(model).fit(X, y)
    kept = weakref.ref(X)
    X[:] = 0.0  # what the user does with the rows after the fit is no matter
    del X
    gc.collect()
    assert kept() is None
    for a, b in zip(expected, _said(model), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_what_waits_does_not_grow_with_the_rows_and_is_let_go(model):
    sizes = {}
    for n in (500, 4000):
        X, y = _rows((n, 20))
        fitted = clone(model).fit(X, y)
        per_row = (
            fitted._row_statistics.leverage.nbytes + fitted._row_statistics.loo_residuals.nbytes
        )
        waiting = len(pickle.dumps(fitted)) - per_row
        assert fitted.standard_errors_.shape == (20,)
        sizes[n] = waiting, len(pickle.dumps(fitted)) - per_row
    assert abs(sizes[500][0] - sizes[4000][0]) < 2000
    assert sizes[500][1] < sizes[500][0]


def test_further_rows_replace_what_was_said_before():
    X, y = _rows((600, 20))
    whole = OLS().fit(X, y)
    for asked in (False, True):
        model = OLS().fit(X[:400], y[:400])
        if asked:
            assert np.isfinite(model.standard_errors_).all()
        model.partial_fit(X[400:], y[400:])
        np.testing.assert_allclose(model.standard_errors_, whole.standard_errors_, rtol=1e-12)


def test_what_is_returned_can_be_changed_without_changing_the_model():
    X, y = _rows((40, 3))
    model = OLS().fit(X, np.column_stack([y, -y]))
    for name in ("df_resid_", "sigma2_", "rss_", "coef_covariance_", "standard_errors_"):
        before = np.array(getattr(model, name))
        found = getattr(model, name)
        found += 1.0
        np.testing.assert_array_equal(getattr(model, name), before)


def test_names_of_an_earlier_fit_are_forgotten():
    X, y = _rows((30, 3))
    model = OLS().fit(pd.DataFrame(X, columns=list("abc")), y)
    assert list(model.feature_names_in_) == list("abc")
    model.fit(X[:, :2], y)
    assert not hasattr(model, "feature_names_in_")
    assert model.n_features_in_ == 2
