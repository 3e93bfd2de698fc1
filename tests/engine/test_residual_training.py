"""Training of residual networks: a stack equals its members alone, weights are repeated rows.

Members differ in everything that may differ within a stack, random masks included; budgets, weight
averages and judging are held against their definitions, and deep networks must train.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.builders import ACTIVATIONS
from engine.residual_builders import STRUCTURES, make_params, make_spec, relative_error

from sknn_resid.engine.data import TrainingData, ValidationData
from sknn_resid.engine.history import StopReason
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.losses import SoftmaxCrossEntropy, SquaredError
from sknn_resid.engine.residual_fitted import FittedResidual, training_statistics
from sknn_resid.engine.residual_init import Init, InitSpec, initial_parameters
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec, Skip
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.schedules import Cosine, OneCycle, Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec

MUON, ADAMW, SGD, ADAM = (
    OptimizerKind.MUON,
    OptimizerKind.ADAMW,
    OptimizerKind.SGD,
    OptimizerKind.ADAM,
)
N = 70


def make_rows(n=N):
    rng = np.random.default_rng(n)
    X = rng.standard_normal((n, 3))
    return X, (X @ rng.standard_normal((3, 3)) + X**2).argmax(1)[:, None]


def make_job(spec, X, y, m, *, kind=MUON, **changes) -> TrainJob:
    """Job m of a stack: its own numbers everywhere."""
    own = np.random.default_rng(m)
    rows = None if m % 3 == 0 else own.permutation(len(X))[: len(X) - 5 * m % 23]
    n = len(X) if rows is None else len(rows)
    weight = own.uniform(0.1, 3, n) * (own.random(n) > 0.2) if m % 2 else None
    optimizer = OptimizerSpec(
        kind,
        10 ** own.uniform(-3, -2),
        momentum=0.5 + 0.05 * (m % 8),
        beta_1=0.8 + 0.01 * (m % 9),
        hidden_learning_rate=0.01 * (1 + m % 2),
        hidden_momentum=0.9 + 0.01 * (m % 5),
        hidden_decay=0.1 * (m % 2),
    )
    train = TrainSpec(
        optimizer=optimizer,
        schedule=[Schedule(), Cosine(0.2), OneCycle()][m % 3],
        penalty=[0.0, 0.03, 0.1][m % 3],
        batch_size=16,
        max_epochs=5 + m % 3,
        tolerance=0.0,
        patience=np.inf,
    )
    return TrainJob(
        network=spec,
        train=replace(train, **changes),
        data=TrainingData(X, y, rows, weight),
        params=0.5 * make_params(spec, m),
        rng=np.random.RandomState(m),
        dropout_seed=100 + m,
        input_scale=own.uniform(0.1, 2, spec.n_features) if m % 2 else None,
    )


def fresh(job, m):
    return replace(job, rng=np.random.RandomState(m))


def check(jobs, bound=1e-9):
    together = run_jobs([fresh(job, m) for m, job in enumerate(jobs)])
    for m, job in enumerate(jobs):
        (alone,) = run_jobs([fresh(job, m)])
        assert together[m].n_epochs == alone.n_epochs
        assert together[m].reason is alone.reason
        assert relative_error(together[m].params, alone.params) < bound
        np.testing.assert_allclose(together[m].loss_curve, alone.loss_curve, rtol=bound)
        np.testing.assert_allclose(together[m].validation_losses, alone.validation_losses, bound)
        assert together[m].optimizer.steps == alone.optimizer.steps
    return together


@pytest.mark.parametrize("kind", [MUON, ADAMW, ADAM, SGD])
@pytest.mark.parametrize("structure", ["tabular", "layer_inner", "gated", "tied_rezero"])
def test_stack_equals_solo(structure, kind):
    spec = make_spec(**STRUCTURES[structure])
    X, y = make_rows()
    jobs = [
        make_job(
            spec,
            X,
            y,
            m,
            kind=kind,
            dropout=0.1 + 0.05 * m,
            drop_path=0.1 * (m + 1),
            label_smoothing=0.02 * m,
            clip_norm=0.5 * (m + 1),
            average_horizon=0.05 * (m + 1),
        )
        for m in range(5)
    ]
    check(jobs)


@pytest.mark.parametrize("drop_last", [False, True])
def test_stack_equals_solo_with_validation(drop_last):
    spec = make_spec()
    X, y = make_rows()
    jobs = []
    for m in range(4):
        part = ValidationData(X[: 20 + m], y[: 20 + m], np.linspace(0.5, 2, 20 + m))
        job = make_job(
            spec, X, y, m, drop_last=drop_last, average_horizon=0.1, judge_every=2, max_epochs=7
        )
        jobs.append(replace(job, validation=part))
    for result in check(jobs):
        assert len(result.validation_losses) == 4  # epochs 2, 4, 6 and the last


def test_one_diverging_member_changes_no_other():
    spec = make_spec(normalization=Normalization.NONE, preactivate=True, activation="relu")
    spec = replace(spec, loss=SquaredError())
    X, y = make_rows()
    jobs = [
        make_job(spec, X, np.repeat(y, 3, 1).astype(float), m, kind=SGD, average_horizon=0.1)
        for m in range(3)
    ]
    wild = replace(jobs[1].train.optimizer, learning_rate=1e8)
    jobs[1] = replace(jobs[1], train=replace(jobs[1].train, optimizer=wild))
    together = run_jobs([fresh(job, m) for m, job in enumerate(jobs)])
    assert together[1].reason is StopReason.DIVERGED
    assert np.isfinite(together[1].params).all()
    for m in (0, 2):
        (alone,) = run_jobs([fresh(jobs[m], m)])
        assert relative_error(together[m].params, alone.params) < 1e-9


# -- weights are repeated rows -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MUON, ADAMW, SGD])
@pytest.mark.parametrize("structure", ["tabular", "layer", "gated", "rezero", "periodic"])
def test_weights_are_repeated_rows(structure, kind):
    """Full batches: a whole training with weights, and with the rows written out that often."""
    spec = make_spec("silu", **STRUCTURES[structure])
    X, y = make_rows(30)
    counts = np.random.default_rng(0).integers(0, 4, len(X))
    rows = np.repeat(np.arange(len(X)), counts)
    part = ValidationData(X[:9], y[:9])
    init = InitSpec(unit_inputs=True, input_bias=0.5)
    results = []
    for own, weight in ((None, counts.astype(float)), (rows, None)):
        X_own = X if own is None else X[own]
        params = initial_parameters(spec, init, np.random.RandomState(0), X=X_own, weight=weight)
        job = make_job(
            spec,
            X,
            y,
            0,
            kind=kind,
            batch_size=200,
            max_epochs=20,
            dropout=0.2,
            drop_path=0.2,
            average_horizon=0.1,
            shuffle=False,
        )
        data = TrainingData(X, y, own, weight)
        job = replace(job, data=data, params=params, validation=part)
        (result,) = run_jobs([job])
        fitted = FittedResidual(
            spec, result.params[None], training_statistics(job, result.params)[None]
        )
        results.append((fitted.outputs(X)[0], result.loss_curve, result.validation_losses))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


# -- budgets, averages, judging ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "drop_last", "max_steps", "epochs", "steps"),
    [
        (100, False, 6, 6, 6),
        (16, False, 12, 3, 15),
        (16, True, 12, 3, 12),
        (16, False, None, 4, 20),
        (16, False, 1, 1, 5),
        (100, True, 3, 3, 3),
    ],
)
def test_budget_in_steps(batch, drop_last, max_steps, epochs, steps):
    X, y = make_rows()
    job = make_job(
        make_spec(),
        X,
        y,
        0,
        batch_size=batch,
        drop_last=drop_last,
        max_steps=max_steps,
        max_epochs=4 if max_steps is None else 1000,
    )
    (result,) = run_jobs([job])
    assert (result.n_epochs, result.optimizer.steps) == (epochs, steps)
    assert result.reason is StopReason.MAX_EPOCHS


def test_dropped_rows_change_from_epoch_to_epoch():
    """17 rows in batches of 16: another row is left out each time, and the gradient shows it."""
    X, y = make_rows(17)
    job = make_job(make_spec(), X, y, 0, batch_size=16, drop_last=True, kind=SGD, max_epochs=5)
    still = replace(job.train.optimizer, learning_rate=0.0)
    (result,) = run_jobs([replace(job, train=replace(job.train, optimizer=still))])
    assert len(set(result.loss_curve)) > 1


def test_averages_are_what_the_formula_says():
    X, y = make_rows()
    job = make_job(make_spec(), X, y, 0, batch_size=100, kind=SGD, max_epochs=30)
    job = replace(job, train=replace(job.train, schedule=Schedule()))
    seen = []
    watched = replace(job, on_epoch=lambda view: bool(seen.append(view.parameters())))
    run_jobs([watched])
    average = job.params.copy()
    longest = 1 - 1 / max(5, 0.3 * 30)
    averaged = []
    for t, live in enumerate(seen, 1):
        c = min(longest, (1 + t) / (10 + t))
        average = c * average + (1 - c) * live
        averaged.append(average)
    judged = []
    train = replace(job.train, average_horizon=0.3)
    own = replace(job, train=train, on_epoch=lambda view: bool(judged.append(view.parameters())))
    (result,) = run_jobs([own])
    np.testing.assert_allclose(judged, averaged, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(result.params, judged[-1])


def test_a_callback_reads_the_judged_weights_and_stops():
    """The loss that a callback sees is the loss of the parameters that it reads."""
    X, y = make_rows()
    spec = make_spec()
    job = make_job(spec, X, y, 3, average_horizon=0.2, dropout=0.3, max_epochs=50)
    views = []

    def on_epoch(view):
        views.append((view.parameters(), view.validation_loss))
        return view.epoch == 4

    part = ValidationData(X[:25], y[:25])
    (result,) = run_jobs([replace(job, validation=part, on_epoch=on_epoch)])
    assert result.reason is StopReason.CALLBACK
    assert len(views) == 4
    scale = job.input_scale[None]
    for params, loss in views:
        statistics = training_statistics(job, params)
        p = FittedResidual(spec, params[None], statistics[None], scale).outputs(X[:25])[0]
        expected = -np.log(p[np.arange(25), y[:25, 0]]).mean()
        np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_unjudged_epochs_show_no_stale_loss():
    X, y = make_rows()
    job = make_job(make_spec(), X, y, 0, judge_every=3, max_epochs=7)
    seen = []
    part = ValidationData(X[:25], y[:25])
    own = replace(
        job, validation=part, on_epoch=lambda view: bool(seen.append(view.validation_loss))
    )
    run_jobs([own])
    assert [loss is not None for loss in seen] == [0, 0, 1, 0, 0, 1, 1]


# -- depth ---------------------------------------------------------------------------------------


def deep_job(n_blocks, init, *, X, y, epochs=24, kind=ADAM, rate=3e-3, **changes):
    spec = ResidualSpec(
        n_features=X.shape[1],
        width=16,
        hidden=16,
        n_blocks=n_blocks,
        n_outputs=3,
        activation=ACTIVATIONS["relu"].engine,
        loss=SoftmaxCrossEntropy((3,)),
        dtype=torch.float32,
        product_dtype=torch.float32,
        preactivate=True,
        **changes,
    )
    params = initial_parameters(spec, init, np.random.RandomState(0))
    train = TrainSpec(
        OptimizerSpec(kind, rate),
        Cosine(0.1),
        penalty=0.0,
        batch_size=50,
        max_epochs=epochs,
        tolerance=0.0,
        patience=np.inf,
    )
    data = TrainingData(X.astype(np.float32), y)
    return TrainJob(spec, train, data, params, np.random.RandomState(1))


@pytest.mark.parametrize("how", ["rezero", "zero_branches"])
def test_110_layers_train_without_normalization(how):
    """54 blocks of two matrices: nothing vanishes, nothing explodes, the rows are learned."""
    X, y = make_rows(300)
    skip = Skip.REZERO if how == "rezero" else Skip.IDENTITY
    init = InitSpec(Init.HE, branch_gain=1.0 if how == "rezero" else 0.0)
    job = deep_job(54, init, X=X, y=y, skip=skip, normalization=Normalization.NONE)
    (result,) = run_jobs([job])
    assert result.reason is StopReason.MAX_EPOCHS
    assert result.loss_curve[-1] < 0.35 * result.loss_curve[0]
    p = FittedResidual(job.network, result.params[None], np.zeros((1, 0), np.float32)).outputs(X)[0]
    assert (p.argmax(1) == y[:, 0]).mean() > 0.9


def test_110_plain_layers_do_not_train():
    """The same depth without the skip stays at the loss of the class frequencies."""
    X, y = make_rows(300)
    init = InitSpec(Init.NORMAL, scale=0.01)
    job = deep_job(54, init, X=X, y=y, skip=Skip.NONE, normalization=Normalization.NONE)
    (result,) = run_jobs([job])
    frequencies = np.bincount(y[:, 0]) / len(y)
    entropy = -(frequencies * np.log(frequencies)).sum()
    assert result.loss_curve[-1] > 0.95 * entropy
