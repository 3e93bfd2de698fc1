"""The flow of gradients through an image network while it trains: `gradient_flow`'s numbers.

Once an epoch, at its last full batch. The gradient is that of the step's loss (of all parts and all
processes, unscaled, before decay and clipping), the update that of the step. Activations are the
step's own: of augmented and mixed images, with the branches that drop path left. Each pixel of a
channel is a row. With r_b the weights of the rows and P numbers h_bp an image,

    mean = sum_b r_b mean_p h_bp,   std^2 = sum_b r_b mean_p h_bp^2 - mean^2

from the mean and the variance of each image, so that parts of a batch add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.gradient_flow import COLUMNS, frobenius
from sknn_resid.engine.image_network import FlatNetwork
from sknn_resid.engine.image_watch import ImageWatch, weights_of
from sknn_resid.engine.processes import Processes


class ImageFlowRecorder:
    """Measures one step of an epoch; it reads the network's memory and writes nothing there.

    Parameters
    ----------
    network : FlatNetwork
    batches : sequence of slice
        Of an epoch.
    batch_size : int
        Rows of a full batch.
    processes : Processes or None
        Those that share every batch.

    Attributes
    ----------
    step : int
        The step of an epoch that is measured: that of the last full batch, or of the only one.
    epoch_LC : ndarray of shape (L, 8)
        The numbers `COLUMNS` of each layer at that step, once `after_update` was called.
    """

    def __init__(
        self,
        network: FlatNetwork,
        batches: Sequence[slice],
        batch_size: int,
        processes: Processes | None,
    ) -> None:
        self._network, self._processes = network, processes
        full = [i for i, part in enumerate(batches) if part.stop - part.start >= batch_size]
        self.step = full[-1] if full else 0
        self._names = list(weights_of(network.module))
        self._sums: dict[str, Tensor] = {}
        self._before_MP = torch.empty(0)
        self._norms_L3 = np.empty((0, 3))
        # of sums; MPS has no float64
        self._dtype = torch.float32 if network.device.type == "mps" else torch.float64
        self.epoch_LC = np.full((len(self._names), len(COLUMNS)), math.nan)

    def begin(self) -> None:
        """Forget the parts seen so far: a batch begins, perhaps in more parts than before."""
        self._sums = {}

    @contextmanager
    def watching(self, weights_B: Tensor) -> Iterator[None]:
        """Measure the activations of the pass within; its rows have these weights in the batch."""

        def show(layer: str, what: str, tensor: Tensor) -> None:
            if what != "v":
                return
            sums = self._sums_of(tensor.detach(), weights_B)
            self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums

        with ImageWatch(self._network.module, show):
            yield

    def _sums_of(self, h_BCHW: Tensor, weights_B: Tensor) -> Tensor:
        """(sum of r, of r h, of r h^2, then for each channel in how many images it is alive)."""
        r_B = weights_B.to(self._dtype)
        var_B, mean_B = torch.var_mean(h_BCHW.flatten(1).to(self._network.dtype), 1, correction=0)
        var_B, mean_B = var_B.to(self._dtype), mean_B.to(self._dtype)
        moments = [r_B.sum(), (r_B * mean_B).sum(), (r_B * (var_B + mean_B.square())).sum()]
        alive_BC = (h_BCHW.amax((2, 3)) > 0) & (r_B > 0)[:, None]
        return torch.cat([torch.stack(moments), alive_BC.to(self._dtype).sum(0)])

    def before_update(self) -> None:
        """Measure the gradient of the batch, when it is there, and the weights."""
        network = self._network
        self._before_MP = network.params_MP.clone()
        gradient_L, weight_L = self._lengths(network.grads_MP), self._lengths(self._before_MP)
        sizes_L = np.array([W.numel() for W in network.matrices(network.params_MP).values()])
        self._norms_L3 = np.stack([gradient_L, gradient_L / np.sqrt(sizes_L), weight_L], axis=1)

    def after_update(self) -> None:
        """Measure how far the step has moved the weights: the numbers of the epoch are complete."""
        moved_L = self._lengths(self._before_MP.sub_(self._network.params_MP))
        self._before_MP = torch.empty(0)
        with np.errstate(all="ignore"):  # a matrix of zeros that begins to move: infinite
            ratio_L = np.where(moved_L == 0, 0.0, moved_L / self._norms_L3[:, 2])
        activations = np.stack([self._numbers(name) for name in self._names])
        self.epoch_LC = np.hstack([self._norms_L3, ratio_L[:, None], activations])

    def _lengths(self, flat_MP: Tensor) -> np.ndarray:
        if flat_MP.device.type == "mps":
            flat_MP = flat_MP.cpu()
        return frobenius(list(self._network.matrices(flat_MP).values()))[0].cpu().numpy()

    def _numbers(self, layer: str) -> np.ndarray:
        """Of one layer, in the order of `gradient_flow.ACTIVATIONS`."""
        if layer not in self._sums:
            return np.full(4, math.nan)
        sums = self._sums[layer]
        if self._processes is not None:
            sums = self._processes.sum_(sums.clone())
        r, first, second, *alive = sums.cpu().tolist()
        if math.isnan(first):  # training has diverged: no channel is alive, none is dead
            return np.full(4, math.nan)
        mean = first / r
        std = math.sqrt(max(second / r - mean * mean, 0.0)) if math.isfinite(second) else math.nan
        dead = float(np.mean(np.array(alive) == 0))
        # The derivative of relu is 0 or 1, so that a channel that is flat everywhere is dead.
        return np.array([mean, std, dead, dead])
