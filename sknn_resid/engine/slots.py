"""Memory for the batches of a stack: rows, targets, weights, logits.

A *segment* is a run of G batches whose targets are made in one go and whose losses are added up by
one call. A *slot* is one batch of it: views that the steps are bound to once. A bank holds the
slots of one batch length; an epoch needs at most two banks, one for full batches and one for the
short last batch. The rows of X are gathered batch by batch into one buffer that all slots of a bank
share: it stays in the cache, where a copy of the whole segment would drive the weights out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine.data import Features
from sknn_resid.engine.kernels import Op, numpy_speaks

Gather = Callable[[np.ndarray], None]

# Of logits and targets. On a CPU they stay in the cache; on an accelerator a segment ends with a
# number that is waited for, so it holds as many batches as it may.
SEGMENT_BYTES = 1 << 20
DEVICE_SEGMENT_BYTES = 1 << 27
MAX_SLOTS = 32


@dataclass
class SparseRows:
    """The rows of a batch as CSR matrices, one a model or one for all, changed at each step."""

    batch_S: list[scipy.sparse.csr_array | None] = field(default_factory=list)

    def bind_gather(self, source: int, X: Features) -> Gather:
        """A function that puts these rows of X in place for one source."""

        def gather(rows: np.ndarray) -> None:
            self.batch_S[source] = X[rows]

        return gather

    def _batches(self, n_models: int) -> list[scipy.sparse.csr_array | None]:
        return self.batch_S if len(self.batch_S) == n_models else self.batch_S * n_models

    def bind_times(self, W_Mij: Tensor, out_MBj: Tensor) -> Op:
        """Bind ``out = X W``."""

        def times() -> None:
            batches = self._batches(len(W_Mij))
            for X, W, out in zip(batches, W_Mij, out_MBj, strict=True):
                assert X is not None
                out[: X.shape[0]] = torch.from_numpy(X @ _numpy_of(W))
                out[X.shape[0] :] = 0  # padding: what is added next must not pile up there

        return times

    def bind_transposed_times(self, delta_MBj: Tensor, out_Mij: Tensor) -> Op:
        """Bind ``out = X' delta``."""

        def times() -> None:
            batches = self._batches(len(out_Mij))
            for X, delta, out in zip(batches, delta_MBj, out_Mij, strict=True):
                assert X is not None
                product = X.T @ np.ascontiguousarray(_numpy_of(delta[: X.shape[0]]))
                out.copy_(torch.from_numpy(product))

        return times


def _numpy_of(tensor: Tensor) -> np.ndarray:
    """As numpy; bfloat16, which numpy and scipy do not know, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@dataclass(frozen=True, eq=False)
class BatchSlot:
    """One batch: what the bound step reads (X, T, r, decay) and the logits it writes (Z).

    ``rows_M`` is how many of the ``n_rows`` rows each model has; the rest is padding. It is a list
    that the stack keeps up to date, because padding differs from batch to batch.
    """

    n_rows: int
    rows_M: list[int]
    X_MBD: Tensor | SparseRows
    T_MKB: Tensor
    r_M1B: Tensor
    Z_MKB: Tensor
    decay_M1: Tensor
    square_M: Tensor
    # [X, 1], where the bank keeps a column of ones beside X
    X1_MBD: Tensor | None = None
    # where a compiled loss writes the data term of the objective (float64)
    value_M: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SegmentViews:
    """The slots that a segment uses: whole, and row by row for each source (for gathering)."""

    T_MGKB: Tensor
    Z_MGKB: Tensor
    r_MG1B: Tensor
    y_MGBT: Tensor
    square_GM: Tensor
    y_M: list[Tensor]
    # logits, targets and weights as they lie in memory, batches first: what a loss is computed from
    in_memory: tuple[Tensor, Tensor, Tensor]


class SlotBank:
    """G slots of ``batch`` rows each, for M models.

    Attributes
    ----------
    T_MGKB, r_MG1B : Tensor
        Targets and row weights (w / S, 0 for padding) of the segment, by source.
    Z_MGKB : Tensor
        Logits of the segment.
    decay_MG : Tensor of shape (M, G)
        alpha / S of each batch.
    square_GM : Tensor of shape (G, M)
        |W|^2 as it was before each step.
    y_MGBT : Tensor
        Targets as gathered, row by row; the loss turns them into ``T_MGKB``. By source.
    X_MBD : Tensor of shape (M or 1, B, D) or SparseRows
        Rows of the batch at hand, by source.
    X1_MBD : Tensor of shape (M or 1, B, D + 1) or None
        The same memory with a column of ones.
    """

    def __init__(
        self,
        n_models: int,
        n_slots: int,
        batch: int,
        n_features: int,
        n_outputs: int,
        n_targets: int,
        *,
        codes: bool,
        dtype: torch.dtype,
        product_dtype: torch.dtype,
        device: torch.device,
        sparse: bool,
        shared: bool = False,
        with_ones: bool = False,
    ) -> None:
        M, G, B, K = n_models, n_slots, batch, n_outputs
        S = 1 if shared else M
        self.n_models, self.n_slots, self.batch = M, G, B

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.T_MGKB = zeros(G, S, K, B).transpose(0, 1)
        self.Z_MGKB = zeros(G, M, K, B).transpose(0, 1)
        self.r_MG1B = zeros(G, S, 1, B).transpose(0, 1)
        self.decay_MG = zeros(M, G)
        # |W|^2 is written through contiguous memory of its own: an out= view may not be strided.
        self.square_GM = zeros(G, M)
        self.y_MGBT = torch.zeros(
            (S, G, B, n_targets), dtype=torch.int64 if codes else dtype, device=device
        )
        self.X_MBD: Tensor | SparseRows
        self.X1_MBD: Tensor | None = None
        if sparse:
            self.X_MBD = SparseRows([None] * S)
        elif with_ones:
            shape = (S, B, n_features + 1)
            self.X1_MBD = torch.zeros(shape, dtype=product_dtype, device=device)
            self.X1_MBD[:, :, -1] = 1
            self.X_MBD = self.X1_MBD[:, :, :-1]
        else:
            self.X_MBD = torch.zeros((S, B, n_features), dtype=product_dtype, device=device)
        self.slots = [self._slot(g) for g in range(G)]

    def _slot(self, g: int) -> BatchSlot:
        def for_all(part: Tensor) -> Tensor:
            return part.expand(self.n_models, *part.shape[1:])

        X = self.X_MBD
        return BatchSlot(
            n_rows=self.batch,
            rows_M=[self.batch] * self.n_models,
            X_MBD=X if isinstance(X, SparseRows) else for_all(X),
            T_MKB=for_all(self.T_MGKB[:, g]),
            r_M1B=for_all(self.r_MG1B[:, g]),
            Z_MKB=self.Z_MGKB[:, g],
            decay_M1=self.decay_MG[:, g : g + 1],
            square_M=self.square_GM[g],
            X1_MBD=None if self.X1_MBD is None else for_all(self.X1_MBD),
        )

    def used(self, n_used: int) -> SegmentViews:
        """Views of the first ``n_used`` slots."""
        part = slice(0, n_used)
        Z, T, r = (a[:, part] for a in (self.Z_MGKB, self.T_MGKB, self.r_MG1B))
        return SegmentViews(
            T_MGKB=T,
            Z_MGKB=Z,
            r_MG1B=r,
            y_MGBT=self.y_MGBT[:, part],
            square_GM=self.square_GM[part],
            y_M=[y_GBT[part].flatten(0, 1) for y_GBT in self.y_MGBT],
            in_memory=(Z.transpose(0, 1), T.transpose(0, 1), r.transpose(0, 1)),
        )

    def bind_gather(self, source: int, X: Features) -> Gather:
        """A function that puts these rows of X where the steps read them."""
        if isinstance(self.X_MBD, SparseRows):
            return self.X_MBD.bind_gather(source, X)
        return bind_gather(X, self.X_MBD[source])


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of batches of one length: where they lie, and the operations of each.

    Attributes
    ----------
    bank : SlotBank
    views : SegmentViews
    programs : list of list of callable
        What leaves the gradient of each batch.
    gather_S : list of callable
        Put rows of X in place, for each source.
    batches : slice
        Which batches of the epoch they are.
    """

    bank: SlotBank
    views: SegmentViews
    programs: list[list[Op]]
    gather_S: list[Gather]
    batches: slice

    @property
    def n_batches(self) -> int:
        return self.batches.stop - self.batches.start


def bind_gather(X: Features, out_BD: Tensor) -> Gather:
    """A function ``gather(rows)`` that copies rows of X into the first rows of ``out_BD``."""
    if isinstance(X, Tensor):
        return partial(gather_tensor, X, out_BD)
    if isinstance(X, np.ndarray) and numpy_speaks(out_BD):
        out = out_BD.numpy()
        if out.dtype == X.dtype and X.flags.c_contiguous and out.flags.c_contiguous:

            def take(rows: np.ndarray) -> None:
                # mode="clip" writes straight into out; the default would go through a buffer.
                X.take(rows, 0, out if len(rows) == len(out) else out[: len(rows)], "clip")

            return take

        if out.dtype == X.dtype and X.flags.c_contiguous:

            def place(rows: np.ndarray) -> None:
                out[: len(rows)] = X.take(rows, 0)

            return place

    def index(rows: np.ndarray) -> None:
        # Indexing, not take: take first copies the whole of an array that is not C-contiguous.
        part = X[rows]
        dense = part if isinstance(part, np.ndarray) else part.toarray()
        out_BD[: len(rows)].copy_(torch.from_numpy(dense))

    return index


def gather_tensor(X: Tensor, out_BD: Tensor, rows: np.ndarray) -> None:
    """Copy rows of a tensor into the first rows of ``out_BD``."""
    index = torch.from_numpy(rows)
    if X.device.type != "cpu":
        index = index.to(X.device)
    out = out_BD[: len(rows)]
    if X.dtype == out.dtype and X.device == out.device:
        torch.index_select(X, 0, index, out=out)
    else:
        out.copy_(X.index_select(0, index))


def slots_per_segment(batch_bytes: int, n_batches: int, most_bytes: int = SEGMENT_BYTES) -> int:
    """How many batches share one making of targets and one adding-up of losses."""
    return max(1, min(n_batches, MAX_SLOTS, most_bytes // max(1, batch_bytes)))


def max_rows_per_batch(n_rows_M: Sequence[int], batch: int) -> tuple[int, int]:
    """Number of batches of the longest job, and the rows of its last batch."""
    most = max(n_rows_M)
    n_batches = -(-most // batch)
    return n_batches, most - (n_batches - 1) * batch
