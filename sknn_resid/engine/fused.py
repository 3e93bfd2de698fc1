"""Blocks and ends of residual networks in compiled operations, each of them several passes in one.

The same derivatives as in `branches` and `norms`, for the form that is used most: max(0, z) as the
activation, any normalization, x + F(x) with every branch in every step, products and all else in
one precision of the processor's, no product so large that it were worth several threads. What
differs is how much is done on one way through memory: bias, activation and the sum x + F(x) at the
end of a product, normalization and activation together, a derivative and the sums over rows that
its parameters need.

A dropout mask acts on the rows of the matrix behind it, (h m) W = h (m W): a matrix is smaller than
a batch of activations, and what does not have to be kept need not be written.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sknn_resid.engine import bound as compiled
from sknn_resid.engine.activations import Activated, Relu
from sknn_resid.engine.branches import Bound
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec, Skip

# Multiplications of one product. Compiled products run on one thread: below this they take less
# than a millisecond, beyond it BLAS's threads are worth more than what is fused.
MOST_WORK = 50_000_000


def suits(bound: Bound) -> bool:
    """Whether the fused operations know all of this network, and nobody watches."""
    return (
        bound.watch is None
        and bound.kept is None
        and bound.keep_ML1 is None
        and step_suits(bound.spec, bound.n, bound.x)
    )


def step_suits(spec: ResidualSpec, n_rows: int, like: Tensor) -> bool:
    """Whether they know a step on so many rows, in memory ``like`` this, without drop path."""
    work = n_rows * _largest_matrix(spec)
    return spec_suits(spec) and work <= MOST_WORK and compiled.available(like)


def _largest_matrix(spec: ResidualSpec) -> int:
    inside = max((rows * columns for rows, columns in spec.layer_widths), default=0)
    return max(inside, spec.n_inputs * spec.width)


def spec_suits(spec: ResidualSpec) -> bool:
    """Whether the fused operations know this structure."""
    return (
        isinstance(spec.activation, Relu)
        and spec.skip is Skip.IDENTITY
        and spec.product_dtype == spec.dtype
    )


def available(array: Tensor) -> bool:
    """Whether there are compiled operations for memory of this kind."""
    return compiled.available(array)


def _bind(name: str, arrays: list[Tensor | None], *numbers: float) -> Op:
    op = compiled.bind(name, arrays, numbers)
    assert op is not None, f"{name}: asked for although it does not suit"
    return op


def product(
    a_Mij: Tensor,
    b_Mjk: Tensor,
    out_Mik: Tensor,
    *,
    row_Mk: Tensor | None = None,
    column_Mi: Tensor | None = None,
    add: bool = False,
    relu: bool = False,
) -> Op:
    """Bind ``out = a @ b``, with a bias, added to ``out``, max(0, .) of it."""
    flags = compiled.GEMM_ADD * add + compiled.GEMM_RELU * relu
    return _bind("gemm", [a_Mij, b_Mjk, out_Mik, row_Mk, column_Mi], flags)


def sum_rows(a_Mij: Tensor, out_Mj: Tensor) -> Op:
    """Bind ``out = a.sum(rows)``."""
    return _bind("sum_rows", [a_Mij, out_Mj])


def sum_columns(a_Mij: Tensor, out_Mi: Tensor) -> Op:
    """Bind ``out = a.sum(columns)``."""
    return _bind("sum_columns", [a_Mij, out_Mi])


def scale_rows(a_Mij: Tensor, factor_Mi: Tensor, out_Mij: Tensor) -> Op:
    """Bind ``out = diag(factor) a``; ``out`` may be ``a``."""
    return _bind("scale_rows", [a_Mij, factor_Mi, out_Mij])


class FusedNorm:
    """The normalization at one place, and max(0, .) of it if ``relu``."""

    def __init__(self, bound: Bound, key: str, width: int, name: str, *, relu: bool) -> None:
        self._bound, self._name, self._relu = bound, name, relu
        self._by_rows = bound.spec.normalization is Normalization.LAYER
        self._kept = bound.buffer(f"{key}.kept", width)
        self.y = bound.buffer(f"{key}.y", width)
        shape, dtype = (len(bound.x), width), bound.spec.dtype
        if self._by_rows:
            self._inverse = bound.buffer(f"{key}.inverse", 1)[:, :, 0]
        else:
            self._inverse = bound.memory.fixed(f"{key}.inverse", shape, dtype)
            self._slope = bound.memory.fixed(f"{key}.slope", shape, dtype)

    def forward(self, x: Tensor) -> Op:
        """Write the normalized ``x`` into ``y``."""
        gamma, beta = (self._bound.values[f"{self._name}.{p}"] for p in ("gamma", "beta"))
        epsilon = self._bound.spec.norm_epsilon
        if self._by_rows:
            arrays = [x, gamma, beta, self._kept, self._inverse, self.y]
            return _bind("layer_norm", [*arrays], epsilon, self._relu)
        arrays = [x, self._bound.r_M1B[:, 0], gamma, beta]
        arrays += [self._kept, self._inverse, self._slope, self.y]
        return _bind("batch_norm", [*arrays], epsilon, self._relu)

    def backward(self, dy: Tensor, dx: Tensor, *, add: bool) -> list[Op]:
        """From dJ/dy, which is used up, to dJ/dx, written into ``dx`` or added."""
        q, after_q = self._bound.sink.target(f"{self._name}.gamma")
        s, after_s = self._bound.sink.target(f"{self._name}.beta")
        arrays = [dy, self.y if self._relu else None]
        if self._by_rows:
            arrays += [self._bound.values[f"{self._name}.gamma"], self._kept, self._inverse]
            op = _bind("layer_norm_back", [*arrays, q, s, dx], add)
        else:
            arrays += [self._bound.r_M1B[:, 0], self._kept, self._inverse, self._slope]
            op = _bind("batch_norm_back", [*arrays, q, s, dx], add)
        return [op, *after_q, *after_s]

    @property
    def activated(self) -> Activated:
        """Where the activations lie."""
        return Activated(Relu(), self.y, self.y)


class FusedBlock:
    """x + F(x), in place: what `branches.Block` does."""

    def __init__(self, bound: Bound, block: int) -> None:
        spec = bound.spec
        self._bound, self._block = bound, block
        self._name = f"block{0 if spec.tie_blocks else block}"
        self._norms = [self._norm(l) if spec.normalized[l] else None for l in self._layers]
        self._p: list[Tensor] = []  # what each product reads
        self._W: list[Tensor] = []  # its matrix, less what is dropped

    @property
    def _layers(self) -> range:
        return range(self._bound.spec.n_layers_per_block)

    def _norm(self, l: int) -> FusedNorm:
        spec, key = self._bound.spec, f"{self._block}.{l}"
        name = f"{self._name}.norm{l + 1}"
        relu = spec.activated[l]
        return FusedNorm(self._bound, key, spec.layer_widths[l][0], name, relu=relu)

    def forward(self) -> list[Op]:
        """Operations that take the stream through the block, in place."""
        bound, u = self._bound, self._bound.x
        ops: list[Op] = []
        last = self._layers[-1]
        for l in self._layers:
            norm = self._norms[l]
            if norm is not None:
                ops.append(norm.forward(u))
                u = norm.y
            elif l == 0:
                u = bound.buffer(f"{self._block}.0.y", bound.spec.width)
                ops.append(partial(u.copy_, bound.x))
                ops += [u.relu_] if bound.spec.activated[0] else []
            self._p.append(u)
            ops += self._matrix(l)
            if l == last:
                break
            out = bound.buffer(f"{self._block}.z{l}", bound.spec.layer_widths[l][1])
            bias = bound.values[f"{self._name}.b{l + 1}"]
            relu = self._norms[l + 1] is None
            ops.append(product(u, self._W[l], out, row_Mk=bias, relu=relu))
            u = out
        bias = bound.values[f"{self._name}.b{last + 1}"]
        return [*ops, product(u, self._W[last], bound.x, row_Mk=bias, add=True)]

    def _matrix(self, l: int) -> list[Op]:
        """The matrix of a product, without the rows of units that are dropped."""
        bound, W = self._bound, self._bound.values[f"{self._name}.W{l + 1}"]
        mask = bound.masks.get((self._block, l))
        if mask is None:
            self._W.append(W)
            return []
        shape = tuple(W.shape)
        self._W.append(bound.memory.fixed(f"{self._block}.W{l + 1}", shape, W.dtype))
        return [scale_rows(W, mask[:, 0], self._W[l])]

    def backward(self) -> list[Op]:
        """Operations that take the stream's gradient back through the block, in place."""
        bound, ops, do = self._bound, [], self._bound.d
        gb, after_gb = bound.sink.target(f"{self._name}.b{self._layers[-1] + 1}")
        ops += [sum_rows(do, gb), *after_gb]
        for l in reversed(self._layers):
            ops += self._matrix_gradient(l, do)
            # two in turn: the one is read while the other is written
            width = bound.spec.layer_widths[l][0]
            dp = bound.buffer(f"back.{l % 2}.{width}", width)
            ops.append(product(do, self._W[l].mT, dp))
            if l == 0:
                return ops + self._to_stream(dp)
            gb, after_gb = bound.sink.target(f"{self._name}.b{l}")
            norm = self._norms[l]
            if norm is None:
                ops += [_bind("relu_back", [dp, self._p[l], gb]), *after_gb]
            else:
                ops += [*norm.backward(dp, dp, add=False), sum_rows(dp, gb), *after_gb]
            do = dp
        return ops

    def _matrix_gradient(self, l: int, do: Tensor) -> list[Op]:
        gW, after = self._bound.sink.target(f"{self._name}.W{l + 1}")
        ops = [product(self._p[l].mT, do, gW)]
        mask = self._bound.masks.get((self._block, l))
        if mask is not None:
            ops.append(scale_rows(gW, mask[:, 0], gW))
        return ops + after

    def _to_stream(self, dp: Tensor) -> list[Op]:
        bound, norm = self._bound, self._norms[0]
        if norm is not None:
            return norm.backward(dp, bound.d, add=True)
        ops: list[Op] = []
        if bound.spec.activated[0]:
            ops += Relu().bind_backward(self._p[0], self._p[0], dp)
        return [*ops, partial(bound.d.add_, dp)]

    @property
    def activated(self) -> list[list[Activated]]:
        """Activations before each matrix, once it is bound."""
        found = zip(self._p, self._bound.spec.activated, strict=True)
        return [[Activated(Relu(), p, p)] if activated else [] for p, activated in found]

    @property
    def gate(self) -> list[Activated]:
        """There is none."""
        return []
