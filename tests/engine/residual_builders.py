"""Residual networks for the engine's tests: formulas in torch by definition, jobs, gradients.

The reference works on many parameter vectors (Q, P) at once, row by row and in the order in which
`residual_spec` writes the formulas; only the names of the parameters are the engine's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from engine.builders import ACTIVATIONS, LOSSES, Recorder

from sknn_resid.engine.data import TrainingData
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import Normalization, Periodic, ResidualSpec, Skip
from sknn_resid.engine.schedules import Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec
from sknn_resid.engine.stack import Stack, new_member

N_ROWS, N_FEATURES, BATCH = 11, 3, 7
BATCHNORM, LAYERNORM, NO_NORM = Normalization.BATCH, Normalization.LAYER, Normalization.NONE


def make_spec(activation="tanh", loss="softmax", dtype=torch.float64, **changes) -> ResidualSpec:
    """A small structure; ``changes`` replace fields."""
    spec = ResidualSpec(
        n_features=N_FEATURES,
        width=4,
        hidden=5,
        n_blocks=2,
        n_outputs=LOSSES[loss].n_outputs,
        activation=ACTIVATIONS[activation].engine,
        loss=LOSSES[loss].engine,
        dtype=dtype,
        product_dtype=dtype,
    )
    return replace(spec, **changes)


# Fields that differ from `make_spec`'s: the recipe's block first, then one thing after another.
STRUCTURES = {
    "tabular": {},
    "preactivation": {"preactivate": True, "normalize_inner": True},
    "layer": {"normalization": LAYERNORM},
    "layer_inner": {"normalization": LAYERNORM, "preactivate": True, "normalize_inner": True},
    "no_norm": {"normalization": NO_NORM, "preactivate": True},
    "no_norm_linear_start": {"normalization": NO_NORM},
    "one_layer": {"n_layers_per_block": 1},
    "one_layer_no_norm": {"n_layers_per_block": 1, "normalization": NO_NORM},
    "three_layers": {"n_layers_per_block": 3, "normalize_inner": True},
    "three_layers_layer": {"n_layers_per_block": 3, "normalization": LAYERNORM},
    "plain": {"skip": Skip.NONE, "preactivate": True},
    "plain_no_norm": {"skip": Skip.NONE, "normalization": NO_NORM, "n_layers_per_block": 3},
    "gated": {"skip": Skip.GATED},
    "gated_layer": {"skip": Skip.GATED, "normalization": LAYERNORM, "n_layers_per_block": 1},
    "rezero": {"skip": Skip.REZERO, "normalization": NO_NORM, "preactivate": True},
    "rezero_batch": {"skip": Skip.REZERO, "normalize_inner": True},
    "tied": {"tie_blocks": True, "n_blocks": 3, "normalize_inner": True},
    "tied_gated": {"tie_blocks": True, "n_blocks": 3, "skip": Skip.GATED},
    "tied_rezero": {"tie_blocks": True, "skip": Skip.REZERO, "normalization": LAYERNORM},
    "periodic": {"periodic": Periodic(2, 3)},
    "no_blocks": {"n_blocks": 0},
    "square": {"hidden": 4, "n_blocks": 3},
}


def reference_logits(spec, flat_QP, X, r, *, scale=None, masks=None, keep=None):
    """Raw outputs (Q, B, K) of a training step, and the width of every activation's input.

    ``r`` are the row weights (sum 1), ``masks`` the dropout masks by (block, matrix), ``keep`` the
    factor of each branch.
    """
    p = ResidualLayout(spec).views(flat_QP)
    activation = _activation(spec)

    def affine(v, W, b):
        return v @ p[W] + p[b][:, None]

    def normalise(v, gamma, beta):
        if spec.normalization is LAYERNORM:
            mean = v.mean(-1, keepdim=True)
            var = ((v - mean) ** 2).mean(-1, keepdim=True)
        else:
            mean = (r[:, None] * v).sum(-2, keepdim=True)
            var = (r[:, None] * (v - mean) ** 2).sum(-2, keepdim=True)
        return p[gamma][:, None] * (v - mean) / (var + spec.norm_epsilon).sqrt() + p[beta][:, None]

    def branch(v, block, name):
        for l in range(spec.n_layers_per_block):
            if spec.normalized[l]:
                v = normalise(v, f"{name}.norm{l + 1}.gamma", f"{name}.norm{l + 1}.beta")
            if spec.activated[l]:
                v = activation(v)
            if masks is not None and (block, l) in masks:
                v = v * masks[block, l]
            v = affine(v, f"{name}.W{l + 1}", f"{name}.b{l + 1}")
        return v

    features = X if scale is None else X * scale
    features = features.expand(len(flat_QP), *features.shape)
    if spec.periodic is not None:
        columns = X[:, : spec.periodic.n_columns, None]
        angle = 2 * np.pi * columns * p["periodic.w"][:, None] + p["periodic.b"][:, None]
        features = torch.cat([features, torch.cos(angle).flatten(2)], -1)
    x = affine(features, "input.W", "input.b")
    for block in range(spec.n_blocks):
        name = f"block{0 if spec.tie_blocks else block}"
        F = branch(x, block, name)
        k = 1.0 if keep is None else keep[block]
        if spec.skip is Skip.IDENTITY:
            x = x + k * F
        elif spec.skip is Skip.NONE:
            x = F
        elif spec.skip is Skip.REZERO:
            x = x + k * p[f"{name}.rezero"][:, None] * F
        else:
            t = torch.sigmoid(affine(x, f"{name}.gate.W", f"{name}.gate.b"))
            x = x + k * t * (F - x)
    if spec.normalization is not NO_NORM:
        x = normalise(x, "final.gamma", "final.beta")
    h = activation(x)
    return h @ p["head.W"].mT + p["head.b"][:, None]


def _activation(spec):
    return next(case.torch for case in ACTIVATIONS.values() if case.engine == spec.activation)


def make_rows(loss="softmax", n=N_ROWS, n_features=N_FEATURES):
    rng = np.random.default_rng([n, n_features])
    return rng.standard_normal((n, n_features)), LOSSES[loss].draw(rng, n)


def make_params(spec, m) -> np.ndarray:
    """Random parameters of which none is special: gammas near 1, everything else around 0."""
    layout = ResidualLayout(spec)
    flat = 0.6 * np.random.default_rng([5, m]).standard_normal(layout.n_params)
    for name, array in layout.unpack(flat).items():
        if name.endswith(".gamma"):
            array += 1.0
    return flat


def make_job(spec, X, y, m, *, weighted=True, params=None, scaled=False, **changes) -> TrainJob:
    """Job m: its own parameters, rows, weights (some of them 0), penalty, smoothing, scale.

    Rows of models 0 to 4: two batches, a shorter second one, one batch exactly, less than one
    batch, two batches of which the second weighs nothing.
    """
    rng = np.random.default_rng([7, m])
    n_all = len(X)
    n = (n_all, n_all - 1, BATCH, BATCH - 2, n_all)[m % 5] if weighted else n_all
    rows = None if m == 0 else rng.permutation(n_all)[:n]
    weight = None
    if weighted and m != 2:
        weight = rng.uniform(0.2, 3, n)
        weight[rng.permutation(n)[: n // 4]] = 0
        if m == 4:
            weight[BATCH:] = 0
    train = TrainSpec(
        OptimizerSpec(OptimizerKind.SGD, 0.1),
        Schedule(),
        penalty=0.3 * m,
        batch_size=BATCH,
        max_epochs=1,
        tolerance=0.0,
        patience=np.inf,
        shuffle=False,
        label_smoothing=0.05 * (m % 3),
    )
    own = np.float64 if spec.dtype == torch.float64 else np.float32
    return TrainJob(
        network=spec,
        train=replace(train, **changes),
        data=TrainingData(X.astype(own), y, rows, weight),
        params=(make_params(spec, m) if params is None else params).astype(own),
        rng=np.random.RandomState(0),
        dropout_seed=11 * m,
        input_scale=rng.uniform(0.1, 2, spec.n_features) if scaled else None,
    )


def job_batches(job):
    """Rows of X and their weights, batch by batch, unshuffled; also those that weigh nothing."""
    n, batch = job.data.n_rows, job.train.batch_size
    rows = np.arange(n) if job.data.rows is None else job.data.rows
    weight = np.ones(n) if job.data.weight is None else job.data.weight
    for first in range(0, n, batch):
        yield rows[first : first + batch], weight[first : first + batch]


def draws_of(job):
    """Masks and factors of the branches that the job's generator gives, step by step."""
    spec, train = job.network, job.train
    generator = torch.Generator().manual_seed(job.dropout_seed)
    places = [
        (block, l, spec.layer_widths[l][0])
        for block in range(spec.n_blocks)
        for l in range(spec.n_layers_per_block)
        if spec.dropped[l]
    ]
    depth = torch.arange(1, spec.n_blocks + 1, dtype=spec.dtype) / max(1, spec.n_blocks)
    while True:
        masks = keep = None
        if train.dropout > 0:
            units = torch.empty(sum(w for *_, w in places), dtype=spec.dtype)
            units.bernoulli_(1 - train.dropout, generator=generator).div_(1 - train.dropout)
            parts = units.split([w for *_, w in places])
            masks = {(block, l): part for (block, l, _), part in zip(places, parts, strict=True)}
        if train.drop_path > 0:
            survival = 1 - train.drop_path * depth
            keep = torch.bernoulli(survival, generator=generator) / survival
        yield masks, keep


def reference_objective(job, flat_QP, rows, weight, masks=None, keep=None):
    """J of one batch for each parameter vector, penalty included."""
    spec, name = job.network, _loss_name(job)
    X, y = torch.from_numpy(job.data.X[rows]), torch.from_numpy(job.data.y[rows])
    scale = None if job.input_scale is None else torch.from_numpy(job.input_scale)
    w = torch.from_numpy(weight)
    r = w / w.sum()
    z = reference_logits(spec, flat_QP, X, r, scale=scale, masks=masks, keep=keep)
    formula, smoothing = LOSSES[name].torch, job.train.label_smoothing
    data = torch.stack([(formula(z_BK, y, smoothing) * r).sum() for z_BK in z])
    n_weights = ResidualLayout(spec).n_weights
    decay = job.train.penalty / w.sum()
    return data + 0.5 * decay * (flat_QP[:, :n_weights] ** 2).sum(1)


def _loss_name(job):
    return next(
        name
        for name, case in LOSSES.items()
        if case.engine == job.network.loss and case.n_outputs == job.network.n_outputs
    )


def reference_gradients(job, *, by_differences=False):
    """Gradient of each batch that weighs something, by autograd or by central differences."""
    gradients = []
    for (rows, weight), (masks, keep) in zip(job_batches(job), draws_of(job), strict=False):
        if weight.sum() == 0:
            continue
        flat_P = torch.from_numpy(job.params)

        def J(flat_QP, rows=rows, weight=weight, masks=masks, keep=keep):
            return reference_objective(job, flat_QP, rows, weight, masks, keep)

        if by_differences:
            step = 2e-4
            moves = step * torch.eye(len(flat_P), dtype=flat_P.dtype)
            near, far = (J(flat_P + k * moves) - J(flat_P - k * moves) for k in (1, 2))
            gradients.append(((8 * near - far) / (12 * step)).numpy())
        else:
            flat_1P = flat_P[None].clone().requires_grad_()
            J(flat_1P).backward()
            gradients.append(flat_1P.grad[0].numpy())
    return gradients


def stack_gradients(jobs):
    """Gradient of every live batch of every model, and the losses of the epoch."""
    stack = Stack([new_member(job) for job in jobs])
    recorder = Recorder(stack)
    loss_M = stack.run_epoch([0.0] * len(jobs), [None] * len(jobs), range(len(jobs)))
    steps = list(zip(recorder.gradients, recorder.active, strict=True))
    by_model = [[g_MP[m] for g_MP, active in steps if active[m]] for m in range(len(jobs))]
    return by_model, loss_M


def relative_error(ours, reference) -> float:
    """|ours - reference| / |reference| of whole vectors."""
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))
