"""The steps of a stack on an accelerator: each the same operations on the same memory.

What a step costs there is launches, not work. So one call gathers the rows of all models
(`device_rows`), one call a number updates all of them (`device_updates`), and all steps of a
segment are captured as one graph where that can be done (`graphs`). What differs from epoch to
epoch is sent before a segment begins: its rows, its targets and weights, and the numbers of its
updates; what it gives, losses and penalties, is read when it has ended. In between nothing waits
for the device and the device waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.averaging import StackAverage
from sknn_resid.engine.compiled import scaled
from sknn_resid.engine.data import Features, RowOrder
from sknn_resid.engine.device_rows import SegmentRows, Table, fed_by_host
from sknn_resid.engine.device_updates import make_rule
from sknn_resid.engine.gradient_flow import FlowRecorder
from sknn_resid.engine.graphs import Graphs, Replayed
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.kernels import Op, in_turn
from sknn_resid.engine.losses import CallableLoss
from sknn_resid.engine.optimizers import StackOptimizer
from sknn_resid.engine.residual_network import StackedResidualNetwork
from sknn_resid.engine.slots import Segment, SlotBank
from sknn_resid.engine.spec import NetworkSpec
from sknn_resid.engine.structure import AnyNetwork, input_dtype
from sknn_resid.engine.tally import Tally


def why_not_captured(jobs: Sequence[TrainJob]) -> str | None:
    """Why the steps of these jobs (of one structure) are not captured; None where they are.

    The rule is told beforehand, not found out by trying: a capture that fails leaves an error
    behind in the driver.
    """
    network, train = jobs[0].network, jobs[0].train
    if any(fed_by_host(job.data.X) for job in jobs):
        return "rows come from the host"
    if isinstance(network, NetworkSpec) and any(job.train.dropout for job in jobs):
        # Masks of residual networks, which all rows of a step share, are drawn before a segment.
        # Those of dense networks are as large as the activations of all its steps. torch can
        # register generators with a graph, but whether masks then are those that a model draws
        # alone could not be seen without a device.
        return "masks of every row are drawn by a generator of each model"
    if isinstance(network.loss, CallableLoss):
        return "the loss is a function of the user's, which may do anything"
    if train.record_flow:
        return "numbers of the gradients are read within the steps"
    return None


class _Numbers:
    """What the updates of a segment read, for every batch of a bank; sent in one copy."""

    def __init__(self, n_slots: int, n_numbers: int, like_MP: Tensor, graphs: Graphs) -> None:
        shape = (n_slots, n_numbers, len(like_MP))
        self._sent = graphs.host_buffer(shape, like_MP.dtype)
        self.device_GxM = torch.zeros(shape, dtype=like_MP.dtype, device=like_MP.device)

    def send(self, numbers_GxM: np.ndarray) -> None:
        self._sent[: len(numbers_GxM)].copy_(torch.from_numpy(numbers_GxM))
        self.device_GxM.copy_(self._sent, non_blocking=True)


@dataclass(frozen=True, eq=False)
class _Desk:
    """What belongs to one bank.

    Attributes
    ----------
    rows : SegmentRows
    numbers : _Numbers
    before_G, after_G : list of list of callable
        What comes before the gradient of each batch (its rows) and after it (the update).
    replayed : dict
        Whole segments by their number of batches.
    """

    rows: SegmentRows
    numbers: _Numbers
    before_G: list[list[Op]]
    after_G: list[list[Op]]
    replayed: dict[int, Replayed]


class AcceleratedSteps:
    """Everything between two looks at the losses of a stack on an accelerator.

    Parameters
    ----------
    graphs : Graphs
    jobs : sequence of TrainJob
        Of all models.
    sources : sequence of TrainJob
        Where rows and targets come from: one for all models, or each for itself.
    orders_S : sequence of RowOrder
    counts_S : sequence of int
        Rows of each source that take part in an epoch.
    network, optimizer, tally
        Those of the stack.
    average : StackAverage or None
    recorder : FlowRecorder or None
    whole : bool
        Whether one batch holds all rows of every model: it is loaded once.

    Attributes
    ----------
    graphs : Graphs
    host_fed : bool
        Whether rows of X come from the host, batch by batch.
    """

    def __init__(
        self,
        graphs: Graphs,
        jobs: Sequence[TrainJob],
        sources: Sequence[TrainJob],
        orders_S: Sequence[RowOrder],
        counts_S: Sequence[int],
        network: AnyNetwork,
        optimizer: StackOptimizer,
        tally: Tally,
        average: StackAverage | None,
        recorder: FlowRecorder | None,
        *,
        whole: bool,
    ) -> None:
        self.graphs = graphs
        self._pool = graphs.pool()
        self._network, self._optimizer, self._tally = network, optimizer, tally
        self._average, self._recorder, self._whole = average, recorder, whole
        self._orders_S, self._counts_S = orders_S, counts_S
        self._rule = make_rule(network, optimizer)
        self.host_fed = any(fed_by_host(job.data.X) for job in sources)
        self._captures = graphs.captures and why_not_captured(jobs) is None
        spec, device = jobs[0].network, jobs[0].device
        codes = spec.loss.codes
        self._targets = Table(
            [job.data.y for job in sources], device, torch.int64 if codes else spec.dtype
        )
        self._features: Table | None = None
        if not self.host_fed:
            self._features = Table(
                [_dense(job.data.X) for job in sources], device, input_dtype(spec)
            )
        self._desks: dict[int, _Desk] = {}
        self._drawing: StackedResidualNetwork | None = None
        if isinstance(network, StackedResidualNetwork) and network.draw_ahead():
            self._drawing = network

    # -- before a segment ---------------------------------------------------------------------

    def load(self, segment: Segment, first: int) -> None:
        """Send the rows of a segment and gather its targets; ``first`` is its first row's place."""
        self._desk(segment.bank).rows.load(first, segment)

    def _desk(self, bank: SlotBank) -> _Desk:
        if id(bank) not in self._desks:
            rows = SegmentRows(
                bank, self._features, self._targets, self._orders_S, self._counts_S, self.graphs
            )
            n_numbers = self._rule.n_numbers + (not self._tally.even) + (self._average is not None)
            numbers = _Numbers(bank.n_slots, n_numbers, self._network.params_MP, self.graphs)
            gathers = [self._gather(bank, rows, g) for g in range(bank.n_slots)]
            updates = [self._update(numbers.device_GxM[g]) for g in range(bank.n_slots)]
            self._desks[id(bank)] = _Desk(rows, numbers, gathers, updates, {})
        return self._desks[id(bank)]

    def _gather(self, bank: SlotBank, rows: SegmentRows, g: int) -> list[Op]:
        if self.host_fed:
            return []
        assert isinstance(bank.X_MBD, Tensor)
        return [rows.bind_gather(g, bank.X_MBD)]

    def _update(self, numbers_xM: Tensor) -> list[Op]:
        """What follows the gradient of a step, in the order in which its numbers are sent."""
        n = self._rule.n_numbers
        ops: list[Op] = []
        if not self._tally.even:
            ops.append(_silence(self._network.grads_MP, numbers_xM[n]))
        ops += self._rule.bind(numbers_xM[:n])
        if self._average is not None:
            ops.append(self._average.bind(numbers_xM[-1]))
        return ops

    def _send_numbers(
        self,
        segment: Segment,
        rates_M: Sequence[float],
        factors_M: Sequence[np.ndarray | None] | None,
    ) -> None:
        """Fill in the numbers of the segment's steps, and count these."""
        batches, tally = segment.batches, self._tally
        rate_GM = np.array(
            [
                rates_M if factors_M is None else scaled(rates_M, factors_M, k)
                for k in range(batches.start, batches.stop)
            ]
        )
        live_GM = tally.live_Mb[:, batches].T
        steps_M = self._optimizer.steps
        t_GM = np.maximum(1, steps_M + live_GM.cumsum(0))
        parts = [self._rule.numbers(rate_GM, live_GM, t_GM)]
        if not tally.even:
            parts.append(live_GM[:, None].astype(float))
        if self._average is not None:
            weights_GM = np.array([self._average.next_weights(live.tolist()) for live in live_GM])
            parts.append(weights_GM[:, None])
        steps_M += live_GM.sum(0)
        self._desk(segment.bank).numbers.send(np.concatenate(parts, axis=1))

    # -- the steps ----------------------------------------------------------------------------

    def run(
        self,
        segment: Segment,
        rates_M: Sequence[float],
        factors_M: Sequence[np.ndarray | None] | None,
        feed: Callable[[Segment, int], None],
        *,
        loaded: bool,
    ) -> None:
        """Train on the batches of a segment that `load` was called for.

        Parameters
        ----------
        segment : Segment
        rates_M, factors_M : sequence
            See `stack.Stack.run_epoch`.
        feed : callable
            ``feed(segment, g)`` puts rows of batch g in place, where they come from the host.
        loaded : bool
            Whether the rows of the one batch that there is lie in place already.
        """
        self._send_numbers(segment, rates_M, factors_M)
        desk = self._desk(segment.bank)
        if self._drawing is not None:
            for slot in segment.bank.slots[: segment.n_batches]:
                self._drawing.draw(slot)
        if self._whole and not loaded:
            in_turn(desk.before_G[0])()
        if self._captures:
            self._replayed(segment, desk)()
            return
        for g in range(segment.n_batches):
            if self.host_fed and not loaded:
                feed(segment, g)
            for op in self._step(segment, desk, g):
                op()
            if self._recorder is not None:
                self._recorder.after_update(segment.batches.start + g)

    def _replayed(self, segment: Segment, desk: _Desk) -> Replayed:
        """All steps of a segment; those of one bank and length are the same operations."""
        n = segment.n_batches
        if n not in desk.replayed:
            steps = [op for g in range(n) for op in self._step(segment, desk, g)]
            desk.replayed[n] = Replayed(in_turn(steps), self.graphs, self._pool)
        return desk.replayed[n]

    def _step(self, segment: Segment, desk: _Desk, g: int) -> list[Op]:
        before = [] if self._whole else desk.before_G[g]
        return [*before, *segment.programs[g], *desk.after_G[g]]


def _dense(X: Features) -> np.ndarray | Tensor:
    assert isinstance(X, (np.ndarray, Tensor))
    return X


def _silence(grads_MP: Tensor, live_M: Tensor) -> Op:
    """Gradients of models that take no step become 0, whatever they are."""

    def silence() -> None:
        grads_MP.masked_fill_((live_M == 0)[:, None], 0.0)

    return silence
