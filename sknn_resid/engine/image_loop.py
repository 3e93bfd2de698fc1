"""The training loop of image networks: epochs, then judging each of them.

The counterpart of `loop` for one network whose derivatives come from autograd. Counting, stopping,
schedules, update rules and averages are the same objects; only a step is another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.averaging import AverageState, StackAverage
from sknn_resid.engine.history import EpochView, Progress, Resume, StopReason, ValidationView
from sknn_resid.engine.image_augment import draw, epoch_generator
from sknn_resid.engine.image_checkpoint import Checkpoint, digest
from sknn_resid.engine.image_data import ImageSet, Scaling, batch_slices
from sknn_resid.engine.image_evaluation import STATISTICS_ROWS, logits_of, measure_statistics
from sknn_resid.engine.image_network import FlatNetwork, flops_per_step
from sknn_resid.engine.image_spec import ImageTrainSpec
from sknn_resid.engine.image_step import Batch, Stepper
from sknn_resid.engine.optimizers import OptimizerState, make_optimizer
from sknn_resid.engine.processes import Processes, joined
from sknn_resid.engine.resnet import ResNet, initialize, load_arrays
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.engine.threads import training_threads


@dataclass(frozen=True, eq=False)
class ImageJob:
    """Everything that one image network's training depends on.

    Attributes
    ----------
    network : ResNetSpec
    train : ImageTrainSpec
    data : ImageSet
        Rows of weight zero left out.
    scaling : Scaling
    device : torch.device
    seed : int
        Of initial weights, order, augmentation and drop path.
    start : mapping of str to ndarray, or None
        Weights to begin with; None draws them.
    first_epoch : int
        Epochs of earlier calls, which go on drawing where those ended.
    validation : ImageSet or None
    score : callable or None
        ``score(view) -> float`` judges the validation part after an epoch; more is better.
    on_epoch : callable or None
        ``on_epoch(view) -> bool``: True stops.
    resume : Resume
    checkpoint_dir : str or None
        Folder for a file after each epoch, from which an interrupted training goes on.
    data_parallel : bool
        Whether the processes that ``torchrun`` started share every batch. Each of them gets the
        same job.
    """

    network: ResNetSpec
    train: ImageTrainSpec
    data: ImageSet
    scaling: Scaling
    device: torch.device
    seed: int
    start: Mapping[str, np.ndarray] | None = None
    first_epoch: int = 0
    validation: ImageSet | None = None
    score: Callable[[ValidationView], float] | None = None
    on_epoch: Callable[[EpochView], bool] | None = None
    resume: Resume = field(default_factory=Resume)
    checkpoint_dir: str | None = None
    data_parallel: bool = False


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What training leaves behind, in host memory; fields as in `TrainResult`.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Weights and statistics by torchvision's names.
    """

    arrays: dict[str, np.ndarray]
    loss_curve: list[float]
    validation_scores: list[float]
    validation_losses: list[float]
    best_loss: float
    best_score: float
    n_epochs: int
    rows_seen: int
    no_improvement: int
    reason: StopReason
    has_finite_epoch: bool
    optimizer: OptimizerState


def train_images(job: ImageJob, poll: Callable[[], None] | None = None) -> ImageResult:
    """Train one image network.

    Ctrl-C ends it with the best weights so far and ``StopReason.INTERRUPTED``; the caller decides
    whether the interrupt goes on.

    Parameters
    ----------
    job : ImageJob
    poll : callable or None
        Called before each step; raises KeyboardInterrupt to end the training as Ctrl-C does.
    """
    spec = job.train.train
    flops = flops_per_step(job.network, job.data.images.shape, spec.batch_size)
    with ExitStack() as stack:
        stack.enter_context(training_threads(flops, numpy_products=False))
        stack.enter_context(_convolutions(job))
        processes = None
        if job.data_parallel:
            processes = stack.enter_context(joined(job.device))
        return _Run(job, poll, processes).train()


@contextmanager
def _convolutions(job: ImageJob) -> Iterator[None]:
    """How cuDNN chooses its convolutions, for the time of a training; then as it was."""
    if job.device.type != "cuda":
        yield
        return
    deterministic = job.train.deterministic
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=True,
        benchmark=not deterministic,
        deterministic=deterministic,
        allow_tf32=cudnn.allow_tf32,
    ):
        yield


class _Run:
    """Running state of one training."""

    def __init__(
        self, job: ImageJob, poll: Callable[[], None] | None, processes: Processes | None
    ) -> None:
        self.job, train = job, job.train.train
        self.processes = processes
        self.poll = poll
        self.started = time.monotonic()
        module = ResNet(job.network, job.train.dtype, job.device)
        if job.start is None:
            initialize(module, torch.Generator().manual_seed(job.seed))
        else:
            load_arrays(module, job.start)
        if job.train.freeze is not None:
            module.freeze_to(job.train.freeze)
        module.train()
        self.network = FlatNetwork(module, job.train.body_factor)
        self.batches = batch_slices(job.data.n_rows, train.batch_size)
        state = job.resume.optimizer
        self.optimizer = make_optimizer(self.network, [train.optimizer], [train.penalty], [state])
        self.average: StackAverage | None = None
        if train.average_horizon > 0:
            planned = train.average_horizon * len(self.batches) * train.max_epochs
            self.average = StackAverage(self.network.params_MP, [planned], [None])
        self.generator = torch.Generator()
        self.stepper = Stepper(
            self.network,
            job.data,
            job.scaling,
            job.train,
            self.optimizer,
            self.average,
            self.generator,
            processes,
        )
        rate = train.optimizer.learning_rate if state is None else state.learning_rate
        self.progress = Progress(train, job.resume, rate, self.judged_P)
        self.checkpoint = self._checkpoint()

    @property
    def judged_P(self) -> Tensor:
        """The parameters that are judged and kept: averages, where there are any."""
        source = self.network if self.average is None else self.average
        return source.params_MP[0]

    # -- the loop ----------------------------------------------------------------------------

    def train(self) -> ImageResult:
        """Epochs until it is to end."""
        progress = self.progress
        try:
            self._go_back()
            while progress.reason is None:
                self._end_epoch(self._epoch())
        except KeyboardInterrupt:
            progress.reason = StopReason.INTERRUPTED
        return self._result()

    def _epoch(self) -> float:
        """Steps of one epoch; its mean loss, by weight."""
        job, train = self.job, self.job.train.train
        done = self.progress.n_epochs
        epoch = job.first_epoch + done
        rng = epoch_generator(job.seed, epoch)
        n, n_steps = job.data.n_rows, len(self.batches)
        order = np.arange(n)
        if train.shuffle and n_steps > 1:  # the order within the only batch cannot matter
            rng.shuffle(order)
        augmentation = job.train.augmentation
        changes = draw(augmentation, n, job.data.images.shape, job.seed, epoch, rng, job.device)
        mix = [1.0] * n_steps
        if augmentation.mixup > 0:
            mix = rng.beta(augmentation.mixup, augmentation.mixup, n_steps).tolist()
        self.generator.manual_seed(int(rng.randint(2**31 - 1)))
        factors = train.schedule.factors(done * n_steps, n_steps, train.max_epochs * n_steps)
        losses, weights = [], []
        for step, part in enumerate(self.batches):
            if self.poll is not None:
                self.poll()
            positions = order[part]
            rows = job.data.at(positions)
            at = None if changes is None else changes.at(torch.from_numpy(positions).to(job.device))
            rate = self.progress.rate * (1.0 if factors is None else float(factors[step]))
            losses.append(self.stepper.step(Batch(rows, at, mix[step]), rate))
            weights.append(float(job.data.row_weights(rows).sum()))
        return float(np.average(torch.stack(losses).cpu().numpy(), weights=weights))

    def _end_epoch(self, loss: float) -> None:
        """What follows an epoch: record, judge, tell, decide, as in `loop`."""
        job, progress, train = self.job, self.progress, self.job.train.train
        rate = progress.rate
        finite = progress.record_loss(loss, job.data.n_rows, self.judged_P)
        finite = finite and bool(self.network.params_MP.isfinite().all())
        last = progress.n_epochs >= train.max_epochs
        judged = job.validation is not None and (last or progress.n_epochs % train.judge_every == 0)
        if judged and finite:
            self._judge()
        elif judged:
            progress.record_score(math.nan, math.nan, self.judged_P)
        if finite:
            progress.end_epoch(train.optimizer.learning_rate)
        else:
            progress.reason = StopReason.DIVERGED
        late = time.monotonic() - self.started
        if train.max_seconds is not None and self._any(late >= train.max_seconds):
            progress.reason = progress.reason or StopReason.MAX_TIME
        if self.checkpoint is not None and progress.reason in (None, StopReason.MAX_TIME):
            self._save(self.checkpoint)
        if job.on_epoch is not None:
            view = self._view(loss, rate, judged=judged)
            if self._any(job.on_epoch(view)):
                progress.reason = progress.reason or StopReason.CALLBACK

    def _any(self, flag: bool) -> bool:
        """Whether one of the processes says so: they stop together or wait for ever."""
        return bool(flag) if self.processes is None else self.processes.any(flag, self.job.device)

    def _judge(self) -> None:
        job = self.job
        assert job.validation is not None
        with self._measured(self.judged_P, STATISTICS_ROWS):
            module, precision = self.network.module, job.train.autocast
            logits = logits_of(module, job.validation, job.scaling, precision)
        loss = _cross_entropy(logits, job.validation)
        score = math.nan
        if job.score is not None and np.isfinite(logits).all():
            score = float(job.score(ValidationView(logits, loss, self._arrays)))
        if self.processes is not None:
            score, loss = self.processes.of_first([score, loss], job.device)
        self.progress.record_score(score, loss, self.judged_P)

    def _view(self, loss: float, rate: float, *, judged: bool) -> EpochView:
        progress = self.progress
        return EpochView(
            epoch=progress.n_epochs,
            loss=loss,
            validation_score=progress.validation_scores[-1] if judged else None,
            validation_loss=progress.validation_losses[-1] if judged else None,
            learning_rate=rate,
            reason=progress.reason,
            lowered_rate=progress.lowered_rate,
            weights=self._arrays,
            parameters=lambda: self.judged_P.cpu().numpy().copy(),
        )

    # -- weights with their statistics --------------------------------------------------------

    @contextmanager
    def _measured(self, params_P: Tensor, most_rows: int | None) -> Iterator[None]:
        """The network with these parameters and the statistics that belong to them."""
        job, live_P = self.job, self.network.params_MP[0]
        before = live_P.clone()
        live_P.copy_(params_P)
        try:
            measure_statistics(
                self.network.module,
                job.data,
                job.scaling,
                max(2, job.train.train.batch_size // self.stepper.n_parts),
                seed=job.seed,
                product_dtype=job.train.autocast,
                most_rows=most_rows,
            )
            yield
        finally:
            live_P.copy_(before)

    def _arrays(self) -> dict[str, np.ndarray]:
        with self._measured(self.judged_P, STATISTICS_ROWS):
            return self.network.arrays()

    def _result(self) -> ImageResult:
        progress = self.progress
        reason = progress.reason
        assert reason is not None
        diverged, interrupted = reason is StopReason.DIVERGED, reason is StopReason.INTERRUPTED
        params_P = self.judged_P
        if diverged or interrupted or self.job.train.train.watch_validation:
            params_P = progress.best_params(diverged=diverged)
        # Who pressed Ctrl-C does not want to wait for a pass over all images.
        with self._measured(params_P.clone(), STATISTICS_ROWS if interrupted else None):
            arrays = self.network.arrays()
        complete = not interrupted and reason is not StopReason.MAX_TIME
        if self.checkpoint is not None and complete and self._writes:
            self.checkpoint.remove()
        return ImageResult(
            arrays=arrays,
            loss_curve=progress.loss_curve,
            validation_scores=progress.validation_scores,
            validation_losses=progress.validation_losses,
            best_loss=progress.best_loss,
            best_score=progress.best_score,
            n_epochs=progress.n_epochs,
            rows_seen=progress.rows_seen,
            no_improvement=progress.no_improvement,
            reason=reason,
            has_finite_epoch=progress.has_finite_epoch(),
            optimizer=self.optimizer.export(0, progress.rate),
        )

    # -- interrupted trainings ----------------------------------------------------------------

    @property
    def _writes(self) -> bool:
        """One of the processes keeps the file; all of them read it."""
        return self.processes is None or self.processes.rank == 0

    def _checkpoint(self) -> Checkpoint | None:
        job = self.job
        if job.checkpoint_dir is None:
            return None
        timeless = replace(job.train, train=replace(job.train.train, max_seconds=None))
        resume = replace(job.resume, optimizer=None)
        key = digest(
            job.network,
            timeless,
            job.data,
            job.validation,
            [job.scaling.mean.tolist(), job.scaling.std.tolist()],
            job.device.type,
            job.seed,
            dict(job.start or {}),
            job.first_epoch,
            resume,
        )
        return Checkpoint(job.checkpoint_dir, key)

    def _save(self, checkpoint: Checkpoint) -> None:
        if not self._writes:
            return
        numbers, kept = self.progress.snapshot()
        state = self.optimizer.export(0, self.progress.rate)
        arrays = {"params": self.network.params_MP[0].cpu().numpy(), "kept": kept}
        arrays |= {f"moment_{i}": moment for i, moment in enumerate(state.moments)}
        if self.average is not None:
            average = self.average.export(0)
            arrays["average"] = average.params_P.cpu().numpy()
            numbers["average_steps"] = average.steps
        if self.stepper.loss_scale is not None:
            arrays["loss_scale"] = self.stepper.loss_scale.state.cpu().numpy()
        checkpoint.save(numbers | {"steps": state.steps, "n_parts": self.stepper.n_parts}, arrays)

    def _go_back(self) -> None:
        """Go on from the checkpoint, if an earlier call left one."""
        found = None if self.checkpoint is None else self.checkpoint.load()
        if found is None:
            return
        numbers, arrays = found
        device = self.network.device
        self.network.params_MP[0].copy_(torch.from_numpy(arrays["params"]))
        self.progress.restore(numbers, arrays["kept"])
        for i, moment in enumerate(self.optimizer.moments):
            moment[0].copy_(torch.from_numpy(arrays[f"moment_{i}"]))
        self.optimizer.steps[0] = numbers["steps"]
        self.stepper.n_parts = numbers["n_parts"]
        if self.average is not None:
            params_P = torch.from_numpy(arrays["average"]).to(device)
            self.average.restore(0, AverageState(params_P, numbers["average_steps"]))
        if self.stepper.loss_scale is not None:
            self.stepper.loss_scale.state = torch.from_numpy(arrays["loss_scale"]).to(device)


def _cross_entropy(logits_NK: np.ndarray, data: ImageSet) -> float:
    """Weighted mean of -log p(class), without label smoothing."""
    z_NK = torch.from_numpy(logits_NK)
    rows = data.all_rows()
    y_N = torch.from_numpy(data.codes[rows])
    losses = torch.nn.functional.cross_entropy(z_NK, y_N, reduction="none").numpy()
    return float(np.average(losses, weights=data.row_weights(rows)))
