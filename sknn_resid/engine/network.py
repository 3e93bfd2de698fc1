"""A stack of M dense networks: one flat parameter buffer, forward and backward by the chain rule.

With v^(0) = X, z^(l) = v^(l-1) W^(l) + b^(l) and v^(l) = f(z^(l)), the last z being the logits, and
delta^(l) = dJ/dz^(l) (Rumelhart, Hinton and Williams 1986; Bishop 2006, section 5.3):

    delta^(L) = r (prediction - y)                        from the loss
    dJ/dW^(l) = v^(l-1)' delta^(l) + (alpha / S) W^(l)     S = sum of the weights of the batch
    dJ/db^(l) = sum_rows delta^(l)
    delta^(l-1) = (delta^(l) W^(l)') * f'(z^(l-1))

Layout. All parameters of a model lie in one row of ``params_MP``, in the order of `layout`. The
matrix of [X, 1] in one piece saves a stack two passes over its largest activations; the output
layer is class-major, ``W [K, H]`` and logits ``[K, B]``, because products and softmax with a narrow
last axis are up to 9 times slower. A tied weight (`ties`) lies in that row once and is spread to
its places before each pass; its gradient is the sum over them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from sknn_resid.engine.activations import Activated
from sknn_resid.engine.kernels import (
    Op,
    add_column,
    add_decay,
    add_row,
    affine,
    affine_columns,
    clip_norms,
    matmul,
    sum_rows,
    sum_squares,
)
from sknn_resid.engine.layout import Layout, Spreading, TiedLayout, dense_layout
from sknn_resid.engine.slots import BatchSlot, SparseRows
from sknn_resid.engine.spec import NetworkSpec
from sknn_resid.engine.watch import Watch, seen

_Bound = TypeVar("_Bound")


class StackedNetwork:
    """Parameters, gradients and scratch memory of a stack; binds steps to batches.

    Parameters
    ----------
    spec : NetworkSpec
    params_MP : Tensor of shape (M, P)
        Initial parameters, of ``spec.dtype``; trained in place.
    batch_size : int
        Most rows of any batch.
    dropout_M : sequence of float
        Dropout probability of each model.
    generators : sequence of torch.Generator
        One per model, for dropout; not read where every probability is 0.
    watch : callable or None
        Is shown what a step makes (`watch`), and dJ/dX, which only a watched step works out.
    model_by_model : bool
        Whether a step is carried out for one model after another (`compiled`): then they share
        their scratch memory.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        params_MP: Tensor,
        batch_size: int,
        dropout_M: Sequence[float],
        generators: Sequence[torch.Generator],
        watch: Watch | None = None,
        *,
        model_by_model: bool = False,
    ) -> None:
        self.spec = spec
        self._model_by_model = model_by_model
        self._watch = watch
        self.layout = dense_layout(spec.layer_sizes, spec.ties)
        self.params_MP = params_MP
        self.grads_MP = torch.zeros_like(params_MP)
        self.n_models = params_MP.shape[0]
        self._dropout_M = list(dropout_M)
        self._generators = list(generators)
        self._scratch: dict[tuple[str, int], Tensor] = {}
        self._bound: dict[Hashable, Any] = {}
        self._batch_size = batch_size
        self._long_MP, self._long_grads_MP = params_MP, self.grads_MP
        self._spread: list[Op] = []
        self._gather: list[Op] = []
        if isinstance(self.layout, TiedLayout):
            spreading = Spreading(self.layout, params_MP, self.grads_MP)
            self._long_MP, self._long_grads_MP = spreading.params_MP, spreading.grads_MP
            self._spread, self._gather = spreading.spread(), spreading.gather()
        self._p, self._g = self._long_MP, self._long_grads_MP
        if spec.product_dtype != spec.dtype:
            self._p = self._long_MP.to(spec.product_dtype)
            self._g = torch.zeros_like(self._p)
        places = Layout(spec.layer_sizes)
        self._W, self._b = places.weights(self._p), places.biases(self._p)
        self._gW, self._gb = places.weights(self._g), places.biases(self._g)
        self._W1, self._gW1 = (places.first_affine(flat) for flat in (self._p, self._g))
        self.weights_MP = params_MP[:, : self.layout.n_weights]
        self.weight_grads_MP = self.grads_MP[:, : self.layout.n_weights]

    @property
    def mixed(self) -> bool:
        """Whether products run in another dtype than the master weights."""
        return self._p is not self._long_MP

    def _buffer(self, name: str, layer: int, width: int, n_rows: int) -> Tensor:
        """Scratch memory (M, n_rows, width), shared by all batches of the stack."""
        key = (name, layer)
        M = 1 if self._model_by_model else self.n_models
        if key not in self._scratch:
            shape = (M * self._batch_size * width,)
            # Zeros, not empty: padding rows are read, with weight 0, before they are ever written,
            # and what lies in fresh memory may be not-a-number.
            self._scratch[key] = self._p.new_zeros(shape)
        part = self._scratch[key][: M * n_rows * width].view(M, n_rows, width)
        return part.expand(self.n_models, n_rows, width)

    def bind(
        self, slot: BatchSlot, *, penalised: bool, before_penalty: Sequence[Op] = ()
    ) -> list[Op]:
        """The operations that leave the gradient of this slot's batch in ``grads_MP``.

        Parameters
        ----------
        slot : BatchSlot
            Memory that holds the batch, its targets, weights and logits.
        penalised : bool
            Whether the L2 term belongs to the gradient (not with AdamW, nor without penalty).
        before_penalty : sequence of callable
            Called when ``grads_MP`` holds the gradient of the data term.
        """
        n, last = slot.n_rows, self.layout.n_layers - 1
        ops: list[Op] = list(self._spread)
        if self.mixed:
            ops.append(partial(self._p.copy_, self._long_MP))
        v: Tensor | SparseRows = slot.X_MBD
        backward: list[list[Op]] = []
        for l in range(last):
            forward, h, derivative = self._bind_hidden(l, slot)
            if l == 0 and slot.X1_MBD is not None:
                affine_ops, gradient_ops = self._bind_first(slot.X1_MBD, n)
            else:
                affine_ops, gradient_ops = self._bind_affine(l, v, n), self._bind_gradient(l, v, n)
            name = f"hidden_{l + 1}"
            z, _, delta = self._hidden_buffers(l, n)
            ops += [*affine_ops, *self._seen(name, "z", z), *forward, *self._seen(name, "v", h)]
            before, after = self._seen(name, "dv", delta), self._seen(name, "delta", delta)
            backward.append([*before, *derivative, *after, *gradient_ops])
            v = h
        ops += self._bind_head(slot, v)
        for layer in reversed(backward):
            ops += layer
        ops += self._bind_input_delta(slot)
        if self.mixed:
            ops.append(partial(self._long_grads_MP.copy_, self._g))
        ops += self._gather
        ops += before_penalty
        if penalised:
            ops.append(add_decay(self.weight_grads_MP, self.weights_MP, slot.decay_M1))
        return ops

    def matrices(self, flat_MP: Tensor) -> dict[str, Tensor]:
        """Weight matrices by the name of their layer, of flat rows like ``params_MP``.

        Views, unless weights are tied: then of a copy, as the rows are now.
        """
        return dict(zip(self.layout.layers(), self.layout.weights(flat_MP), strict=True))

    def activations(self, n_rows: int) -> dict[str, list[Activated]]:
        """What the last step has left in memory behind each layer; none behind the output."""
        found: dict[str, list[Activated]] = {"output": []}
        for l, function in enumerate(self.spec.activations):
            z, h, _ = self._hidden_buffers(l, n_rows)
            found[f"hidden_{l + 1}"] = [Activated(function, z, h)]
        return found

    def _seen(self, layer: str, what: str, tensor: Tensor) -> list[Op]:
        return seen(self._watch, layer, what, tensor)

    def _bind_input_delta(self, slot: BatchSlot) -> list[Op]:
        """dJ/dX = delta^(1) W^(1)', where somebody looks; it is dense: not for sparse rows."""
        if self._watch is None or isinstance(slot.X_MBD, SparseRows):
            return []
        n, D = slot.n_rows, self.spec.layer_sizes[0]
        dX_MBD = self._buffer("dX", -1, D, n)
        if self.layout.n_layers == 1:
            product = matmul(self._head_delta(slot).mT, self._W[0], dX_MBD)
        else:
            product = matmul(self._hidden_buffers(0, n)[2], self._W[0].mT, dX_MBD)
        return [product, *self._seen("X", "dv", dX_MBD)]

    def _once(self, key: Hashable, make: Callable[[], _Bound]) -> _Bound:
        """Bind what does not depend on the slot only once for all slots of a length."""
        if key not in self._bound:
            self._bound[key] = make()
        return self._bound[key]

    def _bind_hidden(self, l: int, slot: BatchSlot) -> tuple[list[Op], Tensor, list[Op]]:
        """What follows z of hidden layer l: forward operations, their result, derivative."""
        z, h, delta = self._hidden_buffers(l, slot.n_rows)
        activation = self.spec.activations[l]
        forward, derivative = self._once(
            ("activation", l, slot.n_rows),
            lambda: (activation.bind_forward(z, h), activation.bind_backward(z, h, delta)),
        )
        if not any(self._dropout_M):
            return forward, h, derivative
        kept, drop, undrop = self._bind_dropout(l, slot, h, delta)
        return [*forward, drop], kept, [undrop, *derivative]

    def _bind_first(self, X1_MBE: Tensor, n: int) -> tuple[list[Op], list[Op]]:
        """z and gradient of the first hidden layer from [X, 1]: the bias is a row of the matrix."""
        z, _, delta = self._hidden_buffers(0, n)
        return self._once(
            ("first", n),
            lambda: (
                [matmul(X1_MBE, self._W1, z)],
                [matmul(X1_MBE.mT, delta, self._gW1)],
            ),
        )

    def _bind_affine(self, l: int, v: Tensor | SparseRows, n: int) -> list[Op]:
        """z of hidden layer l. All slots of a length read the same v, also the input."""
        z, W, b = self._hidden_buffers(l, n)[0], self._W[l], self._b[l]
        if isinstance(v, SparseRows):
            return [v.bind_times(W, z), add_row(z, b)]
        return self._once(("affine", l, n), lambda: affine(v, W, b, z))

    def _bind_gradient(self, l: int, v: Tensor | SparseRows, n: int) -> list[Op]:
        """Gradient of hidden layer l from its delta, and the delta of the layer below."""
        delta = self._hidden_buffers(l, n)[2]
        gW, gb = self._gW[l], self._gb[l]
        if isinstance(v, SparseRows):
            ops: list[Op] = [v.bind_transposed_times(delta, gW)]
        else:
            ops = [self._once(("gradient", l, n), lambda: matmul(v.mT, delta, gW))]
        ops.append(self._once(("bias", l, n), lambda: sum_rows(delta, gb)))
        if l > 0:
            below = self._hidden_buffers(l - 1, n)[2]
            ops.append(self._once(("delta", l, n), lambda: matmul(delta, self._W[l].mT, below)))
        return ops

    def _hidden_buffers(self, l: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """z, h (the same memory unless the activation needs z) and delta of hidden layer l."""
        width = self.spec.layer_sizes[l + 1]
        z = self._buffer("z", l, width, n)
        h = self._buffer("h", l, width, n) if self.spec.activations[l].needs_input else z
        return z, h, self._buffer("delta", l, width, n)

    def _head_delta(self, slot: BatchSlot) -> Tensor:
        """delta of the output layer (M, K, B) in the dtype of the products."""
        K = self.spec.n_outputs
        return self._buffer("delta_out", -1, K, slot.n_rows).view(self.n_models, K, slot.n_rows)

    def _bind_head(self, slot: BatchSlot, v: Tensor | SparseRows) -> list[Op]:
        """Logits, delta of the loss, gradient of the output layer, delta of the last hidden one."""
        M, K, n, last = self.n_models, self.spec.n_outputs, slot.n_rows, self.layout.n_layers - 1
        W_MKH, b_MK = self._W[last], self._b[last]
        delta = self._head_delta(slot)
        z_prod = slot.Z_MKB
        if self.mixed:
            z_prod = self._buffer("z_out", -1, K, n).view(M, K, n)
        ops: list[Op] = []
        if isinstance(v, SparseRows):
            z_MBK = self._buffer("z_rows", -1, K, n)
            ops += [v.bind_times(W_MKH.mT, z_MBK), partial(z_prod.copy_, z_MBK.mT)]
            ops.append(add_column(z_prod, b_MK))
        else:
            ops += affine_columns(W_MKH, v, b_MK, z_prod)
        loss_delta = delta
        ops += self._seen("output", "z", z_prod)
        if self.mixed:
            ops.append(partial(slot.Z_MKB.copy_, z_prod))
            loss_delta = torch.empty_like(slot.Z_MKB)
        batch = (slot.Z_MKB, slot.T_MKB, slot.r_M1B, loss_delta)
        if slot.value_M is None:
            ops += self.spec.loss.bind_delta(*batch)
        else:
            ops.append(self.spec.loss.bind_compiled(*batch, slot.value_M))
        if self.mixed:
            ops.append(partial(delta.copy_, loss_delta))
        ops += self._seen("output", "delta", delta)
        if isinstance(v, SparseRows):
            ops.append(v.bind_transposed_times(delta.mT, self._gW[last].mT))
        else:
            ops.append(self._once(("gradient", last, n), lambda: matmul(delta, v, self._gW[last])))
        ops.append(self._once(("bias", last, n), lambda: sum_rows(delta.mT, self._gb[last])))
        if last > 0:
            below = self._hidden_buffers(last - 1, n)[2]
            ops.append(self._once(("delta", last, n), lambda: matmul(delta.mT, W_MKH, below)))
        return ops

    def _bind_dropout(
        self, l: int, slot: BatchSlot, h: Tensor, delta: Tensor
    ) -> tuple[Tensor, Op, Op]:
        """Inverted dropout (Srivastava et al. 2014): v = m h, m = Bernoulli(1 - p) / (1 - p).

        Each model draws its masks from its own generator, and only for rows that are its own, so
        that a stack gives each model what it would draw alone.
        """
        width = h.shape[2]
        mask = self._buffer("mask", l, width, slot.n_rows)
        kept = self._buffer("kept", l, width, slot.n_rows)
        models = list(enumerate(zip(self._dropout_M, self._generators, strict=True)))

        def drop() -> None:
            for m, (p, generator) in models:
                own = mask[m, : slot.rows_M[m]]
                own.bernoulli_(1.0 - p, generator=generator).div_(1.0 - p)
            torch.mul(h, mask, out=kept)

        return kept, drop, partial(delta.mul_, mask)

    def bind_penalty(self, out_M: Tensor) -> Op:
        """Operation that writes |W|^2 of each model, biases left out."""
        return sum_squares(self.weights_MP, out_M)

    def bind_clipping(self, clip_M: Tensor) -> list[Op]:
        """Scale each model's gradient to a norm of at most ``clip_M`` (Pascanu et al. 2013)."""
        return [clip_norms(self.grads_MP, clip_M)]
