"""Across machines: dask's workers get groups of fits and train each group together."""

import warnings
from contextlib import contextmanager

import joblib
import numpy as np
import pytest
from neural_network.helpers import assert_same_fit
from sklearn.model_selection import GridSearchCV, cross_validate
from stacking.programs import X, arrays, assert_same_arrays, net, networks, piped, run, y

from sknn_resid import stacked
from sknn_resid.stacking._backend import StackedBackend
from sknn_resid.stacking._outer import GroupBackend

distributed = pytest.importorskip("distributed", reason="needs the extra 'distributed'")


@pytest.fixture(scope="module")
def client():
    """Two worker processes; dask's own warnings are not ours to judge."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        )
        client = distributed.Client(cluster)
        yield client
        client.close()
        cluster.close()


@contextmanager
def on_the_cluster(client, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with joblib.parallel_config(backend="dask", client=client), stacked(**params):
            yield


def test_search(client):
    grid = {"mlpclassifier__alpha": [1e-3, 1e-1, 1.0], "mlpclassifier__max_iter": [2, 4]}
    search = GridSearchCV(piped(net()), grid, cv=3)
    alone = arrays(run(search.fit, X, y)[0])
    with on_the_cluster(client):
        together, _ = run(search.fit, X, y)
    assert_same_arrays(arrays(together), alone, rtol=1e-6)


def test_every_fit(client):

    def program():
        return cross_validate(net(), X, y, cv=6, return_estimator=True)

    alone, _ = run(program)
    with on_the_cluster(client):
        together, _ = run(program)
    assert len(networks(together)) == 6
    for a, b in zip(networks(together), networks(alone), strict=True):
        assert_same_fit(a, b, rtol=1e-6)


def where_and_with_whom(seed):
    """The process of a task, and how many networks the process trained at once."""
    import os

    from sknn_resid.engine import meeting, runner

    assert meeting.current_meeting() is not None
    sizes = []
    real = runner.train_jobs

    def recorded(jobs, interrupted=None):
        sizes.append(len(jobs))
        return real(jobs, interrupted)

    runner.train_jobs = recorded
    try:
        run(net(random_state=seed).fit, X, y)
    finally:
        runner.train_jobs = real
    return os.getpid(), max(sizes, default=0)


def test_tasks_meet_on_their_workers(client):
    with on_the_cluster(client):
        found = joblib.Parallel()(joblib.delayed(where_and_with_whom)(s) for s in range(8))
    assert len({pid for pid, _ in found}) == 2
    assert max(size for _, size in found) == 4
    # More tasks than groups take at first: the rest follows in groups as well.
    with on_the_cluster(client, max_stack=2):
        found = joblib.Parallel()(joblib.delayed(where_and_with_whom)(s) for s in range(11))
    assert len(found) == 11
    assert max(size for _, size in found) == 2


def fails_on_three(seed):
    if seed == 3:
        raise LookupError("three")
    return seed


def test_an_error_is_the_callers(client):
    with on_the_cluster(client):
        with pytest.raises(LookupError, match="three"):
            joblib.Parallel()(joblib.delayed(fails_on_three)(s) for s in range(6))
        assert joblib.Parallel()(joblib.delayed(abs)(-s) for s in range(5)) == [0, 1, 2, 3, 4]


def test_nested_search(client):
    search = GridSearchCV(net(), {"alpha": [1e-3, 1.0]}, cv=2)

    def program():
        return cross_validate(search, X, y, cv=2, return_estimator=True)

    alone, _ = run(program)
    with on_the_cluster(client):
        together, _ = run(program)
    np.testing.assert_allclose(together["test_score"], alone["test_score"])
    for a, b in zip(networks(together), networks(alone), strict=True):
        assert_same_fit(a, b, rtol=1e-6)


class Lossy(joblib.parallel.ParallelBackendBase):
    """An outer backend whose worker dies: the error is in the future, no callback comes."""

    supports_retrieve_callback = True

    def effective_n_jobs(self, n_jobs):
        return 2

    def submit(self, func, callback=None):
        from concurrent.futures import Future

        future = Future()
        future.set_exception(ConnectionError("worker died"))
        return future


def test_a_worker_that_dies_is_an_error_and_no_hang():
    backend = GroupBackend(Lossy(nesting_level=0), None, None)
    with joblib.parallel_config(backend=backend), pytest.raises(ConnectionError, match="died"):
        joblib.Parallel()(joblib.delayed(abs)(s) for s in range(4))


def test_backends_of_this_machine_are_replaced():
    for name in ("loky", "threading"):
        with joblib.parallel_config(backend=name), stacked():
            assert joblib.Parallel()(joblib.delayed(abs)(-s) for s in range(3)) == [0, 1, 2]
            backend, _ = joblib.parallel.get_active_backend()
            assert isinstance(backend, StackedBackend)
