"""The page docs/migration.md: nothing of scikit-learn's is missing, and each departure is shown.

The first half reads the page: every parameter, fitted attribute and method of scikit-learn's two
estimators has its row with the true default, and every departure names a test of this file. The
second half has those tests; each runs scikit-learn's estimator and ours side by side.
"""

import ast
import inspect
import pickle
import re
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier as SklearnMLPClassifier
from sklearn.neural_network import MLPRegressor as SklearnMLPRegressor

from sknn_resid import MLPClassifier, MLPRegressor

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "migration.md"
PAIRS = [(SklearnMLPClassifier, MLPClassifier), (SklearnMLPRegressor, MLPRegressor)]
PAIR_IDS = ["classifier", "regressor"]


# ------------------------------------------------------------------------------ reading the page


def sections(level):
    """Text of each section of the page by its heading, for headings with `level` hashes."""
    text = PAGE.read_text(encoding="utf-8")
    parts = re.split(rf"^{'#' * level} (?!#)(.+)$", text, flags=re.MULTILINE)
    # A section ends at the next heading of its own or of a higher level.
    higher = re.compile(rf"^#{{1,{level}}} ", flags=re.MULTILINE)
    bodies = [higher.split(body, maxsplit=1)[0] for body in parts[2::2]]
    return dict(zip(parts[1::2], bodies, strict=True))


def rows(table):
    """Rows of the tables in a section: the name in the first cell, then the other cells."""
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("| `"):
            continue
        name = cells[0].strip("`")
        assert name not in found, f"{name} has two rows"
        found[name] = [cell.strip("|").strip() for cell in cells[1:]]
    return found


def defaults(estimator):
    """Constructor parameters of a class with their defaults, in order."""
    parameters = list(inspect.signature(estimator.__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def public_methods(estimator):
    """Names of the public methods of a class, those that scikit-learn only sometimes shows too."""
    return {
        name
        for name in dir(estimator)
        if not name.startswith("_") and callable(getattr(estimator, name, None))
    } | ({"partial_fit"} if "partial_fit" in vars(estimator) else set())


def fitted_attributes(estimator, X, y):
    """Public fitted attributes that `fit` of a class sets, over the ways it may be called."""
    names = set()
    for settings in ({}, {"early_stopping": True}, {"solver": "lbfgs"}):
        fitted = estimator(hidden_layer_sizes=(3,), max_iter=2, **settings).fit(X, y)
        candidates = set(vars(fitted)) | set(dir(type(fitted)))
        names |= {
            name
            for name in candidates
            if name.endswith("_") and not name.startswith("_") and hasattr(fitted, name)
        }
    return names


@pytest.fixture(scope="module")
def frame():
    """A data frame with 60 rows, so that feature_names_in_ is set, and two classes."""
    pd = pytest.importorskip("pandas")
    X, y = make_classification(n_samples=60, n_features=4, random_state=0)
    return pd.DataFrame(X, columns=list("abcd")), y


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_every_parameter_of_sklearn_has_its_row(theirs, ours):
    table = rows(sections(2)["Constructor parameters"])
    for name, default in defaults(theirs).items():
        assert name in table, f"{name} has no row"
        assert table[name][0] == f"`{default!r}`", name
        assert defaults(ours)[name] == default, name


def test_no_row_for_a_parameter_that_does_not_exist():
    known = defaults(SklearnMLPClassifier) | defaults(SklearnMLPRegressor)
    assert set(rows(sections(2)["Constructor parameters"])) == set(known)


def test_rows_are_in_the_order_of_the_signature():
    names = list(rows(sections(2)["Constructor parameters"]))
    assert names == list(defaults(SklearnMLPRegressor))
    assert names[1:] == list(defaults(SklearnMLPClassifier))


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_every_added_parameter_has_its_row(theirs, ours):
    kind = "classifier" if ours is MLPClassifier else "regressor"
    table = rows(sections(3)["Added parameters"])
    documented = {name for name, cells in table.items() if cells[1] in ("both", kind)}
    added = {name: value for name, value in defaults(ours).items() if name not in defaults(theirs)}
    assert documented == set(added)
    for name, default in added.items():
        assert table[name][0] == f"`{default!r}`", name
        assert all(table[name]), f"the row of {name} has an empty cell"


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_added_parameters_are_keyword_only(theirs, ours):
    parameters = inspect.signature(ours.__init__).parameters
    for name in set(defaults(ours)) - set(defaults(theirs)):
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_every_fitted_attribute_has_its_row(theirs, ours, frame):
    table = rows(sections(2)["Fitted attributes"])
    added = rows(sections(3)["Added arguments, methods and attributes"])
    expected = fitted_attributes(theirs, *frame)
    kind = "classifier" if ours is MLPClassifier else "regressor"
    documented = {name for name, cells in table.items() if cells[0] in ("both", kind)}
    assert documented == expected
    found = fitted_attributes(ours, *frame)
    assert found == expected | {name for name in added if name.endswith("_")}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_every_method_has_its_row(theirs, ours):
    table = rows(sections(2)["Methods"])
    added = rows(sections(3)["Added arguments, methods and attributes"])
    kind = "classifier" if ours is MLPClassifier else "regressor"
    documented = {name for name, cells in table.items() if cells[0] in ("both", kind)}
    assert documented == public_methods(theirs)
    new = public_methods(ours) - public_methods(theirs)
    assert new == {name for name in added if not name.endswith("_") and "(" not in name}


def test_verdicts_are_known_and_name_existing_departures():
    departures = set(sections(3)) - {
        "Added parameters",
        "Added values",
        "Added arguments, methods and attributes",
    }
    pattern = re.compile(r"same(, more values)?(; departs: (?P<names>[a-z0-9, -]+))?")
    named = set()
    for title in ("Constructor parameters", "Fitted attributes", "Methods"):
        for name, cells in rows(sections(2)[title]).items():
            match = pattern.fullmatch(cells[1])
            assert match, f"{name}: the verdict {cells[1]!r} is not understood"
            named |= set((match["names"] or "").split(", ")) - {""}
    assert named == departures


def test_parameters_with_more_values_are_those_listed():
    table = rows(sections(2)["Constructor parameters"])
    more = {name for name, cells in table.items() if "more values" in cells[1]}
    assert more == set(rows(sections(3)["Added values"]))


def test_every_departure_names_an_existing_test_and_every_test_is_named():
    tests = {
        node.name
        for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    body = sections(2)["Deliberate departures"]
    named = set(re.findall(r"`tests/test_migration\.py::(\w+)`", body))
    assert named <= tests
    assert {name for name in tests if name.startswith("test_departure_")} <= named
    for title, text in sections(3).items():
        if title.startswith("Added "):
            continue
        for part in ("- scikit-learn: ", "- Here: ", "- Why: ", "- Test: "):
            assert part in text, f"{title} lacks {part!r}"
        first = re.search(r"`tests/test_migration\.py::(\w+)`", text)
        assert first, f"{title} names no test"
        assert first[1] == "test_departure_" + title.replace("-", "_")


# --------------------------------------------------------------------------- data and small tools


@pytest.fixture
def two_classes():
    """60 rows, 5 standardised columns, two classes."""
    X, y = make_classification(n_samples=60, n_features=5, random_state=0)
    return (X - X.mean(axis=0)) / X.std(axis=0), y


@pytest.fixture
def regression():
    """60 rows, 5 standardised columns, one standardised target."""
    X, y = make_regression(n_samples=60, n_features=5, noise=5.0, random_state=0)
    return (X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean()) / y.std()


def assert_same_weights(ours, theirs, rtol=1e-6):
    """Both networks have the same weights and intercepts."""
    for left, right in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=1e-9)


def differ(one, other):
    """Whether any weight of two networks differs by more than rounding."""
    return any(
        not np.allclose(left, right, rtol=1e-6, atol=1e-9)
        for left, right in zip(one.coefs_, other.coefs_, strict=True)
    )


def quiet(call, *args, **kwargs):
    """Call with all warnings off: for scikit-learn's overflows and for short fits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


# ------------------------------------------------------------------------------ the departures


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_departure_partial_fit_early_stopping(theirs, ours, two_classes):
    X, y = two_classes
    settings = {"hidden_layer_sizes": (6,), "batch_size": 16, "random_state": 3}
    first = {"classes": [0, 1]} if ours is MLPClassifier else {}

    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        theirs(early_stopping=True, **settings).partial_fit(X, y, **first)

    # Three calls are three of the epochs that scikit-learn makes with early_stopping=False.
    reference = theirs(early_stopping=False, **settings)
    stopping = ours(early_stopping=True, **settings)
    for keywords in (first, {}, {}):
        reference.partial_fit(X, y, **keywords)
        stopping.partial_fit(X, y, **keywords)
    assert_same_weights(stopping, reference)
    np.testing.assert_allclose(stopping.loss_curve_, reference.loss_curve_, rtol=1e-6)
    assert stopping.t_ == reference.t_ == 180


def test_departure_regressor_lbfgs_partial_fit(regression):
    assert not hasattr(SklearnMLPClassifier(solver="lbfgs"), "partial_fit")
    theirs = SklearnMLPRegressor(solver="lbfgs", max_iter=7, random_state=0)
    assert quiet(theirs.partial_fit, *regression).n_iter_ == 7

    for ours in (MLPClassifier, MLPRegressor):
        assert not hasattr(ours(solver="lbfgs"), "partial_fit")
        assert hasattr(ours(solver="adam"), "partial_fit")
    with pytest.raises(AttributeError, match="partial_fit"):
        MLPRegressor(solver="lbfgs").partial_fit(*regression)


def test_departure_lbfgs_float32(regression):
    X, y = regression
    X32 = X.astype(np.float32)
    settings = {"hidden_layer_sizes": (8,), "solver": "lbfgs", "max_iter": 10, "random_state": 0}

    theirs = quiet(SklearnMLPRegressor(**settings).fit, X32, y)
    assert {array.dtype for array in theirs.coefs_} == {np.dtype(np.float64)}
    assert theirs.predict(X32).dtype == np.float64

    ours = quiet(MLPRegressor(**settings).fit, X32, y)
    stored = ours.coefs_ + ours.intercepts_
    assert {array.dtype for array in stored} == {np.dtype(np.float32)}
    assert ours.predict(X32).dtype == np.float32

    # Computed in float64: the loss is that of the float64 fit on the same numbers to far more
    # digits than float32 has room for. The start is rounded to float32 in one of the two at most.
    double = quiet(MLPRegressor(**settings).fit, X32.astype(np.float64), y)
    np.testing.assert_allclose(ours.loss_, double.loss_, rtol=1e-5)


DIVERGING = {
    "hidden_layer_sizes": (8,),
    "activation": "identity",
    "solver": "sgd",
    "learning_rate_init": 0.3,
    "random_state": 0,
    "n_iter_no_change": 1000,
}


def test_departure_divergence(regression):
    settings = DIVERGING | {"max_iter": 60}
    theirs = SklearnMLPRegressor(**settings)
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        quiet(theirs.fit, *regression)
    assert theirs.n_iter_ == 60
    assert np.isnan(theirs.coefs_[0]).all()

    # The constructed truth: the loss falls to its lowest value in the fourth epoch, grows, and is
    # finite for some more epochs.
    finite = np.isfinite(theirs.loss_curve_)
    n_finite = int(np.argmin(finite))
    best = int(np.argmin(theirs.loss_curve_[:n_finite]))
    assert 0 < best < n_finite - 1 < 59

    ours = MLPRegressor(**settings)
    with pytest.warns(ConvergenceWarning, match="diverge"):
        ours.fit(*regression)
    assert ours.n_iter_ == n_finite + 1
    assert not np.isfinite(ours.loss_curve_[-1])
    np.testing.assert_allclose(ours.loss_curve_[:-1], theirs.loss_curve_[:n_finite], rtol=1e-6)
    # The weights kept are those the best epoch began with: its loss was measured on them.
    shorter = quiet(SklearnMLPRegressor(**(settings | {"max_iter": best})).fit, *regression)
    assert_same_weights(ours, shorter)
    assert np.isfinite(ours.predict(regression[0])).all()

    # No epoch with a finite loss: the same error from both.
    X, y = regression
    for estimator in (SklearnMLPRegressor, MLPRegressor):
        with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
            quiet(estimator(**(settings | {"learning_rate_init": 1e200})).fit, 1e200 * X, y)


def test_departure_divergence_early_stopping(regression):
    settings = DIVERGING | {"max_iter": 60, "early_stopping": True}
    theirs = quiet(SklearnMLPRegressor(**settings).fit, *regression)
    assert theirs.n_iter_ == 60
    n_finite = int(np.argmin(np.isfinite(theirs.loss_curve_)))
    assert 0 < n_finite < 59

    ours = MLPRegressor(**settings)
    with pytest.warns(ConvergenceWarning, match="diverge"):
        ours.fit(*regression)
    assert ours.n_iter_ == n_finite + 1
    assert ours.best_validation_score_ == pytest.approx(theirs.best_validation_score_, rel=1e-6)
    assert_same_weights(ours, theirs)


class InterruptAt:
    """Standard output that presses Ctrl-C when it is given the line of one epoch."""

    def __init__(self, epoch):
        self.start = f"Iteration {epoch},"
        self.seen = []

    def write(self, text):
        self.seen.append(text)
        if text.startswith(self.start):
            signal.raise_signal(signal.SIGINT)
        return len(text)

    def flush(self):
        """Nothing is buffered."""


# The loss of this fit falls in the second epoch and rises in the third.
OSCILLATING = {
    "hidden_layer_sizes": (8,),
    "solver": "sgd",
    "learning_rate_init": 0.5,
    "random_state": 0,
    "verbose": True,
}


def test_departure_keyboard_interrupt(regression, monkeypatch):
    fitted = []
    for estimator in (SklearnMLPRegressor, MLPRegressor):
        monkeypatch.setattr(sys, "stdout", InterruptAt(epoch=3))
        with pytest.warns(UserWarning, match="Training interrupted by user"):
            fitted.append(estimator(**OSCILLATING).fit(*regression))
        monkeypatch.undo()
    theirs, ours = fitted
    assert theirs.loss_curve_[1] < theirs.loss_curve_[0]
    assert theirs.loss_curve_[1] < theirs.loss_curve_[2]
    assert ours.n_iter_ == theirs.n_iter_ == 3

    settings = OSCILLATING | {"verbose": False}
    after = {n: quiet(SklearnMLPRegressor(**settings, max_iter=n).fit, *regression) for n in (2, 3)}
    assert_same_weights(theirs, after[3])
    assert_same_weights(ours, after[2])
    assert np.isfinite(ours.predict(regression[0])).all()


def test_departure_keyboard_interrupt_in_search(regression, monkeypatch):
    grid = {"alpha": [1e-4, 1e-3]}
    settings = OSCILLATING | {"max_iter": 4}

    monkeypatch.setattr(sys, "stdout", InterruptAt(epoch=3))
    search = GridSearchCV(SklearnMLPRegressor(**settings), grid, cv=2)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        search.fit(*regression)
    assert len(search.cv_results_["params"]) == 2
    monkeypatch.undo()

    monkeypatch.setattr(sys, "stdout", InterruptAt(epoch=3))
    search = GridSearchCV(MLPRegressor(**settings), grid, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(*regression)
    assert len([text for text in sys.stdout.seen if text.startswith("Iteration 1,")]) == 1


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_departure_zero_weight_batch(theirs, ours, two_classes):
    X, y = two_classes
    weights = np.linspace(0.5, 2.0, 60)
    weights[:20] = 0.0
    settings = {
        "hidden_layer_sizes": (6,),
        "batch_size": 20,
        "shuffle": False,
        "max_iter": 5,
        "random_state": 0,
    }
    with pytest.raises(ZeroDivisionError):
        theirs(**settings).fit(X, y, sample_weight=weights)

    # Without shuffling the first batch has weight zero, and the rest is a fit on the other rows.
    skipped = quiet(ours(**settings).fit, X, y, sample_weight=weights)
    reference = quiet(theirs(**settings).fit, X[20:], y[20:], sample_weight=weights[20:])
    assert_same_weights(skipped, reference)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_departure_negative_weights(theirs, ours, two_classes):
    X, y = two_classes
    weights = np.ones(60)
    weights[3] = -1.0
    assert quiet(theirs(max_iter=2).fit, X, y, sample_weight=weights).n_iter_ == 2
    with pytest.raises(ValueError, match=r"(?i)negative"):
        ours(max_iter=2).fit(X, y, sample_weight=weights)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_departure_poisson_negative_target(solver, regression):
    X, y = regression
    assert y.min() < 0
    theirs = SklearnMLPRegressor(loss="poisson", solver=solver, max_iter=2, random_state=0)
    assert np.isnan(quiet(theirs.fit, X, y).loss_)
    with pytest.raises(ValueError, match=r"(?i)poisson"):
        MLPRegressor(loss="poisson", solver=solver, max_iter=2, random_state=0).fit(X, y)


def test_departure_small_validation_part(two_classes):
    X, y = two_classes
    settings = {
        "hidden_layer_sizes": (6,),
        "early_stopping": True,
        "max_iter": 3,
        "random_state": 0,
    }

    # 20 rows: two validation rows in scikit-learn, all rows for both purposes here.
    theirs = quiet(SklearnMLPClassifier(**settings).fit, X[:20], y[:20])
    assert theirs.t_ == 3 * 18
    ours = MLPClassifier(**settings)
    with pytest.warns(RuntimeWarning, match="validation"):
        ours.fit(X[:20], y[:20])
    assert ours.t_ == 3 * 20
    # The restored weights are those of the best score, which is a score of all rows.
    assert ours.best_validation_score_ == max(ours.validation_scores_)
    assert ours.score(X[:20], y[:20]) == ours.best_validation_score_

    # 10 rows: one validation row for two classes is an error in scikit-learn.
    with pytest.raises(ValueError, match="test_size"):
        SklearnMLPClassifier(**settings).fit(X[:10], y[:10])
    with pytest.warns(RuntimeWarning, match="validation"):
        assert MLPClassifier(**settings).fit(X[:10], y[:10]).t_ == 3 * 10

    # 4 rows: the same error from both.
    messages = []
    for estimator in (SklearnMLPRegressor, MLPRegressor):
        with pytest.raises(ValueError, match="validation set is too small") as caught:
            estimator(**settings).fit(X[:4], X[:4, 0])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]

    # 50 rows: five validation rows, and nothing departs.
    theirs = quiet(SklearnMLPClassifier(**settings).fit, X[:50], y[:50])
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours = MLPClassifier(**settings).fit(X[:50], y[:50])
    np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-12)
    assert_same_weights(ours, theirs)


def test_departure_global_random_state(two_classes):
    X, y = two_classes

    def run(estimator, width, max_iter):
        """Fit from a fixed global state; the network and the next number drawn after it."""
        np.random.seed(7)
        fitted = estimator(hidden_layer_sizes=(width,), max_iter=max_iter, random_state=None)
        quiet(fitted.fit, X, y)
        return fitted, np.random.random_sample()

    small, after_small = run(SklearnMLPClassifier, 4, 2)
    _, after_large = run(SklearnMLPClassifier, 20, 5)
    assert after_small != after_large

    ours, after_ours = run(MLPClassifier, 4, 2)
    again, _ = run(MLPClassifier, 4, 2)
    _, after_larger = run(MLPClassifier, 20, 5)
    assert after_ours == after_larger
    assert_same_weights(ours, again, rtol=0)
    assert differ(ours, small)

    # With a seed there is no difference, and the global state is not touched.
    np.random.seed(7)
    untouched = np.random.random_sample()
    np.random.seed(7)
    settings = {"hidden_layer_sizes": (4,), "max_iter": 2, "random_state": 5}
    ours = quiet(MLPClassifier(**settings).fit, X, y)
    assert np.random.random_sample() == untouched
    assert_same_weights(ours, quiet(SklearnMLPClassifier(**settings).fit, X, y))


def test_departure_optimizer_state_in_pickles(two_classes):
    X, y = two_classes
    wide = {"hidden_layer_sizes": (200, 100), "max_iter": 1, "random_state": 0}

    def pickled_share(fitted):
        weights = sum(array.nbytes for array in fitted.coefs_ + fitted.intercepts_)
        return len(pickle.dumps(fitted)) / weights

    assert pickled_share(quiet(SklearnMLPClassifier(**wide).fit, X, y)) > 3.5
    assert pickled_share(quiet(MLPClassifier(**wide).fit, X, y)) < 1.1

    # In memory, partial_fit after fit goes on with the moments, as in scikit-learn.
    settings = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0}
    theirs = quiet(SklearnMLPClassifier(**settings).fit, X, y)
    ours = quiet(MLPClassifier(**settings).fit, X, y)
    copied = pickle.loads(pickle.dumps(ours))
    assert_same_weights(ours.partial_fit(X, y), theirs.partial_fit(X, y))

    # A copy from the pickle starts a new optimizer: scikit-learn's step without its old one.
    renewed = quiet(SklearnMLPClassifier(**settings).fit, X, y)
    del renewed._optimizer
    assert_same_weights(copied.partial_fit(X, y), renewed.partial_fit(X, y))
    assert differ(copied, ours)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_optimizer_state_is_pickled_after_partial_fit(theirs, ours, two_classes):
    X, y = two_classes
    settings = {"hidden_layer_sizes": (6,), "random_state": 0}
    first = {"classes": [0, 1]} if ours is MLPClassifier else {}
    reference = theirs(**settings).partial_fit(X, y, **first).partial_fit(X, y)
    copied = pickle.loads(pickle.dumps(ours(**settings).partial_fit(X, y, **first)))
    assert_same_weights(copied.partial_fit(X, y), reference)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_departure_probabilities_inside_0_1(dtype, two_classes):
    X, y = two_classes
    X = X.astype(dtype)
    settings = {"hidden_layer_sizes": (10,), "max_iter": 30, "random_state": 0}
    far = (1e4 * X).astype(dtype)

    theirs = quiet(SklearnMLPClassifier(**settings).fit, X, y)
    probabilities = theirs.predict_proba(far)
    assert probabilities.min() == 0.0
    assert probabilities.max() == 1.0
    with pytest.warns(RuntimeWarning, match="divide by zero"):
        assert np.isneginf(theirs.predict_log_proba(far)).any()

    ours = quiet(MLPClassifier(**settings).fit, X, y)
    probabilities = ours.predict_proba(far)
    assert probabilities.dtype == dtype
    assert probabilities.min() > 0.0
    assert probabilities.max() < 1.0
    assert np.isfinite(ours.predict_log_proba(far)).all()
    np.testing.assert_array_equal(ours.predict(far), theirs.predict(far))

    # Several labels: each has its own sigmoid.
    Y = np.column_stack([y, 1 - y])
    assert quiet(SklearnMLPClassifier(**settings).fit, X, Y).predict_proba(far).max() == 1.0
    probabilities = quiet(MLPClassifier(**settings).fit, X, Y).predict_proba(far)
    assert probabilities.min() > 0.0
    assert probabilities.max() < 1.0


@pytest.mark.parametrize("n_classes", [2, 3])
def test_departure_loss_of_saturated_outputs(n_classes):
    X, y = make_classification(
        n_samples=60, n_features=6, n_informative=4, n_classes=n_classes, random_state=0
    )
    X = 1e4 * X
    # One step too short to matter, so that the reported loss is that of the weights afterwards.
    settings = {
        "hidden_layer_sizes": (6,),
        "solver": "sgd",
        "learning_rate_init": 1e-15,
        "alpha": 0.0,
        "max_iter": 1,
        "random_state": 0,
    }
    theirs = quiet(SklearnMLPClassifier(**settings).fit, X, y)
    ours = quiet(MLPClassifier(**settings).fit, X, y)

    hidden = np.maximum(X @ theirs.coefs_[0] + theirs.intercepts_[0], 0.0)
    z = hidden @ theirs.coefs_[1] + theirs.intercepts_[1]
    if n_classes == 2:
        z = np.column_stack([np.zeros(60), z])
    exact = logsumexp(z, axis=1) - z[np.arange(60), y]
    assert exact.max() > 1000.0  # some rows are wrong with certainty
    clipped = np.minimum(exact, -np.log(np.finfo(np.float64).eps))
    np.testing.assert_allclose(theirs.loss_, clipped.mean(), rtol=1e-6)
    np.testing.assert_allclose(ours.loss_, exact.mean(), rtol=1e-6)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_departure_warm_start_other_layers(theirs, ours, two_classes):
    X, y = two_classes
    settings = {"hidden_layer_sizes": (4,), "warm_start": True, "max_iter": 2, "random_state": 0}

    kept = quiet(theirs(**settings).fit, X, y).set_params(hidden_layer_sizes=(7,))
    assert quiet(kept.fit, X, y).coefs_[0].shape == (5, 4)
    kept.set_params(hidden_layer_sizes=(7, 3))
    with pytest.raises((AttributeError, TypeError), match="NoneType"):
        kept.fit(X, y)

    for other in ((7,), (7, 3)):
        fitted = quiet(ours(**settings).fit, X, y).set_params(hidden_layer_sizes=other)
        with pytest.raises(ValueError, match="warm_start"):
            fitted.fit(X, y)


def test_departure_warm_start_early_stopping(regression):
    settings = {
        "hidden_layer_sizes": (8,),
        "early_stopping": True,
        "warm_start": True,
        "max_iter": 40,
        "learning_rate_init": 0.01,
        "random_state": 0,
    }
    worse = {"learning_rate_init": 1.0, "max_iter": 3}
    kept = {}
    for estimator in (SklearnMLPRegressor, MLPRegressor):
        fitted = quiet(estimator(**settings).fit, *regression)
        before, best = [array.copy() for array in fitted.coefs_], fitted.best_validation_score_
        quiet(fitted.set_params(**worse).fit, *regression)
        assert fitted.best_validation_score_ == best > max(fitted.validation_scores_[40:])
        kept[estimator] = all(
            np.array_equal(left, right) for left, right in zip(fitted.coefs_, before, strict=True)
        )
    assert kept == {SklearnMLPRegressor: False, MLPRegressor: True}


def test_departure_settings_changed_between_calls(two_classes, regression):
    X, y = two_classes
    settings = {"hidden_layer_sizes": (6,), "max_iter": 3, "random_state": 0}

    # Another solver: the old optimizer goes on in scikit-learn, a new one starts here.
    theirs = SklearnMLPClassifier(**settings).partial_fit(X, y, classes=[0, 1])
    renewed = SklearnMLPClassifier(**settings).partial_fit(X, y, classes=[0, 1])
    del renewed._optimizer
    ours = MLPClassifier(**settings).partial_fit(X, y, classes=[0, 1])
    for fitted in (theirs, renewed, ours):
        fitted.set_params(solver="sgd").partial_fit(X, y)
    assert differ(ours, theirs)
    assert_same_weights(ours, renewed)

    # Another loss: the output activation is that of the old one in scikit-learn.
    activations = []
    for estimator in (SklearnMLPRegressor, MLPRegressor):
        fitted = quiet(estimator(warm_start=True, **settings).fit, X, np.abs(regression[1]))
        quiet(fitted.set_params(loss="poisson").fit, X, np.abs(regression[1]))
        activations.append(fitted.out_activation_)
    assert activations == ["identity", "exp"]

    # Early stopping turned on or off, and lbfgs followed by adam.
    for before, after in (
        ({"early_stopping": False}, {"early_stopping": True}),
        ({"early_stopping": True}, {"early_stopping": False}),
        ({"solver": "lbfgs"}, {"solver": "adam"}),
    ):
        start = settings | {"warm_start": True} | before
        theirs = quiet(SklearnMLPClassifier(**start).fit, X, y).set_params(**after)
        with pytest.raises((AttributeError, TypeError)):
            quiet(theirs.fit, X, y)
        ours = quiet(MLPClassifier(**start).fit, X, y).set_params(**after)
        assert quiet(ours.fit, X, y).n_iter_ == 3


def test_nothing_is_left_of_an_earlier_fit(two_classes):
    left = {}
    for estimator in (SklearnMLPClassifier, MLPClassifier):
        fitted = estimator(hidden_layer_sizes=(6,), max_iter=3, random_state=0)
        quiet(fitted.fit, *two_classes)
        quiet(fitted.set_params(solver="lbfgs").fit, *two_classes)
        fresh = quiet(estimator(**fitted.get_params()).fit, *two_classes)
        assert not differ(fitted, fresh)
        left[estimator] = set(vars(fitted)) - set(vars(fresh))
    assert {"loss_curve_", "best_loss_", "_optimizer"} <= left[SklearnMLPClassifier]
    assert left[MLPClassifier] == set()


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=PAIR_IDS)
def test_departure_prediction_dtype(theirs, ours, two_classes):
    X, y = two_classes
    settings = {"hidden_layer_sizes": (6,), "max_iter": 3, "random_state": 0}
    method = "predict_proba" if ours is MLPClassifier else "predict"

    def dtypes(estimator):
        """Type of the prediction by (type of the training rows, type of the rows to predict)."""
        found = {}
        for trained in (np.float32, np.float64):
            fitted = quiet(estimator(**settings).fit, X.astype(trained), y)
            for asked in (np.float32, np.float64):
                found[trained, asked] = getattr(fitted, method)(X.astype(asked)).dtype.type
        return found

    by_theirs, by_ours = dtypes(theirs), dtypes(ours)
    changed = {key for key in by_ours if by_ours[key] != by_theirs[key]}
    assert changed == {(np.float32, np.float64)}
    assert all(dtype is trained for (trained, _), dtype in by_ours.items())


def test_departure_verbose_lbfgs(regression, capfd):
    settings = {"solver": "lbfgs", "max_iter": 5, "random_state": 0, "verbose": True}
    quiet(SklearnMLPRegressor(**settings).fit, *regression)
    assert "Iteration" not in capfd.readouterr().out
    ours = quiet(MLPRegressor(**settings).fit, *regression)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == ours.n_iter_ == 5
    assert lines[-1] == f"Iteration 5, loss = {ours.loss_:.8f}"
