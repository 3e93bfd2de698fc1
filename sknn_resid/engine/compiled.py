"""Whole epochs of a stack of dense networks in compiled code.

Where every operation of a step is native (`native`), all batches of one length are one call: rows
and targets are gathered, the network goes forward and back, the parameters are updated, batch after
batch, for one model after another. Models then share their scratch memory, which stays in the
cache, and the interpreter is let go, so that another thread may train another stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine import native
from sknn_resid.engine.data import Features, RowOrder
from sknn_resid.engine.gradient_flow import FlowRecorder
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.native import Code, NativeRun
from sknn_resid.engine.network import StackedNetwork
from sknn_resid.engine.optimizers import StackOptimizer
from sknn_resid.engine.slots import BatchSlot, max_rows_per_batch
from sknn_resid.engine.spec import NetworkSpec, OptimizerKind
from sknn_resid.engine.tally import Tally

# Batches, and work, between two looks at whether the training is to end: at most 0.1 seconds.
BATCHES_PER_CALL = 32
CALL_FLOPS = 4e9


def compiles(jobs: Sequence[TrainJob]) -> bool:
    """Whether every operation of a step of these jobs (of one structure) is native."""
    network, train = jobs[0].network, jobs[0].train
    return (
        isinstance(network, NetworkSpec)
        and network.ties is None
        and network.product_dtype == network.dtype
        and network.loss.code is not None
        and all(function.code is not None for function in network.activations)
        and train.optimizer.kind is not OptimizerKind.LBFGS
        and train.average_horizon == 0
        and not any(job.train.dropout for job in jobs)
        and all(job.device.type == "cpu" and _readable(job.data.X, network) for job in jobs)
        and native.available(torch.empty(0, dtype=network.dtype))
    )


def _readable(X: Features, network: NetworkSpec) -> bool:
    if isinstance(X, Tensor):
        return X.device.type == "cpu" and X.dtype == network.dtype and X.is_contiguous()
    if not isinstance(X, np.ndarray) or not X.flags.c_contiguous:
        return False
    return X.dtype == torch.empty(0, dtype=network.dtype).numpy().dtype


class CompiledBank:
    """Memory for G batches of one length: what differs from batch to batch, and scratch.

    Attributes
    ----------
    r_MG1B : Tensor
        Weight of each row, by source (`tally.WeightedBank`).
    decay_MG : Tensor of shape (M, G)
    square_GM, value_GM : ndarray
        |W|^2 (float of the network) and data term of the objective (float64) before each step.
    rows_SN : ndarray of int64, shape (S, G * B)
        Rows of X of all batches.
    count_SG : ndarray of int64
        How many rows each batch has.
    rate_GM : ndarray of float64
        Learning rates.
    live_GM : ndarray of uint8
        Which steps are taken.
    slot : BatchSlot
        The first batch, which the steps are bound to.
    """

    def __init__(
        self, network: NetworkSpec, n_models: int, n_sources: int, n_slots: int, batch: int
    ) -> None:
        M, S, G, B, K = n_models, n_sources, n_slots, batch, network.n_outputs
        self.batch, self.n_slots = batch, n_slots
        self.slots: list[BatchSlot] = []

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=network.dtype)

        def for_all(part: Tensor) -> Tensor:
            return part.expand(M, *part.shape[1:])

        self.r_MG1B = zeros(G, S, 1, B).transpose(0, 1)
        self.decay_MG = zeros(M, G)
        square_GM, value_GM = zeros(G, M), torch.zeros((G, M), dtype=torch.float64)
        self.square_GM, self.value_GM = square_GM.numpy(), value_GM.numpy()
        self.rows_SN = np.zeros((S, G * B), dtype=np.int64)
        self.count_SG = np.zeros((S, G), dtype=np.int64)
        self.rate_GM = np.zeros((G, M))
        self.live_GM = np.ones((G, M), dtype=np.uint8)
        r_M1B = self.r_MG1B[:, 0]
        self.slot = BatchSlot(
            n_rows=B,
            rows_M=[B] * M,
            X_MBD=for_all(zeros(1, B, network.layer_sizes[0])),
            T_MKB=for_all(zeros(1, K, B)),
            r_M1B=for_all(r_M1B) if S == 1 else r_M1B,
            Z_MKB=for_all(zeros(1, K, B)),
            decay_M1=self.decay_MG[:, :1],
            square_M=square_GM[0],
            value_M=value_GM[0],
        )

    def advancing(self, run: NativeRun) -> NativeRun:
        """The same operations, told where each batch finds what is its own."""
        slot, size = self.slot, self.decay_MG.itemsize
        return run.advancing(
            [
                (slot.r_M1B, self.r_MG1B.stride(1) * size),
                (slot.decay_M1, size),
                (slot.square_M, self.square_GM.strides[0]),
                (self.value_GM, self.value_GM.strides[0]),
                (self.rows_SN, self.batch * self.rows_SN.itemsize),
                (self.count_SG, self.count_SG.itemsize),
                (self.rate_GM, self.rate_GM.strides[0]),
                (self.live_GM, self.live_GM.strides[0]),
            ]
        )


@dataclass(frozen=True, eq=False)
class Source:
    """Where rows, targets and weights come from: for one model, or for all.

    Attributes
    ----------
    job : TrainJob
    order : RowOrder
    X, y : Features, Tensor
        As the steps read them.
    n_rows : int
        Rows that take part in an epoch.
    """

    job: TrainJob
    order: RowOrder
    X: Features
    y: Tensor
    n_rows: int


@dataclass(frozen=True, eq=False)
class CompiledSegment:
    """All batches of one length.

    Attributes
    ----------
    bank : CompiledBank
    batches : slice
        Which batches of the epoch they are.
    whole : NativeRun
        Loading and training.
    steps : NativeRun or None
        Training alone, for a single batch of a single source: its rows may lie in place already.
    halves : (NativeRun, NativeRun) or None
        Up to the gradient of the data term and on from there, where somebody looks in between.
    per_call : int
        Batches between two looks at whether the training is to end.
    """

    bank: CompiledBank
    batches: slice
    whole: NativeRun
    steps: NativeRun | None
    halves: tuple[NativeRun, NativeRun] | None
    per_call: int

    def load_rows(self, sources: Sequence[Source], first: int) -> None:
        """Which rows each batch consists of; ``first`` is the place of the first in the epoch."""
        stop = first + self.bank.rows_SN.shape[1]
        for rows_N, source in zip(self.bank.rows_SN, sources, strict=True):
            begin, end = min(first, source.n_rows), min(stop, source.n_rows)
            rows_N[: end - begin] = source.order.rows(begin, end)

    def run(
        self,
        ranges: Sequence[tuple[int, int]],
        poll: Callable[[], None] | None,
        recorder: FlowRecorder | None,
        *,
        loaded: bool,
    ) -> None:
        """Train these models on all batches."""
        run = self.steps if loaded and self.steps is not None else self.whole
        first, n_batches = 0, self.bank.n_slots
        while first < n_batches:
            if poll is not None:
                poll()
            if recorder is not None and self.batches.start + first in recorder.batches:
                self._watched(ranges, first, recorder)
                first += 1
                continue
            stop = min(first + self.per_call, n_batches)
            if recorder is not None:
                due = [b - self.batches.start for b in recorder.batches]
                stop = min([stop, *(g for g in due if g > first)])
            run.slots(ranges, first, stop)
            first = stop

    def _watched(self, ranges: Sequence[tuple[int, int]], g: int, recorder: FlowRecorder) -> None:
        """One batch, the recorder looking between gradient and update, and after."""
        assert self.halves is not None
        before, after = self.halves
        before.slots(ranges, g, g + 1)
        r_M1B = self.bank.r_MG1B[:, g]
        M = len(self.bank.decay_MG)
        recorder.before_update(r_M1B.expand(M, *r_M1B.shape[1:]))
        after.slots(ranges, g, g + 1)
        recorder.after_update(self.batches.start + g)


class CompiledEpoch:
    """Epochs of a stack: one segment for the full batches and one for a short last one.

    Parameters
    ----------
    network : StackedNetwork
        Bound model by model.
    optimizer : StackOptimizer
    tally : Tally
        Told what each batch has lost.
    sources : sequence of Source
        One for all models, or one for each.
    clip_M : Tensor of shape (M,) or None
        Largest norm of each model's gradient.
    batch : int
        Rows of a full batch.
    penalised : bool
        Whether the L2 term belongs to the gradient.
    recorder : FlowRecorder or None
        Looks at one batch of each model in an epoch.
    """

    def __init__(
        self,
        network: StackedNetwork,
        optimizer: StackOptimizer,
        tally: Tally,
        sources: Sequence[Source],
        clip_M: Tensor | None,
        batch: int,
        *,
        penalised: bool,
        recorder: FlowRecorder | None = None,
    ) -> None:
        self._network, self._optimizer, self._tally = network, optimizer, tally
        self._sources, self._clip_M, self._penalised = sources, clip_M, penalised
        self._batch, self._recorder = batch, recorder
        n_batches, tail = max_rows_per_batch([source.n_rows for source in sources], batch)
        n_full = n_batches - (tail < batch)
        parts = [(slice(0, n_full), batch), (slice(n_full, n_batches), tail)]
        self.segments = [
            self._segment(batches, rows) for batches, rows in parts if batches.start < batches.stop
        ]
        if tally.even:
            for segment in self.segments:
                tally.load_even(segment.bank, segment.batches)

    def _segment(self, batches: slice, rows: int) -> CompiledSegment:
        network, sources = self._network, self._sources
        bank = CompiledBank(
            network.spec, network.n_models, len(sources), batches.stop - batches.start, rows
        )
        starts = batches.start * self._batch + rows * np.arange(bank.n_slots)
        n_rows = np.array([source.n_rows for source in sources])
        bank.count_SG[:] = np.clip(n_rows[:, None] - starts, 0, rows)
        ops = self._bind(bank)
        gradient = ops.index(_look) if self._recorder is not None else len(ops)
        halves, steps = None, None
        load = [_gather(bank, sources), _targets(bank, network.spec.loss, sources)]
        if self._recorder is not None:
            halves = (
                bank.advancing(_one(native.join([*load, *ops[:gradient]]))),
                bank.advancing(_one(native.join(ops[gradient + 1 :]))),
            )
            del ops[gradient]
        if batches == slice(0, 1) and len(sources) == 1:
            steps = bank.advancing(_one(native.join(ops)))
        whole = bank.advancing(_one(native.join([*load, *ops])))
        flops = 6.0 * network.params_MP.numel() * rows  # three products, of all models
        per_call = max(1, min(BATCHES_PER_CALL, int(CALL_FLOPS / flops)))
        return CompiledSegment(bank, batches, whole, steps, halves, per_call)

    def _bind(self, bank: CompiledBank) -> list[Op]:
        """All operations of a batch that is loaded; a look stands where the recorder looks."""
        network, looks = self._network, [_look] if self._recorder is not None else []
        ops = network.bind(bank.slot, penalised=self._penalised, before_penalty=looks)
        if self._penalised:
            ops.insert(0, network.bind_penalty(bank.slot.square_M))
        if self._clip_M is not None:
            ops += network.bind_clipping(self._clip_M)
        return [*ops, self._optimizer.compiled_step(bank.rate_GM[0], bank.live_GM[0])]

    def run(
        self,
        rates_M: Sequence[float],
        factors_M: Sequence[np.ndarray | None] | None,
        running: Sequence[int],
        poll: Callable[[], None] | None,
        *,
        loaded: bool,
    ) -> None:
        """Train the models that are running for one epoch (see `stack.Stack.run_epoch`).

        ``loaded``: the one batch that there is lies in place already.
        """
        ranges, tally = _ranges(running), self._tally
        for segment in self.segments:
            bank, batches = segment.bank, segment.batches
            first = batches.start * self._batch
            if not loaded:
                segment.load_rows(self._sources, first)
                if not tally.even:
                    tally.load(bank, batches, first)
                    bank.live_GM[:] = tally.live_Mb[:, batches].T
            bank.rate_GM[:] = rates_M
            if factors_M is not None:
                for g in range(bank.n_slots):
                    bank.rate_GM[g] = scaled(rates_M, factors_M, batches.start + g)
            segment.run(ranges, poll, self._recorder, loaded=loaded)
            tally.value_Mb[:, batches] = bank.value_GM.T
            if self._penalised:
                tally.square_Mb[:, batches] = bank.square_GM.T
        if self._recorder is not None:
            self._recorder.end_epoch()


def _look() -> None:
    """Marks a place in a list of operations."""


def scaled(rates_M: Sequence[float], factors_M: Sequence[np.ndarray | None], k: int) -> list[float]:
    """Learning rates at step k of the epoch."""
    return [
        rate if factors is None else rate * float(factors[min(k, len(factors) - 1)])
        for rate, factors in zip(rates_M, factors_M, strict=True)
    ]


def _ranges(models: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges."""
    ranges: list[tuple[int, int]] = []
    for m in models:
        if ranges and ranges[-1][1] == m:
            ranges[-1] = (ranges[-1][0], m + 1)
        else:
            ranges.append((m, m + 1))
    return ranges


def _one(runs: Sequence[Callable[[], object]]) -> NativeRun:
    (run,) = runs
    assert isinstance(run, NativeRun)
    return run


def _table(arrays: Sequence[Features]) -> np.ndarray:
    """Where each array lies."""
    places = [a.data_ptr() if isinstance(a, Tensor) else a.ctypes.data for a in arrays]
    return np.array(places, dtype=np.uint64)


def _gather(bank: CompiledBank, sources: Sequence[Source]) -> NativeRun:
    X_MBD, features = bank.slot.X_MBD, [source.X for source in sources]
    assert isinstance(X_MBD, Tensor)
    width = X_MBD.shape[2]
    lengths = np.array([X.shape[0] for X in features], dtype=np.int64)
    return native.bind_mixed(
        Code.GATHER,
        [X_MBD, _table(features), bank.rows_SN, bank.count_SG, lengths],
        (width, width),
        kept=features,
    )


def _targets(bank: CompiledBank, loss: Loss, sources: Sequence[Source]) -> NativeRun:
    slot, targets = bank.slot, [source.y.contiguous() for source in sources]
    smoothing = [source.job.train.label_smoothing * loss.smooths for source in sources]
    lengths = np.array([len(y) for y in targets], dtype=np.int64)
    return native.bind_mixed(
        Code.TARGET_CODES if loss.codes else Code.TARGET_REALS,
        [
            slot.T_MKB,
            slot.r_M1B,
            _table(targets),
            bank.rows_SN,
            bank.count_SG,
            np.array(smoothing, dtype=np.float64),
            lengths,
        ],
        slot.T_MKB.shape[1:],
        kept=targets,
    )
