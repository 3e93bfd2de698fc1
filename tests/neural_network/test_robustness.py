"""Copies, random streams, threads, devices."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from neural_network.helpers import assert_same_fit, assert_same_weights, make_task
from numpy.testing import assert_array_equal
from sklearn.base import clone
from threadpoolctl import threadpool_info, threadpool_limits

from sknn_resid import MLPClassifier, MLPRegressor

SHORT = {"max_iter": 6, "batch_size": 32, "random_state": 0}
SOLVERS = ["adam", "adamw", "sgd", "lbfgs"]
EXTRAS = [{}, {"early_stopping": True}, {"dropout": 0.3, "solver": "adam"}, {"dtype": "bfloat16"}]


def n_bytes(model):
    return sum(a.nbytes for a in model.coefs_ + model.intercepts_)


# Pickles and copies


@pytest.mark.parametrize("params", [{}, {"early_stopping": True}, {"solver": "sgd"}], ids=str)
@pytest.mark.parametrize("estimator_class", [MLPClassifier, MLPRegressor])
def test_pickle_is_hardly_larger_than_the_weights(estimator_class, params):
    X, y = make_task("binary", n_rows=60, n_columns=40)
    model = estimator_class(hidden_layer_sizes=(300, 300), max_iter=2, **params).fit(X, y)
    assert len(pickle.dumps(model)) <= 1.1 * n_bytes(model)
    model.predict(X)
    assert len(pickle.dumps(model)) <= 1.1 * n_bytes(model)


def test_optimizer_is_kept_only_where_partial_fit_goes_on():
    X, y = make_task("regression", n_columns=40)
    model = MLPRegressor(hidden_layer_sizes=(200, 200), random_state=0)
    model.partial_fit(X, y).partial_fit(X, y)
    loaded = pickle.loads(pickle.dumps(model))
    for estimator in (model, loaded):
        estimator.partial_fit(X, y)
    assert_same_fit(loaded, model, rtol=1e-15)
    # Two moments for each weight, and little else.
    assert 2.5 * n_bytes(model) < len(pickle.dumps(model)) < 3.2 * n_bytes(model)


@pytest.mark.parametrize("way", ["pickle", "joblib", "deepcopy", "copy", "thread"])
@pytest.mark.parametrize("estimator_class", [MLPClassifier, MLPRegressor])
def test_copies_predict_the_same(estimator_class, way, tmp_path):
    X, y = make_task("binary")
    model = estimator_class(early_stopping=True, **SHORT).fit(X, y)
    if way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "joblib":
        joblib.dump(model, tmp_path / "model.joblib")
        # Memory-mapped weights are read-only: nothing may write to them.
        other = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    elif way == "thread":
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(clone(model).fit, X, y).result()
    else:
        other = getattr(copy, way)(model)
    assert_same_fit(other, model, rtol=1e-15)
    assert_array_equal(other.predict(X), model.predict(X))
    assert_array_equal(other.transform(X), model.transform(X))


def test_deep_copy_goes_its_own_way():
    X, y = make_task("regression")
    model = MLPRegressor(warm_start=True, **SHORT).fit(X, y)
    before = [w.copy() for w in model.coefs_]
    copy.deepcopy(model).fit(X, y)
    pickle.loads(pickle.dumps(model)).partial_fit(X, y)
    for kept, w in zip(before, model.coefs_, strict=True):
        assert_array_equal(kept, w)


def test_clone_is_not_fitted():
    X, y = make_task("binary")
    model = MLPClassifier(**SHORT).fit(X, y)
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "coefs_")


# Random streams


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("params", EXTRAS, ids=str)
def test_refits_are_bitwise_equal(solver, params):
    X, y = make_task("multiclass")
    params = {"solver": solver, **SHORT, **params}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (MLPClassifier(**params).fit(X, y) for _ in range(2))
        again = copy.deepcopy(first).fit(X, y)
    for other in (second, again):
        arrays = first.coefs_ + first.intercepts_, other.coefs_ + other.intercepts_
        for a, b in zip(*arrays, strict=True):
            assert_array_equal(a, b)
        assert_array_equal(first.predict_proba(X), other.predict_proba(X))


@pytest.mark.parametrize("random_state", [0, None, "instance"])
def test_global_state_of_torch_is_not_touched(random_state):
    X, y = make_task("binary")
    state = torch.get_rng_state()
    for params in ({}, {"dropout": 0.3}, {"early_stopping": True}, {"solver": "lbfgs"}):
        seed = np.random.RandomState(0) if random_state == "instance" else random_state
        model = MLPClassifier(**{**SHORT, **params, "random_state": seed}).fit(X, y)
        model.predict(X)
        if "solver" not in params:
            model.partial_fit(X, y)
        assert torch.equal(torch.get_rng_state(), state), params


def global_numpy_state():
    _, key, position, *_ = np.random.get_state()
    return key.tolist(), position


@pytest.mark.parametrize("random_state", [0, "instance"])
def test_global_state_of_numpy_is_not_touched(random_state):
    X, y = make_task("binary")
    before = global_numpy_state()
    for params in ({}, {"dropout": 0.3}, {"early_stopping": True}):
        seed = np.random.RandomState(0) if random_state == "instance" else random_state
        model = MLPClassifier(**{**SHORT, **params, "random_state": seed}).fit(X, y)
        model.partial_fit(X, y).predict(X)
    assert global_numpy_state() == before


def test_no_random_state_is_one_draw_from_numpy():
    """However long the fit and whatever it needs, the global stream moves by one number."""
    moves = []
    for params in ({"max_iter": 1}, {"max_iter": 9}, {"dropout": 0.3}, {"early_stopping": True}):
        for n_rows in (60, 130):
            X, y = make_task("binary", n_rows=n_rows)
            np.random.seed(3)
            key, position = global_numpy_state()
            MLPClassifier(**{**SHORT, "random_state": None, **params}).fit(X, y)
            key_after, position_after = global_numpy_state()
            if position < 600:
                assert key_after == key
            moves.append(position_after - position)
    assert len(set(moves)) == 1
    # A seed of 32 bits is one number of the generator, one of 64 bits two.
    np.random.seed(3)
    np.random.random_sample()
    assert moves[0] != 0


def test_no_random_state_differs_from_fit_to_fit_and_follows_the_global_seed():
    X, y = make_task("binary")
    model = MLPClassifier(**SHORT | {"random_state": None})
    np.random.seed(0)
    first, second = (clone(model).fit(X, y) for _ in range(2))
    assert not np.array_equal(first.coefs_[0], second.coefs_[0])
    np.random.seed(0)
    assert_array_equal(clone(model).fit(X, y).coefs_[0], first.coefs_[0])


# Threads


def in_eight_threads(function):
    """Results of eight calls that start together."""
    barrier = threading.Barrier(8)

    def wait_and_call(k):
        barrier.wait()
        return function(k)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(wait_and_call, range(8)))


@pytest.mark.parametrize("kind", ["dense", "float32", "sparse"])
def test_eight_threads_predict_at_once(kind):
    from scipy import sparse

    X, y = make_task("multiclass", n_rows=2000)
    X = {"dense": X, "float32": X.astype(np.float32), "sparse": sparse.csr_array(X)}[kind]
    model = MLPClassifier((64, 64), max_iter=2, random_state=0).fit(X, y)
    starts = [k * 200 for k in range(8)]
    expected = [model.predict_proba(X[s : s + 300]) for s in starts]

    def predict_often(k):
        part = X[starts[k] : starts[k] + 300]
        return [model.predict_proba(part) for _ in range(20)]

    for k, results in enumerate(in_eight_threads(predict_often)):
        for result in results:
            assert_array_equal(result, expected[k])


def pool_sizes():
    return sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())


def test_eight_threads_fit_at_once():
    """Each gets what it would get alone, and the thread limits are the old ones afterwards."""
    X, y = make_task("multiclass")
    alone = [MLPClassifier(**SHORT | {"random_state": k}).fit(X, y) for k in range(8)]
    n_threads = torch.get_num_threads()
    with threadpool_limits(2):
        before = pool_sizes()
        fitted = in_eight_threads(lambda k: MLPClassifier(**SHORT | {"random_state": k}).fit(X, y))
        assert pool_sizes() == before
    assert torch.get_num_threads() == n_threads
    for a, b in zip(fitted, alone, strict=True):
        assert_same_weights(a, b, rtol=1e-12)


@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_thread_limits_are_restored(ending):
    X, y = make_task("regression")
    if ending == "raises":
        y = 1e300 * y
    with threadpool_limits(2):
        before, n_threads = pool_sizes(), torch.get_num_threads()
        model = MLPRegressor(**SHORT)
        if ending == "raises":
            with pytest.raises(ValueError, match="non-finite"):
                model.fit(X, y)
        else:
            model.fit(X, y).predict(X)
        assert pool_sizes() == before
        assert torch.get_num_threads() == n_threads


def test_two_jobs_do_not_oversubscribe():
    """Inside the workers of n_jobs=2 no pool is larger than the worker's share of the cores.

    In a process of its own, because the limits that this suite may be run under would make the
    question empty.
    """
    script = textwrap.dedent(
        """
        import os
        import numpy as np
        from sklearn.model_selection import cross_validate
        from sknn_resid import MLPClassifier

        def largest_pool(estimator, X, y):
            import threadpoolctl, torch
            sizes = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
            return float(max([torch.get_num_threads(), *sizes]))

        class Watch:
            # Looks at the pools in the middle of the fit.
            def setup(self, estimator, context): pass
            def teardown(self, estimator, context): pass
            def on_fit_task_begin(self, estimator, context): pass
            def on_fit_task_end(self, estimator, context):
                if context.task_name != "fit":
                    estimator.pools_ = largest_pool(None, None, None)

        def during_fit(estimator, X, y):
            return estimator.pools_

        def after_fit(estimator, X, y):
            return largest_pool(estimator, X, y)

        X = np.random.RandomState(0).normal(size=(400, 20))
        y = (X[:, 0] > 0).astype(int)
        model = MLPClassifier(max_iter=5).set_callbacks(Watch())
        scoring = {"during": during_fit, "after": after_fit}
        result = cross_validate(model, X, y, cv=2, n_jobs=2, scoring=scoring, error_score="raise")
        share = max(1, len(os.sched_getaffinity(0)) // 2)
        assert max(result["test_during"]) == 1.0, result
        assert max(result["test_after"]) <= share, (result, share)
        print("fine")
        """
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    environment["PYTHONWARNINGS"] = "ignore"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


# A graphics card


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_model_of_a_graphics_card_loads_where_there_is_none(tmp_path):
    X, y = make_task("multiclass")
    model = MLPClassifier(device="cuda", dtype="float64", **SHORT).fit(X, y)
    assert_same_weights(model, MLPClassifier(**SHORT).fit(X, y), rtol=1e-6)
    joblib.dump(model, tmp_path / "model.joblib")
    model.save(tmp_path / "model.npz")
    np.save(tmp_path / "X.npy", X)
    np.save(tmp_path / "p.npy", model.predict_proba(X))
    script = textwrap.dedent(
        """
        import sys, joblib, numpy as np, torch
        from sknn_resid import MLPClassifier
        folder = sys.argv[1]
        assert not torch.cuda.is_available()
        X, p = np.load(folder + "/X.npy"), np.load(folder + "/p.npy")
        models = joblib.load(folder + "/model.joblib"), MLPClassifier.load(folder + "/model.npz")
        for model in models:
            np.testing.assert_allclose(model.predict_proba(X), p, rtol=1e-6)
        """
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True)
