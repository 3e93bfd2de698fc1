"""A stack of M residual networks: the same interface to a step as `network.StackedNetwork`.

The formulas stand in `residual_spec`, blocks in `branches` (and in compiled operations in `fused`),
normalizations in `norms`, the input in `residual_input`; here are the head, random masks, and the
order of it all.

Everything random is drawn per step and model, never per row, from the model's own generator, in the
order of the blocks: a mask for the units of each dropped layer, then which branches are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine import fused
from sknn_resid.engine.activations import Activated
from sknn_resid.engine.bound import joined
from sknn_resid.engine.branches import Block, Bound, Stage
from sknn_resid.engine.kernels import (
    Op,
    add_decay,
    affine_columns,
    clip_norms,
    matmul,
    sum_rows,
    sum_squares,
)
from sknn_resid.engine.memory import Memory, Sink
from sknn_resid.engine.residual_input import InputProjection
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec
from sknn_resid.engine.slots import BatchSlot
from sknn_resid.engine.watch import Watch, seen


@dataclass(frozen=True, eq=False)
class _Program:
    """The operations of a step that are the same for all slots of a length."""

    forward: list[Op]
    backward: list[Op]
    hidden: Tensor  # what the head reads
    hidden_delta: Tensor
    activated: dict[str, list[Activated]]  # behind each layer
    fuses: bool


class StackedResidualNetwork:
    """Parameters, gradients and scratch memory of a stack; binds steps to batches.

    Parameters
    ----------
    spec : ResidualSpec
    params_MP : Tensor of shape (M, P)
        Initial parameters in the order of `ResidualLayout`, of ``spec.dtype``; trained in place.
    batch_size : int
        Most rows of any batch.
    dropout_M, drop_path_M : sequence of float
        Probability of each model that a unit is dropped; that the last block's branch is left out
        (block l of L has l / L times as much).
    generators : sequence of torch.Generator
        One per model; not read where every probability is 0.
    input_scale_M : sequence of (ndarray of shape (D,) or None)
        Factor of each column for the input projection.
    statistics_MS : Tensor of shape (M, S) or None
        Means and variances to normalize with instead of those of each batch, as in prediction.
    watch : callable or None
        Is shown what a step makes (`watch`), and dJ/dX, which only a watched step works out.
    """

    def __init__(
        self,
        spec: ResidualSpec,
        params_MP: Tensor,
        batch_size: int,
        dropout_M: Sequence[float],
        drop_path_M: Sequence[float],
        generators: Sequence[torch.Generator],
        input_scale_M: Sequence[np.ndarray | None],
        statistics_MS: Tensor | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.spec = spec
        self._watch, self._statistics_MS = watch, statistics_MS
        self.layout = ResidualLayout(spec)
        self.params_MP = params_MP
        self.grads_MP = torch.zeros_like(params_MP)
        self.n_models = params_MP.shape[0]
        self._generators = list(generators)
        self._ahead: dict[BatchSlot, Op] | None = None
        self._memory = Memory(self.n_models, batch_size, params_MP.device)
        self._programs: dict[int, _Program] = {}
        self._values, self._grads = self.layout.views(params_MP), self.layout.views(self.grads_MP)
        self._casts: list[Op] = []
        self._casts_back: list[Op] = []
        if spec.product_dtype != spec.dtype:
            self._lower_products()
        n_weights = self.layout.n_weights
        self.weights_MP = params_MP[:, :n_weights]
        self.weight_grads_MP = self.grads_MP[:, :n_weights]
        self._dropout_M, self._drop_path_M = list(dropout_M), list(drop_path_M)
        self._masks = self._make_masks() if any(dropout_M) else {}
        self._keep_ML1 = self._make_keep() if any(drop_path_M) and spec.n_blocks else None
        self._scale_MD1 = self._make_scale(input_scale_M)

    def _lower_products(self) -> None:
        """Matrices and biases once more in the dtype of the products, and their gradients."""
        n = self.layout.n_product
        leading_MP, leading_grads_MP = self.params_MP[:, :n], self.grads_MP[:, :n]
        low_MP = leading_MP.to(self.spec.product_dtype).contiguous()
        low_grads_MP = torch.zeros_like(low_MP)
        self._values |= self.layout.product_views(low_MP)
        self._grads |= self.layout.product_views(low_grads_MP)
        self._casts = [partial(low_MP.copy_, leading_MP)]
        self._casts_back = [partial(leading_grads_MP.copy_, low_grads_MP)]

    # -- what is drawn ------------------------------------------------------------------------

    def _make_masks(self) -> dict[tuple[int, int], Tensor]:
        """Dropout masks, views of one buffer that is drawn at once."""
        spec, masks, start = self.spec, {}, 0
        units = [
            (block, l, width)
            for block in range(spec.n_blocks)
            for l, ((width, _), dropped) in enumerate(
                zip(spec.layer_widths, spec.dropped, strict=True)
            )
            if dropped
        ]
        total = sum(width for _, _, width in units)
        shape = (self.n_models, total)
        self._mask_MU = self._memory.fixed("mask", shape, spec.dtype)
        self._drawn_MU = self._memory.fixed("drawn", shape, spec.dtype)
        kept_M1 = 1.0 - torch.tensor(self._dropout_M, dtype=torch.float64)[:, None]
        self._kept_M1 = kept_M1.to(self.params_MP.device, spec.dtype)
        for block, l, width in units:
            masks[block, l] = self._mask_MU[:, start : start + width].unsqueeze(1)
            start += width
        return masks

    def _make_keep(self) -> Tensor:
        """Factors of branches: Bernoulli(1 - p_l) / (1 - p_l), p_l = p l / L."""
        spec = self.spec
        depth = torch.arange(1, spec.n_blocks + 1, dtype=spec.dtype) / spec.n_blocks
        drop_M1 = torch.tensor(self._drop_path_M, dtype=spec.dtype)[:, None]
        self._survival_ML = (1 - drop_M1 * depth).to(self.params_MP.device)
        return self._memory.fixed("keep", (self.n_models, spec.n_blocks, 1), spec.dtype)

    def draw_ahead(self) -> bool:
        """Let steps read what `draw` has drawn for them, instead of drawing within.

        To be called before any step is bound. Returns whether anything is drawn at all.
        """
        self._ahead = {}
        return bool(self._masks) or self._keep_ML1 is not None

    def draw(self, slot: BatchSlot) -> None:
        """Draw for the next step of this slot, after `draw_ahead`."""
        assert self._ahead is not None
        self._ahead[slot]()

    def _bind_draws(self, slot: BatchSlot) -> list[Op]:
        """Masks of a step, drawn in it or before it."""
        drawn_MU = self._drawn_MU if self._masks else None
        keep_ML = None if self._keep_ML1 is None else self._keep_ML1[:, :, 0]
        if drawn_MU is None and keep_ML is None:
            return []
        ops: list[Op] = []
        if self._ahead is None:
            ops.append(partial(self._draw, slot, drawn_MU, keep_ML))
        else:  # into memory of this slot, from where the step takes it
            drawn_MU = None if drawn_MU is None else drawn_MU.clone()
            own_keep_ML: Tensor | None = None
            if keep_ML is not None:
                own_keep_ML = keep_ML.clone()
                ops.append(partial(keep_ML.copy_, own_keep_ML))
            self._ahead[slot] = partial(self._draw, slot, drawn_MU, own_keep_ML)
        if drawn_MU is not None:
            ops.append(partial(torch.div, drawn_MU, self._kept_M1, out=self._mask_MU))
        return ops

    def _draw(self, slot: BatchSlot, drawn_MU: Tensor | None, keep_ML: Tensor | None) -> None:
        """Draw the masks of a step, for the models that have rows in it."""
        for m, (p, generator) in enumerate(zip(self._dropout_M, self._generators, strict=True)):
            if slot.rows_M[m] == 0:
                continue  # alone, it would take no step either
            if drawn_MU is not None:
                drawn_MU[m].bernoulli_(1.0 - p, generator=generator)
            if keep_ML is not None:
                survival = self._survival_ML[m]
                keep = keep_ML[m]
                torch.bernoulli(survival, generator=generator, out=keep)
                keep.div_(survival)

    # -- a step -------------------------------------------------------------------------------

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
        n = slot.n_rows
        r_M1B = self._memory.rows("r", n, 1, self.spec.dtype).view(self.n_models, 1, n)
        epsilon_M11 = self._memory.fixed("epsilon", (self.n_models, 1, 1), self.spec.dtype)
        if n not in self._programs:
            self._programs[n] = self._make_program(slot, r_M1B, epsilon_M11)
        program = self._programs[n]
        ops: list[Op] = [*self._casts, *self._bind_draws(slot)]
        if self.spec.normalization is Normalization.BATCH:
            ops.append(partial(r_M1B.copy_, slot.r_M1B))
        if self.spec.normalization is Normalization.BATCH and not program.fuses:
            ops.append(partial(_set_epsilon, slot.r_M1B, self.spec.norm_epsilon, epsilon_M11))
        else:
            epsilon_M11.fill_(self.spec.norm_epsilon)
        ops += [*program.forward, *self._bind_head(slot, program), *program.backward]
        ops += [*self._casts_back, *before_penalty]
        if penalised:
            ops.append(add_decay(self.weight_grads_MP, self.weights_MP, slot.decay_M1))
        return joined(ops)

    def _make_program(self, slot: BatchSlot, r_M1B: Tensor, epsilon_M11: Tensor) -> _Program:
        spec, n = self.spec, slot.n_rows
        x, d = (self._memory.rows(name, n, spec.width, spec.dtype) for name in ("x", "d"))
        sink = Sink(self._grads, self._memory)
        bound = Bound(
            spec,
            self._memory,
            n,
            self._values,
            sink,
            r_M1B,
            epsilon_M11,
            x,
            d,
            self._masks,
            self._keep_ML1,
            None if self._statistics_MS is None else self.layout.moments(self._statistics_MS),
            self._watch,
        )
        fuses = fused.suits(bound)
        make = fused.FusedBlock if fuses else Block
        blocks = [make(bound, block) for block in range(spec.n_blocks)]
        ends = InputProjection(bound, self._grads, self._scale_MD1)
        forward, input_backward = ends.bind(slot.X_MBD)
        for block in blocks:
            forward += block.forward()
        ops, hidden, hidden_delta, backward, after_last = self._bind_last(bound, fuses=fuses)
        forward += ops
        for block in reversed(blocks):
            backward += block.backward()
        activated = self._activated(blocks, after_last)
        backward += input_backward
        return _Program(forward, backward, hidden, hidden_delta, activated, fuses)

    def _bind_last(
        self, bound: Bound, *, fuses: bool
    ) -> tuple[list[Op], Tensor, Tensor, list[Op], list[Activated]]:
        """What stands between the blocks and the head: forward, its result, backward."""
        width = self.spec.width
        hidden_delta = bound.buffer("back.final", width, low=True)
        normalized = self.spec.normalization is not Normalization.NONE
        if fuses and normalized:
            norm = fused.FusedNorm(bound, "final", width, "final", relu=True)
            forward = [norm.forward(bound.x)]
            backward = norm.backward(hidden_delta, bound.d, add=False)
            return forward, norm.y, hidden_delta, backward, [norm.activated]
        last = Stage(
            bound,
            "final",
            width,
            ("final.gamma", "final.beta") if normalized else None,
            activated=True,
            mask=None,
            copies=True,
            shown="output.activation",
        )
        forward, hidden = last.forward(bound.x)
        backward = last.backward(hidden_delta, bound.d, add=False)
        return forward, hidden, hidden_delta, backward, last.activated

    def _activated(
        self, blocks: Sequence[Block | fused.FusedBlock], after_last: list[Activated]
    ) -> dict[str, list[Activated]]:
        """The first activations that what a layer gives goes through; none behind the output."""
        found: dict[str, list[Activated]] = {name: [] for name in self.layout.layers()}
        before = [block.activated for block in blocks]  # each matrix
        following = [stages[0] for stages in before] + [after_last]
        found["input"] = following[0]
        for b, block in enumerate(blocks):
            name = "blocks" if self.spec.tie_blocks else f"block_{b + 1}"
            for l, behind in enumerate([*before[b][1:], following[b + 1]], 1):
                found[f"{name}.linear_{l}"] += behind
            if block.gate:
                found[f"{name}.gate"] += block.gate
        return found

    def matrices(self, flat_MP: Tensor) -> dict[str, Tensor]:
        """Weight matrices by the name of their layer, as views of flat rows like ``params_MP``."""
        views = self.layout.views(flat_MP)
        return {layer: views[name] for layer, name in self.layout.layers().items()}

    def activations(self, n_rows: int) -> dict[str, list[Activated]]:
        """What the last step of so many rows has left in memory behind each layer."""
        return self._programs[n_rows].activated

    def _bind_head(self, slot: BatchSlot, program: _Program) -> list[Op]:
        """Logits, delta of the loss, gradient of the head, delta of what it reads."""
        spec, M, K, n = self.spec, self.n_models, self.spec.n_outputs, slot.n_rows
        W, b, h = self._values["head.W"], self._values["head.b"], program.hidden
        gW, gb = self._grads["head.W"], self._grads["head.b"]

        def class_major(name: str, dtype: torch.dtype) -> Tensor:
            return self._memory.rows(name, n, K, dtype).view(M, K, n)

        low = spec.product_dtype != spec.dtype
        delta = class_major("delta.out", spec.product_dtype)
        loss_delta = class_major("delta.loss", spec.dtype) if low else delta
        z = class_major("z.out", spec.product_dtype) if low else slot.Z_MKB
        if program.fuses:
            return [
                fused.product(W, h.mT, z, column_Mi=b),
                *spec.loss.bind_delta(z, slot.T_MKB, slot.r_M1B, delta),
                fused.product(delta, h, gW),
                fused.sum_columns(delta, gb),
                fused.product(delta.mT, W, program.hidden_delta),
            ]
        ops = affine_columns(W, h, b, z)
        ops += [*self._seen("output", "in", h), *self._seen("output", "z", z)]
        if low:
            ops.append(partial(slot.Z_MKB.copy_, z))
        ops += spec.loss.bind_delta(slot.Z_MKB, slot.T_MKB, slot.r_M1B, loss_delta)
        if low:
            ops.append(partial(delta.copy_, loss_delta))
        return [
            *ops,
            *self._seen("output", "delta", delta),
            matmul(delta, h, gW),
            sum_rows(delta.mT, gb),
            matmul(delta.mT, W, program.hidden_delta),
        ]

    def _seen(self, layer: str, what: str, tensor: Tensor) -> list[Op]:
        return seen(self._watch, layer, what, tensor)

    # -- the input ----------------------------------------------------------------------------

    def _make_scale(self, input_scale_M: Sequence[np.ndarray | None]) -> Tensor | None:
        if all(scale is None for scale in input_scale_M):
            return None
        D, params = self.spec.n_features, self.params_MP
        scale_MD1 = params.new_ones((self.n_models, D, 1))
        for row, scale in zip(scale_MD1, input_scale_M, strict=True):
            if scale is not None:
                row[:, 0].copy_(torch.from_numpy(np.asarray(scale, dtype=np.float64)))
        return scale_MD1

    # -- beside the step ----------------------------------------------------------------------

    def bind_penalty(self, out_M: Tensor) -> Op:
        """Operation that writes |W|^2 of each model, biases and norms left out."""
        return sum_squares(self.weights_MP, out_M)

    def bind_clipping(self, clip_M: Tensor) -> list[Op]:
        """Scale each model's gradient to a norm of at most ``clip_M``."""
        return [clip_norms(self.grads_MP, clip_M)]


def _set_epsilon(r_M1B: Tensor, epsilon: float, out_M11: Tensor) -> None:
    """What is added to variances: 1 where the batch weighs nothing, and every variance is 0."""
    dead_M11 = r_M1B.amax(2, keepdim=True) <= 0
    out_M11.fill_(epsilon).masked_fill_(dead_M11, 1.0)
