"""Full-batch training by L-BFGS: scipy's minimiser on the engine's own forward and backward pass.

Liu and Nocedal (1989). scipy gets scikit-learn's own pair: the reported loss (for squared error the
mean over outputs) with the gradient of the objective (the sum over outputs). The computation runs
in float64 whatever the data's dtype, as scikit-learn's does: the line search cannot work with the
noise of float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import scipy.optimize
import scipy.sparse
import torch

from sknn_resid.engine.data import row_chunks
from sknn_resid.engine.fused_judge import FusedJudge
from sknn_resid.engine.history import Progress, StopReason
from sknn_resid.engine.job import TrainJob, TrainResult, target_tensor
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.layout import dense_layout
from sknn_resid.engine.network import StackedNetwork
from sknn_resid.engine.slots import SlotBank, gather_tensor
from sknn_resid.engine.spec import AnySpec, NetworkSpec
from sknn_resid.engine.validation import epoch_view, judge

CHUNK_ROWS = 8192  # rows per pass: bounds the memory of the activations


class _Objective:
    """Loss and gradient over all rows, gathered chunk by chunk."""

    def __init__(self, job: TrainJob, poll: Callable[[], None] | None = None) -> None:
        self.job, self._poll = job, poll
        spec = dense(job.network)
        params_MP = torch.from_numpy(job.params.astype(np.float64))[None].to(job.device)
        n = job.data.n_rows
        chunk = min(n, CHUNK_ROWS)
        generator = torch.Generator(device=job.device)
        self.network = StackedNetwork(spec, params_MP, chunk, [0.0], [generator])
        weight = job.data.weight
        self._weight = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)
        self._total = float(self._weight.sum())
        self._rows = np.arange(n) if job.data.rows is None else job.data.rows
        self._y = target_tensor(job)
        self._smoothing = None
        if job.train.label_smoothing > 0:
            smoothing = torch.tensor([job.train.label_smoothing], dtype=torch.float64)
            self._smoothing = smoothing.to(job.device)
        self._passes: list[tuple[slice, SlotBank, list[Op]]] = []
        banks: dict[int, tuple[SlotBank, list[Op]]] = {}
        for rows in row_chunks(n, chunk):
            size = rows.stop - rows.start
            if size not in banks:
                bank = self._make_bank(size)
                banks[size] = (bank, self.network.bind(bank.slots[0], penalised=False))
            self._passes.append((rows, *banks[size]))
        self._loaded = False

    def _make_bank(self, batch: int) -> SlotBank:
        data, spec = self.job.data, self.job.network
        return SlotBank(
            1,
            1,
            batch,
            data.n_features,
            spec.n_outputs,
            data.y.shape[1],
            codes=spec.loss.codes,
            dtype=torch.float64,
            product_dtype=torch.float64,
            device=self.job.device,
            sparse=scipy.sparse.issparse(data.X) and self.job.device.type == "cpu",
        )

    def _load(self, rows: slice, bank: SlotBank) -> None:
        if self._loaded and len(self._passes) == 1:
            return
        views, picked = bank.used(1), self._rows[rows]
        gather_tensor(self._y, views.y_M[0], picked)
        bank.bind_gather(0, self.job.data.X)(picked)
        r = torch.from_numpy(self._weight[rows] / self._total)
        bank.r_MG1B[0, 0, 0].copy_(r)
        self.job.network.loss.load_targets(bank.T_MGKB, bank.y_MGBT, bank.r_MG1B, self._smoothing)
        self._loaded = True

    def __call__(self, params_P: np.ndarray) -> tuple[float, np.ndarray]:
        if self._poll is not None:
            self._poll()
        network, loss = self.network, self.job.network.loss
        network.params_MP[0].copy_(torch.from_numpy(params_P))
        gradient = torch.zeros_like(network.grads_MP[0])
        value = 0.0
        for rows, bank, program in self._passes:
            self._load(rows, bank)
            with np.errstate(all="ignore"):  # an overflow shows in the value
                for op in program:
                    op()
            value += float(loss.value(bank.Z_MGKB, bank.T_MGKB, bank.r_MG1B)[0, 0])
            gradient.add_(network.grads_MP[0])
        value *= loss.reported_scale(self.job.network.n_outputs)
        n_weights = network.layout.n_weights
        decay = self.job.train.penalty / self._total
        weights = network.params_MP[0, :n_weights]
        value += 0.5 * decay * float(weights @ weights)
        gradient[:n_weights].add_(weights, alpha=decay)
        return value, gradient.cpu().numpy()


class _Watcher:
    """scipy's callback: history, callbacks, time limit, best weights so far."""

    def __init__(self, job: TrainJob, progress: Progress) -> None:
        self.job, self.progress = job, progress
        self.x = job.params.astype(np.float64)
        self.loss = math.nan
        self._started = time.monotonic()

    def __call__(self, intermediate_result: scipy.optimize.OptimizeResult) -> None:
        progress, job = self.progress, self.job
        self.x, self.loss = intermediate_result.x.copy(), float(intermediate_result.fun)
        progress.n_epochs += 1
        if job.validation is not None:
            score, loss = judge(job, torch.from_numpy(self.x), self._weights, FusedJudge())
            progress.validation_scores.append(score)
            progress.validation_losses.append(loss)
            progress.best_score = max(progress.best_score, score)
        limit = job.train.max_seconds
        if limit is not None and time.monotonic() - self._started >= limit:
            progress.reason = StopReason.MAX_TIME
        elif progress.n_epochs >= job.train.max_epochs:
            progress.reason = StopReason.MAX_EPOCHS
        if job.on_epoch is not None:
            view = epoch_view(progress, self.loss, math.nan, self._weights, self.x.copy)
            if job.on_epoch(view) and progress.reason is None:
                progress.reason = StopReason.CALLBACK
        if progress.reason in (StopReason.MAX_TIME, StopReason.CALLBACK):
            raise StopIteration

    def _weights(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        spec = dense(self.job.network)
        return dense_layout(spec.layer_sizes, spec.ties).unpack(self.x.copy())


def dense(spec: AnySpec) -> NetworkSpec:
    """The spec, if it is one of a dense network: others have random steps and batch statistics."""
    if not isinstance(spec, NetworkSpec):
        raise TypeError("L-BFGS trains dense networks only; choose another optimizer.")
    return spec


def minimise(job: TrainJob, poll: Callable[[], None] | None = None) -> TrainResult:
    """Train one network by L-BFGS-B of scipy (without bounds).

    ``poll`` is called at each evaluation; it may raise KeyboardInterrupt to end the training.
    """
    spec = replace(job.network, dtype=torch.float64, product_dtype=torch.float64)
    job = replace(job, network=spec)
    x0 = job.params.astype(np.float64)
    progress = Progress(job.train, job.resume, math.nan, torch.from_numpy(x0))
    watcher = _Watcher(job, progress)
    minimizer = None
    try:
        minimizer = scipy.optimize.minimize(
            _Objective(job, poll),
            x0,
            method="L-BFGS-B",
            jac=True,
            callback=watcher,
            options={
                "maxfun": job.train.max_evaluations,
                "maxiter": job.train.max_epochs,
                "gtol": job.train.tolerance,
            },
        )
        x, loss, n_epochs = minimizer.x, float(minimizer.fun), int(minimizer.nit)
        if progress.reason not in (StopReason.CALLBACK, StopReason.MAX_TIME):
            # also where it converged in the very last iteration it was allowed
            done = minimizer.status == 0
            progress.reason = StopReason.CONVERGED if done else StopReason.MAX_EPOCHS
    except KeyboardInterrupt:
        x, loss, n_epochs = watcher.x, watcher.loss, progress.n_epochs
        progress.reason = StopReason.INTERRUPTED
    interrupted = progress.reason is StopReason.INTERRUPTED
    if not (np.isfinite(x).all() and (interrupted or math.isfinite(loss))):
        progress.reason = StopReason.DIVERGED
    return TrainResult(
        params=x,
        loss_curve=[],
        validation_scores=progress.validation_scores,
        validation_losses=progress.validation_losses,
        loss=loss,
        best_loss=loss,
        best_score=progress.best_score,
        n_epochs=n_epochs,
        rows_seen=job.resume.rows_seen,
        no_improvement=0,
        reason=progress.reason,
        has_finite_epoch=progress.reason is not StopReason.DIVERGED,
        minimizer=minimizer,
    )
