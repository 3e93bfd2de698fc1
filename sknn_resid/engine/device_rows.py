"""Rows and targets of a stack on an accelerator: one gather for all models.

The sources of a stack (one for all models, or each model for itself) read their rows from one
tensor in which every distinct X lies once, one after another; so one call gathers a batch for all
of them, whether they share an X, as candidates of a search do, or not, as its folds. The same holds
for targets. Which rows a segment reads is sent in one copy, an order once, however many models
follow it, and is laid out on the device as the steps expect it.

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
    orders_S : sequence of RowOrder
        Of each source; several may have one order, which is sent once.
    counts_S : sequence of int
        Rows of each source that take part in an epoch.
    graphs : Graphs
    """

    def __init__(
        self,
        bank: SlotBank,
        features: Table | None,
        targets: Table,
        orders_S: Sequence[RowOrder],
        counts_S: Sequence[int],
        graphs: Graphs,
    ) -> None:
        self._features, self._targets = features, targets
        device, S = targets.rows_ND.device, len(orders_S)
        distinct = {
            id(order): (order, count) for order, count in zip(orders_S, counts_S, strict=True)
        }
        places = {key: o for o, key in enumerate(distinct)}
        self._distinct = list(distinct.values())
        self._order_S = torch.tensor([places[id(order)] for order in orders_S]).to(device)
        self._y_starts_S11 = torch.from_numpy(targets.starts_S)[:, None, None].to(device)
        self._sent = graphs.host_buffer((len(distinct), bank.n_slots, bank.batch), torch.int64)
        self._sent_OGB = self._sent.numpy()
        self._rows_OGB = torch.zeros_like(self._sent, device=device)
        if features is not None:
            self._X_starts_S1 = torch.from_numpy(features.starts_S)[:, None].to(device)
            shape = (bank.n_slots, S, bank.batch)
            self._X_rows_GSB = torch.zeros(shape, dtype=torch.int64, device=device)

    def load(self, first: int, segment: Segment) -> None:
        """Send the rows of a segment and gather its targets.

        Where a source has no more rows, its first one is read, with weight 0.

        Parameters
        ----------
        first : int
            Place of the segment's first row in the epoch.
        segment : Segment
        """
        G = segment.n_batches
        n = G * segment.bank.batch
        for sent_GB, (order, count) in zip(self._sent_OGB, self._distinct, strict=True):
            begin, end = min(first, count), min(first + n, count)
            rows = sent_GB[:G].reshape(-1)  # a view: whole batches one after another
            rows[: end - begin] = order.rows(begin, end)
            if end - begin < n:
                rows[end - begin :] = order.rows(0, 1)
        self._rows_OGB.copy_(self._sent, non_blocking=True)
        rows_SGB = self._rows_OGB[:, :G].index_select(0, self._order_S)
        if self._features is not None:
            rows_GSB = rows_SGB.transpose(0, 1)
            torch.add(rows_GSB, self._X_starts_S1, out=self._X_rows_GSB[:G])
        index = rows_SGB.add_(self._y_starts_S11).flatten()
        y_SGBT = segment.views.y_MGBT
        y_SGBT.copy_(self._targets.rows_ND.index_select(0, index).view(y_SGBT.shape))

    def bind_gather(self, g: int, X_SBD: Tensor) -> Op:
        """The operation that puts the rows of batch g, of all sources, into ``X_SBD``."""
        assert self._features is not None
        index = self._X_rows_GSB[g].flatten()
        out = X_SBD.flatten(0, 1)
        assert out.data_ptr() == X_SBD.data_ptr()  # a view: its memory has no gaps
        return partial(torch.index_select, self._features.rows_ND, 0, index, out=out)
