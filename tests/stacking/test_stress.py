"""Random programs of nested meta-estimators, with members that fail, dawdle or are not ours.

Each is run in a loop and under `stacked`, in a thread that a watchdog waits for: both have to come
to the same numbers, or both to an error, and no thread may be left.
"""

import faulthandler
import sys
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_validate
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stacking.conftest import workers
from stacking.programs import net

from sknn_resid import stacked
from sknn_resid.stacking import _round

N_PROGRAMS, CHUNK = 200, 10
_rng = np.random.RandomState(5)
X = _rng.normal(size=(48, 4))
y = (X[:, :3] + 0.3 * _rng.normal(size=(48, 3))).argmax(1)


class Moody(ClassifierMixin, BaseEstimator):
    """A classifier around another one: dawdles, fits twice or not at all, fails on some data."""

    def __init__(self, inner=None, sleep=0.0, n_fits=1, fails="never"):
        self.inner, self.sleep, self.n_fits, self.fails = inner, sleep, n_fits, fails

    def _fail(self, when, X):
        # Which folds fail depends on the data alone, so it is the same in every order.
        if self.fails == when and X[:, 0].sum() > 0:
            raise LookupError(f"fails {when}")

    def fit(self, X, y):
        self._fail("before", X)
        time.sleep(self.sleep)
        self.classes_ = np.unique(y)
        self.fitted_ = [clone(self.inner).fit(X, y) for _ in range(self.n_fits)]
        self._fail("after", X)
        return self

    def predict_proba(self, X):
        votes = [model.predict_proba(X) for model in self.fitted_]
        return np.mean(votes, 0) if votes else np.full((len(X), len(self.classes_)), 0.5)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(1)]


def leaf(rng):
    kind = rng.randint(10)
    seed = int(rng.randint(100))
    if kind < 4:
        alpha = float(10.0 ** rng.randint(-4, 1))
        model = net(max_iter=int(rng.randint(1, 5)), random_state=seed, alpha=alpha)
        return make_pipeline(StandardScaler(), model) if kind == 0 else model
    if kind == 4:
        return net(solver="lbfgs", max_iter=3, random_state=seed)
    if kind == 5:
        return net(early_stopping=True, validation_fraction=0.4, max_iter=3, random_state=seed)
    if kind == 6:
        return net(hidden_layer_sizes=(-1,))
    if kind == 7:
        return GaussianNB() if rng.rand() < 0.5 else LogisticRegression(max_iter=5)
    return Moody(
        net(max_iter=2, random_state=seed) if rng.rand() < 0.7 else GaussianNB(),
        sleep=float(rng.choice([0, 0, 0.002, 0.01])),
        n_fits=int(rng.randint(3)),
        fails=str(rng.choice(["never", "never", "before", "after"])),
    )


def model(rng, depth):
    """A random estimator, meta-estimators nested ``depth`` deep."""
    if depth == 0:
        return leaf(rng)
    kind, inner = rng.randint(9), model(rng, depth - 1)
    if kind == 0:
        return BaggingClassifier(inner, n_estimators=int(rng.randint(1, 4)), random_state=0)
    if kind == 1:
        return VotingClassifier([("a", inner), ("b", leaf(rng))], voting="soft")
    if kind == 2:
        return OneVsRestClassifier(inner)
    if kind == 3:
        return OneVsOneClassifier(inner)
    if kind == 4:
        return StackingClassifier([("a", inner), ("b", leaf(rng))], GaussianNB(), cv=2)
    if kind == 5:
        return CalibratedClassifierCV(inner, cv=2)
    if kind == 6:
        return Moody(inner, n_fits=int(rng.randint(1, 3)))
    score = "raise" if rng.rand() < 0.4 else np.nan
    grid = {"inner": [inner, leaf(rng)], "n_fits": [1, 2]}
    return GridSearchCV(Moody(), grid, cv=2, error_score=score)


def program(seed):
    """What to run, as a function without arguments that returns arrays."""
    rng = np.random.RandomState(seed)
    depth = 3 if seed % 50 == 0 else int(rng.choice([0, 1, 1, 1, 2, 2]))
    kind, member = rng.randint(5), model(rng, depth)
    dispatch = [2, "n_jobs", "all", "2*n_jobs"][rng.randint(4)]
    score = "raise" if rng.rand() < 0.5 else np.nan
    if kind == 0:
        return lambda: member.fit(X, y).predict(X)
    if kind == 1:
        return lambda: cross_val_predict(member, X, y, cv=3, pre_dispatch=dispatch)
    if kind == 2:
        grid = {"inner": [member, leaf(rng), leaf(rng)]}
        search = GridSearchCV(
            Moody(), grid, cv=2, error_score=score, pre_dispatch=dispatch, refit=False
        )
        return lambda: search.fit(X, y).cv_results_["mean_test_score"]
    if kind == 3:
        members = [member, *(model(rng, 1) for _ in range(3))]
        return lambda: joblib.Parallel(pre_dispatch=dispatch)(
            joblib.delayed(lambda m: clone(m).fit(X, y).predict(X))(m) for m in members
        )
    return lambda: cross_validate(member, X, y, cv=3, error_score=score, pre_dispatch=dispatch)[
        "test_score"
    ]


def outcome(run_it):
    """An array, or the class of an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.asarray(run_it())
        except Exception as error:
            return type(error)


def under_a_watchdog(function, name, seconds=120):
    """What the function returns; fails, with all stacks printed, if it does not return."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        faulthandler.dump_traceback(sys.__stderr__)
        pytest.fail(f"{name} hangs")
    return found[0]


@pytest.mark.parametrize("first", range(0, N_PROGRAMS, CHUNK))
def test_random_programs(first, monkeypatch):
    if first % (2 * CHUNK):  # rounds that do not wait for all, as if X were large
        monkeypatch.setattr(_round, "ROUND_BYTES", 1)
        monkeypatch.setattr(_round, "FITS_PER_CORE", 0)
        monkeypatch.setattr(_round, "FEWEST_FITS", 2)
    n_errors = 0
    for seed in range(first, first + CHUNK):
        size = [2, 3, 7, 256][seed % 4]

        def together(seed=seed, size=size):
            with stacked(size):
                return outcome(program(seed))

        alone = outcome(program(seed))
        ours = under_a_watchdog(together, f"program {seed}")
        if isinstance(alone, type):
            n_errors += 1
            # Of several members that fail, a loop meets the first, others whichever is first.
            assert isinstance(ours, type), f"program {seed}"
        else:
            np.testing.assert_allclose(ours, alone, rtol=1e-6, err_msg=f"program {seed}")
        assert workers() == [], f"program {seed}"
    assert n_errors < CHUNK
