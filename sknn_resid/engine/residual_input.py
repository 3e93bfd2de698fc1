"""The input projection of residual networks, with the periodic features of columns.

Periodic features (Gorishniy, Rubachev and Babenko 2022) of column c: p = cos(a) with
a = 2 pi w x_c + b; dp/db = -sin(a), dp/dw = -2 pi x_c sin(a).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor

from sknn_resid.engine import fused
from sknn_resid.engine.branches import Bound
from sknn_resid.engine.kernels import Op, add_row, matmul, sum_rows
from sknn_resid.engine.pieces import Pieces
from sknn_resid.engine.slots import SparseRows


class InputProjection:
    """x_0 = [X, e(X)] W + b.

    Parameters
    ----------
    bound : Bound
    grads : dict
        Gradients by name.
    scale_MD1 : Tensor of shape (M, D, 1) or None
        Factor of each column.
    pieces : Pieces or None
        Columns of X that are looked up: X comes packed.
    """

    def __init__(
        self,
        bound: Bound,
        grads: dict[str, Tensor],
        scale_MD1: Tensor | None,
        pieces: Pieces | None,
    ) -> None:
        self._bound, self._spec = bound, bound.spec
        self._grads, self._scale_MD1, self._pieces = grads, scale_MD1, pieces

    def _fuses(self, X: Tensor | SparseRows) -> TypeGuard[Tensor]:
        dense = isinstance(X, Tensor) and self._spec.periodic is None
        return dense and fused.suits(self._bound)

    def _bind_fused(self, X: Tensor) -> tuple[list[Op], list[Op]]:
        bound, W, gW = self._bound, self._bound.values["input.W"], self._grads["input.W"]
        forward: list[Op] = []
        backward: list[Op] = []
        if self._scale_MD1 is not None:
            scale_MD = self._scale_MD1[:, :, 0]
            scaled = bound.memory.fixed("input.scaled", tuple(W.shape), W.dtype)
            forward.append(fused.scale_rows(W, scale_MD, scaled))
            backward.append(fused.scale_rows(gW, scale_MD, gW))
            W = scaled
        pieces = self._pieces
        products = [fused.sum_rows(bound.d, self._grads["input.b"])]
        for n, (part, rows) in enumerate([(X, slice(None))] if pieces is None else pieces.parts(X)):
            bias = bound.values["input.b"] if n == 0 else None
            forward.append(fused.product(part, W[:, rows], bound.x, row_Mk=bias, add=n > 0))
            products.append(fused.product(part.mT, bound.d, gW[:, rows]))
        if pieces is not None:
            forward.append(pieces.add(X, W, bound.x))
            products.append(pieces.gradient(X, bound.d, gW))
        return forward, products + backward

    def bind(self, X: Tensor | SparseRows) -> tuple[list[Op], list[Op]]:
        """The input projection: forward operations, and those that end the backward pass.

        Factors of columns act on the weights: a product of the columns themselves would be redone
        for each batch, and could not be made for sparse rows without a copy of them.
        """
        bound, spec, D = self._bound, self._spec, self._spec.n_features
        if self._fuses(X):
            return self._bind_fused(X)
        assert self._pieces is None, "rows were packed, but the operations for them do not suit"
        W, gW, scale = self._bound.values["input.W"], self._grads["input.W"], self._scale_MD1
        forward: list[Op] = []
        backward: list[Op] = []
        raw, graw = W[:, :D], gW[:, :D]
        if scale is not None:
            shape = tuple(raw.shape)
            scaled = self._bound.memory.fixed("input.scaled", shape, raw.dtype)
            forward.append(partial(torch.mul, raw, scale, out=scaled))
            backward.append(partial(graw.mul_, scale))
            raw = scaled
        z = (
            bound.x
            if spec.product_dtype == spec.dtype
            else bound.buffer("z.in", spec.width, low=True)
        )
        d, cast = bound.low(bound.d, "d.low")
        products = list(cast)
        if isinstance(X, SparseRows):
            forward.append(X.bind_times(raw, z))
            products.append(X.bind_transposed_times(d, graw))
        else:
            v, cast_X = bound.low(X, "X.low")
            forward += [*cast_X, matmul(v, raw, z)]
            products.append(matmul(v.mT, d, graw))
        if spec.periodic is not None:
            if isinstance(X, SparseRows):
                raise ValueError("periodic: features of columns need dense rows, X is sparse.")
            more, more_back = self._bind_periodic(X, z, d)
            forward += more
            products += more_back
        forward.append(add_row(z, self._bound.values["input.b"]))
        forward += self._bound.seen("input", "z", z)
        if z is not bound.x:
            forward.append(partial(bound.x.copy_, z))
        forward += self._bound.seen("input", "v", bound.x)
        products.append(sum_rows(d, self._grads["input.b"]))
        if bound.watch is not None:
            products = [
                *self._bound.seen("input", "dv", bound.d),
                *cast,
                *self._bound.seen("input", "delta", d),
                *products,
                *self._bind_delta(X, raw, d),
            ]
        return forward, products + backward

    def _bind_delta(self, X: Tensor | SparseRows, raw: Tensor, d: Tensor) -> list[Op]:
        """dJ/dX: through the projection, and through the periodic features."""
        if isinstance(X, SparseRows):
            return []
        bound, spec, n = self._bound, self._spec, self._bound.n
        dX = bound.buffer("dX", spec.n_features, low=True)
        ops: list[Op] = [matmul(d, raw.mT, dX)]
        dX, cast = bound.high(dX, "dX.high")
        ops += cast
        if spec.periodic is not None:
            # "periodic.a" holds dJ/da 2 pi once the periodic features have had their gradients
            C, F = spec.periodic.n_columns, spec.periodic.n_frequencies
            angle, part = (bound.buffer(f"periodic.{p}", C * F) for p in ("a", "part"))
            shape = (len(bound.x), n, C, F)
            w_M1CF = self._bound.values["periodic.w"].unsqueeze(1)
            ops.append(partial(torch.mul, angle.view(shape), w_M1CF, out=part.view(shape)))
            ops.append(partial(_add_sum, part.view(shape), dX[:, :, :C]))
        return [*ops, *self._bound.seen("X", "dv", dX)]

    def _bind_periodic(self, X: Tensor, z: Tensor, d: Tensor) -> tuple[list[Op], list[Op]]:
        """Periodic features and what they add to the projection."""
        bound, spec, M, n = self._bound, self._spec, len(self._bound.x), self._bound.n
        assert spec.periodic is not None
        C, F, D = spec.periodic.n_columns, spec.periodic.n_frequencies, spec.n_features
        w_M1CF, b_M1CF = (self._bound.values[f"periodic.{p}"].unsqueeze(1) for p in ("w", "b"))
        gw_MCF, gb_MCF = self._grads["periodic.w"], self._grads["periodic.b"]
        angle, sine, part = (bound.buffer(f"periodic.{p}", C * F) for p in ("a", "sin", "part"))
        angle_MBCF, part_MBCF = angle.view(M, n, C, F), part.view(M, n, C, F)
        x_MBC1 = X[:, :, :C].unsqueeze(3)
        cosine, cast = bound.low(part, "periodic.low")
        W, gW = self._bound.values["input.W"][:, D:], self._grads["input.W"][:, D:]
        added = bound.buffer("periodic.added", spec.width, low=True)
        forward: list[Op] = [
            partial(torch.mul, x_MBC1, w_M1CF, out=angle_MBCF),
            partial(angle.mul_, 2 * math.pi),
            partial(angle_MBCF.add_, b_M1CF),
            partial(torch.sin, angle, out=sine),
            partial(torch.cos, angle, out=part),
            *cast,
            matmul(cosine, W, added),
            partial(z.add_, added),
        ]
        back = bound.buffer("periodic.back", C * F, low=True)
        backward: list[Op] = [
            matmul(cosine.mT, d, gW),
            matmul(d, W.mT, back),
            partial(torch.mul, back, sine, out=angle),
            angle.neg_,
            sum_rows(angle, gb_MCF.flatten(1)),
            partial(angle.mul_, 2 * math.pi),
            partial(torch.mul, angle_MBCF, x_MBC1, out=part_MBCF),
            sum_rows(part, gw_MCF.flatten(1)),
        ]
        return forward, backward


def _add_sum(part_MBCF: Tensor, out_MBC: Tensor) -> None:
    out_MBC.add_(part_MBCF.sum(3))
