"""Images as rows of a training run: where pixels lie, and how a batch of them reaches the device.

Images are kept as they came (bytes as bytes) in the order rows, height, width, channels: a batch of
rows of that is what torch calls ``channels_last``, without a copy. They lie on the device as a
whole where they fit (`DeviceImages`), else they are read a batch at a time (`StreamedImages`: a
mapped file, a list of image files).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.data import as_tensor, row_chunks

Shape = tuple[int, int, int]

DEVICE_PART = 0.5  # of an accelerator's free memory that the images may fill
SCALING_ROWS = 256


class Images(ABC):
    """Images that can be gathered by row.

    Attributes
    ----------
    n_rows : int
    shape : (int, int, int)
        Height, width, channels.
    device : torch.device
    """

    n_rows: int
    shape: Shape
    device: torch.device

    @abstractmethod
    def gather(self, rows: np.ndarray) -> Tensor:
        """Rows as a tensor (B, H, W, C) on the device, in the dtype they are stored in."""


class DeviceImages(Images):
    """Images that lie on the device.

    Parameters
    ----------
    x_NHWC : Tensor
    """

    def __init__(self, x_NHWC: Tensor) -> None:
        self._x_NHWC = x_NHWC
        self.n_rows, self.shape = int(x_NHWC.shape[0]), _shape_of(x_NHWC)
        self.device = x_NHWC.device

    def gather(self, rows: np.ndarray) -> Tensor:
        index = torch.from_numpy(np.ascontiguousarray(rows)).to(self.device)
        return self._x_NHWC.index_select(0, index)


class StreamedImages(Images):
    """Images that are read when they are asked for.

    Parameters
    ----------
    read : callable
        ``read(rows) -> ndarray`` of shape (B, H, W, C), with increasing row numbers.
    n_rows : int
    shape : (int, int, int)
    device : torch.device
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        n_rows: int,
        shape: Shape,
        device: torch.device,
    ) -> None:
        self._read = read
        self.n_rows, self.shape, self.device = n_rows, shape, device

    def gather(self, rows: np.ndarray) -> Tensor:
        # In increasing order, because a file is read fastest that way.
        order = np.argsort(rows, kind="stable")
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        x_BHWC = np.ascontiguousarray(self._read(rows[order])[back])
        return as_tensor(x_BHWC).to(self.device)


def place_images(
    array: np.ndarray | None,
    read: Callable[[np.ndarray], np.ndarray],
    n_rows: int,
    shape: Shape,
    device: torch.device,
) -> Images:
    """The images on the device if they are in memory and fit there, else a batch at a time."""
    if array is None or not fits(array.nbytes, device):
        return StreamedImages(read, n_rows, shape, device)
    return DeviceImages(as_tensor(array).to(device))


def fits(n_bytes: int, device: torch.device) -> bool:
    """Whether so many bytes may lie on the device for the whole training; a CPU takes them all."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return n_bytes <= DEVICE_PART * free


def _shape_of(x_NHWC: Tensor) -> Shape:
    _, h, w, c = x_NHWC.shape
    return int(h), int(w), int(c)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Rows of images with their classes and weights.

    Attributes
    ----------
    images : Images
    codes : ndarray of int64, shape (N,)
        Class of each row of ``images``.
    weight : ndarray of shape (N,) or None
        Weight of each row of ``images``; None for 1.
    rows : ndarray of int64 or None
        Rows that belong to the set; None for all.
    """

    images: Images
    codes: np.ndarray
    weight: np.ndarray | None = None
    rows: np.ndarray | None = None

    @property
    def n_rows(self) -> int:
        return self.images.n_rows if self.rows is None else len(self.rows)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Rows of ``images`` at these positions of the set."""
        return positions if self.rows is None else self.rows[positions]

    def row_weights(self, rows: np.ndarray) -> np.ndarray:
        """Weights of these rows of ``images``."""
        return np.ones(len(rows)) if self.weight is None else self.weight[rows]

    def all_rows(self) -> np.ndarray:
        """All rows of the set, in their order."""
        return self.at(np.arange(self.n_rows))


@dataclass(frozen=True, eq=False)
class Scaling:
    """What turns pixels into the numbers that a network reads: (x - mean) / std, by channel.

    Attributes
    ----------
    mean, std : ndarray of shape (C,)
    """

    mean: np.ndarray
    std: np.ndarray

    def bind(self, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The function that scales batches (B, H, W, C) to ``dtype`` on this device."""
        centre_C = torch.tensor(self.mean, dtype=dtype, device=device)
        factor_C = torch.tensor(1 / self.std, dtype=dtype, device=device)

        def scale(x_BHWC: Tensor) -> Tensor:
            return x_BHWC.to(dtype).sub(centre_C).mul_(factor_C)

        return scale


def learn_scaling(data: ImageSet) -> Scaling:
    """Weighted mean and standard deviation of the pixels of each channel, in float64.

    var = sum_b w_b mean_p (x_bp - mean)^2 / sum w, from sums about the first row's mean, so that
    nothing cancels where the mean is large. A channel that does not vary gets a deviation of 1.
    """
    rows = data.all_rows()
    shift_C: Tensor | None = None
    total, sum_C, square_C = 0.0, torch.zeros(()), torch.zeros(())
    for part in row_chunks(len(rows), SCALING_ROWS):
        x_BPC = data.images.gather(rows[part]).cpu().to(torch.float64).flatten(1, 2)
        if shift_C is None:
            shift_C = x_BPC[0].mean(0)
        w_B = torch.from_numpy(data.row_weights(rows[part]).astype(np.float64))
        x_BPC = x_BPC - shift_C
        total += float(w_B.sum())
        sum_C = sum_C + w_B @ x_BPC.mean(1)
        square_C = square_C + w_B @ x_BPC.square().mean(1)
    assert shift_C is not None
    mean_C = sum_C / total
    var_C = (square_C / total - mean_C.square()).clamp_min(0.0)
    mean, std = (shift_C + mean_C).numpy(), var_C.sqrt().numpy()
    scale = np.maximum(np.abs(mean), np.finfo(float).tiny)
    constant = std <= 8 * np.finfo(float).eps * scale  # nothing but rounding
    return Scaling(mean, np.where(constant, 1.0, std))


def batch_slices(n_rows: int, batch_size: int) -> list[slice]:
    """Consecutive batches; a last one of a single row joins the one before.

    The statistics of one row alone are worth nothing.
    """
    slices = list(row_chunks(n_rows, batch_size))
    if len(slices) > 1 and slices[-1].stop - slices[-1].start == 1:
        slices[-2:] = [slice(slices[-2].start, n_rows)]
    return slices


def part_slices(n_rows: int, n_parts: int) -> Iterator[slice]:
    """A batch in parts that differ by one row at most, each of two rows at least."""
    n_parts = max(1, min(n_parts, n_rows // 2))
    edges = np.linspace(0, n_rows, n_parts + 1).astype(int)
    for first, stop in pairwise(edges):
        yield slice(int(first), int(stop))
