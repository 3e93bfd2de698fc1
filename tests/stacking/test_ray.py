"""Across machines with ray: its workers get groups of fits and train each group together."""

import logging
import os
import warnings
from contextlib import contextmanager

import joblib
import pytest
from neural_network.helpers import assert_same_fit
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, cross_validate
from stacking.programs import X, arrays, assert_same_arrays, net, networks, run, y

from sknn_resid import stacked

ray = pytest.importorskip("ray", reason="needs ray, which no extra brings: 270 MB installed")


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one core each; ray's own warnings are not ours to judge."""
    from ray.util.joblib import register_ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
        register_ray()
        yield
        ray.shutdown()


@contextmanager
def on_the_cluster():
    with joblib.parallel_config(backend="ray"), stacked():
        yield


def test_search(cluster):
    search = GridSearchCV(net(), {"alpha": [1e-3, 1e-1], "max_iter": [2, 4]}, cv=3)
    alone = arrays(run(search.fit, X, y)[0])
    with on_the_cluster():
        together, _ = run(search.fit, X, y)
    assert_same_arrays(arrays(together), alone, rtol=1e-6)


def test_every_fit_and_its_warning(cluster):
    def program():
        return cross_validate(net(), X, y, cv=4, return_estimator=True)

    alone, _ = run(program)
    with on_the_cluster():
        together, log = run(program)
    for a, b in zip(networks(together), networks(alone), strict=True):
        assert_same_fit(a, b, rtol=1e-6)
    said = [text for category, text in log if issubclass(category, ConvergenceWarning)]
    assert sum("Maximum iterations" in text for text in said) == 4
    assert sum(text.startswith("4 of 4 fits") for text in said) == 1


def test_tasks_meet_on_their_workers(cluster):
    def where_and_with_whom(seed):  # a closure: sent by value, the workers need no file of it
        from sknn_resid.engine import runner

        sizes = []
        real = runner.train_jobs

        def recorded(jobs, interrupted=None):
            sizes.append(len(jobs))
            return real(jobs, interrupted)

        runner.train_jobs = recorded
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.set_params(random_state=seed).fit(features, labels)
        finally:
            runner.train_jobs = real
        return os.getpid(), max(sizes, default=0)

    model, features, labels = net(), X, y
    with on_the_cluster():
        found = joblib.Parallel()(joblib.delayed(where_and_with_whom)(s) for s in range(8))
    processes = {pid for pid, _ in found}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert max(size for _, size in found) == 4


def test_an_error_is_the_callers(cluster):
    def fails_on_three(seed):
        if seed == 3:
            raise LookupError("three")
        return seed

    with on_the_cluster():
        with pytest.raises(LookupError, match="three"):
            joblib.Parallel()(joblib.delayed(fails_on_three)(s) for s in range(6))
        assert joblib.Parallel()(joblib.delayed(abs)(-s) for s in range(5)) == [0, 1, 2, 3, 4]
