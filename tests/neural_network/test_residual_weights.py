"""A weight of 2 is a row twice, a weight of 0 is no row: exactly, for tables that are one batch."""

import numpy as np
import pandas as pd
import pytest
from neural_network.residual_helpers import QUICK, mixed_table, outputs
from numpy.testing import assert_allclose, assert_array_equal

from sknn_resid import MLPResidualClassifier, MLPResidualRegressor

N_ROWS = 30
VARIANTS = {
    "defaults": {},
    "held-out rows": {"validation_fraction": 0.3, "n_estimators": 4},
    "layer, gated": {"normalization": "layer", "skip": "gated"},
    "no norm": {"normalization": None, "n_blocks": 3},
    "rezero, adam": {"normalization": None, "skip": "rezero", "solver": "adam"},
    "plain, sgd": {"skip": "none", "solver": "sgd", "learning_rate_init": 0.05},
    "periodic": {"numeric_embedding": "periodic", "dropout": 0.3, "drop_path": 0.2},
    "tied": {"tie_blocks": True, "n_blocks": 2, "preactivation": True, "init": "orthogonal"},
    "no averages": {"average_fraction": 0.0, "clip_norm": 0.5},
}
LOSSES = {
    "poisson": {"loss": "poisson"},
    "absolute": {"loss": "absolute_error"},
    "huber": {"loss": "huber", "huber_delta": 5.0},
    "quantile": {"loss": "quantile", "quantile": 0.8},
}


def pair(cls, params, y, seed=0):
    """Outputs of a fit with weights, and of one with rows repeated so often, in another order."""
    rng = np.random.RandomState(seed)
    X, _, _ = mixed_table(N_ROWS, seed)
    weights = rng.randint(0, 4, N_ROWS)
    rows = np.repeat(np.arange(N_ROWS), weights)
    shuffled = rng.permutation(rows)
    settings = {**QUICK, **params}
    weighted = cls(**settings).fit(X, y, sample_weight=weights)
    repeated = cls(**settings).fit(X.iloc[shuffled], y[shuffled])
    return weighted, repeated, X


@pytest.mark.parametrize("name", VARIANTS)
def test_a_weight_is_a_repetition_for_classes(name):
    _, y, _ = mixed_table(N_ROWS)
    weighted, repeated, X = pair(MLPResidualClassifier, VARIANTS[name], y)
    for a, b in zip(outputs(weighted, X)[1:], outputs(repeated, X)[1:], strict=True):
        assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    assert weighted.temperature_ == repeated.temperature_
    assert_array_equal(weighted.best_iteration_, repeated.best_iteration_)


@pytest.mark.parametrize("name", [*VARIANTS, *LOSSES])
def test_a_weight_is_a_repetition_for_real_targets(name):
    _, _, y = mixed_table(N_ROWS)
    weighted, repeated, X = pair(MLPResidualRegressor, {**VARIANTS, **LOSSES}[name], y)
    for a, b in zip(outputs(weighted, X), outputs(repeated, X), strict=True):
        assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_class_weights_are_weights():
    X, y, _ = mixed_table(N_ROWS)
    by_class = MLPResidualClassifier(**QUICK, class_weight={"tall": 3, "low": 1}).fit(X, y)
    by_row = MLPResidualClassifier(**QUICK).fit(X, y, sample_weight=np.where(y == "tall", 3, 1))
    # The encoder is learned from the table as it is, not from the weights of classes.
    columns = ["wild", "region"]
    by_class.fit(X[columns], y)
    by_row.fit(X[columns], y, sample_weight=np.where(y == "tall", 3, 1))
    assert_allclose(by_class.predict_proba(X[columns]), by_row.predict_proba(X[columns]))
    balanced = MLPResidualClassifier(**QUICK, class_weight="balanced").fit(X[columns], y)
    counts = {label: 15.0 / (y == label).sum() for label in ("tall", "low")}
    listed = MLPResidualClassifier(**QUICK, class_weight=counts).fit(X[columns], y)
    assert_allclose(balanced.predict_proba(X[columns]), listed.predict_proba(X[columns]))


def test_rows_of_weight_zero_have_no_influence():
    X, _, y = mixed_table(N_ROWS)
    extra = pd.DataFrame(
        {"size": [1e9], "kind": ["palm"], "region": ["a"], "wild": [True], "count": [99]}
    )
    both = pd.concat([X, extra], ignore_index=True)
    both["region"] = pd.Categorical(both["region"], categories=list("abcd"))
    one = MLPResidualRegressor(**QUICK).fit(X, y)
    two = MLPResidualRegressor(**QUICK).fit(
        both, np.r_[y, 1e6], sample_weight=np.r_[np.ones(N_ROWS), 0]
    )
    assert_allclose(one.predict(X), two.predict(X), rtol=1e-10)


def test_the_unit_of_weights_does_not_matter():
    X, y, _ = mixed_table(N_ROWS)
    weights = np.random.RandomState(0).rand(N_ROWS)
    one = MLPResidualClassifier(**QUICK).fit(X, y, sample_weight=weights)
    two = MLPResidualClassifier(**QUICK).fit(X, y, sample_weight=1024 * weights)
    assert_allclose(one.predict_proba(X), two.predict_proba(X), rtol=1e-9)


def test_the_order_of_rows_does_not_matter():
    X, _, y = mixed_table(N_ROWS)
    order = np.random.RandomState(0).permutation(N_ROWS)
    one = MLPResidualRegressor(**QUICK).fit(X, y)
    two = MLPResidualRegressor(**QUICK).fit(X.iloc[order], y[order])
    assert_allclose(one.predict(X), two.predict(X), rtol=1e-8)


@pytest.mark.parametrize(
    ("weights", "words"),
    [(np.zeros(N_ROWS), "zero"), (np.full(N_ROWS, -1.0), "negative"), (np.ones(3), "shape")],
)
def test_bad_weights(weights, words):
    X, y, _ = mixed_table(N_ROWS)
    with pytest.raises(ValueError, match=words):
        MLPResidualClassifier(**QUICK).fit(X, y, sample_weight=weights)
