"""Programs that fit many networks, and the comparison of two runs of one. Holds no test."""

import warnings

import joblib
import numpy as np
from neural_network.helpers import assert_same_fit, assert_same_weights
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
    VotingRegressor,
)
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_selection import RFECV
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import (
    ClassifierChain,
    MultiOutputClassifier,
    MultiOutputRegressor,
    RegressorChain,
)
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor

X, y = make_classification(
    n_samples=90, n_features=6, n_informative=4, n_classes=3, flip_y=0.1, random_state=0
)
Y = np.c_[y > 0, y > 1].astype(int)
t = X @ np.random.RandomState(1).normal(size=(6, 2)) + X[:, :2] ** 2
t = (t - t.mean(0)) / t.std(0)


def net(**params):
    return MLPClassifier(**{"hidden_layer_sizes": (5,), "max_iter": 4, "random_state": 0} | params)


def reg(**params):
    return MLPRegressor(**{"hidden_layer_sizes": (5,), "max_iter": 4, "random_state": 0} | params)


def prefix(model):
    """Name of the network's parameters in a search over the model."""
    return f"{model.steps[-1][0]}__" if isinstance(model, Pipeline) else ""


def piped(model):
    return make_pipeline(StandardScaler(), model)


class Recorder:
    """A scorer that keeps what it scored, so that every fit of a search can be compared."""

    def __init__(self):
        self.models = []

    def __call__(self, model, X, y):
        params = {k: v for k, v in model.get_params().items() if not hasattr(v, "fit")}
        params.pop("steps", None)
        self.models.append((joblib.hash((params, X)), model))
        return float((model.predict(X) == y).mean())


def _search(cls, model, grid, **params):
    """A search, and every model that it fitted, in an order that does not depend on who scored."""
    recorder = Recorder()
    grid = {prefix(model) + name: values for name, values in grid.items()}
    search = cls(model, grid, scoring=recorder, **params).fit(X, y)
    by_key = sorted(recorder.models, key=lambda pair: pair[0])
    return [search, *(model for _, model in by_key)]


_GRID = {"alpha": [1e-4, 1e-2, 1.0], "learning_rate_init": [0.01, 0.1]}

# name -> function of a classifier (bare or in a pipeline) that returns fitted things and arrays
CLASSIFIER_PROGRAMS = {
    "GridSearchCV": lambda m: _search(GridSearchCV, m, _GRID, cv=3),
    "GridSearchCV n_jobs=1": lambda m: _search(GridSearchCV, m, _GRID, cv=3, n_jobs=1),
    "RandomizedSearchCV": lambda m: _search(
        RandomizedSearchCV, m, _GRID, n_iter=4, cv=3, random_state=0
    ),
    "HalvingGridSearchCV": lambda m: _search(
        HalvingGridSearchCV, m, _GRID, cv=3, random_state=0, min_resources=30
    ),
    "HalvingRandomSearchCV": lambda m: _search(
        HalvingRandomSearchCV, m, _GRID, cv=3, random_state=0, min_resources=30
    ),
    "cross_validate": lambda m: [
        cross_validate(m, X, y, cv=4, return_estimator=True, return_train_score=True)
    ],
    "cross_val_score": lambda m: [cross_val_score(m, X, y, cv=4)],
    "cross_val_predict": lambda m: [cross_val_predict(m, X, y, cv=4, method="predict_proba")],
    "learning_curve": lambda m: [*learning_curve(m, X, y, cv=3, train_sizes=[0.5, 0.8, 1.0])],
    "validation_curve": lambda m: [
        *validation_curve(
            m, X, y, param_name=prefix(m) + "alpha", param_range=[1e-3, 1e-1, 10.0], cv=3
        )
    ],
    "permutation_test_score": lambda m: [
        *permutation_test_score(m, X, y, cv=3, n_permutations=4, random_state=0)
    ],
    "BaggingClassifier": lambda m: [
        BaggingClassifier(m, n_estimators=6, max_samples=0.8, random_state=0).fit(X, y)
    ],
    "VotingClassifier": lambda m: [
        VotingClassifier(
            [("a", m), ("b", clone(m)), ("c", LogisticRegression())], voting="soft"
        ).fit(X, y)
    ],
    "StackingClassifier": lambda m: [
        StackingClassifier([("a", m), ("c", LogisticRegression())], cv=3).fit(X, y)
    ],
    "OneVsRestClassifier": lambda m: [OneVsRestClassifier(m).fit(X, y)],
    "OneVsOneClassifier": lambda m: [OneVsOneClassifier(m).fit(X, y)],
    "OutputCodeClassifier": lambda m: [OutputCodeClassifier(m, random_state=0).fit(X, y)],
    "MultiOutputClassifier": lambda m: [MultiOutputClassifier(m).fit(X, Y)],
    "ClassifierChain": lambda m: [ClassifierChain(m, random_state=0).fit(X, Y)],
    "CalibratedClassifierCV": lambda m: [CalibratedClassifierCV(m, cv=3).fit(X, y)],
    "RFECV": lambda m: [
        RFECV(
            m,
            cv=3,
            step=2,
            importance_getter=_first_weights,
            min_features_to_select=2,
        ).fit(X, y)
    ],
    "nested search": lambda m: [
        cross_validate(
            GridSearchCV(m, {prefix(m) + "alpha": [1e-3, 1.0]}, cv=2),
            X,
            y,
            cv=3,
            return_estimator=True,
        )
    ],
    "search over bags over one-vs-rest": lambda m: _search(
        GridSearchCV,
        BaggingClassifier(OneVsRestClassifier(m), n_estimators=2, random_state=0),
        {"max_samples": [0.7, 1.0]},
        cv=2,
    ),
}
REGRESSOR_PROGRAMS = {
    "BaggingRegressor": lambda m: [
        BaggingRegressor(m, n_estimators=5, random_state=0).fit(X, t[:, 0])
    ],
    "VotingRegressor": lambda m: [
        VotingRegressor([("a", m), ("b", SklearnRidge()), ("c", clone(m))]).fit(X, t[:, 0])
    ],
    "StackingRegressor": lambda m: [
        StackingRegressor([("a", m), ("b", SklearnRidge())], cv=3).fit(X, t[:, 0])
    ],
    "MultiOutputRegressor": lambda m: [MultiOutputRegressor(m).fit(X, t)],
    "RegressorChain": lambda m: [RegressorChain(m).fit(X, t)],
    "cross_val_predict": lambda m: [cross_val_predict(m, X, t, cv=4)],
}


def _first_weights(model):
    last = model[-1] if isinstance(model, Pipeline) else model
    return np.abs(last.coefs_[0]).sum(1)


def networks(thing, found=None):
    """Every fitted network inside a fitted thing, in the order of its attributes."""
    found = [] if found is None else found
    if isinstance(thing, (MLPClassifier, MLPRegressor)):
        if hasattr(thing, "coefs_"):
            found.append(thing)
    elif isinstance(thing, dict):
        for value in thing.values():
            networks(value, found)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            networks(value, found)
    elif hasattr(thing, "__dict__") and not callable(thing):
        networks(vars(thing), found)
    return found


def arrays(thing):
    """Everything else that a run says: scores, predictions, cv_results_ without the times."""
    if isinstance(thing, np.ndarray):
        return {"": thing}
    if isinstance(thing, dict):
        return {
            key: np.asarray(value)
            for key, value in thing.items()
            if not key.endswith("_time") and key != "estimator"
        }
    found = {}
    for name in ("cv_results_", "best_params_", "best_score_", "best_index_", "support_"):
        if hasattr(thing, name):
            found[name] = getattr(thing, name)
    found |= {f"cv_results_ {k}": v for k, v in arrays(found.pop("cv_results_", {})).items()}
    if hasattr(thing, "predict"):
        found["predict"] = thing.predict(X)
    return {key: np.asarray(value) for key, value in found.items()}


def assert_same_arrays(found, expected, rtol, atol=0.0):
    """Both, from `arrays`, say the same: numbers to this difference, all else exactly."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[key], value, rtol=rtol, atol=atol, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def run(program, *args):
    """What a program returns, and the warnings that reached its caller."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = program(*args)
    return result, [(w.category, str(w.message)) for w in caught]


def is_summary(warning):
    return "fits ended before the optimization had" in warning[1]


def assert_same_run(stacked_run, alone):
    """Same fits, same numbers, same warnings but for the summaries."""
    ours, theirs = stacked_run[0], alone[0]
    our_nets, their_nets = networks(ours), networks(theirs)
    assert len(our_nets) == len(their_nets)
    for a, b in zip(our_nets, their_nets, strict=True):
        assert_same_network(a, b)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert_same_arrays(arrays(a), arrays(b), rtol=1e-6, atol=1e-9)
    assert said(w for w in stacked_run[1] if not is_summary(w)) == said(alone[1])


def said(warned):
    """The warnings in an order of their own; scikit-learn quotes tracebacks, which may differ."""
    return sorted((category.__name__, text.split("\nBelow are")[0]) for category, text in warned)


def assert_same_network(ours, theirs):
    """Weights, curves and counts; L-BFGS has no curves."""
    if theirs.solver == "lbfgs":
        assert ours.n_iter_ == theirs.n_iter_
        assert_same_weights(ours, theirs, rtol=1e-6)
    else:
        assert_same_fit(ours, theirs, rtol=1e-6)
