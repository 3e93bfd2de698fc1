"""The key test of the project: a stack equals each of its members alone.

Members differ in everything that may differ within a stack: learning rate, penalty, seed, rows,
weights, momentum, betas, patience, epochs, dropout, label smoothing, clipping, schedule horizon.
They stop at different times, and one of them may diverge. In float64 each ends where it would have
ended alone, to rounding.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import torch

from sknn_resid.engine.activations import Gelu, Relu, Tanh
from sknn_resid.engine.data import TrainingData, ValidationData
from sknn_resid.engine.history import StopReason
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.layout import Layout
from sknn_resid.engine.losses import (
    BinaryCrossEntropy,
    Poisson,
    SoftmaxCrossEntropy,
    SquaredError,
)
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.schedules import Adaptive, Cosine, InverseScaling, OneCycle, Schedule
from sknn_resid.engine.spec import NetworkSpec, OptimizerKind, OptimizerSpec, TrainSpec

N_ROWS, N_FEATURES = 90, 6
SIZES = [2, 5, 17]


def make_data(loss, rng):
    X = rng.standard_normal((N_ROWS, N_FEATURES))
    signal = X[:, :3] @ rng.standard_normal((3, 3))
    if isinstance(loss, SoftmaxCrossEntropy):
        return X, signal.argmax(1)[:, None]
    if isinstance(loss, BinaryCrossEntropy):
        return X, (signal[:, :1] > 0).astype(float)
    if isinstance(loss, Poisson):
        return X, rng.poisson(np.exp(0.3 * signal[:, :1])).astype(float)
    return X, signal


def make_job(m, X, y, loss, n_outputs, *, kind, activation=None, dtype=torch.float64, **changes):
    """Job m of a stack: its own numbers everywhere."""
    activation = activation or Relu()
    rng = np.random.RandomState(100 + m)
    sizes = (X.shape[1], 9, 7, n_outputs)
    network = NetworkSpec(sizes, (activation, activation), loss, dtype, dtype)
    own = np.random.default_rng(m)
    rows = None if m % 3 == 0 else own.choice(N_ROWS, size=N_ROWS - 4 * m % 37, replace=True)
    n = N_ROWS if rows is None else len(rows)
    weight = None
    if m % 2:
        weight = own.uniform(0.1, 3, n) * (own.random(n) > 0.2)
    rate = 10 ** own.uniform(-3, -2)
    train = TrainSpec(
        optimizer=OptimizerSpec(
            kind, rate, momentum=0.5 + 0.05 * (m % 8), beta_1=0.8 + 0.01 * (m % 9), epsilon=1e-7
        ),
        schedule=Schedule(),
        penalty=[0.0, 1e-3, 1e-2][m % 3],
        batch_size=32,
        max_epochs=8 + m % 5,
        tolerance=1e-3,
        patience=2 + m % 4,
    )
    return TrainJob(
        network=network,
        train=replace(train, **changes),
        data=TrainingData(X, y, rows, weight),
        params=Layout(sizes).pack(*random_weights(rng, sizes)),
        rng=rng,
    )


def random_weights(rng, sizes):
    coefs = [rng.uniform(-0.5, 0.5, shape) for shape in pairwise(sizes)]
    return coefs, [rng.uniform(-0.1, 0.1, size) for size in sizes[1:]]


def fresh(job, seed):
    """The same job with its random generator at the start."""
    return replace(job, rng=np.random.RandomState(seed))


def assert_same(together, alone, rtol=1e-9):
    assert together.n_epochs == alone.n_epochs
    assert together.reason is alone.reason
    assert together.no_improvement == alone.no_improvement
    assert together.rows_seen == alone.rows_seen
    for name in ("loss_curve", "validation_scores", "validation_losses"):
        np.testing.assert_allclose(
            getattr(together, name), getattr(alone, name), rtol=rtol, err_msg=name
        )
    scale = np.abs(alone.params).max()
    np.testing.assert_allclose(together.params, alone.params, rtol=rtol, atol=rtol * scale)
    if alone.optimizer is not None:
        assert together.optimizer.steps == alone.optimizer.steps
        np.testing.assert_allclose(
            together.optimizer.learning_rate, alone.optimizer.learning_rate, rtol=rtol
        )


def check(jobs, rtol=1e-9):
    together = run_jobs([fresh(job, m) for m, job in enumerate(jobs)])
    for m, job in enumerate(jobs):
        (alone,) = run_jobs([fresh(job, m)])
        assert_same(together[m], alone, rtol)
    return together


LOSSES = {
    "softmax": (SoftmaxCrossEntropy((3,)), 3),
    "binary": (BinaryCrossEntropy(), 1),
    "squared": (SquaredError(), 3),
    "poisson": (Poisson(), 1),
}


@pytest.mark.parametrize("n_models", SIZES)
@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("kind", [OptimizerKind.ADAM, OptimizerKind.SGD, OptimizerKind.ADAMW])
def test_stack_equals_solo(kind, loss_name, n_models):
    loss, n_outputs = LOSSES[loss_name]
    X, y = make_data(loss, np.random.default_rng(0))
    jobs = [make_job(m, X, y, loss, n_outputs, kind=kind) for m in range(n_models)]
    together = check(jobs)
    if n_models == 17:
        assert len({result.n_epochs for result in together}) > 3  # they stop at different times


@pytest.mark.parametrize("n_models", SIZES)
def test_per_model_options(n_models):
    """Dropout, clipping, label smoothing, schedules of other horizons, activations that keep z."""
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(1))
    schedules = [Cosine(), OneCycle(0.1), Schedule(0.5), InverseScaling(power=0.3), Schedule()]
    jobs = [
        make_job(
            m,
            X,
            y,
            loss,
            n_outputs,
            kind=OptimizerKind.ADAM,
            activation=Gelu(),
            dropout=0.1 + 0.02 * m,
            clip_norm=0.05 * (m + 1),
            label_smoothing=0.01 * m,
            schedule=schedules[m % len(schedules)],
        )
        for m in range(n_models)
    ]
    check([replace(job, dropout_seed=1000 + m) for m, job in enumerate(jobs)])


@pytest.mark.parametrize("n_models", SIZES)
def test_adaptive_rates_part_ways(n_models):
    loss, n_outputs = LOSSES["squared"]
    X, y = make_data(loss, np.random.default_rng(2))
    jobs = [
        make_job(
            m,
            X,
            y,
            loss,
            n_outputs,
            kind=OptimizerKind.SGD,
            activation=Tanh(),
            schedule=Adaptive(),
            tolerance=0.05,
            patience=1 + m % 3,
            max_epochs=15,
        )
        for m in range(n_models)
    ]
    together = check(jobs)
    rates = {result.optimizer.learning_rate / job.train.optimizer.learning_rate
             for result, job in zip(together, jobs, strict=True)}  # fmt: skip
    assert len({round(rate, 12) for rate in rates}) > 1


@pytest.mark.parametrize("n_models", SIZES)
def test_early_stopping_on_own_validation_rows(n_models):
    loss, n_outputs = LOSSES["squared"]
    rng = np.random.default_rng(3)
    X, y = make_data(loss, rng)
    jobs = []
    for m in range(n_models):
        job = make_job(
            m, X, y, loss, n_outputs, kind=OptimizerKind.ADAM, watch_validation=True, max_epochs=30
        )
        own = rng.permutation(N_ROWS)[: 10 + m]
        part = ValidationData(X[own], y[own], rng.uniform(0.5, 2, len(own)))

        def score(view, truth=y[own]):
            return -float(np.abs(view.logits - truth).mean())

        jobs.append(replace(job, validation=part, score=score))
    check(jobs)


@pytest.mark.parametrize("n_models", SIZES)
@pytest.mark.parametrize("diverging", ["first", "last"])
def test_one_diverging_member_changes_no_other(n_models, diverging):
    loss, n_outputs = LOSSES["squared"]
    X, y = make_data(loss, np.random.default_rng(4))
    jobs = [make_job(m, X, y, loss, n_outputs, kind=OptimizerKind.SGD) for m in range(n_models)]
    wild = 0 if diverging == "first" else n_models - 1
    wild_train = replace(
        jobs[wild].train,
        optimizer=replace(jobs[wild].train.optimizer, learning_rate=1e6),
        max_epochs=20,
        patience=np.inf,
    )
    jobs[wild] = replace(jobs[wild], train=wild_train)
    together = run_jobs([fresh(job, m) for m, job in enumerate(jobs)])
    assert together[wild].reason is StopReason.DIVERGED
    assert not np.isfinite(together[wild].loss_curve[-1])  # it stays visible
    assert np.isfinite(together[wild].params).all()
    for m, job in enumerate(jobs):
        if m != wild:
            (alone,) = run_jobs([fresh(job, m)])
            assert_same(together[m], alone)


@pytest.mark.parametrize("n_models", SIZES)
def test_sparse_rows(n_models):
    loss, n_outputs = LOSSES["binary"]
    X, y = make_data(loss, np.random.default_rng(5))
    X[np.abs(X) < 0.8] = 0.0
    sparse = scipy.sparse.csr_array(X)
    jobs = [
        make_job(m, sparse, y, loss, n_outputs, kind=OptimizerKind.ADAM) for m in range(n_models)
    ]
    together = check(jobs)
    for m, job in enumerate(jobs):
        dense = replace(job, data=replace(job.data, X=X))
        (alone,) = run_jobs([fresh(dense, m)])
        assert_same(together[m], alone)


def test_more_models_than_one_stack_holds():
    """How jobs are cut into stacks changes nothing; results keep the order of the jobs."""
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(6))
    kinds = [OptimizerKind.ADAM, OptimizerKind.SGD]
    jobs = [make_job(m, X, y, loss, n_outputs, kind=kinds[m % 2]) for m in range(40)]
    check(jobs)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-4)])
def test_float32(dtype, rtol):
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(7))
    X = X.astype(np.float32)
    jobs = [
        make_job(
            m,
            X,
            y,
            loss,
            n_outputs,
            kind=OptimizerKind.ADAM,
            activation=Tanh(),
            dtype=dtype,
            max_epochs=4,
            patience=10,
        )
        for m in range(5)
    ]
    check(jobs, rtol)


def test_a_stack_draws_what_each_member_would_draw():
    """A stopped model's generator stays where it would be alone, whatever its neighbours do."""
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(8))
    jobs = [
        make_job(m, X, y, loss, n_outputs, kind=OptimizerKind.ADAM, max_epochs=2 + 3 * m)
        for m in range(3)
    ]
    together = [fresh(job, m) for m, job in enumerate(jobs)]
    run_jobs(together)
    for m, job in enumerate(jobs):
        alone = fresh(job, m)
        run_jobs([alone])
        ours, theirs = together[m].rng.get_state(), alone.rng.get_state()
        np.testing.assert_array_equal(ours[1], theirs[1])
        assert ours[2:] == theirs[2:]
