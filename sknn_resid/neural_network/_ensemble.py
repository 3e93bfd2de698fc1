"""A fitted ensemble: the members, what each of them counts, and what they say together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sknn_resid.engine.losses import Loss
from sknn_resid.engine.residual_fitted import FittedResidual
from sknn_resid.neural_network._calibration import linked, raw_of, sharpened

# Numbers held at once: outputs of all members for a chunk of rows.
CHUNK_NUMBERS = 1 << 21


def member_outputs(
    members: FittedResidual, X: np.ndarray, device: torch.device | None
) -> np.ndarray:
    """Probabilities or means of each member, float64 of shape (M, n, K).

    The link is taken in float64, whatever the network computes in: probabilities that are to sum to
    1 for scikit-learn's metrics must not be float32's.
    """
    logits_MNK = members.logits(X, device)
    return np.stack([linked(members.spec.loss, z.astype(np.float64)) for z in logits_MNK])


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Members of one structure, averaged.

    Attributes
    ----------
    members : FittedResidual
    weights : ndarray of shape (M,)
        What each member counts; they sum to 1.
    temperature : float
        Factor of the averaged raw outputs, for probabilities.
    """

    members: FittedResidual
    weights: np.ndarray
    temperature: float = 1.0

    @property
    def loss(self) -> Loss:
        """The loss the members were trained with, which gives the link."""
        return self.members.spec.loss

    def outputs(self, X: np.ndarray, device: torch.device | None = None) -> np.ndarray:
        """Averaged probabilities or means, float64 of shape (n, K)."""
        return sharpened(self.loss, self._moments(X, device, spread=False)[0], self.temperature)

    def raw(self, outputs: np.ndarray) -> np.ndarray:
        """Raw outputs that belong to averaged ones, shape (n, K)."""
        return raw_of(self.loss, outputs)

    def mean_and_variance(
        self, X: np.ndarray, device: torch.device | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weighted mean of the members' outputs and their variance around it, each (n, K)."""
        return self._moments(X, device, spread=True)

    def _moments(
        self, X: np.ndarray, device: torch.device | None, *, spread: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        n, n_outputs = int(X.shape[0]), self.members.spec.n_outputs
        mean = np.empty((n, n_outputs))
        variance = np.zeros((n, n_outputs))
        # A member that does not count is not asked.
        used = np.flatnonzero(self.weights)
        members, weights = self._subset(used), self.weights[used]
        chunk = max(256, CHUNK_NUMBERS // (len(used) * max(n_outputs, members.spec.width)))
        for first in range(0, n, chunk):
            rows = slice(first, first + chunk)
            outputs_MNK = member_outputs(members, X[rows], device)
            mean[rows] = np.tensordot(weights, outputs_MNK, axes=1)
            if spread:
                variance[rows] = np.tensordot(weights, (outputs_MNK - mean[rows]) ** 2, axes=1)
        return mean, variance

    def hidden(self, X: np.ndarray, device: torch.device | None = None) -> np.ndarray:
        """What the heads read, members side by side: shape (n, M * width)."""
        spec = self.members.spec
        n, M = int(X.shape[0]), len(self.members.params)
        out = np.empty((n, M * spec.width), dtype=self.members.params.dtype)
        chunk = max(256, CHUNK_NUMBERS // (M * spec.width))
        for first in range(0, n, chunk):
            rows = slice(first, first + chunk)
            hidden_MNH = self.members.hidden(X[rows], device)
            out[rows] = hidden_MNH.transpose(1, 0, 2).reshape(hidden_MNH.shape[1], -1)
        return out

    def _subset(self, used: np.ndarray) -> FittedResidual:
        members = self.members
        if len(used) == len(members.params):
            return members
        scale = members.input_scale
        return FittedResidual(
            members.spec,
            members.params[used],
            members.statistics[used],
            None if scale is None else scale[used],
        )
