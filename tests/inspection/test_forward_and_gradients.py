"""`forward_trace` and `gradients` by what users can check: predictions, differences, SGD steps."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sknn_resid import (
    OLS,
    MLPClassifier,
    MLPRegressor,
    MLPResidualClassifier,
    MLPResidualRegressor,
    Ridge,
)
from sknn_resid.inspection import forward_trace, gradients
from sknn_resid.inspection._network import open_network

N = 24


def fitted(est, X, y, sample_weight=None):
    """Fitted for as long as ``max_iter`` says, which is short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        weight = {} if sample_weight is None else {"sample_weight": sample_weight}
        return clone(est).fit(X, y, **weight)


def rows(kind="multiclass", seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, 4))
    targets = {
        "binary": rng.integers(0, 2, N),
        "multiclass": rng.integers(0, 3, N),
        "multilabel": rng.integers(0, 2, (N, 3)),
        "multioutput": rng.integers(0, 3, (N, 2)),
        "real": rng.standard_normal(N),
        "reals": rng.standard_normal((N, 2)),
        "counts": rng.poisson(2.0, N).astype(float),
    }
    return X, targets[kind], rng.uniform(0.2, 3, N)


def derivative(function, step=4e-6):
    """f'(0) by four points, close enough together that none is beyond a kink."""
    near = (function(step) - function(-step)) / (2 * step)
    far = (function(2 * step) - function(-2 * step)) / (4 * step)
    return (4 * near - far) / 3


def squared_of_rows(y_true, y_pred):
    return ((y_true - y_pred) ** 2).sum(1)


# name -> (estimator, kind of target)
MLPS = {
    "binary": (MLPClassifier((5, 4), activation=("tanh", "gelu")), "binary"),
    "multiclass": (MLPClassifier((5,), activation="logistic", label_smoothing=0.2), "multiclass"),
    "multilabel": (MLPClassifier((5,), activation="silu"), "multilabel"),
    "multioutput": (MLPClassifier((5,), activation="softplus"), "multioutput"),
    "balanced": (MLPClassifier((5,), class_weight="balanced"), "multiclass"),
    "linear": (MLPClassifier((), class_weight={0: 1.0, 1: 3.0, 2: 0.5}), "multiclass"),
    "squared": (MLPRegressor(hidden_layer_sizes=(5, 3), activation="mish"), "reals"),
    "poisson": (MLPRegressor("poisson", (5,), activation="elu"), "counts"),
    "huber": (MLPRegressor("huber", (5,), activation="selu", huber_delta=0.7), "real"),
    "absolute": (MLPRegressor("absolute_error", (5,)), "real"),
    "quantile": (MLPRegressor("quantile", (5,), quantile=0.8), "real"),
    "callable": (MLPRegressor(squared_of_rows, (5,), activation="leaky_relu"), "reals"),
}
SGD = {"solver": "sgd", "momentum": 0.0, "alpha": 0.0, "learning_rate_init": 0.01, "max_iter": 1}
RESIDUAL_SGD = {
    "solver": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "learning_rate": "constant",
    "learning_rate_init": 0.01,
    "warmup_fraction": 0.0,
    "average_fraction": 0.0,
    "dropout": 0.0,
    "drop_path": 0.0,
    "max_iter": 1,
    "n_estimators": 2,
    "early_stopping": False,
    "dtype": "float64",
    "width": 6,
    "n_blocks": 2,
    "batch_size": N,
    "device": "cpu",
    "random_state": 3,
}
RESIDUALS = {
    "batch": (MLPResidualClassifier(activation="gelu", calibrate=False), "multiclass"),
    "layer": (MLPResidualClassifier(normalization="layer", skip="gated"), "binary"),
    "rezero": (MLPResidualRegressor(normalization=None, skip="rezero"), "reals"),
    "plain": (MLPResidualRegressor(skip="none", preactivation=True), "real"),
    "periodic": (MLPResidualRegressor(numeric_embedding="periodic"), "real"),
    "tied": (MLPResidualClassifier(tie_blocks=True, class_weight="balanced"), "multiclass"),
    "poisson": (MLPResidualRegressor(loss="poisson", numeric_embedding=None), "counts"),
}


# -- the MLPs against what they predict ----------------------------------------------------------


def row_losses(est, X, y):
    """Loss of each row by its definition, from what the fitted estimator predicts."""
    if isinstance(est, MLPClassifier):
        p = est.predict_proba(X)
        parts = p if isinstance(p, list) else [p]
        columns = y.T if isinstance(p, list) else [y]
        if p is parts[0] and y.ndim == 2:
            return -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1)
        s = est.label_smoothing
        total = np.zeros(len(X))
        for part, column in zip(parts, columns, strict=True):
            smooth = (1 - s) * np.eye(part.shape[1])[column] + s / part.shape[1]
            total -= (smooth * np.log(part)).sum(1)
        return total
    f = est.predict(X).reshape(len(X), -1)
    y = y.reshape(len(X), -1)
    u = f - y
    by_element = {
        "squared_error": lambda: u**2 / 2,
        "poisson": lambda: np.where(y > 0, y * np.log(np.maximum(y, 1) / f), 0) - y + f,
        "huber": lambda: np.where(abs(u) <= 0.7, u**2 / 2, 0.7 * (abs(u) - 0.35)),
        "absolute_error": lambda: abs(u),
        "quantile": lambda: np.maximum(-0.8 * u, 0.2 * u),
    }
    return u**2 @ np.ones(u.shape[1]) if callable(est.loss) else by_element[est.loss]().sum(1)


def weights_with_classes(est, y, w):
    class_weight = getattr(est, "class_weight", None)
    if class_weight is None:
        return w
    if isinstance(class_weight, dict):
        return w * np.array([class_weight[int(label)] for label in y])
    mass = np.bincount(y, weights=w)
    return w * (w.sum() / (len(mass) * mass))[y]


@pytest.mark.parametrize("name", MLPS)
def test_gradients_are_the_change_of_the_objective(name):
    est, kind = MLPS[name]
    X, y, w = rows(kind)
    est = fitted(est.set_params(random_state=0, max_iter=5), X, y, w)
    g = gradients(est, X, y, w)
    r = weights_with_classes(est, y, w)
    r = r / r.sum()
    assert g.loss == pytest.approx(r @ row_losses(est, X, y), rel=1e-12)
    rng = np.random.default_rng(1)

    def change(nudge):
        def moved(step):
            net = copy.copy(est)
            net.coefs_, net.intercepts_ = list(est.coefs_), list(est.intercepts_)
            X_moved = nudge(net, step)
            return r @ row_losses(net, X_moved, y)

        return derivative(moved)

    for attribute, ours in (("coefs_", g.coefs), ("intercepts_", g.intercepts)):
        for l, array in enumerate(ours):
            D = rng.standard_normal(array.shape)

            def nudge(net, step, attribute=attribute, l=l, D=D):
                getattr(net, attribute)[l] = getattr(net, attribute)[l] + step * D
                return X

            assert change(nudge) == pytest.approx((D * array).sum(), rel=1e-7, abs=1e-10)
    D = rng.standard_normal(X.shape)
    assert change(lambda net, step: X + step * D) == pytest.approx((D * g.X).sum(), rel=1e-7)


@pytest.mark.parametrize("name", MLPS)
def test_the_last_activations_are_the_predictions(name):
    est, kind = MLPS[name]
    X, y, _ = rows(kind)
    est = fitted(est.set_params(random_state=0, max_iter=5), X, y)
    trace = forward_trace(est, X)
    assert trace.names == [*(f"hidden_{l + 1}" for l in range(len(est.coefs_) - 1)), "output"]
    for ours, theirs_ in zip(trace.coefs, est.coefs_, strict=True):
        np.testing.assert_array_equal(ours, theirs_)
    v = X
    for z, W, b, after in zip(trace.z, est.coefs_, est.intercepts_, trace.v, strict=True):
        np.testing.assert_allclose(z, v @ W + b, rtol=1e-12, atol=1e-13)
        v = after
    if kind in ("multiclass", "multilabel"):
        np.testing.assert_allclose(v, est.predict_proba(X), rtol=1e-12)
    elif kind == "multioutput":
        np.testing.assert_allclose(v, np.hstack(est.predict_proba(X)), rtol=1e-12)
    elif kind == "binary":
        np.testing.assert_allclose(v[:, 0], est.predict_proba(X)[:, 1], rtol=1e-12)
    else:
        np.testing.assert_allclose(v.reshape(y.shape), est.predict(X), rtol=1e-12)


# -- against a step of training ------------------------------------------------------------------


@pytest.mark.parametrize("name", MLPS)
def test_one_step_of_sgd_goes_down_these_gradients(name):
    """From the first weights, in ``fit``, and from fitted ones, in ``partial_fit``."""
    est, kind = MLPS[name]
    est = clone(est).set_params(random_state=5, **SGD)
    X, y, w = rows(kind)
    start, g = forward_trace(est, X, y), gradients(est, X, y, w)
    est = fitted(est, X, y, w)
    for before, slope, after in zip(start.coefs, g.coefs, est.coefs_, strict=True):
        np.testing.assert_allclose(after, before - 0.01 * slope, rtol=1e-10, atol=1e-13)
    for before, slope, after in zip(start.intercepts, g.intercepts, est.intercepts_, strict=True):
        np.testing.assert_allclose(after, before - 0.01 * slope, rtol=1e-10, atol=1e-13)
    if est.get_params().get("class_weight") == "balanced":
        return  # partial_fit counts the classes of all calls
    before, g = [W.copy() for W in est.coefs_], gradients(est, X, y, w)
    est.partial_fit(X, y, w)
    for old, slope, after in zip(before, g.coefs, est.coefs_, strict=True):
        np.testing.assert_allclose(after, old - 0.01 * slope, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("name", RESIDUALS)
def test_one_step_of_every_member(name, member):
    est, kind = RESIDUALS[name]
    est = clone(est).set_params(**RESIDUAL_SGD)
    X, y, w = rows(kind)
    w[3] = 0
    start = open_network(est, X, y, w, member=member).run()
    g = gradients(est, X, y, w, member=member)
    est = fitted(est, X, y, w)
    after = open_network(est, X, y, w, member=member).run()
    assert after.parameters.keys() == start.parameters.keys() == g.parameters.keys()
    for key, value in start.parameters.items():
        np.testing.assert_allclose(
            after.parameters[key],
            value - 0.01 * g.parameters[key],
            rtol=1e-9,
            atol=1e-12,
            err_msg=key,
        )
    layers = dict(zip(g.names, g.coefs, strict=True))
    np.testing.assert_array_equal(layers["output"], g.parameters["output.W"])


@pytest.mark.parametrize("name", RESIDUALS)
def test_the_members_average_to_the_prediction(name):
    est, kind = RESIDUALS[name]
    X, y, _ = rows(kind)
    est = fitted(clone(est).set_params(**RESIDUAL_SGD | {"max_iter": 3}), X, y)
    last = [forward_trace(est, X, member=m).v[-1] for m in range(2)]
    mean = np.tensordot(est.member_weights_, last, axes=1)
    outputs = est._outputs(X)  # on the scale that is learned
    np.testing.assert_allclose(mean, outputs, rtol=1e-9, atol=1e-12)


def test_layers_of_a_residual_network_have_names():
    X, y, _ = rows("binary")
    est = MLPResidualClassifier(**RESIDUAL_SGD | {"skip": "gated"})
    trace = forward_trace(est, X, y)
    assert trace.names == [
        "input",
        "block_1.gate",
        "block_1.linear_1",
        "block_1.linear_2",
        "block_2.gate",
        "block_2.linear_1",
        "block_2.linear_2",
        "output",
    ]
    assert len(trace.columns) == trace.X.shape[1]
    by = {name: (z, v) for name, z, v in zip(trace.names, trace.z, trace.v, strict=True)}
    x0 = by["input"][1]
    np.testing.assert_array_equal(x0, by["input"][0])
    t = by["block_1.gate"][1]
    o, x1 = by["block_1.linear_2"]
    np.testing.assert_allclose(x1, t * o + (1 - t) * x0, rtol=1e-10, atol=1e-12)
    # the output's matrix reads f(n(x_L)); the inner matrix what linear_1 hands on
    W = trace.coefs[trace.names.index("block_1.linear_2")]
    b = trace.intercepts[trace.names.index("block_1.linear_2")]
    np.testing.assert_allclose(by["block_1.linear_1"][1] @ W + b, o, rtol=1e-10, atol=1e-12)


# -- invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "est",
    [MLPClassifier((5,), random_state=0), MLPResidualClassifier(**RESIDUAL_SGD)],
    ids=["mlp", "residual"],
)
def test_a_weight_of_two_is_a_row_twice(est):
    X, y, _ = rows("multiclass")
    w = np.random.default_rng(2).integers(0, 3, N)
    est = fitted(est.set_params(max_iter=2), X, y)
    weighted = gradients(est, X, y, w)
    repeated = gradients(est, X.repeat(w, axis=0), y.repeat(w))
    assert weighted.loss == pytest.approx(repeated.loss, rel=1e-12)
    for one, two in zip(weighted.coefs, repeated.coefs, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-13)
    assert not weighted.X[w == 0].any() or est.__class__ is MLPResidualClassifier


def test_per_row_gradients_do_not_look_at_weights():
    X, y, w = rows("real")
    est = fitted(MLPRegressor(hidden_layer_sizes=(5,), random_state=0, max_iter=3), X, y)
    w[:5] = 0
    ours = open_network(est, X, y, w).input_gradients()
    alone = [gradients(est, X[i : i + 1], y[i : i + 1]).X for i in range(N)]
    np.testing.assert_allclose(ours, np.concatenate(alone), rtol=1e-11, atol=1e-14)


def test_fitted_statistics_keep_rows_apart():
    X, y, _ = rows("multiclass")
    est = fitted(MLPResidualClassifier(**RESIDUAL_SGD), X, y)
    network = open_network(est, X, y)
    assert network.rows_are_independent
    assert not open_network(est, X, y, statistics="batch").rows_are_independent
    alone = [gradients(est, X[i : i + 1], y[i : i + 1], statistics="fitted").X for i in range(N)]
    np.testing.assert_allclose(
        network.input_gradients(), np.concatenate(alone), rtol=1e-9, atol=1e-13
    )


def test_sparse_rows_are_dense_rows():
    X, y, w = rows("multiclass")
    X = X * (X > 0)
    est = MLPClassifier((5,), random_state=0)
    dense, sparse = (gradients(est, rows_, y, w) for rows_ in (X, scipy.sparse.csr_matrix(X)))
    for one, two in zip(dense.coefs, sparse.coefs, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(dense.X, sparse.X, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(forward_trace(est, scipy.sparse.csr_matrix(X), y).X.toarray(), X)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_is_that_of_the_estimator(dtype):
    X, y, w = rows("multiclass")
    est = MLPClassifier((5,), random_state=0, dtype=dtype, activation="gelu")
    own, exact = gradients(est, X, y, w), gradients(est, X, y, w, dtype="float64")
    bound = {"float32": 1e-5, "bfloat16": 0.05}[dtype]
    for a, b in zip(own.coefs, exact.coefs, strict=True):
        assert a.dtype == np.float32
        assert b.dtype == np.float64
        assert 0 < np.linalg.norm(a - b) < bound * np.linalg.norm(b)


@pytest.mark.parametrize("embedding", [None, "periodic"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_of_a_residual_network(dtype, embedding):
    X, y, w = rows("multiclass")
    settings = RESIDUAL_SGD | {"dtype": dtype, "numeric_embedding": embedding}
    est = MLPResidualClassifier(skip="gated", activation="gelu", **settings)
    own, exact = gradients(est, X, y, w), gradients(est, X, y, w, dtype="float64")
    bound = {"float32": 1e-4, "bfloat16": 0.2}[dtype]
    for a, b in [(own.X, exact.X), *zip(own.coefs, exact.coefs, strict=True)]:
        assert a.dtype == np.float32
        assert 0 < np.linalg.norm(a - b) < bound * np.linalg.norm(b)


NO_RATE = {"learning_rate_init": 1e-300, "random_state": 7, "max_iter": 1}


@pytest.mark.parametrize(
    ("est", "kind"),
    [
        (MLPClassifier((6, 5), early_stopping=True, validation_fraction=0.3, **NO_RATE), "binary"),
        (MLPRegressor(hidden_layer_sizes=(6,), activation="logistic", **NO_RATE), "reals"),
        (MLPResidualClassifier(hidden_learning_rate=1e-300, **NO_RATE), "multiclass"),
        (
            MLPResidualRegressor(
                hidden_learning_rate=1e-300,
                init="orthogonal",
                embedding_scale=(1.0, 0.3),
                n_estimators=4,
                **NO_RATE,
            ),
            "real",
        ),
    ],
    ids=["mlp", "logistic", "residual", "groups"],
)
def test_what_is_not_fitted_is_shown_as_fit_begins(est, kind):
    """A fit whose steps are too small to move any weight but 0 ends where it began."""
    X, y, w = rows(kind)
    member = 0 if isinstance(est, MLPClassifier | MLPRegressor) else 3
    start = open_network(est, X, y, w, member=member).run().parameters
    end = open_network(fitted(est, X, y, w), X, member=member).run().parameters
    assert start.keys() == end.keys()
    for name, array in start.items():
        np.testing.assert_allclose(array, end[name], rtol=0, atol=1e-290, err_msg=name)


# -- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last",
    [
        MLPRegressor(hidden_layer_sizes=(4,), random_state=0, max_iter=3),
        MLPResidualRegressor(**RESIDUAL_SGD),
    ],
    ids=["mlp", "residual"],
)
@pytest.mark.parametrize("is_fitted", [False, True])
def test_a_pipeline_is_its_last_step_on_transformed_rows(last, is_fitted):
    X, y, w = rows("real")
    pipe = make_pipeline(StandardScaler(), FunctionTransformer(), last)
    scaled = StandardScaler().fit_transform(X)
    if is_fitted:
        pipe, last = fitted(pipe, X, y), fitted(last, scaled, y)
    ours, wanted = gradients(pipe, X, y, w), gradients(last, scaled, y, w)
    for a, b in zip(ours.coefs, wanted.coefs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    if not is_fitted:
        assert not hasattr(pipe[0], "mean_")


def test_columns_carry_names_through_a_pipeline():
    X, y, _ = rows("real")
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    net = MLPRegressor(hidden_layer_sizes=(4,), random_state=0)
    assert gradients(net, frame, y).columns == ["a", "b", "c", "d"]
    assert gradients(make_pipeline(StandardScaler(), net), frame, y).columns == ["a", "b", "c", "d"]
    assert gradients(net, X, y).columns == ["x0", "x1", "x2", "x3"]
    assert gradients(make_pipeline(net), frame, y).columns == ["a", "b", "c", "d"]
    residual = gradients(MLPResidualRegressor(**RESIDUAL_SGD), frame, y)
    assert residual.columns[0] == "a"
    assert len(residual.columns) == residual.X.shape[1]


# -- nothing is touched, nothing is left behind --------------------------------------------------


@pytest.mark.parametrize("is_fitted", [False, True])
@pytest.mark.parametrize(
    "est",
    [MLPClassifier((5,), class_weight="balanced"), MLPResidualClassifier(**RESIDUAL_SGD)],
    ids=["mlp", "residual"],
)
def test_the_estimator_is_left_as_it_is(est, is_fitted):
    X, y, w = rows("multiclass")
    generator = np.random.RandomState(4)
    est = clone(est).set_params(random_state=generator, max_iter=2)
    if is_fitted:
        est = fitted(est, X, y)
    before = pickle.dumps(est)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)
    forward_trace(est, X, y)
    gradients(est, X, y, w)
    assert pickle.dumps(est) == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(
        np.random.get_state(legacy=False)["state"]["key"], numpy_state["state"]["key"]
    )


def test_a_warm_start_is_looked_at_where_it_is():
    X, y, _ = rows("multiclass")
    est = fitted(MLPClassifier((5,), warm_start=True, random_state=0, max_iter=2), X, y)
    np.testing.assert_array_equal(forward_trace(est, X).coefs[0], est.coefs_[0])


def test_importing_inspection_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, sknn_resid.inspection as i; dir(i); i.__all__; i.LossCurveDisplay; "
        "assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -- results -------------------------------------------------------------------------------------


def test_tables_have_a_row_per_layer():
    X, y, _ = rows("multiclass")
    est = MLPClassifier((5, 4), random_state=0)
    trace, g = forward_trace(est, X, y), gradients(est, X, y)
    assert list(trace.to_frame().index) == list(g.to_frame().index) == trace.names
    np.testing.assert_allclose(trace.to_frame()["z_std"], [z.std() for z in trace.z])
    np.testing.assert_allclose(g.to_frame()["coef_norm"], [np.sqrt((W**2).sum()) for W in g.coefs])
    assert "hidden_2" in repr(trace)
    assert f"{g.loss:.6g}" in repr(g)
    with pytest.raises(AttributeError):
        g.loss = 0.0


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "est",
    [
        Ridge(),
        OLS(),
        theirs.MLPClassifier(),
        StandardScaler(),
        make_pipeline(Ridge()),
        MLPClassifier,
    ],
    ids=["ridge", "ols", "sklearn", "scaler", "pipeline", "class"],
)
def test_what_is_no_network_is_refused(est):
    X, y, _ = rows("binary")
    with pytest.raises(TypeError, match="is not a network of sknn_resid"):
        gradients(est, X, y)
    with pytest.raises(TypeError, match="is not a network of sknn_resid"):
        forward_trace(est, X)


def test_a_search_is_told_to_pass_its_estimator():
    X, y, _ = rows("binary")
    search = GridSearchCV(MLPClassifier((2,), max_iter=1), {"alpha": [0.1, 1.0]}, cv=2)
    search = fitted(search, X, y)
    with pytest.raises(TypeError, match="Pass its best_estimator_"):
        gradients(search, X, y)
    assert gradients(search.best_estimator_, X, y).loss > 0


def test_errors_name_what_is_wrong():
    X, y, w = rows("multiclass")
    mlp, residual = MLPClassifier(random_state=0), MLPResidualClassifier(**RESIDUAL_SGD)
    for est in (mlp, residual):
        with pytest.raises(ValueError, match=r"y is missing: this MLP.*is not fitted"):
            forward_trace(est, X)
        with pytest.raises(ValueError, match="y is missing"):
            gradients(est, X, None)
        with pytest.raises(ValueError, match="sample_weight"):
            gradients(est, X, y, -w)
    with pytest.raises(ValueError, match="member=1: MLPClassifier is one network"):
        gradients(mlp, X, y, member=1)
    with pytest.raises(ValueError, match="member=2: the ensemble has 2 members"):
        gradients(residual, X, y, member=2)
    with pytest.raises(ValueError, match="statistics='fitted': this MLPResidualClassifier"):
        gradients(residual, X, y, statistics="fitted")
    with pytest.raises(ValueError, match="statistics='running'"):
        gradients(mlp, X, y, statistics="running")
    with pytest.raises(ValueError, match="dtype='float16'"):
        gradients(mlp, X, y, dtype="float16")
    with pytest.raises(ValueError, match="The 'alpha' parameter"):
        gradients(MLPClassifier(alpha=-1), X, y)
    for est in (fitted(mlp.set_params(max_iter=1), X, y), fitted(residual, X, y)):
        with pytest.raises(ValueError, match=r"y has labels that y of the fit does not have: \[7"):
            gradients(est, X, np.full(N, 7))
        with pytest.raises(ValueError, match="features"):
            gradients(est, X[:, :3], y)
