"""Compiled operations: the same numbers as numpy and torch, and nothing read that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch
from engine.builders import LOSSES, leave_out_compiled
from engine.test_stack_equals_solo import assert_same, fresh, make_job

from sknn_resid._native import compiled
from sknn_resid.engine import compiled as compiled_epochs
from sknn_resid.engine import kernels, native
from sknn_resid.engine.activations import Gelu, Identity, Logistic, Relu, Tanh
from sknn_resid.engine.compiled import compiles
from sknn_resid.engine.data import TrainingData
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.losses import SoftmaxCrossEntropy, SquaredError
from sknn_resid.engine.native import ActivationCode
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.spec import OptimizerKind
from sknn_resid.engine.ties import Ties

pytestmark = pytest.mark.skipif(
    compiled("steps") is None, reason="the compiled parts were not built here (no C compiler?)"
)

COMPILED_LOSSES = [name for name, case in LOSSES.items() if case.engine.code is not None]
N_ROWS = 90  # of the jobs of test_stack_equals_solo


def draws(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def jobs_of(loss_name, n_models, **changes) -> list[TrainJob]:
    case = LOSSES[loss_name]
    rng = np.random.default_rng(3)
    X, y = rng.standard_normal((N_ROWS, 6)), case.draw(rng, N_ROWS)
    return [
        fresh(make_job(m, X, y, case.engine, case.n_outputs, **changes), m) for m in range(n_models)
    ]


def check_against_plain(make_jobs, monkeypatch, rtol=1e-9):
    """A fit with compiled steps is the fit without."""
    assert all(compiles([job]) for job in make_jobs())
    mine = run_jobs(make_jobs())
    leave_out_compiled(monkeypatch)
    assert not compiles(make_jobs())
    for ours, plain in zip(mine, run_jobs(make_jobs()), strict=True):
        assert_same(ours, plain, rtol)


@pytest.mark.parametrize("n_models", [1, 4])
@pytest.mark.parametrize("kind", [OptimizerKind.ADAM, OptimizerKind.SGD, OptimizerKind.ADAMW])
@pytest.mark.parametrize("loss_name", COMPILED_LOSSES)
def test_every_loss_and_update(loss_name, kind, n_models, monkeypatch):
    make = partial(jobs_of, loss_name, n_models, kind=kind)
    check_against_plain(make, monkeypatch)


@pytest.mark.parametrize("activation", [Identity(), Logistic(), Tanh(), Relu()], ids=repr)
def test_every_activation(activation, monkeypatch):
    make = partial(jobs_of, "softmax", 3, kind=OptimizerKind.ADAM, activation=activation)
    check_against_plain(make, monkeypatch)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 0.05},
        {"label_smoothing": 0.2},
        {"penalty": 0.0},
        {"batch_size": 200},
        {"batch_size": 30, "drop_last": True},
        {"shuffle": False},
    ],
    ids=str,
)
def test_every_option(changes, monkeypatch):
    make = partial(jobs_of, "softmax", 3, kind=OptimizerKind.ADAM, **changes)
    check_against_plain(make, monkeypatch)


def test_plain_momentum(monkeypatch):
    def make():
        jobs = jobs_of("squared", 2, kind=OptimizerKind.SGD)
        rule = replace(jobs[0].train.optimizer, nesterov=False)
        return [replace(job, train=replace(job.train, optimizer=rule)) for job in jobs]

    check_against_plain(make, monkeypatch)


def test_float32(monkeypatch):
    make = partial(jobs_of, "softmax", 3, kind=OptimizerKind.ADAM, dtype=torch.float32)

    def in_float32():
        return [
            replace(
                job,
                data=replace(job.data, X=job.data.X.astype(np.float32)),
                params=job.params.astype(np.float32),
            )
            for job in make()
        ]

    check_against_plain(in_float32, monkeypatch, rtol=1e-4)  # float32 sums in another order


@pytest.mark.parametrize("per_call", [1, 2])
@pytest.mark.parametrize("record_flow", [False, True])
def test_batches_of_a_call(per_call, record_flow, monkeypatch):
    """How many batches one call takes changes nothing, the last bit included."""
    make = partial(jobs_of, "softmax", 3, kind=OptimizerKind.ADAM, batch_size=16)

    def results():
        jobs = [replace(job, train=replace(job.train, record_flow=record_flow)) for job in make()]
        return run_jobs(jobs)

    whole = results()
    monkeypatch.setattr(compiled_epochs, "BATCHES_PER_CALL", per_call)
    for ours, expected in zip(results(), whole, strict=True):
        np.testing.assert_array_equal(ours.params, expected.params)
        assert ours.loss_curve == expected.loss_curve


def test_what_is_not_compiled():
    (job,) = jobs_of("softmax", 1, kind=OptimizerKind.ADAM)
    assert compiles([job])
    X = job.data.X
    ties = Ties(layers=(), places=(((0, 0, 0), (0, 1, 1)),))
    others = {
        "dropout": replace(job, train=replace(job.train, dropout=0.1)),
        "sparse": replace(job, data=replace(job.data, X=scipy.sparse.csr_array(X))),
        "column-major": replace(job, data=replace(job.data, X=np.asfortranarray(X))),
        "another dtype": replace(job, data=replace(job.data, X=X.astype(np.float32))),
        "ties": replace(job, network=replace(job.network, ties=ties)),
        "bfloat16": replace(job, network=replace(job.network, product_dtype=torch.bfloat16)),
        "gelu": replace(job, network=replace(job.network, activations=(Relu(), Gelu()))),
        "two heads": replace(job, network=replace(job.network, loss=SoftmaxCrossEntropy((2, 1)))),
        "lbfgs": replace(
            job,
            train=replace(
                job.train, optimizer=replace(job.train.optimizer, kind=OptimizerKind.LBFGS)
            ),
        ),
    }
    assert [name for name, other in others.items() if compiles([other])] == []


# -- single operations ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 7), (30, 100, 10), (7, 200, 33), (90, 4, 100)])
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
def test_product_bias_and_activation_in_one(dtype, shape, a_transposed, b_transposed):
    i, j, k = shape
    a, b, row = draws(3, i, j), draws(3, j, k, seed=1), draws(3, k, seed=2)
    expected = torch.tanh(torch.einsum("mij,mjk->mik", a, b) + row[:, None])
    a, b, row = a.to(dtype), b.to(dtype), row.to(dtype)
    if a_transposed:
        a = a.mT.contiguous().mT
    if b_transposed:
        b = b.mT.contiguous().mT
    out = torch.full((3, i, k), np.nan, dtype=dtype)
    ops = [kernels.matmul(a, b, out), kernels.add_row(out, row)]
    ops.append(native.activate(ActivationCode.TANH, out))
    (together,) = native.join(ops)
    assert len(together.lines) == 1
    together()
    rtol = 1e-12 if dtype == torch.float64 else 2e-4  # float32: products of 200 numbers
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=rtol)


def test_column_bias():
    a, b, column = draws(2, 4, 9), draws(2, 9, 20), draws(2, 4, seed=1)
    out = torch.full((2, 4, 20), np.nan, dtype=torch.float64)
    (together,) = native.join([kernels.matmul(a, b, out), kernels.add_column(out, column)])
    assert len(together.lines) == 1
    together()
    torch.testing.assert_close(out, a @ b + column[:, :, None], rtol=1e-12, atol=1e-12)


def test_only_what_follows_on_the_same_memory_is_joined():
    a, b, row = draws(1, 4, 9), draws(1, 9, 20), draws(1, 20)
    out, other = torch.zeros(1, 4, 20, dtype=torch.float64), draws(1, 4, 20, seed=5)
    before = other.clone()
    (together,) = native.join([kernels.matmul(a, b, out), kernels.add_row(other, row)])
    assert len(together.lines) == 2
    together()
    torch.testing.assert_close(out, a @ b)
    torch.testing.assert_close(other, before + row)


def test_other_operations_stay_between():
    x, seen = torch.full((1, 2, 2), -1.0, dtype=torch.float64), []
    relu = native.activate(ActivationCode.RELU, x)
    ops = native.join([relu, relu, lambda: seen.append(x.sum().item()), relu])
    assert len(ops) == 3
    for op in ops:
        op()
    assert seen == [0.0]


@pytest.mark.parametrize("activation", [Relu(), Tanh(), Logistic()], ids=repr)
def test_what_is_not_a_number_stays_so(activation):
    z = torch.tensor([[[np.nan, -np.inf, np.inf, 0.0]]], dtype=torch.float64)
    expected = activation.forward_(z.clone())
    (forward,) = activation.bind_forward(z, z)
    forward()
    torch.testing.assert_close(z, expected, equal_nan=True)
    delta = torch.ones_like(z)
    (backward,) = activation.bind_backward(z, z, delta)
    backward()
    plain = torch.ones_like(z)
    for op in activation.torch_backward(z, z, plain):
        op()
    torch.testing.assert_close(delta, plain, equal_nan=True)


def test_memory_of_other_kinds_is_left_to_torch():
    z = torch.zeros(1, 4, 6)
    assert native.activate(ActivationCode.RELU, z) is not None
    assert native.activate(ActivationCode.RELU, z.to(torch.bfloat16)) is None
    assert native.activate(ActivationCode.RELU, z.mT) is None
    assert native.matmul(z[:, :, ::2], z[:, :3], torch.zeros(1, 4, 6)) is None


# -- safety --------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [b"short", bytes(10_000)[:-1]])
def test_a_table_that_is_none(table):
    with pytest.raises(ValueError, match="not a table of instructions"):
        compiled("steps").run(table, 0, 1, 0, 1, False)


def test_an_operation_that_does_not_exist():
    relu = native.activate(ActivationCode.RELU, torch.zeros(1, 2))
    line = replace(relu.lines[0], code=len(native.Code))
    with pytest.raises(ValueError, match="not a table of instructions"):
        compiled("steps").run(line.pack(), 0, 1, 0, 1, False)


def test_a_row_that_does_not_exist_reads_the_nearest():
    """As numpy's take with mode "clip" does on the plain path."""
    (job,) = jobs_of("squared", 1, kind=OptimizerKind.SGD)
    rows = np.array([0, 1, 10_000, -5])
    clipped = np.array([0, 1, N_ROWS - 1, 0])
    results = []
    for chosen in (rows, clipped):
        data = TrainingData(job.data.X, job.data.y, chosen)
        results += run_jobs([replace(job, data=data, rng=np.random.RandomState(0))])
    np.testing.assert_array_equal(results[0].params, results[1].params)


def test_a_model_that_diverges_says_so():
    (job,) = jobs_of("squared", 1, kind=OptimizerKind.SGD)
    train = replace(job.train, optimizer=replace(job.train.optimizer, learning_rate=1e12))
    (result,) = run_jobs([replace(job, train=replace(train, max_epochs=50, patience=99))])
    assert not np.isfinite(result.loss_curve[-1])


def test_switched_off_by_the_environment():
    code = "from sknn_resid._native import compiled; print(compiled('steps'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SKNN_RESID_NATIVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None"


def test_squared_error_of_rows_of_weight_zero():
    """Rows of weight 0 and padding count for nothing, whatever they hold."""
    X, y = np.ones((6, 2)), np.ones((6, 1))
    y[3:] = 1e6
    job = make_job(0, X, y, SquaredError(), 1, kind=OptimizerKind.SGD)
    data = TrainingData(X, y, np.arange(6), np.array([1.0, 1, 1, 0, 0, 0]))
    few = TrainingData(X[:3], y[:3])
    a, b = (run_jobs([replace(job, data=d, rng=np.random.RandomState(0))])[0] for d in (data, few))
    np.testing.assert_allclose(a.params, b.params, rtol=1e-12)
