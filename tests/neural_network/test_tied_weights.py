"""`tied_weights` and `tie_blocks`: one weight in several places, through a model's whole life."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from scipy.special import expit
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_validate

from sknn_resid import (
    MLPClassifier,
    MLPRegressor,
    MLPResidualClassifier,
    MLPResidualRegressor,
    stacked,
)
from sknn_resid.inspection import forward_trace, gradients
from sknn_resid.inspection._network import open_network

EXAM = [[(0, 0, 0), (0, 1, 1)]]
TRANSPOSE = [[(0,), (1, "T")]]


def rows(n=60, n_features=4, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, n_features))
    return X, np.tanh(X @ rng.standard_normal(n_features)) + 0.1 * rng.standard_normal(n)


def quietly(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return call(*args, **kwargs)


def fitted(est, X, y, **kwargs):
    return quietly(est.fit, X, y, **kwargs)


def assert_tied(est, groups):
    """Bitwise, at every place."""
    for group in groups:
        if len(group[0]) == 3:
            values = {est.coefs_[layer][i, j] for layer, i, j in group}
            assert len(values) == 1
            continue
        first, *others = (est.coefs_[p[0]].T if len(p) == 2 else est.coefs_[p[0]] for p in group)
        for other in others:
            np.testing.assert_array_equal(first, other)


# -- the exam question -----------------------------------------------------------------------------


def exam_network(w1, w2, w3, w4, u, b, **changes):
    """Two logistic hidden units and a linear output, with these weights."""
    X, y = np.eye(2), np.zeros(2)
    net = MLPRegressor(
        hidden_layer_sizes=(2,), activation="logistic", random_state=0, max_iter=1, **changes
    )
    net = fitted(net, X, y)
    net.coefs_ = [np.array([[w1, w3], [w2, w4]]), np.array(u)[:, None]]
    net.intercepts_ = [np.array(b[:2]), np.array(b[2:])]
    return net


@pytest.mark.parametrize("seed", range(5))
def test_the_exam_question(seed):
    """w1 = w4: d (f - y)^2 / dw = 2 (f - y) (u1 h1 (1 - h1) x1 + u2 h2 (1 - h2) x2); ours is half.

    Unit 1 sees w1 x1 + w2 x2, unit 2 sees w3 x1 + w4 x2.
    """
    w1, w2, w3, u1, u2, b1, b2, b3, x1, x2, y = np.random.default_rng(seed).standard_normal(11)
    net = exam_network(w1, w2, w3, w1, (u1, u2), (b1, b2, b3), tied_weights=EXAM)
    h1, h2 = expit(w1 * x1 + w2 * x2 + b1), expit(w3 * x1 + w1 * x2 + b2)
    f = u1 * h1 + u2 * h2 + b3
    exam = 2 * (f - y) * (u1 * h1 * (1 - h1) * x1 + u2 * h2 * (1 - h2) * x2)
    g = gradients(net, [[x1, x2]], [y])
    assert g.loss == pytest.approx((f - y) ** 2 / 2, rel=1e-12)
    assert 2 * g.coefs[0][0, 0] == pytest.approx(exam, rel=1e-12)
    assert g.coefs[0][0, 0] == g.coefs[0][1, 1]
    # the two that are free, and the untied network, in which w1 has its own share only
    assert 2 * g.coefs[0][1, 0] == pytest.approx(2 * (f - y) * u1 * h1 * (1 - h1) * x2, rel=1e-12)
    untied = exam_network(w1, w2, w3, w1, (u1, u2), (b1, b2, b3))
    alone = gradients(untied, [[x1, x2]], [y])
    assert 2 * alone.coefs[0][0, 0] == pytest.approx(2 * (f - y) * u1 * h1 * (1 - h1) * x1)
    assert g.coefs[0][0, 0] == pytest.approx(alone.coefs[0][0, 0] + alone.coefs[0][1, 1])


def test_the_exam_question_is_the_change_of_the_loss():
    X, y = rows(20, 2)
    step, at = 1e-6, (0.3, -0.7, 0.4)
    weights = ((0.5, -1.2), (0.1, -0.2, 0.3))
    losses = [
        gradients(exam_network(w, *at[1:], w, *weights, tied_weights=EXAM), X, y).loss
        for w in (at[0] + step, at[0] - step)
    ]
    g = gradients(exam_network(at[0], *at[1:], at[0], *weights, tied_weights=EXAM), X, y)
    assert g.coefs[0][0, 0] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-8)


# -- training --------------------------------------------------------------------------------------

SOLVERS = {
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "clipped": {"solver": "sgd", "learning_rate_init": 0.05, "clip_norm": 0.02},
    "adam": {"solver": "adam"},
    "adamw": {"solver": "adamw", "alpha": 0.5},
    "lbfgs": {"solver": "lbfgs", "max_iter": 15},
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_columns_twice_with_tied_weights_are_columns_of_double_size(solver):
    """w x + w x = w (2 x): an untied network of half the weights goes exactly the same way.

    So gradients, clipped norms, moments, penalty and the reported loss count a tied weight once.
    """
    X, y = rows()
    D = X.shape[1]
    groups = [[(0, i, j), (0, i + D, j)] for i in range(D) for j in range(3)]
    settings = {"hidden_layer_sizes": (3,), "activation": "tanh", "alpha": 0.3, "random_state": 1}
    settings |= {"max_iter": 12, "batch_size": 25, **SOLVERS[solver]}
    tied = MLPRegressor(tied_weights=groups, warm_start=True, **settings)
    free = MLPRegressor(warm_start=True, **settings)
    if solver == "lbfgs":
        settings.pop("batch_size")
    start = {"max_iter": 1}
    fitted(tied.set_params(**start), np.hstack([X, X]), y)
    fitted(free.set_params(**start), 2 * X, y)
    tied.coefs_ = [np.vstack([free.coefs_[0]] * 2), free.coefs_[1].copy()]
    tied.intercepts_ = [b.copy() for b in free.intercepts_]
    fitted(tied.set_params(max_iter=settings["max_iter"]), np.hstack([X, X]), y)
    fitted(free.set_params(max_iter=settings["max_iter"]), 2 * X, y)
    assert_tied(tied, groups)
    assert (
        tied.n_parameters_
        == free.n_parameters_
        == sum(a.size for a in free.coefs_ + free.intercepts_)
    )
    np.testing.assert_allclose(tied.coefs_[0][:D], free.coefs_[0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(tied.coefs_[1], free.coefs_[1], rtol=1e-8, atol=1e-10)
    assert tied.loss_ == pytest.approx(free.loss_, rel=1e-10)
    if solver != "lbfgs":
        n = settings["max_iter"]
        np.testing.assert_allclose(tied.loss_curve_[-n:], free.loss_curve_[-n:], rtol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "groups", [[[(0, 0, 0), (0, 1, 1), (1, 2, 0)]], TRANSPOSE], ids=["places", "layers"]
)
def test_still_tied_after_everything(solver, groups, tmp_path):
    X, _ = rows()
    est = MLPRegressor(
        hidden_layer_sizes=(3,),
        tied_weights=groups,
        random_state=0,
        **{"max_iter": 7, **SOLVERS[solver]},
    )
    fitted(est.set_params(random_state=0), X, X)
    assert_tied(est, groups)
    untied = fitted(clone(est).set_params(tied_weights=None), X, X)
    saved = {"places": 2, "layers": 12}["layers" if groups is TRANSPOSE else "places"]
    assert est.n_parameters_ == untied.n_parameters_ - saved
    again = fitted(clone(est), X, X)
    for one, two in zip(est.coefs_, again.coefs_, strict=True):
        np.testing.assert_array_equal(one, two)
    est.save(tmp_path / "net.npz")
    for copy in (pickle.loads(pickle.dumps(est)), MLPRegressor.load(tmp_path / "net.npz")):
        assert copy.n_parameters_ == est.n_parameters_
        assert_tied(copy, groups)
        np.testing.assert_array_equal(copy.predict(X), est.predict(X))
        for one, two in zip(gradients(copy, X, X).coefs, gradients(est, X, X).coefs, strict=True):
            np.testing.assert_array_equal(one, two)
        assert_tied(fitted(copy.set_params(warm_start=True), X, X), groups)
    if solver != "lbfgs":
        assert_tied(quietly(est.partial_fit, X, X), groups)
        est.save(tmp_path / "stream.npz")  # with the optimizer's moments
        stream = MLPRegressor.load(tmp_path / "stream.npz")
        one, two = est.partial_fit(X, X), stream.partial_fit(X, X)
        np.testing.assert_array_equal(one.coefs_[0], two.coefs_[0])
        assert_tied(two, groups)


@pytest.mark.parametrize(
    "settings",
    [
        {"early_stopping": True, "max_iter": 30},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dropout": 0.3},
        {"learning_rate": "one_cycle", "clip_norm": 0.1},
        {"record_gradients": True},
        {"hidden_layer_sizes": (3, 4, 3)},
        {"batch_size": 7, "learning_rate_init": 0.1},
    ],
    ids=str,
)
def test_still_tied_in_every_kind_of_training(settings):
    X, _ = rows()
    last = len(settings.get("hidden_layer_sizes", (3,)))
    groups = [[(0,), (last, "T")]]
    settings = {"hidden_layer_sizes": (3,), "max_iter": 6, "random_state": 0, **settings}
    est = fitted(MLPRegressor(tied_weights=groups, **settings), X, X)
    assert_tied(est, groups)
    assert np.isfinite(est.loss_)


def test_recorded_norms_are_those_of_the_gradients():
    """With ties, the recorder reads the short row: one step, one batch, against `gradients`."""
    X, _ = rows()
    est = MLPRegressor(
        hidden_layer_sizes=(3,),
        tied_weights=TRANSPOSE,
        solver="sgd",
        momentum=0.0,
        alpha=0.0,
        learning_rate_init=0.1,
        batch_size=len(X),
        max_iter=1,
        random_state=0,
    )
    g, start = gradients(est, X, X), forward_trace(est, X, X)
    fitted(est.set_params(record_gradients=True), X, X)
    frame = est.gradient_history_.to_frame()
    norms = [np.linalg.norm(W) for W in g.coefs]
    np.testing.assert_allclose(frame["gradient_norm"], norms, rtol=1e-10)
    ratios = [0.1 * n / np.linalg.norm(W) for n, W in zip(norms, start.coefs, strict=True)]
    np.testing.assert_allclose(frame["update_ratio"], ratios, rtol=1e-10)


def test_classes_and_sample_weights():
    X, y = rows()
    groups = [[(-1, 0, 0), (-1, 1, 0)]]  # the output's weights of two hidden units
    est = MLPClassifier((4,), tied_weights=groups, random_state=0, max_iter=5)
    w = np.random.default_rng(0).integers(0, 3, len(X))
    weighted = fitted(clone(est), X, y > 0, sample_weight=w)
    repeated = fitted(clone(est), X.repeat(w, axis=0), y.repeat(w) > 0)
    for net in (weighted, repeated):
        assert_tied(net, groups)
    np.testing.assert_allclose(weighted.coefs_[0], repeated.coefs_[0], rtol=1e-8, atol=1e-10)


def test_the_rest_begins_as_in_the_untied_network():
    X, y = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), random_state=0, tied_weights=EXAM)
    ours = forward_trace(est, X, y).coefs[0]
    free = forward_trace(clone(est).set_params(tied_weights=None), X, y).coefs[0]
    assert ours[1, 1] == free[0, 0]
    ours[1, 1] = free[1, 1]
    np.testing.assert_array_equal(ours, free)


def test_in_a_search_and_stacked():
    X, y = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), random_state=0, max_iter=5)
    grid = {"tied_weights": [None, EXAM, [[(-1, 0, 0), (-1, 2, 0)]]], "alpha": [0.0, 1.0]}
    search = GridSearchCV(est, grid, cv=3)
    alone = quietly(clone(search).fit, X, y)
    with stacked():
        together = quietly(search.fit, X, y)
    np.testing.assert_allclose(
        together.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"], rtol=1e-8
    )
    with stacked():
        found = quietly(
            cross_validate, est.set_params(tied_weights=EXAM), X, y, return_estimator=True
        )
    for net in found["estimator"]:
        assert_tied(net, EXAM)


def test_to_sklearn_says_that_ties_are_lost():
    X, y = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), tied_weights=EXAM, random_state=0)
    est.partial_fit(X, y)
    with pytest.warns(UserWarning, match="no counterpart of tied_weights"):
        theirs = est.to_sklearn()
    np.testing.assert_allclose(theirs.predict(X), est.predict(X), rtol=1e-12)
    assert [m.shape for m in theirs._optimizer.ms] == [
        a.shape for a in est.coefs_ + est.intercepts_
    ]
    back = MLPRegressor.from_sklearn(theirs)
    assert back.n_parameters_ == est.n_parameters_ + 1


def test_other_ties_drop_the_optimizers_moments():
    X, y = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), tied_weights=EXAM, random_state=0)
    est.partial_fit(X, y)
    est.set_params(tied_weights=None).partial_fit(X, y)  # free from here on
    assert est.coefs_[0][0, 0] != est.coefs_[0][1, 1]
    assert est.n_parameters_ == sum(a.size for a in est.coefs_ + est.intercepts_)
    with pytest.raises(ValueError, match="not equal in the places that tied_weights ties"):
        est.set_params(tied_weights=EXAM).partial_fit(X, y)


@pytest.mark.parametrize("groups", [[], ()])
def test_no_groups_are_no_ties(groups):
    X, y = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), random_state=0, max_iter=3)
    one, two = fitted(clone(est), X, y), fitted(clone(est).set_params(tied_weights=groups), X, y)
    np.testing.assert_array_equal(one.coefs_[0], two.coefs_[0])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[(0, 0, 0)]], r"tied_weights\[0\]=.* ties nothing"),
        ([EXAM[0], [(1,)]], r"tied_weights\[1\]=.* ties nothing"),
        ([[(0, 4, 0), (0, 0, 0)]], r"row \(unit below layer 0\) 4 of 4"),
        ([[(0, 0, 3), (0, 0, 0)]], r"column \(unit of layer 0\) 3 of 3"),
        ([[(2, 0, 0), (0, 0, 0)]], "layer 2 of 2"),
        ([[(-3, 0, 0), (0, 0, 0)]], "layer -3 of 2"),
        ([[(0, 0, 0), (0, 0, 0)]], r"the place \(0, 0, 0\) stands twice"),
        ([EXAM[0], [(0, 1, 1), (0, 2, 2)]], r"the place \(0, 1, 1\) stands twice"),
        ([[(-2, 0, 0), (0, 1, 0)], [(0, 0, 0), (0, 2, 0)]], r"the place \(0, 0, 0\) stands twice"),
        ([[(0,), (0,)]], "layer 0 stands twice"),
        ([[(0,), (1,)]], r"layer 0 has shape \(4, 3\), layer 1 has shape \(3, 1\)"),
        ([TRANSPOSE[0]], r"layer 1 transposed has shape \(1, 3\)"),
        ([[(0,), (0, 0, 0)]], "mixes places and whole layers"),
        ([[(0, 0), (0, 1)]], "neither a place nor a layer"),
        ([[(0, 0.5, 0), (0, 1, 0)]], "neither a place nor a layer"),
        ([[(0, True, 0), (0, 1, 0)]], "neither a place nor a layer"),
        ([[(0, "t"), (1,)]], "neither a place nor a layer"),
        ([(0, 0, 0), (0, 1, 1)], r"tied_weights\[0\]: 0 is neither|tied_weights\[0\]"),
        (["T"], r"tied_weights\[0\] must be a list"),
        ("transpose", "The 'tied_weights' parameter"),
        ({"a": 1}, "The 'tied_weights' parameter"),
    ],
)
def test_what_cannot_be_tied_is_refused(groups, message):
    X, y = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), tied_weights=groups)
    with pytest.raises(ValueError, match=message):
        est.fit(X, y)
    assert not hasattr(est, "coefs_")


def test_a_place_in_a_tied_layer_is_refused():
    X, _ = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), tied_weights=[*TRANSPOSE, *EXAM])
    with pytest.raises(ValueError, match=r"\(0, 0, 0\) stands twice, in a group and in layer 0"):
        est.fit(X, X)


def test_lists_do_as_well_as_tuples():
    X, y = rows()
    est = MLPRegressor(hidden_layer_sizes=(3,), tied_weights=([[0, 0, 0], [np.int64(0), 1, 1]],))
    assert_tied(fitted(est.set_params(max_iter=2), X, y), EXAM)


# -- residual networks -----------------------------------------------------------------------------

SMALL = {
    "n_blocks": 4,
    "width": 6,
    "n_estimators": 2,
    "max_iter": 3,
    "numeric_embedding": None,
    "random_state": 0,
    "device": "cpu",
    "dtype": "float64",
}


@pytest.mark.parametrize("solver", ["muon", "adamw", "adam", "sgd"])
@pytest.mark.parametrize("skip", ["identity", "gated", "rezero"])
def test_tied_blocks_count_once(solver, skip):
    X, y = rows()
    est = MLPResidualRegressor(tie_blocks=True, skip=skip, solver=solver, **SMALL)
    one_block = MLPResidualRegressor(skip=skip, solver=solver, **SMALL | {"n_blocks": 1})
    est, one_block = fitted(est, X, y), fitted(one_block, X, y)
    assert est.n_parameters_ == one_block.n_parameters_
    trace = forward_trace(est, X)
    by_name = dict(zip(trace.names, trace.coefs, strict=True))
    for b in range(2, 5):
        for l in (1, 2):
            np.testing.assert_array_equal(
                by_name[f"block_{b}.linear_{l}"], by_name[f"block_1.linear_{l}"]
            )


def test_the_gradient_of_tied_blocks_is_the_sum_over_blocks():
    """Each block's share, v' delta, against the one gradient that is shown in all of them."""
    X, y = rows()
    est = MLPResidualClassifier(tie_blocks=True, **SMALL)
    y = (y > 0).astype(int)
    done = open_network(est, X, y).run()
    g = gradients(est, X, y)
    by_name = dict(zip(g.names, g.deltas, strict=True))
    inner = {layer.name: layer.v for layer in done.layers}
    share = sum(
        inner[f"block_{b}.linear_1"].T @ by_name[f"block_{b}.linear_2"] for b in range(1, 5)
    )
    np.testing.assert_allclose(share, g.parameters["blocks.linear_2.W"], rtol=1e-9, atol=1e-12)
    for b in range(1, 5):
        shown = g.coefs[g.names.index(f"block_{b}.linear_2")]
        np.testing.assert_array_equal(shown, g.parameters["blocks.linear_2.W"])


def test_muon_turns_a_shared_matrix_once():
    """The step of a shared matrix is that of one orthogonalised matrix: all singular values alike.

    W moves by rate * s * N(.), whose singular values are near 1; were each block's gradient
    orthogonalised and added, they would be up to 4 times as large.
    """
    X, y = rows()
    settings = SMALL | {"n_estimators": 1, "max_iter": 1, "batch_size": len(X), "momentum": 0.0}
    est = MLPResidualRegressor(
        tie_blocks=True,
        solver="muon",
        hidden_learning_rate=0.01,
        hidden_weight_decay=0.0,
        warmup_fraction=0.0,
        learning_rate="constant",
        average_fraction=0.0,
        early_stopping=False,
        dropout=0.0,
        drop_path=0.0,
        **settings,
    )
    start = open_network(est, X, y).run().parameters
    after = open_network(fitted(est, X, y), X).run().parameters
    for l, scale in ((1, np.sqrt(2.0)), (2, 1.0)):
        moved = (after[f"blocks.linear_{l}.W"] - start[f"blocks.linear_{l}.W"]) / (0.01 * scale)
        singular = np.linalg.svd(moved, compute_uv=False)
        assert singular.max() < 1.342
        assert singular.max() > 0.6
