"""A trained network as plain arrays: what predicts, what is pickled.

No optimizer, no graph, no device memory, no scratch buffer: those belong to a call, so that one
fitted network predicts from many threads at once and loads on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine.activations import Activation
from sknn_resid.engine.data import Features, as_tensor, row_chunks
from sknn_resid.engine.forward import LARGEST, LOGITS, POSITIVE, forward_pass, link_of
from sknn_resid.engine.kernels import NARROW
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.threads import blas_threads_only

# Rows per pass: the activations of a 100-wide net then stay in the cache, and memory is bounded.
CHUNK_BYTES = 1 << 20
MIN_CHUNK, MAX_CHUNK = 256, 8192
FEW_NUMBERS = 4096


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
        done = self.compiled(X, link_of(self.loss)) if _is_cpu(device) else None
        if done is not None:
            return done
        out = self._empty(X, self.coefs[-1].shape[1])
        for rows, z_KB in self.chunks(X, device):
            out[rows] = self.loss.link_(z_KB).T.cpu().numpy()
        return out

    def logits(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Raw outputs z, shape (n, K)."""
        done = self.compiled(X, LOGITS) if _is_cpu(device) else None
        if done is not None:
            return done
        out = self._empty(X, self.coefs[-1].shape[1])
        for rows, z_KB in self.chunks(X, device):
            out[rows] = z_KB.T.cpu().numpy()
        return out

    def hidden(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Activations of the last hidden layer, shape (n, H); X itself without hidden layers."""
        out = self._empty(X, self.coefs[-1].shape[0])
        hidden = self.coefs[:-1], self.intercepts[:-1], self.activations
        if _is_cpu(device) and hidden[0] and forward_pass(*hidden, X, out, LOGITS):
            return out
        network = self._forward(device or _CPU, int(X.shape[0]))
        with self._quiet(X, device):
            for rows in row_chunks(int(X.shape[0]), network.chunk):
                out[rows] = network.hidden(X[rows]).cpu().numpy()
        return out

    def compiled(self, X: Features, link: str | None, *, only_finite: bool = False) -> Any:
        """What ``link`` (see `forward`) asks for, by the compiled module; None: go another way.

        With ``only_finite`` also None where X has a number that is not finite.
        """
        n_rows, K = int(X.shape[0]), self.coefs[-1].shape[1]
        shape = n_rows if link == LARGEST else (n_rows, K)
        dtype = np.int64 if link in (LARGEST, POSITIVE) else self.coefs[0].dtype
        out = np.empty(shape, dtype=dtype)
        network = self.coefs, self.intercepts, self.activations
        return out if forward_pass(*network, X, out, link, only_finite=only_finite) else None

    def chunks(
        self, X: Features, device: torch.device | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Raw outputs chunk by chunk, class-major (K, B), in memory that the next chunk reuses."""
        n_rows = int(X.shape[0])
        network = self._forward(device or _CPU, n_rows)
        if n_rows == 1 and device is None:  # a context and a loop would cost half as much again
            with np.errstate(all="ignore"):
                yield _ONE_ROW, network.logits(X)
            return
        with self._quiet(X, device):
            for rows in row_chunks(n_rows, network.chunk):
                yield rows, network.logits(X[rows])

    def run_on_device(self, X: Tensor, *, hidden: bool = False, linked: bool = True) -> Tensor:
        """As `outputs`, `logits` or `hidden` for a tensor, staying on its device."""
        width = self.coefs[-1].shape[0 if hidden else 1]
        out = X.new_empty((X.shape[0], width))
        network = self._forward(X.device, int(X.shape[0]), X.dtype)
        for rows in row_chunks(int(X.shape[0]), network.chunk):
            if hidden:
                out[rows] = network.hidden(X[rows])
            else:
                z_KB = network.logits(X[rows])
                out[rows] = (self.loss.link_(z_KB) if linked else z_KB).T
        return out

    @contextmanager
    def _quiet(self, X: Features, device: torch.device | None) -> Iterator[None]:
        """No warnings of overflow (the caller sees it in the result), one pool of threads."""
        widest = max(w.shape[1] for w in self.coefs)
        small = int(X.shape[0]) * widest < FEW_NUMBERS  # torch does not share so little work
        pool = nullcontext() if small or device else blas_threads_only()
        with np.errstate(all="ignore"), pool:
            yield

    def _empty(self, X: Features, width: int) -> np.ndarray:
        return np.empty((int(X.shape[0]), width), dtype=self.coefs[0].dtype)

    def _forward(
        self, device: torch.device, n_rows: int, dtype: torch.dtype | None = None
    ) -> _CpuForward | _DeviceForward:
        if device.type == "cpu":
            return _CpuForward(self, n_rows)
        return _DeviceForward(self, device, dtype or torch.float32)

    def chunk_rows(self) -> int:
        """Rows per pass."""
        widest = max(w.shape[1] for w in self.coefs)
        rows = CHUNK_BYTES // (self.coefs[0].itemsize * widest)
        return min(MAX_CHUNK, max(MIN_CHUNK, rows))


_CPU = torch.device("cpu")


def _is_cpu(device: torch.device | None) -> bool:
    return device is None or device.type == "cpu"


_ONE_ROW = slice(0, 1)


class _CpuForward:
    """The forward pass of one call on the CPU: products by numpy, the rest by torch in place.

    For a few rows numpy alone is quicker than anything that has to make tensors first.
    """

    def __init__(self, network: FittedNetwork, n_rows: int) -> None:
        self.chunk = network.chunk_rows()
        self._coefs, self._intercepts = network.coefs, network.intercepts
        self._activations = network.activations
        self._dtype = network.coefs[0].dtype
        rows = min(n_rows, self.chunk)
        self._buffers = [np.empty(rows * w.shape[1], dtype=self._dtype) for w in network.coefs]

    def hidden(self, x: Features) -> Tensor:
        """v of the last hidden layer for these rows."""
        v = self._hidden(x)
        return as_tensor(v if isinstance(v, np.ndarray) else v.toarray())

    def _hidden(self, x: Features) -> np.ndarray | scipy.sparse.csr_array:
        v = x.numpy() if isinstance(x, Tensor) else x
        if v.dtype != self._dtype:
            v = v.astype(self._dtype)
        for l, activation in enumerate(self._activations):
            w = self._coefs[l]
            n = v.shape[0]
            z = self._buffers[l][: n * w.shape[1]].reshape(n, w.shape[1])
            if isinstance(v, np.ndarray):
                np.dot(v, w, z)
            else:
                z[:] = v @ w
            v = _add(z, self._intercepts[l])
            activation.forward_(torch.from_numpy(v))
        return v

    def logits(self, x: Features) -> Tensor:
        """Raw outputs (K, B)."""
        v = self._hidden(x)
        w = self._coefs[-1]
        K, n = w.shape[1], v.shape[0]
        z_KB = self._buffers[-1][: K * n].reshape(K, n)
        if not isinstance(v, np.ndarray):
            z_KB[:] = (v @ w).T
        elif 1 < K <= NARROW and z_KB.size >= FEW_NUMBERS:
            # Few classes: MKL takes half the time of OpenBLAS, and adds the bias on the way.
            z, bias = torch.from_numpy(z_KB), as_tensor(self._intercepts[-1])[:, None]
            return torch.addmm(bias, as_tensor(w).T, torch.from_numpy(v).T, out=z)
        else:
            np.dot(w.T, v.T, z_KB)
        return torch.from_numpy(_add(z_KB, self._intercepts[-1][:, None]))


def _add(z: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Z += b in place; torch is faster from some thousand numbers on."""
    if z.size < FEW_NUMBERS:
        return np.add(z, b, out=z)
    torch.from_numpy(z).add_(as_tensor(b))
    return z


class _DeviceForward:
    """The forward pass of one call on an accelerator: weights are sent there once."""

    def __init__(self, network: FittedNetwork, device: torch.device, dtype: torch.dtype) -> None:
        self.chunk = MAX_CHUNK
        self._device, self._dtype = device, dtype
        self._weights = [as_tensor(w).to(device, dtype) for w in network.coefs]
        self._biases = [as_tensor(b).to(device, dtype) for b in network.intercepts]
        self._activations = network.activations

    def hidden(self, x: Features) -> Tensor:
        """v of the last hidden layer for these rows."""
        if not isinstance(x, Tensor):
            x = as_tensor(x if isinstance(x, np.ndarray) else x.toarray())
        v = x.to(self._device, self._dtype)
        for l, activation in enumerate(self._activations):
            v = activation.forward_(torch.addmm(self._biases[l], v, self._weights[l]))
        return v

    def logits(self, x: Features) -> Tensor:
        """Raw outputs (K, B)."""
        return torch.addmm(self._biases[-1], self.hidden(x), self._weights[-1]).T.contiguous()
