"""The rows a job trains on: held once, addressed by index, weighted per row.

A job owns a row-index vector and a weight per row; X and y are shared by every job that was handed
the same array. Unequal folds, subsamples, sample weights and class weights are all this one
mechanism. Weight 0 marks padding.

X may be a numpy array (also a read-only memory map: only the rows of a few batches are ever
copied), a scipy CSR matrix (the first matrix product is then sparse) or a torch tensor that already
lies on the device.
"""

from __future__ import annotations

import copy
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

Features: TypeAlias = "np.ndarray | scipy.sparse.csr_array | Tensor"


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows of one job.

    Attributes
    ----------
    X : array, CSR matrix or tensor of shape (N, D)
    y : ndarray of shape (N, T)
        Real targets (float) or class codes (int64).
    rows : ndarray of int64 or None
        Which rows of X this job trains on; None for all.
    weight : ndarray of shape (n_rows,) or None
        Weight of each of those rows; None for 1.
    """

    X: Features
    y: np.ndarray
    rows: np.ndarray | None = None
    weight: np.ndarray | None = None

    @property
    def n_rows(self) -> int:
        return int(self.X.shape[0] if self.rows is None else len(self.rows))

    @property
    def n_features(self) -> int:
        return int(self.X.shape[1])


@dataclass(frozen=True, eq=False)
class ValidationData:
    """Held-out rows of one job, the weights included in what they are scored by."""

    X: Features
    y: np.ndarray
    weight: np.ndarray | None = None


class RowOrder:
    """The order in which one job visits its rows, epoch by epoch, as scikit-learn draws it.

    Each epoch permutes the order of the epoch before: ``p = arange(n); rng.shuffle(p);
    order = order[p]``.

    Jobs with equal rows whose generators are in the same state may share one order. It then draws
    from a generator of its own (`alike`), and each job's is brought up to it when the job ends
    (`settle`).
    """

    def __init__(self, data: TrainingData, rng: np.random.RandomState, shuffle: bool) -> None:
        self._rng = rng
        self._shuffle = shuffle
        self._positions = np.arange(data.n_rows)
        self._data = data

    def alike(self) -> RowOrder:
        """An order of the same rows that draws the same numbers, from a copy of the generator."""
        return RowOrder(self._data, copy.deepcopy(self._rng), self._shuffle)

    def settle(self, rng: np.random.RandomState) -> None:
        """Leave ``rng`` as it would be had it drawn what this order has drawn."""
        if rng is not self._rng:
            rng.set_state(self._rng.get_state(legacy=False))

    def next_epoch(self) -> None:
        """Draw the permutation of the next epoch."""
        if self._shuffle:
            permutation = np.arange(len(self._positions))
            self._rng.shuffle(permutation)
            self._positions = self._positions[permutation]

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Rows of X at these positions of the epoch."""
        positions = self._positions[first:stop]
        return positions if self._data.rows is None else self._data.rows[positions]

    def weights(self, first: int, stop: int) -> np.ndarray | None:
        """Weights of those rows, None where all are 1."""
        weight = self._data.weight
        return None if weight is None else weight[self._positions[first:stop]]


def row_chunks(n_rows: int, chunk: int) -> Iterator[slice]:
    """Consecutive slices of at most ``chunk`` rows."""
    for first in range(0, n_rows, chunk):
        yield slice(first, min(first + chunk, n_rows))


def as_tensor(array: np.ndarray) -> Tensor:
    """Tensor on the memory of ``array``; read-only and reversed arrays are copied first."""
    if array.flags.writeable and min(array.strides) >= 0:
        return torch.from_numpy(array)
    return torch.from_numpy(array.copy())


def row_major(X: Features) -> Features:
    """X laid out so that gathering rows is fast.

    A frame's values are usually column-major; gathering its rows would stride through all of memory
    in every epoch, so it is copied once. A memory map is left as it is: it may not fit.
    """
    if not isinstance(X, np.ndarray) or X.flags.c_contiguous or is_mapped(X):
        return X
    return np.ascontiguousarray(X)


def is_mapped(X: np.ndarray) -> bool:
    """Whether X lies in a file that is mapped into memory."""
    base: object = X
    while base is not None:
        if isinstance(base, (np.memmap, mmap.mmap)):
            return True
        base = getattr(base, "base", None)
    return False
