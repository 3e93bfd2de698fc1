"""Where the parameters of a dense network lie in a model's flat row.

First every weight matrix, then every bias, so that the penalty is one operation on the leading
part. The first layer's matrix is the last of the matrices and its bias the first of the biases:
together they are the matrix of [X, 1]. Hidden weights are stored ``[in, out]``, the output layer
class-major.

Where weights are tied, the row that is trained is shorter: it holds every free number once
(`TiedLayout`), and the long row is spread out from it before each pass. So whatever sees the short
row (optimizers and their moments, clipping, the penalty, averages, the minimiser of L-BFGS, files)
counts a tied weight once and cannot tear it apart. The rejected alternative, to train the long row
with gradients that are equal in tied places, leaves it to the rounding of every kernel whether
equal numbers stay equal, and counts a weight of two places twice in norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.kernels import Op
from sknn_resid.engine.ties import Ties


@dataclass(frozen=True)
class Layout:
    """Where each weight matrix and bias lies in a model's flat row of parameters."""

    sizes: tuple[int, ...]

    @property
    def n_layers(self) -> int:
        """Number of layers with weights."""
        return len(self.sizes) - 1

    @property
    def in_memory(self) -> list[int]:
        """The layers in the order in which their matrices lie."""
        return [*range(1, self.n_layers), 0]

    @property
    def n_weights(self) -> int:
        return sum(i * o for i, o in zip(self.sizes, self.sizes[1:], strict=False))

    @property
    def n_params(self) -> int:
        return self.n_weights + sum(self.sizes[1:])

    def weights(self, flat_MP: Tensor) -> list[Tensor]:
        """Weight views: hidden (M, in, out), output (M, K, H)."""
        views, start = {}, 0
        for layer in self.in_memory:
            i, o = self.sizes[layer], self.sizes[layer + 1]
            shape = (o, i) if layer == self.n_layers - 1 else (i, o)
            views[layer] = self._matrix(flat_MP, start, *shape)
            start += i * o
        return [views[layer] for layer in range(self.n_layers)]

    def first_affine(self, flat_MP: Tensor) -> Tensor:
        """The first hidden layer's matrix with its bias as the last row, (M, in + 1, out)."""
        i, o = self.sizes[:2]
        return self._matrix(flat_MP, self.n_weights - i * o, i + 1, o)

    def _matrix(self, flat_MP: Tensor, start: int, n_rows: int, n_columns: int) -> Tensor:
        strides = (flat_MP.stride(0), n_columns, 1)
        begin = flat_MP.storage_offset() + start
        return flat_MP.as_strided((len(flat_MP), n_rows, n_columns), strides, begin)

    def layers(self) -> tuple[str, ...]:
        """Names of the layers with weights, from the input to the output."""
        return (*(f"hidden_{l}" for l in range(1, self.n_layers)), "output")

    def biases(self, flat_MP: Tensor) -> list[Tensor]:
        """Bias views (M, out)."""
        views, start = [], self.n_weights
        for o in self.sizes[1:]:
            views.append(flat_MP[:, start : start + o])
            start += o
        return views

    def pack(self, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]) -> np.ndarray:
        """Flat row from scikit-learn's lists (every coef of shape (in, out))."""
        matrices = [*coefs[:-1], coefs[-1].T]
        ordered = [matrices[layer] for layer in self.in_memory]
        return np.concatenate([np.ravel(a) for a in [*ordered, *intercepts]])

    def unpack(self, flat_P: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """scikit-learn's lists as views of a flat row."""
        flat_1P = torch.from_numpy(flat_P)[None]
        coefs = [w[0].numpy() for w in self.weights(flat_1P)]
        coefs[-1] = coefs[-1].T
        return coefs, [b[0].numpy() for b in self.biases(flat_1P)]


@dataclass(frozen=True)
class TiedLayout:
    """Where each free number of a network with tied weights lies; the first of its places owns it.

    Free numbers stand in the order of `Layout`: weights before biases.
    """

    sizes: tuple[int, ...]
    ties: Ties

    @property
    def full(self) -> Layout:
        """Of the long row, with a number for every place."""
        return Layout(self.sizes)

    @cached_property
    def owner(self) -> np.ndarray:
        """For every number of the long row, the number (of the long row) that it is, shape (P,)."""
        owner = np.arange(self.full.n_params)
        coefs, _ = self.full.unpack(owner.copy())
        for group in self.ties.places:
            first, *others = (coefs[layer][i, j] for layer, i, j in group)
            owner[others] = first
        for layers in self.ties.layers:
            first, *rest = (coefs[l].T if flipped else coefs[l] for l, flipped in layers)
            for other in rest:
                owner[other] = first
        return owner

    @cached_property
    def free(self) -> np.ndarray:
        """Where in the long row the free numbers are, shape (Q,)."""
        return np.flatnonzero(self.owner == np.arange(len(self.owner)))

    @cached_property
    def spread(self) -> np.ndarray:
        """For every number of the long row, where in the short row it is, shape (P,)."""
        return np.searchsorted(self.free, self.owner)

    @property
    def n_layers(self) -> int:
        """Number of layers with weights."""
        return self.full.n_layers

    @property
    def n_weights(self) -> int:
        """Free weights; biases follow."""
        return int(np.searchsorted(self.free, self.full.n_weights))

    @property
    def n_params(self) -> int:
        return len(self.free)

    def layers(self) -> tuple[str, ...]:
        """Names of the layers with weights, from the input to the output."""
        return self.full.layers()

    def weights(self, flat_MQ: Tensor) -> list[Tensor]:
        """Weight matrices as `Layout.weights` gives them, of a copy of the rows."""
        spread = torch.from_numpy(self.spread).to(flat_MQ.device)
        return self.full.weights(flat_MQ.index_select(1, spread))

    def pack(self, coefs: Sequence[np.ndarray], intercepts: Sequence[np.ndarray]) -> np.ndarray:
        """Flat row from scikit-learn's lists; of tied places the first one counts."""
        return self.full.pack(coefs, intercepts)[self.free]

    def unpack(self, flat_Q: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """scikit-learn's lists, tied places filled alike."""
        return self.full.unpack(flat_Q[self.spread])

    def groups(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tied numbers by the number of their places: (places, where).

        ``places`` of shape (k, G) are numbers of the long row, ``where`` of shape (G,) says where
        in the short row their sum belongs.
        """
        found = []
        counts = np.bincount(self.spread, minlength=self.n_params)
        order = np.argsort(self.spread, kind="stable")
        begin = np.cumsum(counts) - counts
        for k in np.unique(counts[counts > 1]):
            where = np.flatnonzero(counts == k)
            found.append((order[begin[where] + np.arange(k)[:, None]], where))
        return found


DenseLayout: TypeAlias = Layout | TiedLayout


def dense_layout(sizes: tuple[int, ...], ties: Ties | None) -> DenseLayout:
    """The layout of a dense network."""
    return Layout(sizes) if ties is None else TiedLayout(sizes, ties)


class Spreading:
    """The long rows of a stack whose weights are tied, bound to the short ones that are trained.

    Parameters
    ----------
    layout : TiedLayout
    params_MQ, grads_MQ : Tensor of shape (M, Q)
        Short rows.

    Attributes
    ----------
    params_MP, grads_MP : Tensor of shape (M, P)
        Long rows: parameters as of the last `spread`, gradients place by place.
    """

    def __init__(self, layout: TiedLayout, params_MQ: Tensor, grads_MQ: Tensor) -> None:
        self._layout, self._params_MQ, self._grads_MQ = layout, params_MQ, grads_MQ
        shape = (len(params_MQ), layout.full.n_params)
        self.params_MP, self.grads_MP = params_MQ.new_zeros(shape), params_MQ.new_zeros(shape)

    def spread(self) -> list[Op]:
        """Fill every place from the number that stands there."""
        index = self._index(self._layout.spread)
        return [partial(torch.index_select, self._params_MQ, 1, index, out=self.params_MP)]

    def gather(self) -> list[Op]:
        """The gradient of every free number: of a tied one the sum over its places.

        Sums run along an axis of their own, not through atomic additions, so that they are the same
        bit for bit on every run and device.
        """
        M, long_MP, short_MQ = len(self.grads_MP), self.grads_MP, self._grads_MQ
        free = self._index(self._layout.free)
        ops: list[Op] = [partial(torch.index_select, long_MP, 1, free, out=short_MQ)]
        for places, where in self._layout.groups():
            k, G = places.shape
            picked, total = long_MP.new_zeros((M, k * G)), long_MP.new_zeros((M, G))
            flat = self._index(places.ravel())
            ops += [
                partial(torch.index_select, long_MP, 1, flat, out=picked),
                partial(torch.sum, picked.view(M, k, G), 1, out=total),
                partial(short_MQ.index_copy_, 1, self._index(where), total),
            ]
        return ops

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self.params_MP.device)
