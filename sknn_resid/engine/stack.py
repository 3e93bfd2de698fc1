"""A stack at work: the memory, the bound steps and the optimizer of M jobs, one epoch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine import native
from sknn_resid.engine.accelerated import AcceleratedSteps
from sknn_resid.engine.averaging import AverageState, StackAverage
from sknn_resid.engine.compiled import CompiledEpoch, Source, compiles, scaled
from sknn_resid.engine.data import RowOrder
from sknn_resid.engine.gradient_flow import FlowRecorder
from sknn_resid.engine.graphs import Graphs
from sknn_resid.engine.job import TrainJob, features_on_device, pieces_of, target_tensor
from sknn_resid.engine.kernels import Op, numpy_speaks
from sknn_resid.engine.network import StackedNetwork
from sknn_resid.engine.optimizers import OptimizerState, make_optimizer
from sknn_resid.engine.slots import (
    DEVICE_SEGMENT_BYTES,
    SEGMENT_BYTES,
    Gather,
    Segment,
    SlotBank,
    gather_tensor,
    max_rows_per_batch,
    slots_per_segment,
)
from sknn_resid.engine.spec import NetworkSpec, OptimizerKind
from sknn_resid.engine.structure import input_dtype, make_network
from sknn_resid.engine.tally import Tally

# A short last batch of at least this share of a full one is filled up with rows of weight 0 and
# goes with the full ones, if one segment holds all: the few operations at the ends of a segment
# (targets, losses) are other code than the steps, and drive it out of the processor's caches. On
# digits (8 batches of 200 and one of 197) that is 90 of the 1,370 microseconds of an epoch.
PAD_FROM = 0.75


@dataclass(frozen=True, eq=False)
class Member:
    """One job on its way through stacks: what must survive a compaction."""

    job: TrainJob
    order: RowOrder
    generator: torch.Generator
    params_P: Tensor
    optimizer: OptimizerState | None
    average: AverageState | None = None

    @property
    def judged_P(self) -> Tensor:
        """The weights that count: averages where they are kept."""
        return self.params_P if self.average is None else self.average.params_P


def new_member(job: TrainJob, order: RowOrder | None = None) -> Member:
    """A job at its start; ``order`` where it shares one with others."""
    generator = torch.Generator(device=job.device)
    if job.dropout_seed is not None:
        generator.manual_seed(job.dropout_seed)
    params_P = torch.from_numpy(job.params).to(device=job.device, dtype=job.network.dtype)
    if order is None:
        order = RowOrder(job.data, job.rng, job.train.shuffle)
    return Member(job, order, generator, params_P, job.resume.optimizer)


class Stack:
    """M jobs of one structure, trained together.

    Each job sees the batches it would see alone; where its rows end earlier than another's, it is
    padded with rows of weight 0 and takes no step. Where all jobs share one `RowOrder`, their rows,
    targets and weights are read from one copy of each batch.

    Parameters
    ----------
    members : sequence of Member
    poll : callable or None
        Called several times an epoch; may raise to end the training.
    graphs : Graphs or None
        How steps are carried out on an accelerator; None for a CPU.
    """

    def __init__(
        self,
        members: Sequence[Member],
        poll: Callable[[], None] | None = None,
        graphs: Graphs | None = None,
    ) -> None:
        self.members = list(members)
        self._poll = poll
        jobs = self._jobs = [member.job for member in members]
        first = jobs[0]
        self.batch = max(min(job.train.batch_size, job.data.n_rows) for job in jobs)
        in_one = graphs is None and compiles(jobs)  # every operation of a step is native
        self._pieces = pieces_of(jobs, self.batch)
        self.network = make_network(
            first.network,
            torch.stack([member.params_P for member in members]),
            self.batch,
            [job.train for job in jobs],
            [member.generator for member in members],
            [job.input_scale for job in jobs],
            model_by_model=in_one and not first.train.record_flow,
            pieces=self._pieces,
        )
        self.params_M = list(self.network.params_MP)  # one view a model
        self._orders = [member.order for member in members]
        self._shared = len(members) > 1 and len({id(order) for order in self._orders}) == 1
        # Where rows, targets and weights come from: one member for all, or each for itself.
        self._sources = self.members[:1] if self._shared else self.members
        self._counts = [rows_per_epoch(job) for job in jobs]  # rows that take part in an epoch
        self._whole = all(job.data.n_rows <= self.batch for job in jobs)
        self._n_rows = np.array(self._counts)
        self._n_batches, self._tail = max_rows_per_batch(list(self._n_rows), self.batch)
        # A column of ones beside X takes the bias into the first product. Gathering into strided
        # memory costs as much as that saves, unless one gathering serves many models or steps.
        self._with_ones = (
            len(jobs) > 1
            and graphs is None
            and not in_one
            and isinstance(first.network, NetworkSpec)
            and first.network.n_hidden > 0
            and first.network.product_dtype == first.network.dtype
            and numpy_speaks(self.network.params_MP)
            and (self._shared or self._n_batches == 1)
        )
        decoupled = first.train.optimizer.kind in (OptimizerKind.ADAMW, OptimizerKind.MUON)
        penalty_M = np.array([0.0 if decoupled else job.train.penalty for job in jobs])
        self.tally = Tally(
            [member.order for member in self._sources],
            self._n_rows,
            self._n_batches,
            penalty_M,
            first.network.loss.reported_scale(first.network.n_outputs),
            weighted=any(job.data.weight is not None for job in jobs),
        )
        self.optimizer = make_optimizer(
            self.network,
            [job.train.optimizer for job in jobs],
            [job.train.penalty for job in jobs],
            [member.optimizer for member in members],
        )
        self._average: StackAverage | None = None
        if first.train.average_horizon > 0:
            self._average = StackAverage(
                self.network.params_MP,
                [job.train.average_horizon * planned_steps(job) for job in jobs],
                [member.average for member in members],
            )
        judged = self.network.params_MP if self._average is None else self._average.params_MP
        self.judged_M = list(judged)  # the weights that are judged and kept
        self._penalised = bool((penalty_M > 0).any())
        self._smoothing_M = None
        if any(job.train.label_smoothing > 0 for job in jobs):
            self._smoothing_M = torch.tensor(
                [member.job.train.label_smoothing for member in self._sources],
                dtype=first.network.dtype,
            ).to(first.device)
        self.recorder: FlowRecorder | None = None
        if first.train.record_flow:
            self.recorder = FlowRecorder(self.network, self._n_rows.tolist(), self.batch)
        self._accelerated = None if graphs is None else self._accelerate(graphs)
        if self._accelerated is None:
            self._targets = [target_tensor(member.job) for member in self._sources]
        if self._accelerated is None or self._accelerated.host_fed:
            self._features = features_on_device([m.job for m in self._sources], self._pieces)
        else:
            self._features = []
        self.compiled = self._compile() if in_one else None
        self._segments = [] if in_one else self._make_segments()
        self._loaded = False
        if self.recorder is not None:
            self._bind_recorder(self.recorder)

    # -- memory ------------------------------------------------------------------------------

    def _make_bank(self, n_slots: int, batch: int) -> SlotBank:
        job, pieces = self._jobs[0], self._pieces
        return SlotBank(
            len(self._jobs),
            n_slots,
            batch,
            job.data.n_features if pieces is None else pieces.n_columns,
            job.network.n_outputs,
            job.data.y.shape[1],
            codes=job.network.loss.codes,
            dtype=job.network.dtype,
            product_dtype=input_dtype(job.network),
            device=job.device,
            sparse=scipy.sparse.issparse(job.data.X) and job.device.type == "cpu",
            shared=self._shared,
            with_ones=self._with_ones,
        )

    def _make_segments(self) -> list[Segment]:
        network = self._jobs[0].network
        per_batch = len(self._jobs) * self.batch * network.n_outputs * network.dtype.itemsize
        most = SEGMENT_BYTES if self._accelerated is None else DEVICE_SEGMENT_BYTES
        fits = slots_per_segment(2 * per_batch, self._n_batches, most) == self._n_batches
        nearly_full = PAD_FROM * self.batch <= self._tail
        n_full = self._n_batches - 1
        if self._tail == self.batch or (nearly_full and fits and isinstance(network, NetworkSpec)):
            n_full = self._n_batches
        segments: list[Segment] = []
        if n_full:
            bank = self._make_bank(slots_per_segment(2 * per_batch, n_full, most), self.batch)
            programs = [self._bind(bank, g) for g in range(bank.n_slots)]
            gather_S = self._bind_gather(bank)
            for first in range(0, n_full, bank.n_slots):
                used = min(bank.n_slots, n_full - first)
                batches = slice(first, first + used)
                views = bank.used(used)
                segments.append(Segment(bank, views, programs[:used], gather_S, batches))
        if n_full < self._n_batches:
            bank = self._make_bank(1, self._tail)
            programs, gather_S = [self._bind(bank, 0)], self._bind_gather(bank)
            last = slice(n_full, n_full + 1)
            segments.append(Segment(bank, bank.used(1), programs, gather_S, last))
        for segment in segments:
            self._load_even_weights(segment)
        return segments

    def _compile(self) -> CompiledEpoch:
        assert isinstance(self.network, StackedNetwork)
        clipped = self._jobs[0].train.clip_norm is not None
        return CompiledEpoch(
            self.network,
            self.optimizer,
            self.tally,
            [
                Source(member.job, member.order, X, y, n)
                for member, X, y, n in zip(
                    self._sources, self._features, self._targets, self._counts, strict=False
                )
            ],
            self._clip_norms() if clipped else None,
            self.batch,
            penalised=self._penalised,
            recorder=self.recorder,
        )

    def _accelerate(self, graphs: Graphs) -> AcceleratedSteps:
        return AcceleratedSteps(
            graphs,
            self._jobs,
            [member.job for member in self._sources],
            [member.order for member in self._sources],
            self._counts[: len(self._sources)],
            self.network,
            self.optimizer,
            self.tally,
            self._average,
            self.recorder,
            whole=self._whole,
        )

    def _clip_norms(self) -> Tensor:
        first = self._jobs[0]
        norms = [job.train.clip_norm for job in self._jobs]
        return torch.tensor(norms, dtype=first.network.dtype).to(first.device)

    def _bind_gather(self, bank: SlotBank) -> list[Gather]:
        return [bank.bind_gather(s, X) for s, X in enumerate(self._features)]

    def _bind_recorder(self, recorder: FlowRecorder) -> None:
        """Programs of their own for the batches that are measured."""
        for segment in self._segments:
            for g in range(segment.n_batches):
                if segment.batches.start + g in recorder.batches:
                    look = partial(recorder.before_update, segment.bank.slots[g].r_M1B)
                    segment.programs[g] = self._bind(segment.bank, g, [look])

    def _bind(self, bank: SlotBank, g: int, before_penalty: Sequence[Op] = ()) -> list[Op]:
        slot = bank.slots[g]
        program = self.network.bind(slot, penalised=self._penalised, before_penalty=before_penalty)
        if self._penalised:
            program.insert(0, self.network.bind_penalty(slot.square_M))
        if self._jobs[0].train.clip_norm is not None:
            program += self.network.bind_clipping(self._clip_norms())
        return native.join(program)

    # -- one epoch ---------------------------------------------------------------------------

    def steps_per_epoch(self) -> np.ndarray:
        """Number of batches of each model."""
        return -(-self._n_rows // self.batch)

    def run_epoch(
        self,
        rates_M: Sequence[float],
        factors_M: Sequence[np.ndarray | None] | None,
        running: Sequence[int],
    ) -> np.ndarray:
        """Train every model for one epoch.

        Parameters
        ----------
        rates_M : sequence of float
            Learning rate of each model.
        factors_M : sequence of (ndarray or None), or None
            Factor of the rate at each step of each model; None for 1, for one model or for all.
        running : sequence of int
            The models whose results still count. The others' steps go on unseen, but they draw
            no more random numbers.

        Returns
        -------
        ndarray of shape (M,)
            Reported loss of the epoch: the mean over rows, plus the penalty.
        """
        drawn: set[int] = set()
        for m in running[:1] if self._shared else running:
            if id(self._orders[m]) in drawn:
                continue
            drawn.add(id(self._orders[m]))
            # Its own number of batches counts, not that of its neighbours: alone or beside others,
            # a model whose one batch holds every row keeps their order.
            if self.members[m].job.data.n_rows > self.batch or self.members[m].job.rng_is_shared:
                self._orders[m].next_epoch()
        # A diverging model overflows; the loss tells, numpy need not warn of it as well.
        with np.errstate(all="ignore"):
            if self.compiled is not None:
                loaded = self._loaded and self._whole
                self.compiled.run(rates_M, factors_M, running, self._poll, loaded=loaded)
                self._loaded = True
                return self.tally.epoch_loss()
            if self._accelerated is not None:
                return self._run_accelerated(self._accelerated, rates_M, factors_M)
            return self._run_segments(rates_M, factors_M)

    def _run_segments(
        self, rates_M: Sequence[float], factors_M: Sequence[np.ndarray | None] | None
    ) -> np.ndarray:
        step = self.optimizer.step
        for segment in self._segments:
            if self._poll is not None:
                self._poll()
            # One batch that holds every row is loaded once: the order of its rows does not matter.
            stays = self._loaded and self._whole
            if not stays:
                self._load(segment)
            active = None
            if not self.tally.even:
                active = self.tally.live_Mb[:, segment.batches].T.tolist()
            for g, program in enumerate(segment.programs):
                if not stays:
                    self._gather(segment, g)
                for op in program:
                    op()
                rates = rates_M
                if factors_M is not None:
                    rates = scaled(rates_M, factors_M, segment.batches.start + g)
                step(rates, None if active is None else active[g])
                if self.recorder is not None:
                    self.recorder.after_update(segment.batches.start + g)
                if self._average is not None:
                    self._average.update(None if active is None else active[g])
            self._note_values(segment)
        if self.recorder is not None:
            self.recorder.end_epoch()
        return self.tally.epoch_loss()

    def _run_accelerated(
        self,
        steps: AcceleratedSteps,
        rates_M: Sequence[float],
        factors_M: Sequence[np.ndarray | None] | None,
    ) -> np.ndarray:
        with steps.graphs.epoch():
            for segment in self._segments:
                if self._poll is not None:
                    self._poll()
                stays = self._loaded and self._whole
                if not stays:
                    self._load(segment)
                steps.run(segment, rates_M, factors_M, self._gather, loaded=stays)
                self._note_values(segment)
        if self.recorder is not None:
            self.recorder.end_epoch()
        return self.tally.epoch_loss()

    def _gather(self, segment: Segment, g: int) -> None:
        """Rows of X of batch g of the segment."""
        first = segment.batches.start * self.batch + g * segment.bank.batch
        stop = first + segment.bank.batch
        # one gather for all models where they share their rows
        for gather, order, n in zip(segment.gather_S, self._orders, self._counts, strict=False):
            gather(order.rows(min(first, n), min(stop, n)))

    def _load(self, segment: Segment) -> None:
        """Targets and weights of all batches of the segment."""
        views = segment.views
        first = segment.batches.start * self.batch
        stop = first + segment.n_batches * segment.bank.batch
        if self._accelerated is not None:
            self._accelerated.load(segment, first)
        else:
            for s, member in enumerate(self._sources):
                rows = member.order.rows(min(first, self._n_rows[s]), min(stop, self._n_rows[s]))
                gather_tensor(self._targets[s], views.y_M[s], rows)
        if not self.tally.even:
            self.tally.load(segment.bank, segment.batches, first)
        loss = self._jobs[0].network.loss
        loss.load_targets(views.T_MGKB, views.y_MGBT, views.r_MG1B, self._smoothing_M)
        self._loaded = True

    def _load_even_weights(self, segment: Segment) -> None:
        """Weights that are the same in every epoch."""
        if not self.tally.even:
            return
        bank = segment.bank
        if segment.batches.stop == self._n_batches and self._tail < bank.batch:
            self.tally.load(bank, segment.batches, segment.batches.start * self.batch)
        else:
            self.tally.load_even(bank, segment.batches)

    def _note_values(self, segment: Segment) -> None:
        """Loss and |W|^2 of each batch of the segment, at the weights before its step."""
        views, loss = segment.views, self._jobs[0].network.loss
        self.tally.value_Mb[:, segment.batches] = loss.value(*views.in_memory).T
        if self._penalised:
            self.tally.square_Mb[:, segment.batches] = views.square_GM.cpu().numpy().T

    # -- leaving -----------------------------------------------------------------------------

    def member(self, m: int, learning_rate: float) -> Member:
        """Model m as it is now, ready for another stack."""
        old = self.members[m]
        params_P = self.network.params_MP[m].clone()
        state = self.optimizer.export(m, learning_rate)
        average = None if self._average is None else self._average.export(m)
        return Member(old.job, old.order, old.generator, params_P, state, average)


def rows_per_epoch(job: TrainJob) -> int:
    """Rows that take part in an epoch: all, or those of full batches."""
    n, batch = job.data.n_rows, job.train.batch_size
    return n - n % batch if job.train.drop_last and n > batch else n


def planned_steps(job: TrainJob) -> int:
    """Steps of the whole training, if nothing stops it."""
    return job.train.max_epochs * -(-rows_per_epoch(job) // job.train.batch_size)
