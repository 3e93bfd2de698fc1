"""Fitted columns put to work: rows of a table as rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sknn_resid.neural_network._columns import (
    CategoryColumn,
    Column,
    NumericColumn,
    refuse_infinity,
)
from sknn_resid.neural_network._frames import Table

# Numbers of the output that are made at a time: the parts in between stay in the cache.
CHUNK = 2**20
# Beyond this a scaled value is an outlier of any kind; its square must not overflow.
_FAR = 1e100


@dataclass(frozen=True, eq=False)
class Layout:
    """Which output column comes from where.

    Attributes
    ----------
    kinds : ndarray of shape (n_outputs,) of str
        "numeric", "missing", "piecewise" or "onehot", in this order.
    source : ndarray of shape (n_outputs,) of int
        Input columns.
    part : ndarray of shape (n_outputs,) of int
        Number of the bin or level within its column; 0 for the others.
    """

    kinds: np.ndarray
    source: np.ndarray
    part: np.ndarray


def layout(columns: Sequence[Column]) -> Layout:
    """Outputs of fitted columns, grouped by kind so that each kind is one block of memory."""
    rows: list[tuple[str, int, int]] = []
    numeric = [(j, c) for j, c in enumerate(columns) if isinstance(c, NumericColumn)]
    rows += [("numeric", j, 0) for j, c in numeric if c.scale > 0]
    rows += [("missing", j, 0) for j, c in numeric if c.missing]
    for j, c in numeric:
        rows += [("piecewise", j, t) for t in range(len(c.edges or (0,)) - 1)]
    for j, column in enumerate(columns):
        if isinstance(column, CategoryColumn):
            rows += [("onehot", j, t) for t in range(column.n_outputs)]
    # A network needs an input, also for a table that says nothing.
    kinds, source, part = zip(*(rows or [("numeric", 0, 0)]), strict=True)
    return Layout(np.array(kinds), np.array(source), np.array(part))


class NumericBlock:
    """All columns of numbers at once: scaled values, indicators of missing ones, bins.

    A scaled value is z / sqrt(1 + (z/3)^2) with z = (x - median) / scale: the identity near the
    median, and never beyond 3 (RealMLP's "robust scale, smooth clip" [1]_). Component t of the
    piecewise-linear embedding [2]_ is clip((x - e_t) / (e_{t+1} - e_t), 0, 1) - 1/2.

    References
    ----------
    .. [1] Holzmueller, Grinsztajn, Steinwart, "Better by default: strong pre-tuned MLPs and boosted
       trees on tabular data", 2024.
    .. [2] Gorishniy, Rubachev, Babenko, "On embeddings for numerical features in tabular deep
       learning", 2022.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        pairs = [(j, c) for j, c in enumerate(columns) if isinstance(c, NumericColumn)]
        self.columns = [j for j, _ in pairs]
        numeric = [c for _, c in pairs]
        self._scaled = np.flatnonzero([c.scale > 0 for c in numeric])
        self._indicated = np.flatnonzero([c.missing for c in numeric])
        self._half_median = np.array([0.5 * numeric[i].median for i in self._scaled])
        self._half_scale = np.array([0.5 * numeric[i].scale for i in self._scaled])
        bins = [
            (i, 0.5 * low, 0.5 * high - 0.5 * low)
            for i, c in enumerate(numeric)
            for low, high in zip(c.edges or (), (c.edges or ())[1:], strict=False)
        ]
        self._bin_source = np.array([i for i, _, _ in bins], dtype=np.intp)
        self._half_low = np.array([low for _, low, _ in bins])
        self._half_width = np.array([width for _, _, width in bins])
        # A missing value is below every bin; the indicator tells it from the smallest value. Where
        # fit met none there is no indicator, and the median is the safe guess.
        self._instead = np.array(
            [c.edges[0] if c.missing and c.edges else c.median for c in numeric]
        )
        self.n_outputs = len(self._scaled) + len(self._indicated) + len(bins)

    def write(self, table: Table, out: np.ndarray) -> None:
        """Fill ``out`` of shape (n_rows, n_outputs).

        Raises
        ------
        ValueError
            If a value is infinite.
        """
        numbers = table.numbers(self.columns)
        infinite = np.isinf(numbers)
        if infinite.any():
            refuse_infinity(table.label(self.columns[int(infinite.any(axis=0).argmax())]))
        missing = np.isnan(numbers)
        any_missing = missing.any()
        a = len(self._scaled)
        b = a + len(self._indicated)
        # Halves and their differences cannot overflow; a quotient may, and is clipped.
        with np.errstate(over="ignore"):
            z = numbers[:, self._scaled]
            z *= 0.5
            z -= self._half_median
            z /= self._half_scale
            np.clip(z, -_FAR, _FAR, out=z)
            z /= np.sqrt(1.0 + np.square(z / 3.0))
            if any_missing:
                z[missing[:, self._scaled]] = 0.0
            out[:, :a] = z
            out[:, a:b] = missing[:, self._indicated]
            if len(self._bin_source):
                if any_missing:
                    numbers = np.where(missing, self._instead, numbers)
                t = numbers[:, self._bin_source]
                t *= 0.5
                t -= self._half_low
                t /= self._half_width
                np.clip(t, 0.0, 1.0, out=t)
                t -= 0.5
                out[:, b:] = t


def write_levels(column: CategoryColumn, table: Table, j: int, out: np.ndarray) -> None:
    """Fill ``out`` of shape (n_rows, n_outputs), all zeros before, with the levels of column j."""
    positions = column.positions(table.values(j), table.label(j))
    if column.signed:
        out[:, 0] = np.array([-1.0, 1.0, 0.0])[positions]
        return
    rows = np.flatnonzero(positions >= 0)
    out[rows, positions[rows]] = 1.0


def encode(columns: Sequence[Column], block: NumericBlock, table: Table, out: np.ndarray) -> None:
    """Fill ``out`` of shape (n_rows, n_outputs), all zeros before, a chunk of rows at a time."""
    step = max(1, CHUNK // out.shape[1])
    for start in range(0, table.shape[0], step):
        rows = slice(start, start + step)
        part, target = table.take(rows), out[rows]
        if block.columns:
            block.write(part, target[:, : block.n_outputs])
        at = block.n_outputs
        for j, column in enumerate(columns):
            if isinstance(column, CategoryColumn) and column.n_outputs:
                end = at + column.n_outputs
                write_levels(column, part, j, target[:, at:end])
                at = end
