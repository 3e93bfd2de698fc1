"""Small learning tasks and the comparison of two fitted MLPs.

Shared by the test modules of this folder; holds no test. The tasks are small enough for
fits of a few hundredths of a second, and noisy enough that no loss comes near zero, where
a relative comparison would measure rounding only.
"""

import numpy as np
from sklearn.datasets import make_classification, make_multilabel_classification, make_regression
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from sklearn.neural_network import MLPRegressor as SklearnMLPRegressor
from sklearn.preprocessing import StandardScaler

from sknn_resid import MLPClassifier, MLPRegressor

# task -> (our class, scikit-learn's class, constructor parameters the task itself needs)
ESTIMATORS = {
    "binary": (MLPClassifier, SklearnMLPClassifier, {}),
    "multiclass": (MLPClassifier, SklearnMLPClassifier, {}),
    "multilabel": (MLPClassifier, SklearnMLPClassifier, {}),
    "regression": (MLPRegressor, SklearnMLPRegressor, {}),
    "multi_regression": (MLPRegressor, SklearnMLPRegressor, {}),
    "poisson": (MLPRegressor, SklearnMLPRegressor, {"loss": "poisson"}),
}
TASKS = tuple(ESTIMATORS)

# Present on both after a fit with a stochastic solver, and defined to be equal.
EXACT_ATTRIBUTES = ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_")


def make_task(task, n_rows=130, n_columns=8, seed=0):
    """Standardised X of shape (n_rows, n_columns) and the y of one of `TASKS`."""
    if task in ("binary", "multiclass"):
        X, y = make_classification(
            n_samples=n_rows,
            n_features=n_columns,
            n_informative=5,
            n_redundant=1,
            n_classes=2 if task == "binary" else 4,
            flip_y=0.15,
            random_state=seed,
        )
    elif task == "multilabel":
        X, y = make_multilabel_classification(
            n_samples=n_rows, n_features=n_columns, n_classes=3, random_state=seed
        )
    else:
        X, y = make_regression(
            n_samples=n_rows,
            n_features=n_columns,
            n_targets=3 if task == "multi_regression" else 1,
            noise=20.0,
            random_state=seed,
        )
        y = (y - y.mean(axis=0)) / y.std(axis=0)
        if task == "poisson":
            y = np.random.RandomState(seed).poisson(np.exp(0.5 * y)).astype(np.float64)
    return StandardScaler().fit_transform(X), y


def make_weights(n_rows, seed=0):
    """Positive weights that differ from row to row, some of them zero."""
    rng = np.random.RandomState(seed)
    weights = rng.uniform(0.2, 3.0, n_rows)
    weights[rng.permutation(n_rows)[: n_rows // 10]] = 0.0
    return weights


def build_pair(task, **params):
    """Our estimator and scikit-learn's for `task`, with the same parameters."""
    ours, theirs, needed = ESTIMATORS[task]
    return ours(**needed, **params), theirs(**needed, **params)


def assert_close(actual, desired, rtol, name):
    """Relative comparison; entries below 1e-3 of the largest are held to that scale."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape, name
    scale = np.abs(desired[np.isfinite(desired)]).max(initial=0.0)
    np.testing.assert_allclose(actual, desired, rtol=rtol, atol=rtol * 1e-3 * scale, err_msg=name)


def assert_same_weights(ours, theirs, rtol):
    """coefs_ and intercepts_ agree, layer by layer, in shape, dtype and value."""
    for name in ("coefs_", "intercepts_"):
        our_arrays, their_arrays = getattr(ours, name), getattr(theirs, name)
        assert isinstance(our_arrays, list)
        assert len(our_arrays) == len(their_arrays)
        for layer, (a, b) in enumerate(zip(our_arrays, their_arrays, strict=True)):
            assert isinstance(a, np.ndarray)
            assert a.dtype == b.dtype
            assert_close(a, b, rtol, f"{name}[{layer}]")


def assert_same_fit(ours, theirs, rtol=1e-6):
    """Every public fitted attribute of a stochastic fit agrees."""
    for name in EXACT_ATTRIBUTES:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours._no_improvement_count == theirs._no_improvement_count
    assert_close(ours.loss_curve_, theirs.loss_curve_, rtol, "loss_curve_")
    for name in ("loss_", "best_loss_", "best_validation_score_", "validation_scores_"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if b is None:
            assert a is None, name
        else:
            assert_close(a, b, rtol, name)
    if hasattr(theirs, "classes_"):
        np.testing.assert_array_equal(ours.classes_, theirs.classes_)
        assert ours.classes_.dtype == theirs.classes_.dtype
    assert_same_weights(ours, theirs, rtol)


def assert_same_outputs(ours, theirs, X, y, rtol=1e-6):
    """predict, predict_proba and score on rows the models have not seen."""
    if hasattr(theirs, "classes_"):
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        assert ours.predict(X).dtype == theirs.predict(X).dtype
        for method in ("predict_proba", "predict_log_proba"):
            a, b = getattr(ours, method)(X), getattr(theirs, method)(X)
            assert a.dtype == b.dtype
            assert_close(a, b, rtol, method)
    else:
        assert ours.predict(X).dtype == theirs.predict(X).dtype
        assert_close(ours.predict(X), theirs.predict(X), rtol, "predict")
    np.testing.assert_allclose(ours.score(X, y), theirs.score(X, y), rtol=rtol, atol=rtol)
