"""Memory for the batches of a stack: gathered rows, targets, weights, logits.

A *segment* is a run of G batches that is gathered in one go, so that shuffled rows cost one copy
for many steps and the losses of many steps are added up by one call. A *slot* is one batch of it:
views that the steps are bound to once. A bank holds the slots of one batch length; an epoch needs
at most two banks, one for full batches and one for the short last batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine.data import Features
from sknn_resid.engine.kernels import Op

SEGMENT_BYTES = 2 << 20  # rows gathered at once: a size that stays in a second-level cache
MAX_SLOTS = 16


@dataclass
class SparseRows:
    """The rows of a batch as CSR matrices, one a model, replaced before each step."""

    batch_M: list[scipy.sparse.csr_array | None] = field(default_factory=list)

    def bind_times(self, W_Mij: Tensor, out_MBj: Tensor) -> Op:
        """Bind ``out = X W``."""

        def times() -> None:
            for X, W, out in zip(self.batch_M, W_Mij, out_MBj, strict=True):
                assert X is not None
                out[: X.shape[0]] = torch.from_numpy(X @ _numpy_of(W))

        return times

    def bind_transposed_times(self, delta_MBj: Tensor, out_Mij: Tensor) -> Op:
        """Bind ``out = X' delta``."""

        def times() -> None:
            for X, delta, out in zip(self.batch_M, delta_MBj, out_Mij, strict=True):
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


@dataclass(frozen=True, eq=False)
class SegmentViews:
    """The slots that a segment uses: whole, and row by row for each model (for gathering)."""

    T_MGKB: Tensor
    Z_MGKB: Tensor
    r_MG1B: Tensor
    y_MGBT: Tensor
    square_GM: Tensor
    y_M: list[Tensor]
    X_M: list[Tensor]


class SlotBank:
    """G slots of ``batch`` rows each, for M models.

    Attributes
    ----------
    T_MGKB, r_MG1B, Z_MGKB : Tensor
        Targets, row weights (w / S, 0 for padding) and logits of the segment.
    decay_MG : Tensor of shape (M, G)
        alpha / S of each batch.
    square_GM : Tensor of shape (G, M)
        |W|^2 as it was before each step.
    y_MGBT : Tensor
        Targets as gathered, row by row; the loss turns them into ``T_MGKB``.
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
    ) -> None:
        M, G, B, K = n_models, n_slots, batch, n_outputs
        self.n_slots, self.batch = G, B

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.T_MGKB = zeros(M, G, K, B)
        self.Z_MGKB = zeros(M, G, K, B)
        self.r_MG1B = zeros(M, G, 1, B)
        self.decay_MG = zeros(M, G)
        # |W|^2 is written through contiguous memory of its own: an out= view may not be strided.
        self.square_GM = zeros(G, M)
        self.y_MGBT = torch.zeros(
            (M, G, B, n_targets), dtype=torch.int64 if codes else dtype, device=device
        )
        self.X_MGBD: Tensor | None = None
        self.sparse_G: list[SparseRows] = []
        if sparse:
            self.sparse_G = [SparseRows([None] * M) for _ in range(G)]
        else:
            self.X_MGBD = torch.zeros((M, G, B, n_features), dtype=product_dtype, device=device)
        self.slots = [self._slot(g) for g in range(G)]

    def _slot(self, g: int) -> BatchSlot:
        X = self.sparse_G[g] if self.X_MGBD is None else self.X_MGBD[:, g]
        return BatchSlot(
            n_rows=self.batch,
            rows_M=[self.batch] * len(self.T_MGKB),
            X_MBD=X,
            T_MKB=self.T_MGKB[:, g],
            r_M1B=self.r_MG1B[:, g],
            Z_MKB=self.Z_MGKB[:, g],
            decay_M1=self.decay_MG[:, g : g + 1],
            square_M=self.square_GM[g],
        )

    def used(self, n_used: int) -> SegmentViews:
        """Views of the first ``n_used`` slots."""
        part = slice(0, n_used)
        X_M: list[Tensor] = []
        if self.X_MGBD is not None:
            X_M = [X_GBD[part].flatten(0, 1) for X_GBD in self.X_MGBD]
        return SegmentViews(
            T_MGKB=self.T_MGKB[:, part],
            Z_MGKB=self.Z_MGKB[:, part],
            r_MG1B=self.r_MG1B[:, part],
            y_MGBT=self.y_MGBT[:, part],
            square_GM=self.square_GM[part],
            y_M=[y_GBT[part].flatten(0, 1) for y_GBT in self.y_MGBT],
            X_M=X_M,
        )

    def load_sparse(self, model: int, X: scipy.sparse.csr_array, rows: np.ndarray) -> None:
        """Hand each slot its rows of a CSR matrix."""
        for g, slot in enumerate(self.sparse_G):
            slot.batch_M[model] = X[rows[g * self.batch : (g + 1) * self.batch]]


def gather_rows(X: Features, rows: np.ndarray, out_nD: Tensor) -> None:
    """Copy rows of X into ``out_nD``, whatever dtype and device they have."""
    if isinstance(X, Tensor):
        index = torch.from_numpy(rows)
        if X.device.type != "cpu":
            index = index.to(X.device)
        if X.dtype == out_nD.dtype and X.device == out_nD.device:
            torch.index_select(X, 0, index, out=out_nD)
        else:
            out_nD.copy_(X.index_select(0, index))
        return
    if not isinstance(X, np.ndarray):  # CSR rows for an accelerator
        out_nD.copy_(torch.from_numpy(X[rows].toarray()))
        return
    if out_nD.device.type == "cpu" and out_nD.dtype in (torch.float32, torch.float64):
        out = out_nD.numpy()
        if out.dtype == X.dtype and X.flags.c_contiguous:
            # mode="clip" writes straight into out; the default would go through a buffer.
            X.take(rows, axis=0, out=out, mode="clip")
            return
    # Indexing, not take: take first copies the whole of an array that is not C-contiguous.
    out_nD.copy_(torch.from_numpy(X[rows]))


def slots_per_segment(batch_bytes: int, n_batches: int) -> int:
    """How many batches to gather at once."""
    return max(1, min(n_batches, MAX_SLOTS, SEGMENT_BYTES // max(1, batch_bytes)))


def max_rows_per_batch(n_rows_M: Sequence[int], batch: int) -> tuple[int, int]:
    """Number of batches of the longest job, and the rows of its last batch."""
    most = max(n_rows_M)
    n_batches = -(-most // batch)
    return n_batches, most - (n_batches - 1) * batch
