"""Normalizations inside a training step: forward, and backward by the chain rule.

Batch normalization (Ioffe and Szegedy 2015), with the weights r_b of the rows in their batch
(sum_b r_b = 1; a row of weight 0 has no influence), for every unit:

    mu = sum_b r_b x_b,  v = sum_b r_b (x_b - mu)^2,  i = 1 / sqrt(v + eps)
    y_b = gamma i (x_b - mu) + beta
    dJ/dbeta = sum_b dy_b =: s,   dJ/dgamma = i sum_b dy_b (x_b - mu) =: q
    dx_b = gamma i (dy_b - r_b (s + i (x_b - mu) q))

Layer normalization (Ba, Kiros and Hinton 2016), for every row over its H units, with
u = i (x - mean x):

    y = gamma u + beta
    dx = i (gamma dy - mean(gamma dy) - u mean(gamma dy u))

With kept statistics (as in prediction) mu and v are numbers of the network, not of the batch, and
dx_b = gamma i dy_b: no row sees another.

Both keep x - mu (or u) from the forward pass, not x: the stream that they read is added to in
place. Differences are taken before squares, so nothing cancels where a mean is large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sknn_resid.engine.kernels import Op, matmul, sum_rows
from sknn_resid.engine.memory import Memory, Sink


@dataclass(frozen=True, eq=False)
class Place:
    """One place of a network where a normalization stands, for batches of ``n`` rows.

    Attributes
    ----------
    memory : Memory
    key : str
        Its name; a place keeps memory of its own.
    n, width : int
        Rows and units.
    gamma_MH, beta_MH : Tensor
    epsilon_M11 : Tensor
        Added to variances (1 where a batch weighs nothing, so that nothing overflows there).
    """

    memory: Memory
    key: str
    n: int
    width: int
    gamma_MH: Tensor
    beta_MH: Tensor
    epsilon_M11: Tensor

    def rows(self, name: str, width: int) -> Tensor:
        """Buffer (M, n, width)."""
        return self.memory.rows(name, self.n, width, self.gamma_MH.dtype)

    def fixed(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Buffer of this shape, whatever the length of the batch."""
        return self.memory.fixed(name, shape, self.gamma_MH.dtype)


class Norm(ABC):
    """One normalization of a stack, bound to the memory of its place."""

    def __init__(self, place: Place) -> None:
        self.n_models = len(place.gamma_MH)
        self._gamma_M1H, self._beta_M1H = place.gamma_MH.unsqueeze(1), place.beta_MH.unsqueeze(1)
        self._epsilon_M11 = place.epsilon_M11
        self._kept = place.rows(f"{place.key}.kept", place.width)
        self._scratch = place.rows(f"norm.{place.width}", place.width)

    @abstractmethod
    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        """Operations that write the normalized ``x`` into ``y``."""

    @abstractmethod
    def backward(
        self, dy: Tensor, dx: Tensor, gamma: str, beta: str, sink: Sink, *, add: bool
    ) -> list[Op]:
        """Operations that turn dJ/dy into dJ/dx, written into ``dx`` or added to it.

        ``dy`` is left as it is; ``gamma`` and ``beta`` name the parameters in the ``sink``.
        """


class BatchNorm(Norm):
    """Over the rows of a batch, each counted by its weight ``r_M1B``."""

    def __init__(self, place: Place, r_M1B: Tensor) -> None:
        super().__init__(place)
        self._r_M1B, self._r_MB1 = r_M1B, r_M1B.mT
        shape = (self.n_models, 1, place.width)
        self._inverse = place.fixed(f"{place.key}.inverse", shape)
        self._slope = place.fixed(f"{place.key}.slope", shape)
        self._line = place.fixed(f"norm.line.{place.width}", shape)
        self._line2 = place.fixed(f"norm.line2.{place.width}", shape)

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        kept, inverse, slope = self._kept, self._inverse, self._slope
        return [
            matmul(self._r_M1B, x, self._line),
            partial(torch.sub, x, self._line, out=kept),
            partial(torch.mul, kept, kept, out=self._scratch),
            matmul(self._r_M1B, self._scratch, self._line),
            partial(torch.add, self._line, self._epsilon_M11, out=inverse),
            inverse.rsqrt_,
            partial(torch.mul, self._gamma_M1H, inverse, out=slope),
            partial(torch.addcmul, self._beta_M1H, kept, slope, out=y),
        ]

    def backward(
        self, dy: Tensor, dx: Tensor, gamma: str, beta: str, sink: Sink, *, add: bool
    ) -> list[Op]:
        kept, scratch, slope = self._kept, self._scratch, self._slope
        s_MH, after_s = sink.target(beta)
        q_MH, after_q = sink.target(gamma)
        s_M1H, q_M1H = s_MH.unsqueeze(1), q_MH.unsqueeze(1)
        line, line2 = self._line, self._line2
        ops: list[Op] = [
            sum_rows(dy, s_MH),
            partial(torch.mul, dy, kept, out=scratch),
            sum_rows(scratch, q_MH),
            partial(q_M1H.mul_, self._inverse),
            partial(torch.mul, slope, s_M1H, out=line),
            partial(torch.mul, slope, self._inverse, out=line2),
            partial(line2.mul_, q_M1H),
            partial(torch.addcmul, line, kept, line2, out=scratch),
        ]
        ops.append(
            partial(dx.addcmul_, dy, slope) if add else partial(torch.mul, dy, slope, out=dx)
        )
        ops.append(partial(dx.addcmul_, scratch, self._r_MB1, value=-1))
        return [*ops, *after_s, *after_q]


class KeptNorm(Norm):
    """Over statistics that were kept: (mean, variance), each (M, H)."""

    def __init__(self, place: Place, statistics: tuple[Tensor, Tensor]) -> None:
        super().__init__(place)
        self._mean, self._variance = (part.unsqueeze(1) for part in statistics)
        shape = (self.n_models, 1, place.width)
        self._inverse = place.fixed(f"{place.key}.inverse", shape)
        self._slope = place.fixed(f"{place.key}.slope", shape)

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        return [
            partial(torch.sub, x, self._mean, out=self._kept),
            partial(torch.add, self._variance, self._epsilon_M11, out=self._inverse),
            self._inverse.rsqrt_,
            partial(torch.mul, self._gamma_M1H, self._inverse, out=self._slope),
            partial(torch.addcmul, self._beta_M1H, self._kept, self._slope, out=y),
        ]

    def backward(
        self, dy: Tensor, dx: Tensor, gamma: str, beta: str, sink: Sink, *, add: bool
    ) -> list[Op]:
        s_MH, after_s = sink.target(beta)
        q_MH, after_q = sink.target(gamma)
        ops: list[Op] = [
            sum_rows(dy, s_MH),
            partial(torch.mul, dy, self._kept, out=self._scratch),
            sum_rows(self._scratch, q_MH),
            partial(q_MH.unsqueeze(1).mul_, self._inverse),
        ]
        into = partial(dx.addcmul_, dy, self._slope)
        ops.append(into if add else partial(torch.mul, dy, self._slope, out=dx))
        return [*ops, *after_s, *after_q]


class LayerNorm(Norm):
    """Over the units of each row."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._inverse = place.rows(f"{place.key}.inverse", 1)
        self._column = place.rows("norm.column", 1)
        self._column2 = place.rows("norm.column2", 1)
        shape = (self.n_models, place.width, 1)
        self._share = place.fixed(f"norm.share.{place.width}", shape)
        self._share.fill_(1.0 / place.width)
        self._gamma_share = place.fixed(f"{place.key}.share", shape)
        self._width = place.width

    def forward(self, x: Tensor, y: Tensor) -> list[Op]:
        kept, inverse, column = self._kept, self._inverse, self._column
        return [
            matmul(x, self._share, column),
            partial(torch.sub, x, column, out=kept),
            partial(torch.mul, kept, kept, out=self._scratch),
            matmul(self._scratch, self._share, column),
            partial(torch.add, column, self._epsilon_M11, out=inverse),
            inverse.rsqrt_,
            partial(kept.mul_, inverse),
            partial(torch.addcmul, self._beta_M1H, kept, self._gamma_M1H, out=y),
        ]

    def backward(
        self, dy: Tensor, dx: Tensor, gamma: str, beta: str, sink: Sink, *, add: bool
    ) -> list[Op]:
        kept, scratch = self._kept, self._scratch
        s_MH, after_s = sink.target(beta)
        q_MH, after_q = sink.target(gamma)
        column, column2, share = self._column, self._column2, self._gamma_share
        ops: list[Op] = [
            sum_rows(dy, s_MH),
            partial(torch.mul, dy, kept, out=scratch),
            sum_rows(scratch, q_MH),
            partial(torch.mul, self._gamma_M1H.mT, 1.0 / self._width, out=share),
            matmul(dy, share, column),
            matmul(scratch, share, column2),
            # Two passes: one addcmul of two broadcast columns takes 17 microseconds instead of 6
            # (256 x 128), its kernel does not vectorise.
            partial(torch.mul, kept, column2, out=scratch),
            partial(scratch.add_, column),
            partial(scratch.addcmul_, dy, self._gamma_M1H, value=-1),
        ]
        if add:
            ops.append(partial(dx.addcmul_, scratch, self._inverse, value=-1))
        else:
            ops += [scratch.neg_, partial(torch.mul, scratch, self._inverse, out=dx)]
        return [*ops, *after_s, *after_q]
