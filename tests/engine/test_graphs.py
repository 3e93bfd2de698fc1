"""Steps on an accelerator: shown on the CPU, with stand-ins for what torch captures.

The reference is the CPU's own path (compiled code or numpy), which shares neither the gathering of
rows nor the updates. In float64 both end at the same weights, to rounding.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from engine import builders
from engine.graph_stand_ins import (
    CallByCall,
    FailingGraphs,
    LoggedGraphs,
    RecordedGraphs,
    described,
    torch_only,
)
from engine.residual_builders import STRUCTURES, make_rows, make_spec
from engine.residual_builders import make_job as make_residual_job
from engine.test_stack_equals_solo import LOSSES, assert_same, fresh, make_data, make_job

from sknn_resid.engine.accelerated import why_not_captured
from sknn_resid.engine.data import TrainingData, ValidationData
from sknn_resid.engine.graphs import WARM_UPS, CudaGraphs, Replayed, graphs_for
from sknn_resid.engine.history import StopReason
from sknn_resid.engine.loop import train_stack
from sknn_resid.engine.losses import CallableLoss
from sknn_resid.engine.schedules import Adaptive, Cosine, InverseScaling, OneCycle, Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec
from sknn_resid.engine.stack import Stack, new_member

SGD, ADAM, ADAMW, MUON = (
    OptimizerKind.SGD,
    OptimizerKind.ADAM,
    OptimizerKind.ADAMW,
    OptimizerKind.MUON,
)
SIZES = [1, 2, 5]


def train(jobs, graphs=None, **options):
    """Train jobs as one stack; ``graphs`` None is the CPU's own path."""
    paths = [[fresh(job, m)] for m, job in enumerate(jobs)]
    done = train_stack(paths, make_graphs=lambda device: graphs, **options)
    return [outcome for path in done for outcome in path]


def check(jobs, monkeypatch, rtol=1e-9, **options):
    """The CPU's path, steps call by call and replayed steps: one result."""
    expected = train(jobs, **options)
    with monkeypatch.context() as patch:
        torch_only(patch)
        graphs = RecordedGraphs()
        replayed = train(jobs, graphs, **options)
        eager = train(jobs, CallByCall(), **options)
    assert graphs.captures_made > 0
    assert graphs.replays > 0
    for ours, called, theirs in zip(replayed, eager, expected, strict=True):
        assert_same(ours, theirs, rtol)
        assert ours.loss_curve == called.loss_curve
        np.testing.assert_array_equal(ours.params, called.params)
        for mine, reference in zip(ours.optimizer.moments, called.optimizer.moments, strict=True):
            np.testing.assert_array_equal(mine, reference)
        for mine, reference in zip(ours.optimizer.moments, theirs.optimizer.moments, strict=True):
            scale = np.abs(reference).max()
            np.testing.assert_allclose(mine, reference, rtol=rtol, atol=rtol * scale)
    return graphs, replayed


def mlp_jobs(n_models, loss_name="softmax", seed=0, **changes):
    """Models with their own rows, weights and numbers; the last batches of some weigh nothing."""
    loss, n_outputs = LOSSES[loss_name]
    X, y = make_data(loss, np.random.default_rng(seed))
    changes = {"kind": ADAM, **changes}
    return [make_job(m, X, y, loss, n_outputs, **changes) for m in range(n_models)]


# -- a replayed fit is the fit -----------------------------------------------------------------


@pytest.mark.parametrize("n_models", SIZES)
@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW])
def test_dense_networks(kind, loss_name, n_models, monkeypatch):
    check(mlp_jobs(n_models, loss_name, kind=kind), monkeypatch)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov, monkeypatch):
    jobs = [
        replace(
            job,
            train=replace(job.train, optimizer=replace(job.train.optimizer, nesterov=nesterov)),
        )
        for job in mlp_jobs(3, kind=SGD)
    ]
    check(jobs, monkeypatch)


@pytest.mark.parametrize("kind", [SGD, ADAM])
def test_schedules_and_everything_per_model(kind, monkeypatch):
    schedules = [Cosine(), OneCycle(0.1), Schedule(0.5), InverseScaling(power=0.3), Adaptive()]
    jobs = [
        replace(
            job,
            train=replace(
                job.train,
                schedule=schedules[m],
                clip_norm=0.05 * (m + 1),
                label_smoothing=0.01 * m,
            ),
        )
        for m, job in enumerate(mlp_jobs(5, kind=kind))
    ]
    check(jobs, monkeypatch)


def test_averages(monkeypatch):
    jobs = mlp_jobs(4, kind=ADAM, average_horizon=0.2)
    assert {job.data.n_rows for job in jobs} != {jobs[0].data.n_rows}
    check(jobs, monkeypatch)


def test_models_that_stop_early_leave_the_stack(monkeypatch):
    """Stacks of fewer models follow one another; each has graphs and memory of its own."""
    rng = np.random.default_rng(3)
    jobs = []
    for m, job in enumerate(mlp_jobs(5, "squared", watch_validation=True)):
        own = rng.permutation(len(job.data.X))[: 10 + m]
        part = ValidationData(job.data.X[own], job.data.y[own])

        def score(view, truth=part.y):
            return -float(np.abs(view.logits - truth).mean())

        spec = replace(job.train, max_epochs=6 + 8 * m, patience=np.inf)
        jobs.append(replace(job, train=spec, validation=part, score=score))
    graphs, results = check(jobs, monkeypatch)
    assert len({result.n_epochs for result in results}) == 5
    assert graphs.pools > 1


@pytest.mark.parametrize("n_models", [1, 4])
def test_one_batch_of_all_rows_is_loaded_once(n_models, monkeypatch):
    graphs, _ = check(mlp_jobs(n_models, batch_size=200, patience=np.inf), monkeypatch)
    assert graphs.captures_made == 1


@pytest.mark.parametrize("n_rows", [90, 93, 64, 70])
@pytest.mark.parametrize("n_models", [1, 3])
def test_last_batches_of_any_length(n_rows, n_models, monkeypatch):
    """Short ones in memory of their own, nearly full ones padded, full ones."""
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(1))
    jobs = []
    for m in range(n_models):
        job = make_job(m, X, y, loss, n_outputs, kind=ADAM, patience=np.inf)
        rows = np.arange(n_rows) % len(X)
        jobs.append(replace(job, data=TrainingData(X, y, rows)))
    check(jobs, monkeypatch)


@pytest.mark.parametrize("shared_rows", [False, True])
def test_rows_of_one_order_or_of_many(shared_rows, monkeypatch):
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(1))
    jobs = [
        replace(
            make_job(m, X, y, loss, n_outputs, kind=ADAM),
            data=TrainingData(X, y),
            rng=np.random.RandomState(0),
        )
        for m in range(4)
    ]

    def trained(graphs):
        paths = [[fresh(job, 0)] for job in jobs]
        done = train_stack(paths, shared_rows=shared_rows, make_graphs=lambda device: graphs)
        return [outcome for (outcome,) in done]

    expected = trained(None)
    torch_only(monkeypatch)
    for ours, theirs in zip(trained(RecordedGraphs()), expected, strict=True):
        assert_same(ours, theirs)


def test_some_models_share_an_order(monkeypatch):
    """Candidates of a few folds in one stack: an order a fold, ended by different epochs."""
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(1))
    folds = [TrainingData(X[k::3].copy(), y[k::3].copy()) for k in range(3)]
    jobs = []
    for m in range(8):
        job = make_job(m, X, y, loss, n_outputs, kind=ADAM, batch_size=8, patience=np.inf)
        data = folds[m % 3] if m < 7 else TrainingData(X, y)
        jobs.append(replace(job, data=data, train=replace(job.train, max_epochs=5 + m)))
    keys = [m % 3 if m < 7 else None for m in range(8)]
    states = []

    def trained(graphs, rows_M):
        starts = [replace(job, rng=np.random.RandomState(m % 3)) for m, job in enumerate(jobs)]
        done = train_stack([[job] for job in starts], rows_M=rows_M, make_graphs=lambda _: graphs)
        states.append([job.rng.get_state()[1:3] for job in starts])
        return [outcome for (outcome,) in done]

    expected = trained(None, ())
    torch_only(monkeypatch)
    for ours, theirs in zip(trained(RecordedGraphs(), keys), expected, strict=True):
        assert_same(ours, theirs)
    for (mine, at), (reference, there) in zip(*states, strict=True):
        np.testing.assert_array_equal(mine, reference)
        assert at == there


def test_folds_read_from_one_table(monkeypatch):
    """Each model its own X and y, as the folds of a search; some of them the same array."""
    jobs = mlp_jobs(5)
    folds = [(job.data.X[m % 2 :: 2].copy(), job.data.y[m % 2 :: 2].copy()) for m, job in
             enumerate(jobs[:2])]  # fmt: skip
    jobs = [replace(job, data=TrainingData(*folds[m % 2])) for m, job in enumerate(jobs)]
    check(jobs, monkeypatch)


def test_float32(monkeypatch):
    loss, n_outputs = LOSSES["softmax"]
    X, y = make_data(loss, np.random.default_rng(7))
    X = X.astype(np.float32)
    jobs = [
        make_job(
            m, X, y, loss, n_outputs, kind=ADAM, dtype=torch.float32, max_epochs=5, patience=10
        )
        for m in range(5)
    ]
    check(jobs, monkeypatch, rtol=1e-4)


def test_tied_weights_and_mixed_precision_are_captured(monkeypatch):
    torch_only(monkeypatch)
    jobs = [
        replace(job, network=replace(job.network, product_dtype=torch.bfloat16))
        for job in mlp_jobs(2, patience=np.inf)
    ]
    graphs = RecordedGraphs()
    for ours, theirs in zip(train(jobs, graphs), train(jobs, CallByCall()), strict=True):
        np.testing.assert_array_equal(ours.params, theirs.params)
    assert graphs.replays > 0


RESIDUAL = ["tabular", "layer_inner", "rezero", "tied_gated", "no_blocks", "periodic", "square"]


@pytest.mark.parametrize("n_models", SIZES)
@pytest.mark.parametrize("kind", [SGD, ADAMW, MUON])
@pytest.mark.parametrize("structure", RESIDUAL)
def test_residual_networks(structure, kind, n_models, monkeypatch):
    jobs = residual_jobs(n_models, structure, kind)
    check(jobs, monkeypatch, rtol=1e-7)


@pytest.mark.parametrize("n_models", SIZES)
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_masks_are_drawn_before_a_segment(dropout, drop_path, n_models, monkeypatch):
    """Those of every step of every model are the ones that it would draw alone, in its steps."""
    jobs = residual_jobs(n_models, dropout=dropout, drop_path=drop_path)
    check(jobs, monkeypatch, rtol=1e-7)


def residual_jobs(n_models, structure="tabular", kind=MUON, **changes):
    X, y = make_rows()
    return [
        make_residual_job(
            make_spec(**STRUCTURES[structure]),
            X,
            y,
            m,
            scaled=m % 2 == 1,
            optimizer=OptimizerSpec(
                kind, 0.002 * (m + 1), hidden_momentum=0.9 + 0.01 * m, hidden_decay=0.01 * m
            ),
            schedule=Cosine(),
            shuffle=True,
            max_epochs=7,
            average_horizon=0.3,
            **changes,
        )
        for m in range(n_models)
    ]


def test_a_training_goes_on_where_it_was_left(monkeypatch):
    """Moments and counts that a fit left behind are those that the next one begins with."""
    first = train(mlp_jobs(2, max_epochs=4, patience=np.inf))
    jobs = [
        replace(job, params=done.params, resume=replace(job.resume, optimizer=done.optimizer))
        for job, done in zip(mlp_jobs(2), first, strict=True)
    ]
    check(jobs, monkeypatch)


@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW])
def test_frozen_models_do_not_move(kind, monkeypatch):
    """A batch that weighs nothing leaves parameters and moments bit for bit, whatever g is."""
    torch_only(monkeypatch)
    problem = builders.make_problem("identity", "squared", 1)
    model = builders.make_model(problem, 4)  # its second batch weighs nothing
    job = builders.make_job(problem, model, kind=kind, average_horizon=0.5)
    X = problem.X[model.rows]
    X[problem.batch :] = 1e308  # outputs are infinite there, and the gradient 0 times that
    both = replace(job, data=TrainingData(X, problem.y[model.rows], None, model.weight))
    live = slice(0, problem.batch)
    one = TrainingData(X[live], problem.y[model.rows][live], None, model.weight[live])
    stacks = []
    for each in (both, replace(job, data=one)):
        member = new_member(replace(each, params=4 * each.params))
        stacks.append(Stack([member], None, CallByCall()))
        stacks[-1].run_epoch([1e-3], None, [0])
    two, alone = stacks
    assert two.network.params_MP.isfinite().all()
    np.testing.assert_array_equal(two.judged_M[0], alone.judged_M[0])
    np.testing.assert_array_equal(two.network.params_MP, alone.network.params_MP)
    for mine, reference in zip(two.optimizer.moments, alone.optimizer.moments, strict=True):
        np.testing.assert_array_equal(mine, reference)
    assert two.optimizer.steps.tolist() == alone.optimizer.steps.tolist() == [1]


# -- steps are the same sequence on the same memory --------------------------------------------


def logs_of(jobs):
    graphs = LoggedGraphs()
    train(jobs, graphs)
    assert graphs.logs
    return graphs.logs.values()


@pytest.mark.parametrize("n_models", SIZES)
@pytest.mark.parametrize("kind", [SGD, ADAM, ADAMW])
def test_dense_steps_are_the_same_sequence(kind, n_models, monkeypatch):
    torch_only(monkeypatch)
    changes = {"schedule": Cosine(), "clip_norm": 0.1, "patience": np.inf}
    check_sequences(mlp_jobs(n_models, kind=kind, average_horizon=0.3, **changes))


@pytest.mark.parametrize("structure", RESIDUAL)
def test_residual_steps_are_the_same_sequence(structure, monkeypatch):
    torch_only(monkeypatch)
    check_sequences(residual_jobs(3, structure))
    if structure != "no_blocks":
        check_sequences(residual_jobs(3, structure, dropout=0.1, drop_path=0.2))


def check_sequences(jobs):
    for runs in logs_of(jobs):
        assert len(runs) >= 2  # two epochs at least
        first, *others = (described(operations) for operations in runs)
        for other in others:
            assert other == first
        names = {name for name, _ in first}
        # read back, or made of numbers of the host
        assert not any("_local_scalar_dense" in name or "lift_fresh" in name for name in names)
        assert not any("nonzero" in name or "_to_copy" in name for name in names)


@pytest.mark.parametrize("loss_name", sorted(builders.LOSSES))
def test_steps_of_every_loss_and_activation(loss_name, monkeypatch):
    torch_only(monkeypatch)
    for activation in builders.ACTIVATIONS:
        problem = builders.make_problem(activation, loss_name, 2)
        jobs = [
            builders.make_job(
                problem,
                builders.make_model(problem, m),
                max_epochs=WARM_UPS + 2,
                optimizer=OptimizerSpec(SGD, 1e-3),
            )
            for m in range(2)
        ]
        if why_not_captured(jobs) is None:
            check_sequences(jobs)
        else:
            assert isinstance(jobs[0].network.loss, CallableLoss)


def test_one_gather_serves_all_models(monkeypatch):
    torch_only(monkeypatch)
    for runs in logs_of(mlp_jobs(5, patience=np.inf)):
        gathers = [name for name, _ in described(runs[0]) if "index_select" in name]
        updates = [name for name, _ in described(runs[0]) if "sqrt" in name]
        assert len(gathers) == len(updates)  # one a step, one update a step


# -- what is not captured, and what fails ------------------------------------------------------


def sparse_rows(job):
    X = scipy.sparse.csr_array(np.where(np.abs(job.data.X) < 0.8, 0.0, job.data.X))
    return replace(job, data=replace(job.data, X=X))


def mapped_rows(job, path):
    np.save(path / "X.npy", job.data.X)
    mapped = np.load(path / "X.npy", mmap_mode="r")
    return replace(job, data=replace(job.data, X=mapped))


def test_what_is_not_captured_is_called(monkeypatch, tmp_path):
    (job,) = mlp_jobs(1, patience=np.inf)
    cases = [
        sparse_rows(job),
        mapped_rows(job, tmp_path),
        replace(job, train=replace(job.train, dropout=0.2), dropout_seed=3),
        replace(job, train=replace(job.train, record_flow=True)),
    ]
    for case in cases:
        assert why_not_captured([case]) is not None
        (expected,) = train([case])
        with monkeypatch.context() as patch:
            torch_only(patch)
            graphs = RecordedGraphs()
            (ours,) = train([case], graphs)
        assert graphs.captures_made == 0
        assert_same(ours, expected)
        if expected.flow is not None:
            np.testing.assert_allclose(ours.flow, expected.flow, rtol=1e-8)
    (residual,) = residual_jobs(1, dropout=0.1, drop_path=0.3)
    assert why_not_captured([residual]) is None
    assert why_not_captured([job]) is None


def test_a_failing_capture_loses_nothing(monkeypatch):
    """One warning for the whole training, though several stacks follow one another."""
    jobs = [
        replace(job, train=replace(job.train, max_epochs=6 + 6 * m, patience=np.inf))
        for m, job in enumerate(mlp_jobs(5))
    ]
    expected = train(jobs)
    torch_only(monkeypatch)
    graphs = FailingGraphs()
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing") as seen:
        found = train(jobs, graphs)
    assert len(seen) == graphs.tried == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


def test_errors_that_are_not_of_the_device_go_on():
    class Broken(CallByCall):
        captures = True

        def capture(self, run, pool):
            raise KeyboardInterrupt

    called = []
    run = Replayed(lambda: called.append(1), Broken(), None)
    for _ in range(WARM_UPS):
        run()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(called) == WARM_UPS
    assert not run.captured


def test_the_first_calls_are_steps_like_any_other():
    """As many runs as calls: warming up and capturing take none."""
    total = torch.zeros(1)
    graphs = RecordedGraphs()
    run = Replayed(lambda: total.add_(1), graphs, graphs.pool())
    for n in range(1, WARM_UPS + 4):
        run()
        assert total.item() == n
        assert run.captured == (n > WARM_UPS)
    assert graphs.captures_made == 1
    assert graphs.replays == 3


def test_an_interrupt_between_segments_is_heard(monkeypatch):
    torch_only(monkeypatch)
    calls = []

    def poll():
        calls.append(1)
        if len(calls) > 12:
            raise KeyboardInterrupt

    (result,) = train(mlp_jobs(1, max_epochs=1000, patience=np.inf), RecordedGraphs(), poll=poll)
    assert result.reason is StopReason.INTERRUPTED
    assert 0 < result.n_epochs < 13
    assert np.isfinite(result.params).all()


def test_a_cpu_has_no_graphs():
    assert graphs_for(torch.device("cpu")) is None
    assert graphs_for(torch.device("meta")).captures is False


def test_torch_takes_what_a_capture_gives_it():
    """Names of arguments, which a machine without a device can check as well."""
    signature = inspect.signature(torch.cuda.graph.__init__)
    signature.bind(None, None, pool=None, stream=None, capture_error_mode="thread_local")
    assert callable(torch.cuda.CUDAGraph.replay)
    assert callable(torch.cuda.graph_pool_handle)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("n_models", SIZES)
@pytest.mark.parametrize("make", [mlp_jobs, residual_jobs], ids=["dense", "residual"])
def test_graphs_of_a_device(make, n_models):
    """The real thing: replayed steps, the same steps called one by one, and the CPU."""
    expected = train(make(n_models))
    there = [replace(job, device=torch.device("cuda")) for job in make(n_models)]

    class Counted(CudaGraphs):
        made = 0

        def capture(self, run, pool):
            replay = super().capture(run, pool)
            self.made += 1
            return replay

    graphs = Counted(torch.device("cuda"))
    replayed, called = train(there, graphs), train(there, CallByCall())
    assert graphs.made > 0
    assert not graphs.failed
    for ours, eager, theirs in zip(replayed, called, expected, strict=True):
        assert_same(ours, eager, rtol=1e-9)
        assert_same(ours, theirs, rtol=1e-7)
