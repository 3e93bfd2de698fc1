"""Where each parameter of a residual network lies in a model's flat row.

The order is: the matrices inside the blocks (equal ones side by side, so that they are updated as
one batch), the input projection, the head, the biases of all of these, then normalizations, scalars
and frequencies. So weight decay, the part of the hidden matrices and the part that is multiplied in
low precision are one slice each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.residual_spec import Normalization, ResidualSpec, Skip


@dataclass(frozen=True)
class Entry:
    """One parameter: its name, its shape in one model, and where it begins in the flat row."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape)


@dataclass(frozen=True)
class MatrixRun:
    """Equal matrices side by side: ``count`` of them, each of ``shape``."""

    count: int
    shape: tuple[int, int]
    start: int


@dataclass(frozen=True)
class ResidualLayout:
    """Names, shapes and places of the parameters of one structure.

    Names: ``input.W`` (n_inputs, width), ``input.b``, ``head.W`` (K, width), ``head.b``, and for
    each set s of block parameters ``block{s}.W{l}`` (in, out) and ``block{s}.b{l}``, l = 1, 2, ...,
    ``block{s}.norm{l}.gamma`` and ``.beta`` of the normalization before matrix l,
    ``block{s}.gate.W`` and ``.b``, ``block{s}.rezero`` (1,); ``final.gamma``, ``final.beta``,
    ``periodic.w`` (n_columns, n_frequencies), ``periodic.b``.
    """

    spec: ResidualSpec

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Every parameter by its name, in order."""
        found, start = {}, 0
        parts = [*self._matrices, *self._ends, *self._biases, *self._others]
        for name, shape in parts:
            found[name] = Entry(name, shape, start)
            start += prod(shape)
        return found

    @property
    def n_params(self) -> int:
        return self._size(self._matrices + self._ends + self._biases + self._others)

    @property
    def n_weights(self) -> int:
        """The leading part that weight decay acts on: matrices, not biases and norms."""
        return self._size(self._matrices + self._ends)

    @property
    def n_matrices(self) -> int:
        """The leading part that lies inside the blocks: hidden matrices."""
        return self._size(self._matrices)

    @property
    def n_product(self) -> int:
        """The leading part that takes part in products: matrices and their biases."""
        return self._size(self._matrices + self._ends + self._biases)

    @property
    def runs(self) -> list[MatrixRun]:
        """The hidden matrices, equal ones together."""
        runs: list[MatrixRun] = []
        start = 0
        for _, shape in self._matrices:
            last = runs[-1] if runs else None
            if last is not None and last.shape == shape:
                runs[-1] = MatrixRun(last.count + 1, last.shape, last.start)
            else:
                runs.append(MatrixRun(1, (shape[0], shape[1]), start))
            start += prod(shape)
        return runs

    @property
    def norm_widths(self) -> tuple[int, ...]:
        """Units of each normalization on the way from the input to the head."""
        spec = self.spec
        if spec.normalization is Normalization.NONE:
            return ()
        pairs = zip(spec.layer_widths, spec.normalized, strict=True)
        block = tuple(units for (units, _), normalized in pairs if normalized)
        return block * spec.n_blocks + (spec.width,)

    @property
    def n_statistics(self) -> int:
        """Means and variances kept for prediction (batch normalization only)."""
        batch = self.spec.normalization is Normalization.BATCH
        return 2 * sum(self.norm_widths) if batch else 0

    def moments(self, statistics_MS: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Kept means and variances, each (M, units), by the place of their normalization.

        Places are "{block}.{matrix}", both counted from 0, and "final".
        """
        spec = self.spec
        places = [
            f"{block}.{l}"
            for block in range(spec.n_blocks)
            for l, normalized in enumerate(spec.normalized)
            if normalized
        ]
        sizes = [width for width in self.norm_widths for _ in range(2)]
        parts = statistics_MS.split(sizes, dim=1)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return dict(zip([*places, "final"], pairs, strict=True))

    def views(self, flat_MP: Tensor) -> dict[str, Tensor]:
        """Every parameter of a stack by its name, as views (M, ...) of the flat rows."""
        M = len(flat_MP)
        found = {}
        for name, entry in self.entries.items():
            found[name] = flat_MP[:, entry.start : entry.stop].view(M, *entry.shape)
        return found

    def layers(self) -> dict[str, str]:
        """Names of the matrices by the layers they make, from the input to the output.

        Blocks that share their matrices are "blocks", others "block_1", "block_2", ...
        """
        spec, found = self.spec, {"input": "input.W"}
        for s in range(spec.n_sets):
            block = "blocks" if spec.tie_blocks else f"block_{s + 1}"
            if spec.skip is Skip.GATED:
                found[f"{block}.gate"] = f"block{s}.gate.W"
            for l in range(1, spec.n_layers_per_block + 1):
                found[f"{block}.linear_{l}"] = f"block{s}.W{l}"
        return found | {"output": "head.W"}

    def product_views(self, flat_MP: Tensor) -> dict[str, Tensor]:
        """The parameters that take part in products, from rows of ``n_product`` numbers."""
        M, last = len(flat_MP), self.n_product
        return {
            name: flat_MP[:, entry.start : entry.stop].view(M, *entry.shape)
            for name, entry in self.entries.items()
            if entry.stop <= last
        }

    def unpack(self, flat_P: np.ndarray) -> dict[str, np.ndarray]:
        """Every parameter of one model by its name, as views of its flat row."""
        views = self.views(torch.from_numpy(flat_P)[None])
        return {name: view[0].numpy() for name, view in views.items()}

    # -- the parts ---------------------------------------------------------------------------

    @staticmethod
    def _size(parts: list[tuple[str, tuple[int, ...]]]) -> int:
        return sum(prod(shape) for _, shape in parts)

    @cached_property
    def _matrices(self) -> list[tuple[str, tuple[int, ...]]]:
        spec, sets = self.spec, range(self.spec.n_sets)
        parts: list[tuple[str, tuple[int, ...]]] = [
            (f"block{s}.W{l}", shape) for l, shape in enumerate(spec.layer_widths, 1) for s in sets
        ]
        if spec.skip is Skip.GATED:
            parts += [(f"block{s}.gate.W", (spec.width, spec.width)) for s in sets]
        return parts

    @cached_property
    def _ends(self) -> list[tuple[str, tuple[int, ...]]]:
        spec = self.spec
        return [
            ("input.W", (spec.n_inputs, spec.width)),
            ("head.W", (spec.n_outputs, spec.width)),
        ]

    @cached_property
    def _biases(self) -> list[tuple[str, tuple[int, ...]]]:
        spec, sets = self.spec, range(self.spec.n_sets)
        widths = enumerate(spec.layer_widths, 1)
        parts = [(f"block{s}.b{l}", (out,)) for l, (_, out) in widths for s in sets]
        if spec.skip is Skip.GATED:
            parts += [(f"block{s}.gate.b", (spec.width,)) for s in sets]
        return [*parts, ("input.b", (spec.width,)), ("head.b", (spec.n_outputs,))]

    @cached_property
    def _others(self) -> list[tuple[str, tuple[int, ...]]]:
        spec = self.spec
        parts: list[tuple[str, tuple[int, ...]]] = []
        for s in range(spec.n_sets):
            pairs = zip(spec.layer_widths, spec.normalized, strict=True)
            for l, ((units, _), normalized) in enumerate(pairs, 1):
                if normalized:
                    parts += [(f"block{s}.norm{l}.{p}", (units,)) for p in ("gamma", "beta")]
            if spec.skip is Skip.REZERO:
                parts.append((f"block{s}.rezero", (1,)))
        if spec.normalization is not Normalization.NONE:
            parts += [("final.gamma", (spec.width,)), ("final.beta", (spec.width,))]
        if spec.periodic is not None:
            shape = (spec.periodic.n_columns, spec.periodic.n_frequencies)
            parts += [("periodic.w", shape), ("periodic.b", shape)]
        return parts
