"""One training step of an image network: a batch becomes a gradient, the gradient an update.

Objective of a batch: sum_b r_b l(z_b, y_b), r = w / sum w, l the cross-entropy of softmax with
smoothed labels. With mixup, row b is q x_b + (1 - q) x_b', its losses q r_b l(z_b, y_b) +
(1 - q) r_b' l(z_b, y_b'), and its weight in the batch statistics q r_b + (1 - q) r_b'.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sknn_resid.engine.averaging import StackAverage
from sknn_resid.engine.image_augment import Changes, change
from sknn_resid.engine.image_data import ImageSet, Scaling, part_slices
from sknn_resid.engine.image_network import FlatNetwork
from sknn_resid.engine.image_spec import ImageTrainSpec
from sknn_resid.engine.optimizers import StackOptimizer
from sknn_resid.engine.processes import Processes
from sknn_resid.engine.spec import OptimizerKind

FIRST_LOSS_SCALE = 2.0**16
LOSS_SCALE_DOUBLES_AFTER = 2000  # steps without an overflow


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one step.

    Attributes
    ----------
    rows : ndarray of int64
        Rows of the set's images.
    changes : Changes or None
        What augmentation drew for them.
    mix : float
        Mixup's q; 1 does not mix.
    """

    rows: np.ndarray
    changes: Changes | None
    mix: float


class LossScale:
    """A factor of the loss that keeps gradients of float16 above its smallest number.

    It halves when a gradient overflows (the step then counts as one of gradient zero) and doubles
    after 2,000 steps without. All of it stays on the device: no step waits for a number.
    Micikevicius et al. (2018), Mixed precision training, section 3.2.
    """

    def __init__(self, device: torch.device) -> None:
        self.state = torch.tensor([FIRST_LOSS_SCALE, 0.0], device=device)  # factor, steps without

    def unscale_(self, grads: Tensor) -> None:
        """Divide the gradient by the factor, in place, and move the factor."""
        factor, good = self.state
        grads.div_(factor)
        finite = grads.isfinite().all()
        torch.where(finite, grads, torch.zeros_like(grads), out=grads)
        grown = good + 1 >= LOSS_SCALE_DOUBLES_AFTER
        up = torch.where(grown, factor * 2, factor)
        count = torch.where(finite & ~grown, good + 1, torch.zeros_like(good))
        self.state = torch.stack([torch.where(finite, up, factor / 2), count])


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Convolutions in ``dtype``; None leaves everything as it is."""
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory did not suffice; CPU and MPS say so in words only."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(t in str(error) for t in ("not enough memory", "out of memory", "can't allocate"))
    )


class Stepper:
    """Steps of one network.

    Parameters
    ----------
    network : FlatNetwork
    data : ImageSet
    scaling : Scaling
    spec : ImageTrainSpec
    optimizer : StackOptimizer
    average : StackAverage or None
    generator : torch.Generator
        Draws the blocks that drop path leaves out.
    processes : Processes or None
        Those that share every batch with this one.

    Attributes
    ----------
    n_parts : int
        Parts that a batch is computed in; grows when memory runs out.
    loss_scale : LossScale or None
    """

    def __init__(
        self,
        network: FlatNetwork,
        data: ImageSet,
        scaling: Scaling,
        spec: ImageTrainSpec,
        optimizer: StackOptimizer,
        average: StackAverage | None,
        generator: torch.Generator,
        processes: Processes | None = None,
    ) -> None:
        self._network, self._data, self._spec = network, data, spec
        self._processes = processes
        network.module.synchronize(processes)
        self._optimizer, self._average, self._generator = optimizer, average, generator
        self._scale = scaling.bind(network.dtype, network.device)
        self._codes = torch.from_numpy(data.codes).to(network.device)
        self._forward: Callable[..., Tensor] = network.module
        if spec.compile:
            self._forward = torch.compile(network.module)
        self.n_parts = spec.n_parts
        half = spec.autocast is torch.float16
        self.loss_scale = LossScale(network.device) if half else None

    def step(self, batch: Batch, rate: float) -> Tensor:
        """Update the network; the loss of the batch, as a tensor of shape ()."""
        loss = self._gradient(batch)
        network, train = self._network, self._spec.train
        grads, n_weights = network.grads_MP, network.layout.n_weights
        if self.loss_scale is not None:
            self.loss_scale.unscale_(grads)
        if train.penalty > 0 and train.optimizer.kind is not OptimizerKind.ADAMW:
            grads[:, :n_weights].add_(network.params_MP[:, :n_weights], alpha=train.penalty)
        if network.factors_MP is not None:
            grads.mul_(network.factors_MP != 0)  # the decay of frozen weights is no gradient
        if train.clip_norm is not None:
            grads.mul_((train.clip_norm / grads.norm()).clamp_max(1.0))
        if network.factors_MP is None:
            self._optimizer.step([rate], None)
        else:
            # The update itself and not the rate is scaled: this holds for every update rule.
            before_MP = network.params_MP.clone()
            self._optimizer.step([rate], None)
            torch.lerp(before_MP, network.params_MP, network.factors_MP, out=network.params_MP)
        if self._average is not None:
            self._average.update(None)
        return loss

    def _gradient(self, batch: Batch) -> Tensor:
        """The gradient of the batch's loss, in as many parts as memory asks for."""
        keep_LB = self._network.module.draw_keep(len(batch.rows), self._generator)
        if self._processes is not None:
            return self._share(batch, keep_LB, self._processes)
        while True:
            loss = self._attempt(batch, keep_LB)
            if loss is not None:
                return loss
            self._more_parts(len(batch.rows))

    def _share(self, batch: Batch, keep_LB: Tensor | None, processes: Processes) -> Tensor:
        """The same where several processes have a share each; every one makes as many parts.

        A process whose memory runs out ends the training: the others could not know.
        """
        self._network.grads_MP.zero_()
        share = processes.share(len(batch.rows))
        n = share.stop - share.start
        cuts = [share.start + i * n // self.n_parts for i in range(self.n_parts + 1)]
        parts = [slice(*cut) for cut in pairwise(cuts)]
        loss = torch.stack([self._part(batch, part, keep_LB) for part in parts]).sum()
        processes.sum_(self._network.grads_MP)
        return processes.sum_(loss)

    def _attempt(self, batch: Batch, keep_LB: Tensor | None) -> Tensor | None:
        """None where memory ran out; what it held is free by the time this returns."""
        self._network.grads_MP.zero_()
        try:
            parts = list(part_slices(len(batch.rows), self.n_parts))
            return torch.stack([self._part(batch, part, keep_LB) for part in parts]).sum()
        except RuntimeError as error:
            if not is_out_of_memory(error) or self._rows_of_part(len(batch.rows)) < 4:
                raise
            return None

    def _rows_of_part(self, n_rows: int) -> int:
        return min(part.stop - part.start for part in part_slices(n_rows, self.n_parts))

    def _more_parts(self, n_rows: int) -> None:
        before = self._rows_of_part(n_rows)
        self.n_parts = 2 * max(1, min(self.n_parts, n_rows // 2))
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"batch_size: a step of {before} images does not fit the memory of "
            f"{self._network.device}. From here on it is computed in parts of about "
            f"{self._rows_of_part(n_rows)} and the gradients are added up; batch statistics are "
            "those of the parts. Lower batch_size, or set accumulate_steps, to choose so yourself.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _images(self, batch: Batch, positions: np.ndarray) -> Tensor:
        """Scaled and changed images (B, H, W, C) at positions of the batch."""
        x_BHWC = self._scale(self._data.images.gather(batch.rows[positions]))
        if batch.changes is None:
            return x_BHWC
        index = torch.from_numpy(positions).to(self._network.device)
        return change(self._spec.augmentation, x_BHWC, batch.changes.at(index))

    def _part(self, batch: Batch, part: slice, keep_LB: Tensor | None) -> Tensor:
        """Add a part's gradient; its share of the batch's loss, detached."""
        device, dtype = self._network.device, self._network.dtype
        alone = self._processes is None  # others wait for the sums of an empty part, too
        w_all = self._data.row_weights(batch.rows)
        w = w_all[part]
        if alone and not w.any():
            return torch.zeros((), dtype=dtype, device=device)
        positions, q = np.arange(part.start, part.stop), batch.mix
        x_BHWC, y_B = self._images(batch, positions), self._labels(batch.rows[positions])
        r_all = torch.from_numpy(w_all / w_all.sum()).to(device=device, dtype=dtype)
        r_B = r_all[part]
        equal = alone and bool((w == w[0]).all())
        statistics_B = None if equal else r_B
        if q < 1:
            # Each with its counterpart from the end of the part, or of the batch of all processes.
            others = positions[::-1].copy() if alone else len(w_all) - 1 - positions
            other_y_B, other_r_B = self._labels(batch.rows[others]), r_all[others]
            other_x_BHWC = x_BHWC.flip(0) if alone else self._images(batch, others)
            x_BHWC = torch.lerp(other_x_BHWC, x_BHWC, q)
            statistics_B = None if equal else torch.lerp(other_r_B, r_B, q)
        keep_LB = None if keep_LB is None else keep_LB[:, part]
        with autocast(device, self._spec.autocast):
            z_BK = self._forward(x_BHWC.permute(0, 3, 1, 2), statistics_B, keep_LB)
        z_BK = z_BK.to(dtype)
        loss = q * self._loss(z_BK, y_B, r_B)
        if q < 1:
            loss = loss + (1 - q) * self._loss(z_BK, other_y_B, other_r_B)
        factor = 1.0 if self.loss_scale is None else self.loss_scale.state[0]
        (loss * factor).backward()
        return loss.detach()

    def _labels(self, rows: np.ndarray) -> Tensor:
        return self._codes[torch.from_numpy(rows).to(self._network.device)]

    def _loss(self, z_BK: Tensor, y_B: Tensor, r_B: Tensor) -> Tensor:
        smoothing = self._spec.train.label_smoothing
        return r_B @ cross_entropy(z_BK, y_B, reduction="none", label_smoothing=smoothing)
