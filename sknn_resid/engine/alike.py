"""Which jobs hold the same data, and which of them would be trained in exactly the same way.

The folds of a search arrive as equal but distinct arrays, one a candidate. Equal arrays are found
by content, so that they are held, gathered and sent to a device once; jobs that visit equal rows in
the same order read one copy of each batch; and jobs whose weights go through the same values, such
as those that differ in the number of epochs only, are one network whose results are taken at
different times.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
import torch

from sknn_resid.engine.data import Features, is_mapped
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.spec import NetworkSpec, TrainSpec

_SAMPLES = 64  # numbers of an array that are looked at before all of them are


@dataclass(frozen=True, eq=False)
class Likeness:
    """What one job has in common with others; equal keys mean equal things.

    Attributes
    ----------
    job : TrainJob
        The job, holding the first of the arrays that equal its own.
    rows : Hashable or None
        Same rows, targets and weights, visited in the same order. None: shares them with nobody.
    path : Hashable or None
        Its weights go through the same values in every step, as long as both are trained.
    """

    job: TrainJob
    rows: Hashable | None
    path: Hashable | None


def likenesses(jobs: Sequence[TrainJob]) -> list[Likeness]:
    """One `Likeness` a job. A single job has none to compare with and is left unread."""
    if len(jobs) == 1:
        return [Likeness(jobs[0], None, None)]
    arrays = DistinctArrays()
    return [_likeness(job, arrays) for job in jobs]


def _likeness(job: TrainJob, arrays: DistinctArrays) -> Likeness:
    data = job.data
    job = replace(job, data=replace(data, X=arrays.first(data.X)))
    if not isinstance(job.network, NetworkSpec):
        return Likeness(job, None, None)
    of_data = tuple(arrays.number(a) for a in (data.X, data.y, data.rows, data.weight))
    # Smoothing is part of the targets as they lie in memory.
    rows = (
        of_data,
        _state(job.rng),
        job.rng_is_shared,
        job.train.shuffle,
        job.train.batch_size,
        job.train.label_smoothing,
        job.device,
    )
    watching = job.train.schedule.watches_progress
    path = (
        rows,
        job.network,
        arrays.number(job.params),
        job.dropout_seed,
        trajectory(job.train),
        job.resume.rows_seen,
        None if job.resume.optimizer is None else id(job.resume.optimizer),
        (job.resume, id(job.score)) if watching else None,
    )
    return Likeness(job, rows, path)


def trajectory(train: TrainSpec) -> TrainSpec:
    """The spec without what decides only when to stop: equal ones take the same steps.

    The number of epochs counts where the schedule looks ahead to the end; tolerance and patience
    count where it waits for a plateau.
    """
    train = replace(train, stop_on_plateau=True, max_seconds=None, max_evaluations=0)
    if train.schedule.steady:
        train = replace(train, max_epochs=0)
    if not train.schedule.watches_progress:
        train = replace(train, tolerance=0.0, patience=0.0, watch_validation=False)
        train = replace(train, break_ties_by_loss=False)
    return train


class DistinctArrays:
    """Finds equal arrays: by shape and a sampled checksum first, then number by number."""

    def __init__(self) -> None:
        self._known: dict[Hashable, list[tuple[int, Any]]] = {}
        self._by_id: dict[int, tuple[int, Any, Any]] = {}
        self._count = 0

    def number(self, array: Features | None) -> int:
        """The same number for equal arrays, another one for others; -1 for None."""
        return -1 if array is None else self._find(array)[0]

    def first(self, array: Features) -> Any:
        """The first array seen that equals this one."""
        return self._find(array)[1]

    def _find(self, array: Features) -> tuple[int, Any]:
        # The array is kept beside its id: as long as it lives, no other can get that id.
        if id(array) in self._by_id:
            number, first, _ = self._by_id[id(array)]
            return number, first
        candidates = self._known.setdefault(_sketch(array), [])
        found = next((known for known in candidates if same(array, known[1])), None)
        if found is None:
            found = (self._count, array)
            self._count += 1
            candidates.append(found)
        self._by_id[id(array)] = (*found, array)
        return found


def same(a: Any, b: Any) -> bool:
    """Whether two arrays of one shape and dtype hold the same numbers."""
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a, b))
    if scipy.sparse.issparse(a):
        return all(np.array_equal(p, q) for p, q in zip(_parts(a), _parts(b), strict=True))
    if _place(a) == _place(b):
        return True
    # A memory map may be larger than memory: it is never read only to be compared.
    return not (is_mapped(a) or is_mapped(b)) and np.array_equal(a, b)


def _parts(csr: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return csr.data, csr.indices, csr.indptr


def _place(array: np.ndarray) -> Hashable:
    """Where in memory the array's numbers lie."""
    return array.__array_interface__["data"][0], array.strides


def _sketch(array: Any) -> Hashable:
    """What equal arrays have in common, cheaply: shape, dtype, a few numbers."""
    kind = (tuple(array.shape), array.dtype)
    if isinstance(array, torch.Tensor):
        return ("tensor", *kind, str(array.device))
    if scipy.sparse.issparse(array):
        return ("csr", *kind, array.nnz)
    if is_mapped(array) or array.size == 0:
        return kind
    return (*kind, array.flat[:: -(-array.size // _SAMPLES)].tobytes())


def _state(rng: np.random.RandomState) -> Hashable:
    """The generator's state, as something to compare."""
    return _hashable(rng.get_state(legacy=False))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((k, _hashable(v)) for k, v in sorted(value.items()))
    return value.tobytes() if isinstance(value, np.ndarray) else value
