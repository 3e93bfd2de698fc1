"""The blocks of a stack of residual networks, bound to memory: forward and backward by hand.

A block reads the stream x, and its branch F leads from x to o = F(x); the formulas stand in
`residual_spec`. The stream is one buffer that every block adds to in place, and its gradient d is
one buffer too: going backward, d holds dJ/dx_l on the way in and dJ/dx_{l-1} on the way out,

    identity: d += F'(d)        none: d = F'(d)        rezero: d += F'(a d), da = sum d o
    gated:    d = (1 - t) d + F'(t d) + [d (o - x) t (1 - t)] W_t'

where F'(.) is the branch's own backward pass. So a branch keeps what its derivative needs (what the
normalization centred, activations, masks) and never the stream itself.

Matrix products may be of a lower precision than the rest; ``Bound.low`` casts where the two meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sknn_resid.engine.activations import Activated, Logistic
from sknn_resid.engine.kernels import Op, affine, matmul, sum_rows
from sknn_resid.engine.memory import Memory, Sink
from sknn_resid.engine.norms import BatchNorm, KeptNorm, LayerNorm, Norm, Place
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec, Skip
from sknn_resid.engine.watch import Watch, seen


@dataclass(frozen=True, eq=False)
class Bound:
    """What the parts of a network share, for batches of ``n`` rows.

    Attributes
    ----------
    spec : ResidualSpec
    memory : Memory
    n : int
    values : dict
        Parameters by name, those of products in the dtype of the products.
    sink : Sink
        Takes gradients under the same names.
    r_M1B, epsilon_M11 : Tensor
        Weights of the rows of the batch, and what is added to variances.
    x, d : Tensor of shape (M, n, width)
        The stream and its gradient.
    masks : dict
        Dropout masks (M, 1, units) by (block, matrix); empty without dropout.
    keep_ML1 : Tensor of shape (M, L, 1) or None
        Factor of each block's branch in this step, None without drop path.
    kept : dict or None
        Mean and variance, each (M, units), of each place of a batch normalization; None for those
        of the batch.
    watch : callable or None
        Is shown what a step makes (`watch`).
    """

    spec: ResidualSpec
    memory: Memory
    n: int
    values: dict[str, Tensor]
    sink: Sink
    r_M1B: Tensor
    epsilon_M11: Tensor
    x: Tensor
    d: Tensor
    masks: dict[tuple[int, int], Tensor]
    keep_ML1: Tensor | None
    kept: dict[str, tuple[Tensor, Tensor]] | None = None
    watch: Watch | None = None

    def seen(self, layer: str, what: str, tensor: Tensor) -> list[Op]:
        """The operation that shows ``tensor``, if somebody looks."""
        return seen(self.watch, layer, what, tensor)

    def buffer(self, name: str, width: int, *, low: bool = False) -> Tensor:
        """Rows of ``width`` numbers, in the dtype of the products or of all else."""
        dtype = self.spec.product_dtype if low else self.spec.dtype
        return self.memory.rows(name, self.n, width, dtype)

    def low(self, tensor: Tensor, name: str) -> tuple[Tensor, list[Op]]:
        """``tensor`` in the dtype of the products: itself, or a copy under this name."""
        return self._cast(tensor, name, low=True)

    def high(self, tensor: Tensor, name: str) -> tuple[Tensor, list[Op]]:
        """``tensor`` in the dtype of all else."""
        return self._cast(tensor, name, low=False)

    def _cast(self, tensor: Tensor, name: str, *, low: bool) -> tuple[Tensor, list[Op]]:
        if tensor.dtype == (self.spec.product_dtype if low else self.spec.dtype):
            return tensor, []
        copy = self.buffer(name, tensor.shape[2], low=low)
        return copy, [partial(copy.copy_, tensor)]

    def norm(self, key: str, width: int, gamma: Tensor, beta: Tensor) -> Norm:
        """The normalization at a place of the network."""
        place = Place(self.memory, key, self.n, width, gamma, beta, self.epsilon_M11)
        if self.spec.normalization is Normalization.LAYER:
            return LayerNorm(place)
        if self.kept is not None:
            return KeptNorm(place, self.kept[key])
        return BatchNorm(place, self.r_M1B)

    def product(self, p: Tensor, W: str, b: str, out: Tensor) -> list[Op]:
        """Bind ``out = p W + b``."""
        return affine(p, self.values[W], self.values[b], out)

    def product_gradients(self, p: Tensor, dz: Tensor, W: str, b: str) -> list[Op]:
        """Gradients of a product's matrix and bias."""
        gW, after_W = self.sink.target(W)
        gb, after_b = self.sink.target(b)
        return [matmul(p.mT, dz, gW), sum_rows(dz, gb), *after_W, *after_b]


class Stage:
    """What stands before one product: y = n(u) or u, h = f(y), p = mask h, cast if need be.

    Parameters
    ----------
    bound : Bound
    key : str
        Name of this place.
    width : int
    norm : (str, str) or None
        Names of gamma and beta.
    activated : bool
    mask : Tensor of shape (M, 1, width) or None
    copies : bool
        Whether u may change before the backward pass, so that it has to be copied.
    shown : str
        Name under which the activation function is seen.
    """

    def __init__(
        self,
        bound: Bound,
        key: str,
        width: int,
        norm: tuple[str, str] | None,
        *,
        activated: bool,
        mask: Tensor | None,
        copies: bool,
        shown: str,
    ) -> None:
        self._shown = shown
        self._bound, self._key, self._width = bound, key, width
        self._names, self._mask, self._copies = norm, mask, copies
        self._norm: Norm | None = None
        if norm is not None:
            gamma, beta = (bound.values[name] for name in norm)
            self._norm = bound.norm(key, width, gamma, beta)
        self._activation = bound.spec.activation if activated else None

    def forward(self, u: Tensor) -> tuple[list[Op], Tensor]:
        """Operations, and what the product reads."""
        bound, key, low = self._bound, self._key, u.dtype != self._bound.spec.dtype
        ops: list[Op] = []
        if self._norm is not None:
            u, ops = bound.high(u, f"{key}.high")
            # What is only read by a cast is the same memory for all blocks, and stays in the cache.
            passing = self._activation is None and bound.spec.product_dtype != bound.spec.dtype
            name = f"norm.{self._width}.y" if passing else f"{key}.y"
            y, low = bound.buffer(name, self._width), False
            ops += self._norm.forward(u, y)
        elif self._copies:
            y = bound.buffer(f"{key}.y", self._width)
            ops.append(partial(y.copy_, u))
        else:
            y = u
        self._y = self._h = y
        if self._activation is not None:
            if self._activation.needs_input:
                self._h = bound.buffer(f"{key}.h", self._width, low=low)
            ops += bound.seen(self._shown, "z", y)
            ops += self._activation.bind_forward(y, self._h)
            ops += bound.seen(self._shown, "v", self._h)
        kept = self._h
        if self._mask is not None:
            kept = bound.buffer(f"{key}.masked", self._width, low=low)
            ops.append(partial(torch.mul, self._h, self._mask, out=kept))
        p, cast = bound.low(kept, f"{key}.low")
        return [*ops, *cast], p

    def backward(self, dp: Tensor, du: Tensor, *, add: bool) -> list[Op]:
        """Operations from dJ/dp, which is used up, to dJ/du, written into ``du`` or added."""
        bound = self._bound
        ops: list[Op] = []
        if self._h.dtype != dp.dtype:
            dp, ops = bound.high(dp, f"back.high.{self._width}")
        if self._mask is not None:
            ops.append(partial(dp.mul_, self._mask))
        if self._activation is not None:
            ops += self._activation.bind_backward(self._y, self._h, dp)
        if self._norm is None or self._names is None:
            if dp is du:
                return ops
            return [*ops, partial(du.add_, dp) if add else partial(du.copy_, dp)]
        gamma, beta = self._names
        return ops + self._norm.backward(dp, du, gamma, beta, bound.sink, add=add)

    @property
    def activated(self) -> list[Activated]:
        """Where its activations lie, once it is bound; empty without a function."""
        if self._activation is None:
            return []
        return [Activated(self._activation, self._y, self._h)]


class Branch:
    """F of one block."""

    def __init__(self, bound: Bound, block: int) -> None:
        spec = bound.spec
        self._bound, self._block = bound, block
        self._name = f"block{0 if spec.tie_blocks else block}"
        self._stages = [self._stage(l) for l in range(spec.n_layers_per_block)]
        self._products: list[Tensor] = []

    def _stage(self, l: int) -> Stage:
        bound, spec = self._bound, self._bound.spec
        norm = None
        if spec.normalized[l]:
            norm = (f"{self._name}.norm{l + 1}.gamma", f"{self._name}.norm{l + 1}.beta")
        return Stage(
            bound,
            f"{self._block}.{l}",
            spec.layer_widths[l][0],
            norm,
            activated=spec.activated[l],
            mask=bound.masks.get((self._block, l)),
            copies=l == 0,
            shown=f"block_{self._block + 1}.activation_{l + 1}",
        )

    def forward(self) -> tuple[list[Op], Tensor]:
        """Operations from the stream to o, and o (in the dtype of the products)."""
        bound, u = self._bound, self._bound.x
        ops: list[Op] = []
        last = len(self._stages) - 1
        for l, stage in enumerate(self._stages):
            more, p = stage.forward(u)
            out = bound.spec.layer_widths[l][1]
            # The last product is read at once; those before it are needed on the way back. The
            # rezero and the gated form need o itself for a derivative.
            once = l == last and bound.spec.skip in (Skip.IDENTITY, Skip.NONE)
            key = "out" if once else f"{self._block}.z{l}"
            u = bound.buffer(key, out, low=True)
            ops += more + bound.product(p, *self._parameters(l), u)
            ops += bound.seen(self._linear(l), "in", p) + bound.seen(self._linear(l), "z", u)
            self._products.append(p)
        return ops, u

    def backward(self, do: Tensor) -> list[Op]:
        """Operations from dJ/do (dtype of the products) to an addition to the stream's gradient."""
        bound, ops = self._bound, []
        for l in reversed(range(len(self._stages))):
            W, b = self._parameters(l)
            width = bound.spec.layer_widths[l][0]
            ops += bound.seen(self._linear(l), "delta", do)
            ops += bound.product_gradients(self._products[l], do, W, b)
            # two in turn: the one is read while the other is written
            dp = bound.buffer(f"back.{l % 2}.{width}", width, low=True)
            ops.append(matmul(do, bound.values[W].mT, dp))
            if l == 0:
                return ops + self._stages[0].backward(dp, bound.d, add=True)
            ops += self._stages[l].backward(dp, dp, add=False)
            do = dp
        return ops

    @property
    def activated(self) -> list[list[Activated]]:
        """Activations before each matrix."""
        return [stage.activated for stage in self._stages]

    def _linear(self, l: int) -> str:
        return f"block_{self._block + 1}.linear_{l + 1}"

    def _parameters(self, l: int) -> tuple[str, str]:
        return f"{self._name}.W{l + 1}", f"{self._name}.b{l + 1}"


class Block:
    """One block: its branch and how the stream goes past it."""

    def __init__(self, bound: Bound, block: int) -> None:
        self._bound, self._block = bound, block
        self._name = f"block{0 if bound.spec.tie_blocks else block}"
        self._shown = f"block_{block + 1}"
        self._branch = Branch(bound, block)
        self._keep: Tensor | None = None
        if bound.keep_ML1 is not None and bound.spec.skip is not Skip.NONE:
            self._keep = bound.keep_ML1[:, block : block + 1]

    def forward(self) -> list[Op]:
        """Operations that take the stream through the block, in place."""
        return self._forward() + self._bound.seen(self._shown, "v", self._bound.x)

    def backward(self) -> list[Op]:
        """Operations that take the stream's gradient back through the block, in place."""
        return self._bound.seen(self._shown, "dv", self._bound.d) + self._backward()

    def _forward(self) -> list[Op]:
        bound, skip = self._bound, self._bound.spec.skip
        ops, o = self._branch.forward()
        x, keep = bound.x, self._keep
        if skip is Skip.NONE:
            return [*ops, partial(x.copy_, o)]
        if skip is Skip.GATED:
            return self._gate_forward(ops, o)
        if skip is Skip.REZERO:
            return ops + self._rezero_forward(o)
        if keep is None:
            return [*ops, partial(x.add_, o)]
        return [*ops, partial(x.addcmul_, o, keep)]

    def _backward(self) -> list[Op]:
        bound, skip = self._bound, self._bound.spec.skip
        d, key = bound.d, "back.branch"
        if skip is Skip.GATED:
            return self._gate_backward()
        if skip is Skip.REZERO:
            return self._rezero_backward()
        if skip is Skip.NONE:
            do = bound.buffer(f"{key}.low", d.shape[2], low=True)
            return [partial(do.copy_, d), d.zero_, *self._branch.backward(do)]
        ops: list[Op] = []
        if self._keep is not None:
            scaled = bound.buffer(key, d.shape[2])
            ops, d = [partial(torch.mul, d, self._keep, out=scaled)], scaled
        do, cast = bound.low(d, f"{key}.low")
        return [*ops, *cast, *self._branch.backward(do)]

    @property
    def activated(self) -> list[list[Activated]]:
        """Activations before each matrix of the branch, once it is bound."""
        return self._branch.activated

    @property
    def gate(self) -> list[Activated]:
        """The gate t of a gated block."""
        if self._bound.spec.skip is not Skip.GATED:
            return []
        return [Activated(Logistic(), self._gate, self._gate)]

    # -- x + a F(x) --------------------------------------------------------------------------

    def _rezero_forward(self, o: Tensor) -> list[Op]:
        bound = self._bound
        self._o, cast = bound.high(o, f"{self._block}.out.high")
        a_M11 = bound.values[f"{self._name}.rezero"].unsqueeze(2)
        shape = tuple(a_M11.shape)
        self._a = bound.memory.fixed(f"{self._block}.a", shape, a_M11.dtype)
        ops: list[Op] = [partial(self._a.copy_, a_M11)]
        if self._keep is not None:
            ops.append(partial(self._a.mul_, self._keep))
        return [*cast, *ops, partial(bound.x.addcmul_, self._o, self._a)]

    def _rezero_backward(self) -> list[Op]:
        bound, d = self._bound, self._bound.d
        scaled = bound.buffer("back.branch", d.shape[2])
        ga_M1, after = bound.sink.target(f"{self._name}.rezero")
        ops: list[Op] = [
            partial(torch.mul, d, self._o, out=scaled),
            partial(torch.sum, scaled, (1, 2), out=ga_M1[:, 0]),
        ]
        if self._keep is not None:
            ops.append(partial(ga_M1.mul_, self._keep[:, 0]))
        ops += [*after, partial(torch.mul, d, self._a, out=scaled)]
        do, cast = bound.low(scaled, "back.branch.low")
        return [*ops, *cast, *self._branch.backward(do)]

    # -- t F(x) + (1 - t) x ------------------------------------------------------------------

    def _gate_forward(self, ops: list[Op], o: Tensor) -> list[Op]:
        bound, width, key = self._bound, self._bound.spec.width, f"{self._block}.gate"
        x_in = bound.buffer(f"{key}.x", width, low=True)
        gate = bound.buffer(f"{key}.z", width, low=True)
        self._x_in = x_in
        self._gate, cast = bound.high(gate, f"{key}.t")
        self._away = bound.buffer(f"{key}.away", width)
        steps: list[Op] = [
            partial(x_in.copy_, bound.x),
            *bound.product(x_in, f"{self._name}.gate.W", f"{self._name}.gate.b", gate),
            *bound.seen(f"{self._shown}.gate", "in", x_in),
            *bound.seen(f"{self._shown}.gate", "z", gate),
            *cast,
            self._gate.sigmoid_,
            *ops,
            partial(torch.sub, o, bound.x, out=self._away),
        ]
        factor = self._gate
        if self._keep is not None:
            factor = bound.buffer(f"{key}.kept", width)
            steps.append(partial(torch.mul, self._gate, self._keep, out=factor))
        self._factor = factor
        return [*steps, partial(bound.x.addcmul_, self._away, factor)]

    def _gate_backward(self) -> list[Op]:
        bound, d, width = self._bound, self._bound.d, self._bound.spec.width
        W, b = f"{self._name}.gate.W", f"{self._name}.gate.b"
        branch = bound.buffer("back.branch", width)
        slope = bound.buffer("back.gate", width)
        ops: list[Op] = [
            partial(torch.mul, d, self._factor, out=branch),
            partial(torch.mul, d, self._away, out=slope),
            partial(slope.mul_, self._factor),  # t (and the factor of drop path)
            partial(d.sub_, branch),
            partial(slope.addcmul_, slope, self._gate, value=-1),  # times 1 - t
        ]
        dz, cast = bound.low(slope, "back.gate.low")
        back = bound.buffer("back.gate.x", width, low=True)
        ops += [*cast, *bound.seen(f"{self._shown}.gate", "delta", dz)]
        ops += [*bound.product_gradients(self._x_in, dz, W, b)]
        ops += [matmul(dz, bound.values[W].mT, back), partial(d.add_, back)]
        do, cast = bound.low(branch, "back.branch.low")
        return [*ops, *cast, *self._branch.backward(do)]
