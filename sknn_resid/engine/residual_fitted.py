"""Trained residual networks that predict: plain arrays, many members at once, bounded memory.

Batch normalization predicts with the (weighted) mean and variance of all training rows at the very
weights that predict. They are measured by one pass over those rows; running averages collected
while other weights were trained are not used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine.data import Features, as_tensor, row_chunks
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec, Skip

CHUNK_BYTES = 4 << 20  # of one layer's activations, all members together
MIN_CHUNK, MAX_CHUNK = 64, 8192
_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class FittedResidual:
    """M trained residual networks of one structure.

    Attributes
    ----------
    spec : ResidualSpec
    params : ndarray of shape (M, P)
    statistics : ndarray of shape (M, S)
        From `training_statistics`; S = 0 without batch normalization.
    input_scale : ndarray of shape (M, D) or None
    """

    spec: ResidualSpec
    params: np.ndarray
    statistics: np.ndarray
    input_scale: np.ndarray | None = None

    def outputs(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Predictions of each member on the scale of the target (after the link): (M, n, K)."""
        out = self._empty(X, self.spec.n_outputs)
        for rows, z_MKN in self.chunks(X, device):
            for member, z_KN in zip(out, z_MKN, strict=True):
                member[rows] = self.spec.loss.link_(z_KN).T.cpu().numpy()
        return out

    def logits(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """Raw outputs of each member, shape (M, n, K)."""
        out = self._empty(X, self.spec.n_outputs)
        for rows, z_MKN in self.chunks(X, device):
            out[:, rows] = z_MKN.mT.cpu().numpy()
        return out

    def hidden(self, X: Features, device: torch.device | None = None) -> np.ndarray:
        """What each member's head reads, shape (M, n, width)."""
        out = self._empty(X, self.spec.width)
        forward = self._forward(device)
        for rows in row_chunks(int(X.shape[0]), self.chunk_rows()):
            out[:, rows] = forward.hidden(X[rows]).cpu().numpy()
        return out

    def chunks(
        self, X: Features, device: torch.device | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Raw outputs chunk by chunk, class-major (M, K, n)."""
        forward = self._forward(device)
        for rows in row_chunks(int(X.shape[0]), self.chunk_rows()):
            yield rows, forward.logits(X[rows])

    def chunk_rows(self) -> int:
        """Rows per pass."""
        spec = self.spec
        widest = max(spec.width, spec.hidden, spec.n_inputs - spec.n_features)
        rows = CHUNK_BYTES // (len(self.params) * widest * self.params.itemsize)
        return min(MAX_CHUNK, max(MIN_CHUNK, rows))

    def _empty(self, X: Features, width: int) -> np.ndarray:
        return np.empty((len(self.params), int(X.shape[0]), width), dtype=self.params.dtype)

    def _forward(self, device: torch.device | None) -> _Forward:
        device = device or _CPU
        params_MP = as_tensor(np.ascontiguousarray(self.params)).to(device)
        moments = _Kept(self.spec, as_tensor(self.statistics).to(device))
        scale = None
        if self.input_scale is not None:
            scale = as_tensor(self.input_scale).to(device, params_MP.dtype)
        return _Forward(self.spec, params_MP, moments, scale)


def training_statistics(job: TrainJob, params: np.ndarray) -> np.ndarray:
    """Statistics of the normalizations at these weights over the job's training rows: (S,)."""
    assert isinstance(job.network, ResidualSpec), "only residual networks have statistics"
    data = job.data
    return statistics_of(
        job.network, params, data.X, data.rows, data.weight, job.input_scale, job.device
    )


def statistics_of(
    spec: ResidualSpec,
    params: np.ndarray,
    X: Features,
    rows: np.ndarray | None,
    weight: np.ndarray | None,
    input_scale: np.ndarray | None,
    device: torch.device = _CPU,
) -> np.ndarray:
    """Statistics of the normalizations at these weights over some rows, shape (S,).

    Weighted means and variances, each row normalized as its chunk of the rows is. Up to 8,192 rows
    are one chunk, so that the figures are exact; beyond, chunks take every k-th row, so that rows
    that come sorted are spread over all of them.
    """
    layout = ResidualLayout(spec)
    if layout.n_statistics == 0:
        return np.zeros(0, dtype=params.dtype)
    rows = np.arange(X.shape[0]) if rows is None else rows
    weight = np.ones(len(rows)) if weight is None else np.asarray(weight)
    rows, weight = rows[weight > 0], weight[weight > 0].astype(np.float64)
    params_MP = as_tensor(params)[None].to(device, spec.dtype)
    scale = None
    if input_scale is not None:
        scale = as_tensor(input_scale)[None].to(device, spec.dtype)
    n_chunks = max(1, -(-len(rows) // MAX_CHUNK))
    parts, shares = [], []
    for k in range(n_chunks):
        own = weight[k::n_chunks]
        moments = _Measured(spec, as_tensor(own / own.sum()).to(device))
        _Forward(spec, params_MP, moments, scale).hidden(_rows(X, rows[k::n_chunks]))
        parts.append(moments.measured)
        shares.append(float(own.sum()))
    return _combine(parts, np.array(shares) / sum(shares)).astype(params.dtype)


def _rows(X: Features, rows: np.ndarray) -> Features:
    """Some rows of X; ``take`` needs half the time of indexing, but copies a strided X first."""
    if isinstance(X, np.ndarray) and X.flags.c_contiguous:
        return X.take(rows, axis=0)
    return X[rows]


def _combine(parts: Sequence[Sequence[np.ndarray]], shares: np.ndarray) -> np.ndarray:
    """Means and variances of the whole from those of its parts, one after another."""
    flat = []
    for place in zip(*parts, strict=True):  # the same normalization in every part
        mean_CH, var_CH = np.stack(place).transpose(1, 0, 2)
        mean_H = shares @ mean_CH
        flat += [mean_H, shares @ (var_CH + (mean_CH - mean_H) ** 2)]
    return np.concatenate(flat)


class _Moments(ABC):
    """Mean and variance that a batch normalization uses."""

    @abstractmethod
    def of(self, place: int, x_MNH: Tensor) -> tuple[Tensor, Tensor]:
        """x less its mean, and the variance (M, 1, H), at this normalization from the input on."""


class _Kept(_Moments):
    """As they were measured."""

    def __init__(self, spec: ResidualSpec, statistics_MS: Tensor) -> None:
        widths = ResidualLayout(spec).norm_widths if statistics_MS.shape[1] else ()
        sizes = [width for width in widths for _ in range(2)]
        parts = [part.unsqueeze(1) for part in statistics_MS.split(sizes, dim=1)] if sizes else []
        self._pairs = list(zip(parts[::2], parts[1::2], strict=True))

    def of(self, place: int, x_MNH: Tensor) -> tuple[Tensor, Tensor]:
        mean_M1H, var_M1H = self._pairs[place]
        return x_MNH - mean_M1H, var_M1H


class _Measured(_Moments):
    """Of the rows at hand (one model), which are noted."""

    def __init__(self, spec: ResidualSpec, weight_N: Tensor) -> None:
        self._weight_N = weight_N.to(spec.dtype)
        self.measured: list[np.ndarray] = []

    def of(self, place: int, x_MNH: Tensor) -> tuple[Tensor, Tensor]:
        mean_M1H = (self._weight_N @ x_MNH[0])[None, None]
        centred_1NH = x_MNH - mean_M1H
        var_M1H = (self._weight_N @ centred_1NH[0].square())[None, None]
        pair = [mean_M1H.flatten(), var_M1H.flatten()]
        self.measured.append(np.stack([part.double().cpu().numpy() for part in pair]))
        return centred_1NH, var_M1H


class _Forward:
    """The forward pass of one call; its memory belongs to the call."""

    def __init__(
        self, spec: ResidualSpec, params_MP: Tensor, moments: _Moments, scale_MD: Tensor | None
    ) -> None:
        self._spec, self._moments = spec, moments
        self._p = ResidualLayout(spec).views(params_MP)
        self._device, self._dtype = params_MP.device, params_MP.dtype
        self._raw = self._p["input.W"][:, : spec.n_features]
        if scale_MD is not None:
            self._raw = self._raw * scale_MD.unsqueeze(2)
        self._place = 0

    def logits(self, X: Features) -> Tensor:
        """Raw outputs (M, K, n)."""
        h = self.hidden(X)
        W, b = self._p["head.W"], self._p["head.b"]
        return torch.baddbmm(b.unsqueeze(2), W, h.mT)

    def hidden(self, X: Features) -> Tensor:
        """What the head reads, (M, n, width)."""
        spec = self._spec
        with torch.no_grad():
            self._place = 0
            x = self._inputs(X)
            for block in range(spec.n_blocks):
                x = self._block(x, block)
            if spec.normalization is not Normalization.NONE:
                x = self._norm(x, "final")
            return spec.activation.forward_(x)

    def _inputs(self, X: Features) -> Tensor:
        spec, D = self._spec, self._spec.n_features
        b_M1H = self._p["input.b"].unsqueeze(1)
        if scipy.sparse.issparse(X):
            products = [X @ W.double().cpu().numpy() for W in self._raw]
            return torch.from_numpy(np.stack(products)).to(self._device, self._dtype) + b_M1H
        x_ND = X if isinstance(X, Tensor) else as_tensor(np.ascontiguousarray(X))
        x_ND = x_ND.to(self._device, self._dtype)
        z = self._times(x_ND[None], self._raw).add_(b_M1H)
        if spec.periodic is None:
            return z
        w, b = (self._p[f"periodic.{p}"].unsqueeze(1) for p in ("w", "b"))
        columns = x_ND[None, :, : spec.periodic.n_columns].unsqueeze(3)
        features = (columns * w * (2 * math.pi) + b).cos_().flatten(2)
        return z + self._times(features, self._p["input.W"][:, D:])

    def _block(self, x: Tensor, block: int) -> Tensor:
        spec = self._spec
        name = f"block{0 if spec.tie_blocks else block}"
        o = self._branch(x, name)
        if spec.skip is Skip.NONE:
            return o
        if spec.skip is Skip.REZERO:
            return x.addcmul_(o, self._p[f"{name}.rezero"].unsqueeze(2))
        if spec.skip is Skip.GATED:
            gate = self._affine(x, f"{name}.gate.W", f"{name}.gate.b").sigmoid_()
            return x.addcmul_(o.sub_(x), gate)
        return x.add_(o)

    def _branch(self, u: Tensor, name: str) -> Tensor:
        spec = self._spec
        for l in range(spec.n_layers_per_block):
            h = u
            if spec.normalized[l]:
                h = self._norm(u, f"{name}.norm{l + 1}")
            if spec.activated[l]:
                # the stream itself must stay what it is
                h = spec.activation.forward_(h.clone() if h is u and l == 0 else h)
            u = self._affine(h, f"{name}.W{l + 1}", f"{name}.b{l + 1}")
        return u

    def _norm(self, x: Tensor, name: str) -> Tensor:
        gamma, beta = (self._p[f"{name}.{p}"].unsqueeze(1) for p in ("gamma", "beta"))
        if self._spec.normalization is Normalization.LAYER:
            centred = x - x.mean(2, keepdim=True)
            var = centred.square().mean(2, keepdim=True)
            centred.mul_((var + self._spec.norm_epsilon).rsqrt_())
            return torch.addcmul(beta, centred, gamma, out=centred)
        centred, var = self._moments.of(self._place, x)
        self._place += 1
        slope = gamma * (var + self._spec.norm_epsilon).rsqrt()
        return torch.addcmul(beta, centred, slope, out=centred)

    def _affine(self, h: Tensor, W: str, b: str) -> Tensor:
        return self._times(h, self._p[W]).add_(self._p[b].unsqueeze(1))

    @staticmethod
    def _times(h: Tensor, W: Tensor) -> Tensor:
        """Products of all members; rows that they share have a first axis of length 1."""
        if len(W) == 1:
            return torch.mm(h[0], W[0])[None]
        if len(h) == 1:  # one wide product instead of many narrow ones
            M, D, H = W.shape
            wide = torch.mm(h[0], W.transpose(0, 1).reshape(D, M * H))
            return wide.view(len(wide), M, H).transpose(0, 1).contiguous()
        return torch.bmm(h, W)
