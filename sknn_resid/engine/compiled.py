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
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.native import Code, NativeRun
from sknn_resid.engine.network import StackedNetwork
from sknn_resid.engine.optimizers import StackOptimizer
from sknn_resid.engine.slots import BatchSlot
from sknn_resid.engine.spec import NetworkSpec, OptimizerKind

# Batches between two looks at whether the training is to end: some milliseconds.
BATCHES_PER_CALL = 32


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
        and not train.record_flow
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
        Training alone, for a single batch whose rows lie in place already.
    """

    bank: CompiledBank
    batches: slice
    whole: NativeRun
    steps: NativeRun | None

    @property
    def n_batches(self) -> int:
        return self.batches.stop - self.batches.start

    def load_rows(self, orders: Sequence[RowOrder], n_rows: Sequence[int], first: int) -> None:
        """Which rows each batch consists of; ``first`` is the place of the first in the epoch."""
        rows_SN = self.bank.rows_SN
        stop = first + rows_SN.shape[1]
        for s, (order, n) in enumerate(zip(orders, n_rows, strict=False)):
            begin, end = min(first, n), min(stop, n)
            rows_SN[s, : end - begin] = order.rows(begin, end)

    def run(
        self, ranges: Sequence[tuple[int, int]], poll: Callable[[], None] | None, *, loaded: bool
    ) -> None:
        """Train these models on all batches."""
        run = self.steps if loaded and self.steps is not None else self.whole
        for first in range(0, self.n_batches, BATCHES_PER_CALL):
            if poll is not None:
                poll()
            run.slots(ranges, first, min(first + BATCHES_PER_CALL, self.n_batches))


def compile_segment(
    network: StackedNetwork,
    optimizer: StackOptimizer,
    sources: Sequence[TrainJob],
    features: Sequence[Features],
    targets: Sequence[Tensor],
    clip_M: Tensor | None,
    n_rows: Sequence[int],
    batches: slice,
    batch: int,
    first: int,
    *,
    penalised: bool,
) -> CompiledSegment:
    """Bind all operations of these batches.

    Parameters
    ----------
    network : StackedNetwork
        Bound model by model.
    optimizer : StackOptimizer
    sources, features, targets : sequences
        The jobs that rows, targets and weights come from, X and y of each.
    clip_M : Tensor of shape (M,) or None
        Largest norm of each model's gradient.
    n_rows : sequence of int
        Rows of each source that take part in an epoch.
    batches : slice
        Which batches of the epoch.
    batch : int
        Rows of each.
    first : int
        Place of the first of their rows in the epoch.
    penalised : bool
        Whether the L2 term belongs to the gradient.
    """
    spec = network.spec
    bank = CompiledBank(spec, network.n_models, len(sources), batches.stop - batches.start, batch)
    starts = first + batch * np.arange(bank.n_slots)
    bank.count_SG[:] = np.clip(np.array(n_rows)[:, None] - starts, 0, batch)
    slot = bank.slot
    load = [_gather(bank, features), _targets(bank, spec.loss, sources, targets)]
    ops = network.bind(slot, penalised=penalised)
    if penalised:
        ops.insert(0, network.bind_penalty(slot.square_M))
    if clip_M is not None:
        ops += network.bind_clipping(clip_M)
    ops.append(optimizer.compiled_step(bank.rate_GM[0], bank.live_GM[0]))
    steps = None
    if batches == slice(0, 1):
        steps = bank.advancing(_one(native.join(ops)))
    return CompiledSegment(bank, batches, bank.advancing(_one(native.join([*load, *ops]))), steps)


def _one(runs: Sequence[Callable[[], object]]) -> NativeRun:
    (run,) = runs
    assert isinstance(run, NativeRun)
    return run


def _table(arrays: Sequence[Features]) -> np.ndarray:
    """Where each array lies."""
    places = [a.data_ptr() if isinstance(a, Tensor) else a.ctypes.data for a in arrays]
    return np.array(places, dtype=np.uint64)


def _gather(bank: CompiledBank, features: Sequence[Features]) -> NativeRun:
    X_MBD = bank.slot.X_MBD
    assert isinstance(X_MBD, Tensor)
    width = X_MBD.shape[2]
    lengths = np.array([X.shape[0] for X in features], dtype=np.int64)
    return native.bind_mixed(
        Code.GATHER,
        [X_MBD, _table(features), bank.rows_SN, bank.count_SG, lengths],
        (width, width),
        kept=features,
    )


def _targets(
    bank: CompiledBank, loss: Loss, sources: Sequence[TrainJob], targets: Sequence[Tensor]
) -> NativeRun:
    slot = bank.slot
    smoothing = np.array([job.train.label_smoothing * loss.smooths for job in sources])
    lengths = np.array([len(y) for y in targets], dtype=np.int64)
    return native.bind_mixed(
        Code.TARGET_CODES if loss.codes else Code.TARGET_REALS,
        [
            slot.T_MKB,
            slot.r_M1B,
            _table(targets),
            bank.rows_SN,
            bank.count_SG,
            smoothing,
            lengths,
        ],
        slot.T_MKB.shape[1:],
        kept=targets,
    )
