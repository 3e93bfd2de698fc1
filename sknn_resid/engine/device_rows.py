"""Rows and targets of a stack on an accelerator: one gather for all models.

The sources of a stack (one for all models, or each model for itself) read their rows from one
tensor in which every distinct X lies once, one after another; so one call gathers a batch for all
of them, whether they share an X, as candidates of a search do, or not, as its folds. The same holds
for targets. Which rows a segment reads is sent in one copy, and lies where the steps expect it.

Sent once a segment, not once an epoch: an epoch of a thousand models on a million rows would be
8 GB of indices; a segment, which has up to 32 batches, ends with a number that is read back anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine.data import Features, RowOrder, as_tensor, is_mapped
from sknn_resid.engine.graphs import Graphs
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.slots import Segment, SlotBank


def fed_by_host(X: Features) -> bool:
    """Whether rows of X are gathered on the host: a memory map may not fit, CSR has no rows."""
    return scipy.sparse.issparse(X) or (isinstance(X, np.ndarray) and is_mapped(X))


class Table:
    """Rows of several sources in one tensor.

    Parameters
    ----------
    arrays_S : sequence of (ndarray or Tensor), each of shape (N, D)
        Of each source; one and the same array has one place.
    device, dtype : torch.device, torch.dtype

    Attributes
    ----------
    rows_ND : Tensor
        A single array that lies there already is not copied.
    starts_S : ndarray of int64
        Where the rows of each source begin.
    """

    def __init__(
        self, arrays_S: Sequence[np.ndarray | Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        distinct = list({id(array): array for array in arrays_S}.values())
        parts = [a if isinstance(a, Tensor) else as_tensor(np.asarray(a)) for a in distinct]
        ends = np.cumsum([len(part) for part in parts])
        if len(parts) == 1:
            self.rows_ND = parts[0].to(device, dtype)
        else:
            # part by part into place: all of them beside their copies might not fit
            shape = (int(ends[-1]), parts[0].shape[1])
            self.rows_ND = torch.empty(shape, dtype=dtype, device=device)
            for part, end in zip(parts, ends.tolist(), strict=True):
                self.rows_ND[end - len(part) : end].copy_(part)
        starts = {id(a): end - len(a) for a, end in zip(distinct, ends.tolist(), strict=True)}
        self.starts_S = np.array([starts[id(array)] for array in arrays_S], dtype=np.int64)


class SegmentRows:
    """Which rows the segments of one bank read, and how they get to the steps.

    Parameters
    ----------
    bank : SlotBank
    features : Table or None
        None where rows of X come from the host.
    targets : Table
    graphs : Graphs
    """

    def __init__(
        self, bank: SlotBank, features: Table | None, targets: Table, graphs: Graphs
    ) -> None:
        self._features, self._targets = features, targets
        S = len(targets.starts_S)
        shape = (2, bank.n_slots, S, bank.batch)
        self._sent = graphs.host_buffer(shape, torch.int64)
        self._rows = torch.zeros(shape, dtype=torch.int64, device=targets.rows_ND.device)
        host_2GSB = self._sent.numpy()
        self._of_X_SGB, self._of_y_SGB = host_2GSB.swapaxes(1, 2)
        self._X_rows_GSB, self._y_rows_GSB = self._rows

    def load(
        self, orders_S: Sequence[RowOrder], counts_S: Sequence[int], first: int, segment: Segment
    ) -> None:
        """Send the rows of a segment and gather its targets.

        Where a source has no more rows, its first one is read, with weight 0.

        Parameters
        ----------
        orders_S : sequence of RowOrder
        counts_S : sequence of int
            Rows of each source that take part in an epoch.
        first : int
            Place of the segment's first row in the epoch.
        segment : Segment
        """
        G = segment.n_batches
        n = G * segment.bank.batch
        starts = None if self._features is None else self._features.starts_S
        known: dict[int, np.ndarray] = {}  # several sources may have one order
        for s, (order, count) in enumerate(zip(orders_S, counts_S, strict=True)):
            if id(order) not in known:
                begin, end = min(first, count), min(first + n, count)
                rows = np.empty(n, dtype=np.int64)
                rows[: end - begin] = order.rows(begin, end)
                rows[end - begin :] = order.rows(0, 1)
                known[id(order)] = rows.reshape(G, -1)
            rows_GB = known[id(order)]
            np.add(rows_GB, 0 if starts is None else starts[s], out=self._of_X_SGB[s, :G])
            np.add(rows_GB, self._targets.starts_S[s], out=self._of_y_SGB[s, :G])
        self._rows.copy_(self._sent, non_blocking=True)
        y_GSBT = segment.views.y_MGBT.transpose(0, 1)
        picked = self._targets.rows_ND.index_select(0, self._y_rows_GSB[:G].flatten())
        y_GSBT.copy_(picked.view(y_GSBT.shape))

    def bind_gather(self, g: int, X_SBD: Tensor) -> Op:
        """The operation that puts the rows of batch g, of all sources, into ``X_SBD``."""
        assert self._features is not None
        index = self._X_rows_GSB[g].flatten()
        out = X_SBD.flatten(0, 1)
        assert out.data_ptr() == X_SBD.data_ptr()  # a view: its memory has no gaps
        return partial(torch.index_select, self._features.rows_ND, 0, index, out=out)
