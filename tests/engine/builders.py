"""Small helpers of the engine's tests: formulas in numpy and torch, jobs, gradients of a stack.

The formulas are written from their definitions, row by row and without the engine's layout.
Parameters are flattened in scikit-learn's order: every coef (in, out), then every intercept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import scipy.sparse
import scipy.special as special
import torch
import torch.nn.functional as F

from sknn_resid.engine import activations, losses, native
from sknn_resid.engine.data import TrainingData
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.layout import Layout
from sknn_resid.engine.schedules import Schedule
from sknn_resid.engine.spec import NetworkSpec, OptimizerKind, OptimizerSpec, TrainSpec
from sknn_resid.engine.stack import Stack, new_member

N_ROWS, N_FEATURES, BATCH = 9, 4, 5
HUBER_DELTA, QUANTILE = 0.7, 0.3


# -- activations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActivationCase:
    """One activation three times: the engine's, numpy's and torch's."""

    engine: activations.Activation
    numpy: Callable[[np.ndarray], np.ndarray]
    torch: Callable[[torch.Tensor], torch.Tensor]
    kinked: bool = False  # not smooth at 0


def _elu(z, alpha=1.0, scale=1.0):
    return scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0)))


SELU = (activations.SELU_ALPHA, activations.SELU_SCALE)

ACTIVATIONS = {
    "identity": ActivationCase(activations.Identity(), lambda z: z, lambda z: z),
    "logistic": ActivationCase(activations.Logistic(), special.expit, torch.sigmoid),
    "tanh": ActivationCase(activations.Tanh(), np.tanh, torch.tanh),
    "relu": ActivationCase(activations.Relu(), lambda z: np.maximum(z, 0), F.relu, True),
    "leaky_relu": ActivationCase(
        activations.LeakyRelu(), lambda z: np.where(z > 0, z, 0.01 * z), F.leaky_relu, True
    ),
    "elu": ActivationCase(activations.Elu(), _elu, F.elu, True),
    "selu": ActivationCase(activations.Elu(*SELU), lambda z: _elu(z, *SELU), F.selu, True),
    "softplus": ActivationCase(
        activations.Softplus(),
        lambda z: np.logaddexp(0, z),
        lambda z: torch.logaddexp(z, torch.zeros_like(z)),
    ),
    "gelu": ActivationCase(activations.Gelu(), lambda z: z * special.ndtr(z), F.gelu),
    "silu": ActivationCase(activations.Silu(), lambda z: z * special.expit(z), F.silu),
    "mish": ActivationCase(activations.Mish(), lambda z: z * np.tanh(np.logaddexp(0, z)), F.mish),
}


# -- losses --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCase:
    """One loss three times, each as the loss of a row summed over outputs.

    ``numpy`` and ``torch`` take logits (..., n, K), targets (n, T) and the label smoothing.
    ``kinks`` gives the points of z - y at which the loss is not smooth.
    """

    engine: losses.Loss
    n_outputs: int
    draw: Callable[[np.random.Generator, int], np.ndarray]
    numpy: Callable[[np.ndarray, np.ndarray, float], np.ndarray]
    torch: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]
    kinks: tuple[float, ...] = ()
    per_output: bool = False  # reported divided by the number of outputs, as squared error is

    @property
    def scale(self) -> float:
        """Reported figure / data term of the objective."""
        return 1 / self.n_outputs if self.per_output else 1.0


def _reals(n_outputs):
    return lambda rng, n: rng.standard_normal((n, n_outputs))


def _elementwise(formula):
    """Loss of a row from a loss of (z, y), without label smoothing."""
    return lambda z, y, smoothing: formula(z, y).sum(-1)


# Losses of real targets: formula of (z, y) in numpy and in torch.
SQUARED = (lambda z, y: (z - y) ** 2 / 2, lambda z, y: F.mse_loss(z, y, reduction="none") / 2)
ABSOLUTE = (lambda z, y: np.abs(z - y), lambda z, y: F.l1_loss(z, y, reduction="none"))
HUBER = (
    lambda z, y: special.huber(HUBER_DELTA, z - y),
    lambda z, y: F.huber_loss(z, y, reduction="none", delta=HUBER_DELTA),
)
PINBALL = (
    lambda z, y: np.where(z < y, QUANTILE * (y - z), (1 - QUANTILE) * (z - y)),
    lambda z, y: torch.maximum(QUANTILE * (y - z), (QUANTILE - 1) * (y - z)),
)
LOG_COSH = (
    lambda z, y: np.log(np.cosh(z - y)),
    lambda z, y: (z - y).abs() + F.softplus(-2 * (z - y).abs()) - np.log(2),
)


def _bernoulli(formula):
    def rows(z, y, smoothing):
        return formula(z, y * (1 - smoothing) + smoothing / 2).sum(-1)

    return rows


def _categorical_numpy(heads):
    def rows(z, y, smoothing):
        total, start = 0.0, 0
        for t, size in enumerate(heads):
            minus_log_p = -special.log_softmax(z[..., start : start + size], axis=-1)
            own = minus_log_p[..., np.arange(len(y)), y[:, t]]
            total = total + (1 - smoothing) * own + smoothing * minus_log_p.mean(-1)
            start += size
        return total

    return rows


def _categorical_torch(heads):
    def rows(z, y, smoothing):
        parts = zip(z.split(list(heads), dim=1), y.T, strict=True)
        return sum(
            F.cross_entropy(part, own, reduction="none", label_smoothing=smoothing)
            for part, own in parts
        )

    return rows


def _codes(heads):
    return lambda rng, n: np.stack([rng.integers(0, size, n) for size in heads], axis=1)


def log_cosh_elements(y_true, y_pred):
    """A user's loss that keeps one figure for each output."""
    return torch.log(torch.cosh(y_pred - y_true))


def log_cosh_rows(y_true, y_pred):
    """A user's loss that gives one figure for each row."""
    return torch.log(torch.cosh(y_pred - y_true)).sum(1)


def _categorical(heads):
    return LossCase(
        losses.SoftmaxCrossEntropy(heads),
        sum(heads),
        _codes(heads),
        _categorical_numpy(heads),
        _categorical_torch(heads),
    )


def _bernoulli_case(n_outputs):
    return LossCase(
        losses.BinaryCrossEntropy(),
        n_outputs,
        lambda rng, n: rng.integers(0, 2, (n, n_outputs)).astype(float),
        _bernoulli(lambda z, t: np.logaddexp(0, z) - t * z),
        _bernoulli(lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="none")),
    )


def _regression(engine, n_outputs, formulas, kinks=()):
    numpy_rows, torch_rows = map(_elementwise, formulas)
    return LossCase(engine, n_outputs, _reals(n_outputs), numpy_rows, torch_rows, kinks, True)


LOSSES = {
    "squared": _regression(losses.SquaredError(), 1, SQUARED),
    "squared_3": _regression(losses.SquaredError(), 3, SQUARED),
    "absolute": _regression(losses.AbsoluteError(), 2, ABSOLUTE, (0.0,)),
    "huber": _regression(losses.Huber(HUBER_DELTA), 2, HUBER, (-HUBER_DELTA, HUBER_DELTA)),
    "pinball": _regression(losses.Pinball(QUANTILE), 2, PINBALL, (0.0,)),
    "poisson": LossCase(
        losses.Poisson(),
        2,
        lambda rng, n: rng.poisson(1.0, (n, 2)).astype(float),
        _elementwise(lambda z, y: special.kl_div(y, np.exp(z))),
        _elementwise(lambda z, y: F.poisson_nll_loss(z, y, reduction="none")),
    ),
    "binary": _bernoulli_case(1),
    "multilabel": _bernoulli_case(3),
    "softmax": _categorical((3,)),
    "heads": _categorical((2, 3)),
    "callable": _regression(losses.CallableLoss(log_cosh_rows), 2, LOG_COSH),
    "callable_elements": _regression(losses.CallableLoss(log_cosh_elements), 2, LOG_COSH),
}


# -- models, and the objective by its definition -------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What the models of a stack share."""

    activation: str
    loss: str
    hidden: tuple[int, ...]
    X: np.ndarray
    y: np.ndarray
    batch: int = BATCH

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.X.shape[1], *self.hidden, LOSSES[self.loss].n_outputs)


@dataclass(frozen=True)
class Model:
    """What is each model's own."""

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    rows: np.ndarray | None
    weight: np.ndarray | None
    penalty: float = 0.0
    smoothing: float = 0.0
    dropout: float = 0.0
    seed: int = 0

    @property
    def flat(self) -> np.ndarray:
        return flatten(self.coefs, self.intercepts)


def flatten(coefs, intercepts) -> np.ndarray:
    """One row of parameters in scikit-learn's order."""
    return np.concatenate([np.ravel(a) for a in [*coefs, *intercepts]])


def unflatten(flat, sizes):
    """Inverse of `flatten`; leading axes and torch tensors pass through."""
    lead, arrays, start = flat.shape[:-1], [], 0
    pairs = list(pairwise(sizes))
    for shape in [*pairs, *[(o,) for _, o in pairs]]:
        stop = start + int(np.prod(shape))
        arrays.append(flat[..., start:stop].reshape(*lead, *shape))
        start = stop
    return arrays[: len(pairs)], arrays[len(pairs) :]


def make_problem(
    activation: str,
    loss: str,
    n_hidden: int,
    *,
    widths: tuple[int, ...] = (5, 3),
    n_rows: int = N_ROWS,
    batch: int = BATCH,
) -> Problem:
    """Rows of which about a third of the entries are 0, so that they make a CSR matrix too."""
    rng = np.random.default_rng([n_rows, n_hidden])
    X = rng.standard_normal((n_rows, N_FEATURES)) * (rng.random((n_rows, N_FEATURES)) > 0.35)
    y = LOSSES[loss].draw(rng, n_rows)
    return Problem(activation, loss, widths[:n_hidden], X, y, batch)


def make_model(
    problem: Problem, m: int, *, weighted: bool = True, away_from_kinks: float = 0.01
) -> Model:
    """Model m: its own weights, rows, row weights, penalty and smoothing.

    Rows of models 0 to 4: two batches, a shorter second one, one batch exactly, less than one
    batch, two batches of which the second weighs nothing. Rows at which this model's objective is
    not smooth, or nearly so, are left out. Model 0 has no row index unless that is so.
    """
    rng = np.random.default_rng([7, m])
    n_all, batch = len(problem.X), problem.batch
    pairs = list(pairwise(problem.sizes))
    coefs = [rng.standard_normal(shape) / np.sqrt(shape[0]) for shape in pairs]
    intercepts = [0.5 * rng.standard_normal(o) for _, o in pairs]
    smooth = kink_distances(problem, coefs, intercepts) > away_from_kinks
    assert smooth.mean() > 0.3, "hardly a row away from the kinks"

    n = (n_all, n_all - 1, batch, batch - 2, n_all)[m] if weighted else n_all
    rows = None if m == 0 and smooth.all() else rng.choice(np.flatnonzero(smooth), n)
    weight = None
    if weighted and m != 2:
        weight = rng.uniform(0.2, 3, n)
        weight[rng.permutation(n)[: n // 4]] = 0
        if m == 4:
            weight[batch:] = 0
    return Model(
        coefs,
        intercepts,
        rows,
        weight,
        penalty=0.3 * m,
        smoothing=0.08 * (m % 3),
        seed=11 * m,
    )


def forward(problem: Problem, flat, X, masks=None):
    """Logits (..., n, K), and pre-activations of hidden layers; masks multiply their outputs."""
    coefs, intercepts = unflatten(flat, problem.sizes)
    case = ACTIVATIONS[problem.activation]
    activation = case.torch if isinstance(flat, torch.Tensor) else case.numpy
    v, inner = X, []
    for l, (w, b) in enumerate(zip(coefs, intercepts, strict=True)):
        z = v @ w + b[..., None, :]
        if l == len(coefs) - 1:
            break
        inner.append(z)
        v = activation(z)
        if masks is not None:
            v = v * masks[l]
    return z, inner


def kink_distances(problem: Problem, coefs, intercepts) -> np.ndarray:
    """How far each row is from the nearest point at which the objective is not smooth."""
    z, inner = forward(problem, flatten(coefs, intercepts), problem.X)
    distances = [np.full(len(z), np.inf)]
    if ACTIVATIONS[problem.activation].kinked:
        distances += [np.abs(layer).min(1) for layer in inner]
    for kink in LOSSES[problem.loss].kinks:
        distances.append(np.abs(z - problem.y - kink).min(1))
    return np.min(distances, axis=0)


def batches(problem: Problem, model: Model) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of X and their weights, batch by batch, unshuffled."""
    rows = np.arange(len(problem.X)) if model.rows is None else model.rows
    weight = np.ones(len(rows)) if model.weight is None else model.weight
    for first in range(0, len(rows), problem.batch):
        part = slice(first, first + problem.batch)
        yield rows[part], weight[part]


def objective(problem: Problem, model: Model, flat, rows, weight, *, masks=None):
    """J of one batch: data term and penalty, for one or many parameter vectors (..., P)."""
    case, X, y = LOSSES[problem.loss], problem.X[rows], problem.y[rows]
    if isinstance(flat, torch.Tensor):
        X, y, weight = (torch.from_numpy(a) for a in (X, y, weight))
        masks = None if masks is None else [torch.from_numpy(mask) for mask in masks]
        losses_of_rows = case.torch
    else:
        losses_of_rows = case.numpy
    z, _ = forward(problem, flat, X, masks)
    total = weight.sum()
    data = (losses_of_rows(z, y, model.smoothing) * weight).sum(-1) / total
    n_weights = sum(c.size for c in model.coefs)
    penalty = 0.5 * model.penalty * (flat[..., :n_weights] ** 2).sum(-1) / total
    return data, penalty


# -- the engine's side ---------------------------------------------------------------------------


def make_job(
    problem: Problem,
    model: Model,
    *,
    sparse: bool = False,
    kind: OptimizerKind = OptimizerKind.SGD,
    dtype: torch.dtype = torch.float64,
    product_dtype: torch.dtype | None = None,
    **changes,
) -> TrainJob:
    """The job of one model; ``changes`` replace fields of its TrainSpec."""
    activation = ACTIVATIONS[problem.activation].engine
    numpy_dtype = np.float64 if dtype == torch.float64 else np.float32
    X = problem.X.astype(numpy_dtype)
    train = TrainSpec(
        OptimizerSpec(kind, 0.1),
        Schedule(),
        penalty=model.penalty,
        batch_size=problem.batch,
        max_epochs=1,
        tolerance=0.0,
        patience=np.inf,
        shuffle=False,
        dropout=model.dropout,
        label_smoothing=model.smoothing,
    )
    return TrainJob(
        network=NetworkSpec(
            problem.sizes,
            (activation,) * len(problem.hidden),
            LOSSES[problem.loss].engine,
            dtype,
            product_dtype or dtype,
        ),
        train=replace(train, **changes),
        data=TrainingData(
            scipy.sparse.csr_array(X) if sparse else X, problem.y, model.rows, model.weight
        ),
        params=Layout(problem.sizes).pack(model.coefs, model.intercepts).astype(numpy_dtype),
        rng=np.random.RandomState(0),
        dropout_seed=model.seed,
    )


def leave_out_compiled(monkeypatch) -> None:
    """From here on, work as where the compiled parts were not built."""
    monkeypatch.setattr(native, "_module", lambda: None)


class Recorder:
    """Keeps each gradient of a stack, which must be trained with learning rates of 0.

    It stands in for the optimizer; compiled batches, of which the update is a part, are carried out
    one by one.
    """

    def __init__(self, stack: Stack) -> None:
        self._grads_MP = stack.network.grads_MP
        self.gradients: list[np.ndarray] = []
        self.active: list[list[bool]] = []
        stack.optimizer = self
        if stack.compiled is not None:
            stack.compiled.segments = [_Observed(part, self) for part in stack.compiled.segments]

    def step(self, rates, active) -> None:
        n_models = len(self._grads_MP)
        self.gradients.append(self._grads_MP.double().numpy().copy())
        self.active.append([True] * n_models if active is None else list(active))


class _Observed:
    """A compiled segment whose gradients are recorded batch by batch."""

    def __init__(self, segment, recorder: Recorder) -> None:
        self._segment, self._recorder = segment, recorder
        self.bank, self.batches = segment.bank, segment.batches
        self.load_rows = segment.load_rows

    def run(self, ranges, poll, recorder, *, loaded: bool) -> None:
        assert not self.bank.rate_GM.any()
        for g in range(self.bank.n_slots):
            (self._segment.steps if loaded else self._segment.whole).slots(ranges, g, g + 1)
            self._recorder.step(None, self.bank.live_GM[g].astype(bool))


def stack_gradients(jobs: list[TrainJob]) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Gradient of every live batch of every model (model by model), and the epoch's losses.

    The jobs pass through `Stack`, all at the parameters they start from; gradients come back in
    scikit-learn's order.
    """
    stack = Stack([new_member(job) for job in jobs])
    recorder = Recorder(stack)
    loss_M = stack.run_epoch([0.0] * len(jobs), [None] * len(jobs), range(len(jobs)))
    layout = Layout(jobs[0].network.layer_sizes)
    steps = list(zip(recorder.gradients, recorder.active, strict=True))
    by_model = [
        [flatten(*layout.unpack(g_MP[m])) for g_MP, active in steps if active[m]]
        for m in range(len(jobs))
    ]
    return by_model, loss_M
