"""A trained network as plain arrays: what predicts, what is pickled.

No optimizer, no graph, no device memory, no scratch buffer: those belong to a call, so that one
fitted network predicts from many threads at once and loads on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine.activations import Activation
from sknn_resid.engine.data import Features, as_tensor, dense_chunk, row_chunks
from sknn_resid.engine.kernels import numpy_speaks
from sknn_resid.engine.losses import Loss

# Rows per pass: the activations of a 100-wide net then stay in the cache, and memory is bounded.
CHUNK_BYTES = 2 << 20
MIN_CHUNK, MAX_CHUNK = 256, 8192


@dataclass(frozen=True, eq=False)
class FittedNetwork:
    """Weights of one dense network.

    Attributes
    ----------
    coefs : sequence of ndarray of shape (in, out)
    intercepts : sequence of ndarray of shape (out,)
    activations : tuple of Activation
        One per hidden layer.
    loss : Loss
        Gives the output activation.
    """

    coefs: Sequence[np.ndarray]
    intercepts: Sequence[np.ndarray]
    activations: tuple[Activation, ...]
    loss: Loss

    def outputs(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Predictions on the scale of the target (after the link), shape (n, K)."""
        return self._run(X, device, len(self.coefs), linked=True)

    def logits(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Raw outputs z, shape (n, K)."""
        return self._run(X, device, len(self.coefs), linked=False)

    def hidden(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Activations of the last hidden layer, shape (n, H); X itself without hidden layers."""
        return self._run(X, device, len(self.coefs) - 1, linked=False)

    def run_on_device(self, X: Tensor, *, hidden: bool = False, linked: bool = True) -> Tensor:
        """As `outputs`, `logits` or `hidden` for a tensor, staying on its device."""
        n_layers = len(self.coefs) - hidden
        layers = self._layers(n_layers, X.dtype, X.device)
        width = self.coefs[n_layers - 1].shape[1] if n_layers else X.shape[1]
        out = X.new_empty((X.shape[0], width))
        for rows in row_chunks(X.shape[0], self._chunk(X.element_size())):
            z = forward(X[rows], layers, self.activations)
            out[rows] = self.loss.link_(z) if linked and not hidden else z
        return out

    def _chunk(self, itemsize: int) -> int:
        widest = max(w.shape[1] for w in self.coefs)
        return int(np.clip(CHUNK_BYTES // (itemsize * widest), MIN_CHUNK, MAX_CHUNK))

    def _layers(
        self, n_layers: int, dtype: torch.dtype, device: torch.device
    ) -> list[tuple[Tensor, Tensor]]:
        pairs = zip(self.coefs[:n_layers], self.intercepts[:n_layers], strict=True)
        return [
            (
                as_tensor(w).to(device=device, dtype=dtype),
                as_tensor(b).to(device=device, dtype=dtype),
            )
            for w, b in pairs
        ]

    def _run(
        self, X: Features, device: torch.device | None, n_layers: int, *, linked: bool
    ) -> np.ndarray:
        device = device or torch.device("cpu")
        dtype = torch.float32 if self.coefs[0].dtype == np.float32 else torch.float64
        layers = self._layers(n_layers, dtype, device)
        width = self.coefs[n_layers - 1].shape[1] if n_layers else self.coefs[0].shape[0]
        n = int(X.shape[0])
        out = np.empty((n, width), dtype=self.coefs[0].dtype)
        with np.errstate(all="ignore"):
            for rows in row_chunks(n, self._chunk(out.itemsize)):
                if scipy.sparse.issparse(X) and device.type == "cpu":
                    z = _forward_sparse(X[rows], layers, self.activations)
                else:
                    z = forward(dense_chunk(X, rows, dtype, device), layers, self.activations)
                if linked:
                    z = self.loss.link_(z)
                out[rows] = z.cpu().numpy()
        return out


def forward(
    x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], activations: Sequence[Activation]
) -> Tensor:
    """Raw outputs of a chunk of rows; the activation follows every layer that has one.

    Overflow is left to the caller to see (numpy's warnings are silenced around the whole pass).
    """
    v = x
    for l, (w, b) in enumerate(layers):
        z = _affine(v, w, b)
        v = activations[l].forward_(z) if l < len(activations) else z
    return v


def _affine(v: Tensor, w: Tensor, b: Tensor) -> Tensor:
    if numpy_speaks(v):
        return torch.from_numpy(np.dot(v.numpy(), w.numpy())).add_(b)
    return torch.addmm(b, v, w)


def _forward_sparse(
    X: scipy.sparse.csr_array,
    layers: Sequence[tuple[Tensor, Tensor]],
    activations: Sequence[Activation],
) -> Tensor:
    if not layers:
        return torch.from_numpy(X.toarray())
    (w, b), *rest = layers
    z = torch.from_numpy(np.asarray(X @ w.numpy())).add_(b)
    if not activations:
        return z
    return forward(activations[0].forward_(z), rest, activations[1:])
