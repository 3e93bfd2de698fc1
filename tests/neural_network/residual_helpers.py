"""Small tables and quick settings for the tests of the residual estimators; holds no test."""

import numpy as np
import pandas as pd
from sklearn.datasets import make_multilabel_classification

from sknn_resid import MLPResidualClassifier, MLPResidualRegressor

# Settings for fits of a few hundredths of a second.
QUICK = {"n_estimators": 2, "width": 8, "max_iter": 12, "random_state": 0}


def mixed_table(n_rows=120, seed=0):
    """A frame with numbers, text, a category, truth values and missing values, and two targets."""
    rng = np.random.RandomState(seed)
    size = rng.exponential(10, n_rows)
    kind = rng.choice(["ash", "oak", "elm"], n_rows)
    score = 2.0 * (kind == "oak") - 1.0 * (kind == "elm") + np.log(size)
    X = pd.DataFrame(
        {
            "size": np.where(rng.rand(n_rows) < 0.1, np.nan, size),
            "kind": pd.Series(np.where(rng.rand(n_rows) < 0.1, None, kind)),
            "region": pd.Categorical(rng.choice(list("abcd"), n_rows)),
            "wild": rng.rand(n_rows) < 0.5,
            "count": rng.poisson(2, n_rows),
        }
    )
    y_real = 100 + 10 * score + rng.randn(n_rows)
    return X, np.where(score > 2.2, "tall", "low"), y_real


def task(kind, n_rows=90, seed=0):
    """(class, parameters, X, y) of one kind of target."""
    rng = np.random.RandomState(seed)
    X = rng.randn(n_rows, 4)
    if kind == "multilabel":
        X, y = make_multilabel_classification(
            n_samples=n_rows, n_features=4, n_classes=3, random_state=seed
        )
        return MLPResidualClassifier, {}, X, y
    classes = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
    real = X[:, 0] * 3 + np.abs(X[:, 1]) + 0.1 * rng.randn(n_rows)
    found = {
        "binary": (MLPResidualClassifier, {}, np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]),
        "multiclass": (MLPResidualClassifier, {}, classes * 10),
        "multioutput": (MLPResidualClassifier, {}, np.column_stack([classes, X[:, 2] > 0])),
        "regression": (MLPResidualRegressor, {}, real),
        "multi_regression": (MLPResidualRegressor, {}, np.column_stack([real, 1000 * X[:, 2]])),
        "poisson": (
            MLPResidualRegressor,
            {"loss": "poisson"},
            rng.poisson(np.exp(0.3 * real)).astype(float),
        ),
    }
    cls, params, y = found[kind]
    return cls, params, X, y


TASKS = (
    "binary",
    "multiclass",
    "multilabel",
    "multioutput",
    "regression",
    "multi_regression",
    "poisson",
)


def outputs(model, X):
    """Everything a fitted model says about X, as a flat list of arrays."""
    found = []
    for name in ("predict", "predict_proba", "transform"):
        if hasattr(model, name):
            value = getattr(model, name)(X)
            found += value if isinstance(value, list) else [value]
    return found
