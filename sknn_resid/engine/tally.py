"""What the rows of each batch weigh, and what each batch counts in the loss of an epoch.

Within a batch row i weighs r_i = w_i / S, S the sum of the weights, so that no later product needs
a scale. The loss of an epoch is scikit-learn's: the mean over the batches, each weighed by its
number of rows; a batch without weight has none, and its rows do not count (scikit-learn fails
there).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.data import RowOrder
from sknn_resid.engine.slots import BatchSlot


class WeightedBank(Protocol):
    """Where a tally writes: G batches of ``batch`` rows each.

    Attributes
    ----------
    r_MG1B : Tensor
        Weight of each row, by source: one for all models, or each for itself.
    decay_MG : Tensor of shape (M, G)
        alpha / S of each batch.
    slots : list of BatchSlot
        Told how many of their rows each model has; may be empty.
    """

    batch: int
    r_MG1B: Tensor
    decay_MG: Tensor
    slots: list[BatchSlot]


class Tally:
    """Weights and losses of the batches of an epoch of M models.

    Parameters
    ----------
    orders_S : sequence of RowOrder
        Of each source.
    n_rows_M : ndarray of shape (M,)
        Rows that take part in an epoch.
    n_batches : int
    penalty_M : ndarray of shape (M,)
        alpha, as far as it is part of the objective.
    scale : float
        From the data term of the objective to the loss that is reported.
    weighted : bool
        Whether any rows have weights.

    Attributes
    ----------
    even : bool
        Every batch of a length weighs its rows alike, in every model.
    live_Mb : ndarray of bool
        Which batches weigh anything.
    value_Mb, square_Mb : ndarray
        Data term and |W|^2 of each batch, at the weights before its step; written by the stack.
    """

    def __init__(
        self,
        orders_S: Sequence[RowOrder],
        n_rows_M: np.ndarray,
        n_batches: int,
        penalty_M: np.ndarray,
        scale: float,
        *,
        weighted: bool,
    ) -> None:
        self._orders_S, self._n_rows_M = orders_S, n_rows_M
        self._penalty_M, self._scale = penalty_M, scale
        self.even = not weighted and len(set(n_rows_M.tolist())) == 1
        self._penalised = bool((penalty_M > 0).any())
        per_batch = (len(n_rows_M), n_batches)
        self.value_Mb, self.square_Mb = np.zeros(per_batch), np.zeros(per_batch)
        self._value_factor_Mb, self._square_factor_Mb = np.zeros(per_batch), np.zeros(per_batch)
        self._share_Mb = np.zeros(per_batch)
        self.live_Mb = np.ones(per_batch, dtype=bool)

    def load_even(self, bank: WeightedBank, batches: slice) -> None:
        """Every row counts 1 / B, for good."""
        bank.r_MG1B.fill_(1.0 / bank.batch)
        decay_M1 = torch.as_tensor(self._penalty_M / bank.batch)[:, None]
        bank.decay_MG.copy_(decay_M1.expand_as(bank.decay_MG))
        share_M1 = bank.batch / self._n_rows_M[:, None]
        self._set_factors(batches, share_M1, self._penalty_M[:, None] / bank.batch)

    def load(self, bank: WeightedBank, batches: slice, first: int) -> None:
        """Weights of the rows of these batches; ``first`` is the place of the first row."""
        used, n_sources = batches.stop - batches.start, len(self._orders_S)
        stop = first + used * bank.batch
        w_SGB = np.zeros((n_sources, used, bank.batch))
        flat = w_SGB.reshape(n_sources, -1)
        for s, order in enumerate(self._orders_S):
            begin, end = min(first, self._n_rows_M[s]), min(stop, self._n_rows_M[s])
            weights = order.weights(begin, end)
            flat[s, : end - begin] = 1.0 if weights is None else weights
        # from here on, what is one number a batch broadcasts from sources to models
        S_SG = w_SGB.sum(2)
        live = S_SG > 0
        inverse = np.divide(1.0, S_SG, out=np.zeros_like(S_SG), where=live)
        decay_MG = self._penalty_M[:, None] * inverse
        bank.r_MG1B[:, :used, 0].copy_(torch.from_numpy(w_SGB * inverse[:, :, None]))
        bank.decay_MG[:, :used].copy_(torch.from_numpy(decay_MG))
        starts = first + bank.batch * np.arange(used)
        rows_MG = np.clip(self._n_rows_M[:, None] - starts, 0, bank.batch)
        for slot, rows_M in zip(bank.slots, rows_MG.T.tolist(), strict=False):
            slot.rows_M[:] = rows_M
        self.live_Mb[:, batches] = live
        share_MG = np.where(live, rows_MG / self._n_rows_M[:, None], 0.0)
        self._set_factors(batches, share_MG, decay_MG)

    def _set_factors(self, batches: slice, share: np.ndarray, decay: np.ndarray) -> None:
        """Factors of a batch's data term and of its |W|^2 in the loss of the epoch.

        ``share`` is rows of the batch / rows of the job, ``decay`` alpha / S.
        """
        self._share_Mb[:, batches] = share
        self._value_factor_Mb[:, batches] = share * self._scale
        self._square_factor_Mb[:, batches] = 0.5 * decay * share

    def epoch_loss(self) -> np.ndarray:
        """Reported loss of the epoch of each model: the mean over rows, plus the penalty."""
        loss_M = np.vecdot(self.value_Mb, self._value_factor_Mb)
        if self._penalised:
            loss_M += np.vecdot(self.square_Mb, self._square_factor_Mb)
        return loss_M if self.even else loss_M / self._share_Mb.sum(1)
