"""RidgeCV: every choice beside brute force, with refits where the estimator has closed forms."""

import numpy as np
import pytest
import sklearn
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.linear_model import RidgeCV as SklearnRidgeCV
from sklearn.metrics import make_scorer, mean_absolute_error, r2_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    ShuffleSplit,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import Ridge, RidgeCV

ALPHAS = [100.0, 10.0, 1.0, 0.1, 0.0]


@pytest.fixture
def rows():
    rng = np.random.default_rng(5)
    X = rng.normal(size=(24, 4)) @ rng.normal(size=(4, 4)) + [2.0, 0.0, -1.0, 4.0]
    Y = X @ rng.normal(size=(4, 2)) + rng.normal(size=(24, 2)) * [1.0, 8.0]
    w = rng.uniform(0.3, 3.0, size=24)
    return X, Y, w


def predictions_without(X, Y, w, alpha, **params):
    """Each row predicted by a refit without it."""
    found = []
    for i in range(len(X)):
        kept = np.delete(np.arange(len(X)), i)
        weights = None if w is None else w[kept]
        model = Ridge(alpha, **params).fit(X[kept], Y[kept], sample_weight=weights)
        found.append(model.predict(X[i : i + 1])[0])
    return np.array(found)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_leave_one_out_is_refitting(rows, weighted, fit_intercept):
    X, Y, w = rows
    w = w if weighted else None
    model = RidgeCV(ALPHAS, store_cv_results=True, fit_intercept=fit_intercept)
    model.fit(X, Y, sample_weight=w)
    assert model.cv_results_.shape == (24, 2, 5)
    for a, alpha in enumerate(ALPHAS):
        without = predictions_without(X, Y, w, alpha, fit_intercept=fit_intercept)
        squared = (Y - without) ** 2
        # Not weighted: scikit-learn's hold w_i e_i^2.
        np.testing.assert_allclose(model.cv_results_[:, :, a], squared, rtol=1e-8)
        score = -np.average(squared, axis=0, weights=w).mean()
        np.testing.assert_allclose(model.scores_[a], score, rtol=1e-9)
    assert model.alpha_ == ALPHAS[int(np.argmax(model.scores_))]
    assert model.best_score_ == model.scores_.max()
    chosen = Ridge(model.alpha_, fit_intercept=fit_intercept).fit(X, Y, sample_weight=w)
    np.testing.assert_allclose(model.coef_, chosen.coef_, rtol=1e-12)
    np.testing.assert_allclose(model.loo_residuals_, chosen.loo_residuals_, rtol=1e-12)


def test_equals_scikit_learn(rows):
    X, Y, _ = rows
    alphas = ALPHAS[:-1]
    for per_target in (False, True):
        ours = RidgeCV(alphas, alpha_per_target=per_target, store_cv_results=True).fit(X, Y)
        theirs = SklearnRidgeCV(alphas, alpha_per_target=per_target, store_cv_results=True).fit(
            X, Y
        )
        np.testing.assert_array_equal(ours.alpha_, theirs.alpha_)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9)
        np.testing.assert_allclose(ours.best_score_, theirs.best_score_, rtol=1e-9)
        np.testing.assert_allclose(ours.cv_results_, theirs.cv_results_, rtol=1e-7)


def test_results_have_scikit_learns_shapes(rows):
    X, Y, _ = rows
    one = RidgeCV(ALPHAS, store_cv_results=True).fit(X, Y[:, 0])
    assert one.cv_results_.shape == (24, 5)
    assert one.scores_.shape == (5,)
    assert isinstance(one.alpha_, float)
    assert isinstance(one.best_score_, float)
    assert not hasattr(RidgeCV(ALPHAS).fit(X, Y), "cv_results_")
    per_target = RidgeCV(ALPHAS, alpha_per_target=True).fit(X, Y)
    assert per_target.alpha_.shape == per_target.best_score_.shape == (2,)
    assert per_target.scores_.shape == (5, 2)
    assert per_target.alpha_[0] != per_target.alpha_[1]  # the second target is mostly noise


def test_predictions_are_stored_for_a_scorer(rows):
    X, Y, _ = rows
    model = RidgeCV(ALPHAS, store_cv_results=True, scoring="neg_mean_absolute_error").fit(X, Y)
    for a, alpha in enumerate(ALPHAS):
        without = predictions_without(X, Y, None, alpha)
        np.testing.assert_allclose(model.cv_results_[:, :, a], without, rtol=1e-8)
        np.testing.assert_allclose(model.scores_[a], -mean_absolute_error(Y, without), rtol=1e-9)


@pytest.mark.parametrize("criterion", ["gcv", "aic", "bic"])
def test_criteria_are_their_formulas(rows, criterion):
    X, Y, w = rows
    w = np.round(w + 1)
    together = RidgeCV(ALPHAS, criterion=criterion).fit(X, Y, sample_weight=w)
    per_target = RidgeCV(ALPHAS, criterion=criterion, alpha_per_target=True)
    per_target.fit(X, Y, sample_weight=w)
    n = w.sum()
    for a, alpha in enumerate(ALPHAS):
        fit = Ridge(alpha).fit(X, Y, sample_weight=w)
        if criterion == "gcv":
            expected = -(fit.rss_ / n) / (1 - fit.df_fit_ / n) ** 2
        else:
            expected = -(fit.aic_ if criterion == "aic" else fit.bic_)
        np.testing.assert_allclose(per_target.scores_[a], expected, rtol=1e-10)
        joined = expected.mean() if criterion == "gcv" else expected.sum()
        np.testing.assert_allclose(together.scores_[a], joined, rtol=1e-10)
    for t in range(2):
        alone = RidgeCV(ALPHAS, criterion=criterion).fit(X, Y[:, t], sample_weight=w)
        assert per_target.alpha_[t] == alone.alpha_
        np.testing.assert_allclose(per_target.coef_[t], alone.coef_, rtol=1e-11)


def test_gcv_does_not_depend_on_the_axes_of_the_rows(rows):
    """What makes it *generalised*: rotating (X, y) changes nothing; leave-one-out changes."""
    X, Y, _ = rows
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0]
    for criterion, same in (("gcv", True), ("loo", False)):
        fits = [
            RidgeCV(ALPHAS, criterion=criterion, fit_intercept=False).fit(A, B)
            for A, B in ((X, Y), (Q @ X, Q @ Y))
        ]
        assert np.allclose(fits[0].scores_, fits[1].scores_, rtol=1e-9) is same


@pytest.mark.parametrize(
    "cv", [3, KFold(4, shuffle=True, random_state=0), ShuffleSplit(5, random_state=1)], ids=str
)
@pytest.mark.parametrize("scoring", [None, "neg_mean_squared_error"])
def test_folds_are_a_grid_search(rows, cv, scoring):
    X, Y, _ = rows
    ours = RidgeCV(ALPHAS, cv=cv, scoring=scoring).fit(X, Y)
    search = GridSearchCV(Ridge(), {"alpha": ALPHAS}, cv=cv, scoring=scoring).fit(X, Y)
    np.testing.assert_allclose(ours.scores_, search.cv_results_["mean_test_score"], rtol=1e-9)
    assert ours.alpha_ == search.best_params_["alpha"]
    np.testing.assert_allclose(ours.best_score_, search.best_score_, rtol=1e-9)


def test_alpha_per_target_with_folds(rows):
    X, Y, w = rows
    together = RidgeCV(ALPHAS, cv=4, alpha_per_target=True).fit(X, Y, sample_weight=w)
    for t in range(2):
        alone = RidgeCV(ALPHAS, cv=4).fit(X, Y[:, t], sample_weight=w)
        np.testing.assert_allclose(together.scores_[:, t], alone.scores_, rtol=1e-10)
        assert together.alpha_[t] == alone.alpha_


def test_leave_one_out_by_folds_equals_the_closed_form(rows):
    X, Y, _ = rows
    folds = RidgeCV(ALPHAS, cv=LeaveOneOut(), scoring="neg_mean_squared_error").fit(X, Y)
    closed = RidgeCV(ALPHAS).fit(X, Y)
    np.testing.assert_allclose(folds.scores_, closed.scores_, rtol=1e-9)


@pytest.mark.parametrize("cv", [None, "folds"])
def test_rows_of_weight_zero_are_no_rows(rows, cv):
    X, Y, w = rows
    w = np.round(w)
    assert (w == 0).any()
    kept = w > 0
    X_noisy = np.where(kept[:, None], X, 1e9)
    splits = splits_of_kept = None
    if cv:
        halves = [np.flatnonzero(kept)[::2], np.flatnonzero(kept)[1::2]]
        position, zeros = np.cumsum(kept) - 1, np.flatnonzero(~kept)
        splits = [(np.r_[halves[0], zeros], np.r_[zeros, halves[1]])]
        splits_of_kept = [(position[halves[0]], position[halves[1]])]
    for scoring in (None, "neg_max_error" if cv is None else "neg_median_absolute_error"):
        full = RidgeCV(ALPHAS, cv=splits, scoring=scoring).fit(X_noisy, Y[:, 0], sample_weight=w)
        part = RidgeCV(ALPHAS, cv=splits_of_kept, scoring=scoring)
        part.fit(X[kept], Y[kept, 0], sample_weight=w[kept])
        np.testing.assert_allclose(full.scores_, part.scores_, rtol=1e-10)


def test_weighted_scores_of_folds_are_those_of_repeated_rows(rows):
    X, Y, _ = rows
    w = np.random.default_rng(0).integers(1, 4, size=24)
    index = np.repeat(np.arange(24), w)
    first = np.arange(24) < 12
    splits = [(np.flatnonzero(first), np.flatnonzero(~first))]
    repeated = [(np.flatnonzero(first[index]), np.flatnonzero(~first[index]))]
    weighted = RidgeCV(ALPHAS, cv=splits).fit(X, Y, sample_weight=w)
    plain = RidgeCV(ALPHAS, cv=repeated).fit(X[index], Y[index])
    np.testing.assert_allclose(weighted.scores_, plain.scores_, rtol=1e-9)
    np.testing.assert_allclose(weighted.coef_, plain.coef_, rtol=1e-11)


def test_splits_may_be_masks(rows):
    X, Y, _ = rows
    first = np.arange(24) < 12
    masks = RidgeCV(ALPHAS, cv=[(first, ~first)]).fit(X, Y)
    indices = RidgeCV(ALPHAS, cv=[(np.flatnonzero(first), np.flatnonzero(~first))]).fit(X, Y)
    np.testing.assert_array_equal(masks.scores_, indices.scores_)


def test_a_scorer_of_ones_own(rows):
    X, Y, _ = rows

    def score(estimator, X, y):
        return r2_score(y, estimator.predict(X))

    own = RidgeCV(ALPHAS, cv=3, scoring=score).fit(X, Y)
    named = RidgeCV(ALPHAS, cv=3, scoring="r2").fit(X, Y)
    np.testing.assert_array_equal(own.scores_, named.scores_)


def test_zero_is_chosen_where_there_is_no_noise():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3))
    model = RidgeCV([1.0, 0.1, 0.0]).fit(X, X @ [1.0, 2.0, 3.0])
    assert model.alpha_ == 0.0
    np.testing.assert_allclose(model.coef_, [1.0, 2.0, 3.0], rtol=1e-13)


def test_automatic_grid(rows):
    X, Y, _ = rows
    model = RidgeCV().fit(X, Y)
    assert model.alphas_.shape == (100,)
    assert model.alphas_.min() < model.alpha_ < model.alphas_.max()
    # In other units of X the same directions are shrunk: the grid follows.
    scaled = RidgeCV().fit(1000.0 * X, Y)
    np.testing.assert_allclose(scaled.alphas_, 1e6 * model.alphas_, rtol=1e-10)
    np.testing.assert_allclose(scaled.predict(1000.0 * X), model.predict(X), rtol=1e-10)


def test_jackknife_plus_is_the_quantile_of_refits(rows):
    X, Y, _ = rows
    new = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [9.0, -1.0, 2.0, 2.0]])
    level = 0.8
    model = RidgeCV([2.0], keep_rows=True).fit(X, Y)
    n = len(X)
    lower, upper = [], []
    for i in range(n):
        kept = np.delete(np.arange(n), i)
        fit = Ridge(2.0).fit(X[kept], Y[kept])
        error = np.abs(Y[i] - fit.predict(X[i : i + 1])[0])
        lower.append(fit.predict(new) - error)
        upper.append(fit.predict(new) + error)
    lower, upper = np.sort(lower, axis=0), np.sort(upper, axis=0)
    # Barber et al. (2021), equation 7: the floor(0.2 * 25) = 5th and ceil(0.8 * 25) = 20th.
    found = model.jackknife_plus_interval(new, level)
    assert found.shape == (3, 2, 2)
    np.testing.assert_allclose(found[..., 0], lower[4], rtol=1e-9)
    np.testing.assert_allclose(found[..., 1], upper[19], rtol=1e-9)
    # More rows would be needed for 99 %.
    assert np.isinf(model.jackknife_plus_interval(new, 0.99)).all()
    single = RidgeCV([2.0], keep_rows=True).fit(X, Y[:, 0], sample_weight=np.ones(n))
    np.testing.assert_allclose(single.jackknife_plus_interval(new, level), found[:, 0], rtol=1e-10)


def test_jackknife_plus_with_weights_leaves_whole_rows_out(rows):
    X, Y, w = rows
    y = Y[:, 0]
    new = np.array([[1.0, 2.0, 3.0, 4.0]])
    model = RidgeCV([2.0], keep_rows=True).fit(X, y, sample_weight=w)
    low, high = [], []
    for i in range(len(X)):
        kept = np.delete(np.arange(len(X)), i)
        fit = Ridge(2.0).fit(X[kept], y[kept], sample_weight=w[kept])
        error = abs(y[i] - fit.predict(X[i : i + 1])[0])
        low.append(fit.predict(new)[0] - error)
        high.append(fit.predict(new)[0] + error)
    order = np.argsort(high)
    position = np.searchsorted(np.cumsum(w[order]), 0.8 * (w.sum() + 1))
    found = model.jackknife_plus_interval(new, 0.8)[0]
    np.testing.assert_allclose(found[1], np.array(high)[order][position], rtol=1e-9)
    order = np.argsort(low)[::-1]
    position = np.searchsorted(np.cumsum(w[order]), 0.8 * (w.sum() + 1))
    np.testing.assert_allclose(found[0], np.array(low)[order][position], rtol=1e-9)


def test_jackknife_plus_covers():
    """Errors far from normal: at least 2 level - 1 is guaranteed, about the level is usual."""
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(60):
        X = rng.normal(size=(50, 3))
        y = X @ [1.0, -1.0, 2.0] + rng.exponential(size=50) ** 2
        model = RidgeCV([1.0], keep_rows=True).fit(X[:40], y[:40])
        low, high = model.jackknife_plus_interval(X[40:], 0.9).T
        inside.append((low <= y[40:]) & (y[40:] <= high))
    assert 0.85 < np.mean(inside) < 0.95


def test_metadata_routing(rows):
    X, Y, w = rows
    groups = np.arange(24) // 3
    with sklearn.config_context(enable_metadata_routing=True):
        scorer = make_scorer(r2_score).set_score_request(sample_weight=True)
        model = RidgeCV(ALPHAS, cv=GroupKFold(4), scoring=scorer)
        model.set_fit_request(sample_weight=True)
        model.fit(X, Y, sample_weight=w, groups=groups)
        splits = list(GroupKFold(4).split(X, Y, groups))
        without = RidgeCV(ALPHAS, cv=GroupKFold(4), scoring=make_scorer(r2_score))
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            without.fit(X, Y, sample_weight=w, groups=groups)
        pipe = make_pipeline(StandardScaler(), RidgeCV(ALPHAS).set_fit_request(sample_weight=True))
        pipe[0].set_fit_request(sample_weight=False)
        pipe.fit(X, Y, sample_weight=w)
    plain = RidgeCV(ALPHAS, cv=splits).fit(X, Y, sample_weight=w)
    np.testing.assert_allclose(model.scores_, plain.scores_, rtol=1e-12)
    with pytest.raises(ValueError, match="enable_metadata_routing"):
        RidgeCV(ALPHAS, cv=GroupKFold(4)).fit(X, Y, groups=groups)


def test_inside_scikit_learns_tools(rows):
    X, Y, _ = rows
    pipe = make_pipeline(StandardScaler(), RidgeCV())
    assert cross_val_score(pipe, X, Y, cv=3).shape == (3,)
    search = GridSearchCV(pipe, {"ridgecv__criterion": ["loo", "gcv"]}, cv=3).fit(X, Y)
    assert search.best_params_["ridgecv__criterion"] in ("loo", "gcv")
