"""Rows on their way into batches: order, gathering, padding, and the memory they lie in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse
import sklearn.utils
import torch
from engine.builders import Recorder, make_job, make_model, make_problem
from sklearn.utils import gen_batches

from sknn_resid.engine import slots
from sknn_resid.engine.activations import Identity, Relu
from sknn_resid.engine.data import RowOrder, TrainingData, as_tensor, row_chunks, row_major
from sknn_resid.engine.layout import Layout
from sknn_resid.engine.losses import Poisson, SoftmaxCrossEntropy, SquaredError
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.slots import (
    SlotBank,
    bind_gather,
    gather_tensor,
    max_rows_per_batch,
    slots_per_segment,
)
from sknn_resid.engine.spec import NetworkSpec
from sknn_resid.engine.stack import Stack, new_member

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


# -- order ---------------------------------------------------------------------------------------


def test_row_order_is_scikit_learns():
    """``sklearn.utils.shuffle`` of the indices, epoch after epoch, from one stream."""
    data = TrainingData(np.zeros((13, 2)), np.zeros((13, 1)))
    order = RowOrder(data, np.random.RandomState(3), shuffle=True)
    rng, expected = np.random.RandomState(3), np.arange(13)
    for _ in range(4):
        expected = sklearn.utils.shuffle(expected, random_state=rng)
        order.next_epoch()
        np.testing.assert_array_equal(order.rows(0, 13), expected)
        np.testing.assert_array_equal(order.rows(5, 9), expected[5:9])
        assert order.weights(0, 13) is None


def test_without_shuffling_nothing_is_drawn():
    rng = np.random.RandomState(3)
    order = RowOrder(TrainingData(np.zeros((5, 2)), np.zeros((5, 1))), rng, shuffle=False)
    order.next_epoch()
    np.testing.assert_array_equal(order.rows(0, 5), np.arange(5))
    assert rng.randint(1 << 30) == np.random.RandomState(3).randint(1 << 30)


def test_rows_and_weights_stay_together():
    """Weights belong to positions of the index vector, also where a row comes twice."""
    rows = np.array([7, 7, 2, 9])
    weight = np.array([0.1, 0.2, 0.3, 0.4])
    data = TrainingData(np.zeros((10, 2)), np.zeros((10, 1)), rows, weight)
    assert data.n_rows == 4
    order = RowOrder(data, np.random.RandomState(0), shuffle=True)
    order.next_epoch()
    pairs = set(zip(order.rows(0, 4).tolist(), order.weights(0, 4).tolist(), strict=True))
    assert pairs == set(zip(rows.tolist(), weight.tolist(), strict=True))


def revealing_job(n_rows, batch, seed, *, sparse, weight=None, dtype=torch.float64):
    """A job whose gradients tell the rows of each batch.

    Row i has target e_i and all parameters are 0, so the gradient of output k's bias is minus the
    weight of row k in its batch; row i of X is 2 e_i, so the gradient of W says it once more.
    """
    n_all = 12
    X = 2 * np.eye(n_all)
    layout = Layout((n_all, n_all))
    job = make_job(
        make_problem("identity", "squared", 0),
        make_model(make_problem("identity", "squared", 0), 0),
        shuffle=True,
        batch_size=batch,
        penalty=0.0,
        dtype=dtype,
    )
    rows = np.arange(n_all)[:n_rows][::-1].copy()
    return replace(
        job,
        network=NetworkSpec((n_all, n_all), (), SquaredError(), dtype, dtype),
        data=TrainingData(scipy.sparse.csr_array(X) if sparse else X, np.eye(n_all), rows, weight),
        params=np.zeros(layout.n_params),
        rng=np.random.RandomState(seed),
        rng_is_shared=True,
    )


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("max_slots", [1, 2, 16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [[12], [12, 12], [12, 7, 5, 3, 11]])
def test_each_model_gets_scikit_learns_batches(sizes, weighted, max_slots, sparse, monkeypatch):
    """Epoch by epoch, batch by batch, row by row, whatever its neighbours have."""
    monkeypatch.setattr(slots, "MAX_SLOTS", max_slots)
    batch = 5
    weights = [np.linspace(0.5, 2, n) if weighted else None for n in sizes]
    jobs = [
        revealing_job(n, batch, seed, sparse=sparse, weight=weight)
        for seed, (n, weight) in enumerate(zip(sizes, weights, strict=True))
    ]
    stack = Stack([new_member(job) for job in jobs])
    recorder = Recorder(stack)
    streams = [np.random.RandomState(seed) for seed in range(len(sizes))]
    orders = [np.arange(n) for n in sizes]
    for _ in range(3):
        recorder.gradients.clear()
        recorder.active.clear()
        stack.run_epoch([0.0] * len(jobs), [None] * len(jobs), range(len(jobs)))
        for m, n in enumerate(sizes):
            orders[m] = sklearn.utils.shuffle(orders[m], random_state=streams[m])
            seen = [
                Layout((12, 12)).unpack(g_MP[m])
                for g_MP, active in zip(recorder.gradients, recorder.active, strict=True)
                if active[m]
            ]
            parts = list(gen_batches(n, batch))
            assert len(seen) == len(parts) == stack.steps_per_epoch()[m]
            for (coefs, intercepts), part in zip(seen, parts, strict=True):
                positions = orders[m][part]
                w = np.ones(len(positions)) if weights[m] is None else weights[m][positions]
                expected = np.zeros(12)
                np.add.at(expected, jobs[m].data.rows[positions], w / w.sum())
                np.testing.assert_allclose(-intercepts[0], expected, rtol=1e-15)
                np.testing.assert_allclose(-coefs[0], np.diag(2 * expected), rtol=1e-15)


def test_one_batch_of_a_private_stream_draws_nothing():
    """The order of the rows cannot matter then; a shared stream is drawn from as ever."""
    for shared in (False, True):
        job = replace(revealing_job(5, 5, 0, sparse=False), rng_is_shared=shared)
        stack = Stack([new_member(job)])
        Recorder(stack)
        stack.run_epoch([0.0], [None], [0])
        moved = job.rng.randint(1 << 30) != np.random.RandomState(0).randint(1 << 30)
        assert moved == shared


def test_models_that_have_stopped_draw_nothing():
    jobs = [revealing_job(12, 5, seed, sparse=False) for seed in range(3)]
    stack = Stack([new_member(job) for job in jobs])
    Recorder(stack)
    stack.run_epoch([0.0] * 3, [None] * 3, [0, 2])
    fresh = [np.random.RandomState(seed).randint(1 << 30) for seed in range(3)]
    moved = [job.rng.randint(1 << 30) != first for job, first in zip(jobs, fresh, strict=True)]
    assert moved == [True, False, True]


# -- padding -------------------------------------------------------------------------------------


def small_jobs(sizes, *, loss, n_outputs, activation, X, y, **changes):
    problem = make_problem("identity", "squared", 1)
    job = make_job(problem, make_model(problem, 0), batch_size=12, **changes)
    layers = (X.shape[1], 3, n_outputs)
    rng = np.random.default_rng(5)
    network = NetworkSpec(layers, (activation,), loss, torch.float64, torch.float64)
    coefs = [rng.uniform(-0.5, 0.5, shape) for shape in pairwise(layers)]
    coefs[1] = np.abs(coefs[1])
    params = Layout(layers).pack(coefs, [np.full(3, 2.0), np.full(n_outputs, -3.0)])
    return [
        replace(
            job,
            network=network,
            data=TrainingData(X, y, np.arange(n)),
            params=params,
            rng=np.random.RandomState(n),
            dropout_seed=n,
        )
        for n in sizes
    ]


def assert_stack_equals_solo(jobs):
    together = run_jobs([replace(job, rng=np.random.RandomState(0)) for job in jobs])
    for job, ours in zip(jobs, together, strict=True):
        (alone,) = run_jobs([replace(job, rng=np.random.RandomState(0))])
        np.testing.assert_allclose(ours.loss_curve, alone.loss_curve, rtol=1e-10)
        np.testing.assert_allclose(ours.params, alone.params, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("activation", [Identity(), Relu()])
def test_padding_does_not_build_up(activation, sparse):
    """Rows that no batch ever fills must not grow, step by step, until their 0 * inf shows."""
    rng = np.random.default_rng(1)
    X = rng.uniform(0, 1, (12, 4))
    y = rng.poisson(1.0, (12, 1)).astype(float)
    jobs = small_jobs(
        [12, 5],
        loss=Poisson(),
        n_outputs=1,
        activation=activation,
        X=scipy.sparse.csr_array(X) if sparse else X,
        y=y,
        max_epochs=600,
        tolerance=-np.inf,
    )
    slow = replace(jobs[0].train.optimizer, learning_rate=1e-5)
    assert_stack_equals_solo(
        [replace(job, train=replace(job.train, optimizer=slow)) for job in jobs]
    )


def test_dropout_of_a_model_of_one_batch():
    """Alone it visits its rows in one order; beside a longer one the masks must fall alike."""
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((20, 4)), rng.integers(0, 3, (20, 1))
    jobs = small_jobs(
        [20, 5],
        loss=SoftmaxCrossEntropy((3,)),
        n_outputs=3,
        activation=Relu(),
        X=X,
        y=y,
        shuffle=True,
        dropout=0.5,
        max_epochs=4,
    )
    assert_stack_equals_solo(jobs)


# -- gathering -----------------------------------------------------------------------------------


def sources(tmp_path):
    X = np.random.default_rng(0).integers(-50, 50, (11, 3))  # exact in every dtype
    mapped = np.memmap(tmp_path / "X.dat", dtype=np.float32, mode="w+", shape=X.shape)
    mapped[:] = X
    mapped.flush()
    read_only = np.memmap(tmp_path / "X.dat", dtype=np.float32, mode="r", shape=X.shape)
    locked = X.astype(np.float64)
    locked.flags.writeable = False
    return X, {
        "float32": X.astype(np.float32),
        "float64": X.astype(np.float64),
        "integers": X,
        "column-major": np.asfortranarray(X.astype(np.float64)),
        "every second column": np.repeat(X.astype(np.float32), 2, axis=1)[:, ::2],
        "read-only": locked,
        "memory map": read_only,
        "tensor float32": torch.from_numpy(X.astype(np.float32)),
        "tensor float64": torch.from_numpy(X.astype(np.float64)),
        "tensor transposed": torch.from_numpy(X.T.astype(np.float64).copy()).T,
        "sparse rows": scipy.sparse.csr_array(X.astype(np.float64)),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gathered_rows(dtype, tmp_path):
    """Any source, any dtype of the batch: the rows that were asked for, in their order."""
    truth, kinds = sources(tmp_path)
    for name, X in kinds.items():
        out = torch.full((5, 3), -1.0, dtype=dtype)
        gather = bind_gather(X, out)
        for rows in (np.array([10, 0, 3, 3, 7]), np.array([1, 2]), np.array([], dtype=int)):
            before = out[len(rows) :].clone()
            gather(rows)
            np.testing.assert_array_equal(out[: len(rows)].double(), truth[rows], err_msg=name)
            assert torch.equal(out[len(rows) :], before), name


def test_gathered_class_codes():
    y = torch.arange(10)[:, None]
    out = torch.full((4, 1), -1)
    gather_tensor(y, out, np.array([9, 0, 4]))
    assert out[:, 0].tolist() == [9, 0, 4, -1]


def test_as_tensor():
    """Shares memory where torch can; copies what it cannot hold, without a warning."""
    array = np.arange(6.0).reshape(2, 3)
    tensor = as_tensor(array)
    array[0, 0] = 9
    assert tensor[0, 0] == 9
    locked = array.copy()
    locked.flags.writeable = False
    for awkward in (locked, array[::-1], array[:, ::-1], array.T[::-1]):
        tensor = as_tensor(awkward)
        np.testing.assert_array_equal(tensor, awkward)
        tensor.fill_(0)
        assert (awkward != 0).any()


def test_row_major(tmp_path):
    """A column-major X is turned once; anything else, a memory map above all, is left alone."""
    X = np.arange(12.0).reshape(4, 3)
    turned = row_major(np.asfortranarray(X))
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, X)
    mapped = np.memmap(tmp_path / "X.dat", dtype=float, mode="w+", shape=(3, 4)).T
    sparse, tensor = scipy.sparse.csr_array(X), torch.from_numpy(X)
    for same in (X, sparse, tensor, mapped, np.asarray(mapped), mapped[:, 1:]):
        assert row_major(same) is same


def test_row_chunks():
    assert list(row_chunks(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(row_chunks(6, 3)) == [slice(0, 3), slice(3, 6)]
    assert list(row_chunks(0, 3)) == []


# -- banks ---------------------------------------------------------------------------------------


def make_bank(*, sparse=False, codes=False, product_dtype=torch.float64, **options):
    """Two models, three slots of four rows, five features, three outputs, two targets."""
    dtypes = {"dtype": torch.float64, "product_dtype": product_dtype}
    device = torch.device("cpu")
    options |= {"codes": codes, "sparse": sparse, "device": device}
    return SlotBank(2, 3, 4, 5, 3, 2, **options, **dtypes)


def test_slots_are_views_of_the_bank():
    """Steps are bound to a slot's memory once; what is gathered must arrive there."""
    bank = make_bank()
    views = bank.used(3)
    for m in range(2):
        views.y_M[m].copy_(torch.arange(12.0)[:, None].expand(12, 2) + 100 * m)
    for g, slot in enumerate(bank.slots):
        assert slot.n_rows == 4
        for m in range(2):
            own = torch.arange(4.0) + 4 * g + 100 * m
            assert torch.equal(bank.y_MGBT[m, g, :, 1], own.double())
        slot.Z_MKB.fill_(g)
        slot.square_M.fill_(g)
        bank.T_MGKB[:, g].fill_(10 + g)
        assert slot.T_MKB.unique().tolist() == [10 + g]
        bank.r_MG1B[:, g].fill_(20 + g)
        assert slot.r_M1B.unique().tolist() == [20 + g]
        bank.decay_MG[:, g].fill_(30 + g)
        assert slot.decay_M1.unique().tolist() == [30 + g]
    assert [z.unique().tolist() for z in bank.Z_MGKB.unbind(1)] == [[0.0], [1.0], [2.0]]
    assert views.square_GM.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_gathered_rows_reach_every_slot():
    bank = make_bank()
    X = np.arange(50.0).reshape(10, 5)
    bank.bind_gather(0, X)(np.array([3, 1, 4, 1]))
    bank.bind_gather(1, X)(np.array([9, 2]))
    for slot in bank.slots:
        np.testing.assert_array_equal(slot.X_MBD[0], X[[3, 1, 4, 1]])
        np.testing.assert_array_equal(slot.X_MBD[1, :2], X[[9, 2]])
        assert slot.X_MBD.isfinite().all()


def test_a_segment_may_use_fewer_slots():
    bank = make_bank()
    views = bank.used(2)
    assert views.T_MGKB.shape == views.Z_MGKB.shape == (2, 2, 3, 4)
    assert views.r_MG1B.shape == (2, 2, 1, 4)
    assert views.square_GM.shape == (2, 2)
    assert [y.shape for y in views.y_M] == [(8, 2), (8, 2)]
    views.y_M[1].fill_(1)
    assert bank.y_MGBT[1, :2].eq(1).all()
    assert bank.y_MGBT[1, 2].eq(0).all()
    assert bank.y_MGBT[0].eq(0).all()


def test_a_shared_bank_has_one_copy_of_each_batch():
    """What two models read is one piece of memory; logits are each model's own."""
    bank = make_bank(shared=True)
    bank.bind_gather(0, np.arange(50.0).reshape(10, 5))(np.array([3, 1, 4, 1]))
    bank.T_MGKB[:, 1].fill_(7)
    bank.r_MG1B[:, 1].fill_(8)
    for slot in bank.slots:
        assert slot.X_MBD.shape == (2, 4, 5)
        assert torch.equal(slot.X_MBD[0], slot.X_MBD[1])
        assert slot.X_MBD[0].data_ptr() == slot.X_MBD[1].data_ptr()
    assert bank.slots[1].T_MKB.shape == (2, 3, 4)
    assert bank.slots[1].T_MKB.eq(7).all()
    assert bank.slots[1].r_M1B.eq(8).all()
    bank.slots[0].Z_MKB[1].fill_(5)
    assert bank.Z_MGKB[0].eq(0).all()
    assert [y.shape for y in bank.used(2).y_M] == [(8, 2)]


def test_slots_are_contiguous():
    """Softmax along the outputs copies what is not."""
    for shared in (False, True):
        for slot in make_bank(shared=shared).slots:
            assert slot.Z_MKB.is_contiguous()
            assert slot.T_MKB[0].is_contiguous()
        assert all(part.is_contiguous() for part in make_bank(shared=shared).used(2).in_memory)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_column_of_ones_beside_the_rows(dtype):
    bank = make_bank(with_ones=True)
    X = np.arange(50.0).reshape(10, 5).astype(dtype)
    bank.bind_gather(0, X)(np.array([3, 1, 4, 1]))
    bank.bind_gather(1, X)(np.array([9, 2]))
    for slot in bank.slots:
        assert slot.X1_MBD[:, :, -1].eq(1).all()
        np.testing.assert_array_equal(slot.X1_MBD[0, :, :5], X[[3, 1, 4, 1]])
        np.testing.assert_array_equal(slot.X_MBD[1, :2], X[[9, 2]])


def test_dtypes_of_a_bank():
    bank = make_bank(codes=True, product_dtype=torch.bfloat16)
    assert bank.y_MGBT.dtype == torch.int64
    assert bank.slots[0].X_MBD.dtype == torch.bfloat16
    assert bank.Z_MGKB.dtype == bank.T_MGKB.dtype == bank.r_MG1B.dtype == torch.float64


def test_sparse_rows_of_a_bank():
    """Whole batches, a short one, one without a row; no product leaves memory unwritten."""
    rng = np.random.default_rng(0)
    X = scipy.sparse.csr_array(rng.random((9, 5)) * (rng.random((9, 5)) > 0.5))
    bank = make_bank(sparse=True)
    W = torch.from_numpy(rng.random((2, 5, 2)))
    out = torch.full((2, 4, 2), torch.nan, dtype=torch.float64)
    gradient = torch.full((2, 5, 2), torch.nan, dtype=torch.float64)
    delta = torch.from_numpy(rng.random((2, 4, 2)))
    gathers = [bank.bind_gather(m, X) for m in range(2)]
    steps = [
        (slot.X_MBD.bind_times(W, out), slot.X_MBD.bind_transposed_times(delta, gradient))
        for slot in bank.slots
    ]
    batches = [([8, 1, 1, 0], [0, 1, 2, 3]), ([5, 3], [4, 5, 6, 7]), ([], [8])]
    for (times, transposed_times), rows_M in zip(steps, batches, strict=True):
        for gather, rows in zip(gathers, rows_M, strict=True):
            gather(np.array(rows, dtype=int))
        times()
        transposed_times()
        assert out.isfinite().all()
        for m, rows in enumerate(rows_M):
            dense = X.toarray()[rows]
            np.testing.assert_allclose(out[m, : len(rows)], dense @ W[m].numpy(), rtol=1e-14)
            expected = dense.T @ delta[m, : len(rows)].numpy()
            np.testing.assert_allclose(gradient[m], expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("batch_bytes", "n_batches", "expected"),
    [
        (1, 5, 5),  # all of a short epoch
        (1, 1000, slots.MAX_SLOTS),
        (slots.SEGMENT_BYTES // 4, 1000, 4),
        (slots.SEGMENT_BYTES * 3, 1000, 1),  # never none
        (0, 3, 3),
    ],
)
def test_slots_per_segment(batch_bytes, n_batches, expected):
    assert slots_per_segment(batch_bytes, n_batches) == expected


@pytest.mark.parametrize(
    ("n_rows", "batch", "expected"),
    [([10], 5, (2, 5)), ([11], 5, (3, 1)), ([3, 11, 7], 5, (3, 1)), ([4], 4, (1, 4))],
)
def test_max_rows_per_batch(n_rows, batch, expected):
    assert max_rows_per_batch(n_rows, batch) == expected


def test_members_leave_as_copies():
    """What a stack hands out must survive its going on."""
    jobs = [revealing_job(12, 5, seed, sparse=False) for seed in range(2)]
    stack = Stack([new_member(job) for job in jobs])
    stack.run_epoch([0.1, 0.1], [None, None], [0, 1])
    member = stack.member(1, 0.25)
    assert member.optimizer.learning_rate == 0.25
    assert member.optimizer.steps == 3
    params, velocity = member.params_P.clone(), member.optimizer.moments[0].copy()
    stack.run_epoch([0.1, 0.1], [None, None], [0, 1])
    assert torch.equal(member.params_P, params)
    np.testing.assert_array_equal(member.optimizer.moments[0], velocity)
    assert not torch.equal(stack.params_M[1], params)
    np.testing.assert_array_equal(jobs[1].params, 0)  # the job's own array is never trained


def test_the_jobs_parameters_are_not_written_to():
    problem = make_problem("tanh", "softmax", 2)
    job = make_job(problem, make_model(problem, 1), max_epochs=3)
    before = job.params.copy()
    (result,) = run_jobs([job])
    np.testing.assert_array_equal(job.params, before)
    assert not np.shares_memory(result.params, job.params)
    assert not np.array_equal(result.params, before)
