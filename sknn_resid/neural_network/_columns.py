"""What is learned from one column of a table: what it is, its scale, its bins, its levels."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sknn_resid._sklearn_compat import check_categorical_features
from sknn_resid.neural_network._frames import Table
from sknn_resid.neural_network._objects import (
    content,
    family,
    in_order,
    levels_and_codes,
    refuse_complex,
    refuse_dates,
    refuse_mixture,
)
from sknn_resid.neural_network._weighted import frequent, sample

# Up to here every level gets a column, however rare; more levels have to earn it.
FEW_LEVELS = 10


@dataclass(frozen=True)
class EmptyColumn:
    """A column without any value in fit; it gives no output, and its values are not read.

    Attributes
    ----------
    name : str or int
        Its name, or its number where there are no names.
    kind : "empty"
    """

    name: Hashable
    kind: str = "empty"


@dataclass(frozen=True)
class NumericColumn:
    """A column of numbers.

    Attributes
    ----------
    name : str or int
        Its name, or its number where there are no names.
    missing : bool
        Whether values were missing in fit; then an indicator is among the outputs.
    median : float
    scale : float
        Interquartile range; where that is zero, the median distance of the values that are not the
        median from it, at most half of the whole range; zero for a constant, which gives no output
        of its own.
    edges : tuple of float, or None
        Of the bins of the piecewise-linear embedding, ascending, at least three; None without one.
    kind : "numeric"
    """

    name: Hashable
    missing: bool
    median: float
    scale: float
    edges: tuple[float, ...] | None
    kind: str = "numeric"


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories.

    Attributes
    ----------
    name : str or int
        Its name, or its number where there are no names.
    missing : bool
        Whether values were missing in fit.
    levels : tuple
        The levels with an output of their own (two: one output for both, if `signed`).
    counts : tuple of float
        Weight of the rows of each of them in fit.
    n_levels : int
        Number of levels seen, rare ones included.
    families : tuple of str
        Kinds of levels seen; a value of another kind is an error and not an unknown level.
    signed : bool
        Whether two levels without missing values share one output, -1 and +1.
    kind : "category"
    """

    name: Hashable
    missing: bool
    levels: tuple[Hashable, ...]
    counts: tuple[float, ...]
    n_levels: int
    families: tuple[str, ...]
    signed: bool
    kind: str = "category"

    @property
    def n_outputs(self) -> int:
        """Number of output columns."""
        if self.signed:
            return 1
        # One level and nothing else says nothing.
        return 0 if self.n_levels == 1 and not self.missing else len(self.levels)

    def positions(self, values: Any, label: str) -> np.ndarray:
        """Position in ``levels`` of each value; -1 for missing, rare and unknown ones.

        Raises
        ------
        TypeError
            If a value is of a kind that the column did not hold in fit: 1 is not "1".
        """
        present, codes = levels_and_codes(values, label)
        refuse_infinite_levels(present, label)
        position = {level: i for i, level in enumerate(self.levels)}
        found = np.array([position.get(level, -1) for level in present] + [-1], dtype=np.intp)
        for i in np.flatnonzero(found[:-1] < 0):
            if family(present[i]) not in self.families and (codes == i).any():
                raise TypeError(
                    f"{label} held {' and '.join(self.families)} in fit, and holds "
                    f"{family(present[i])} now, such as {present[i]!r}. Convert it to what it was, "
                    "or fit again."
                )
        return found[codes]


Column = EmptyColumn | NumericColumn | CategoryColumn


@dataclass(frozen=True)
class ColumnRules:
    """How columns are encoded, from the encoder's parameters.

    Attributes
    ----------
    n_bins : int or None
        Bins of the piecewise-linear embedding; None for no embedding.
    min_frequency : int or float
        Weight a level needs when there are many; below 1 as a share of all.
    max_categories : int or None
        Number of levels to keep.
    """

    n_bins: int | None
    min_frequency: float
    max_categories: int | None

    def least_weight(self, total: float, n_rows: int) -> float:
        """Weight that a level needs, among rows of positive weight.

        Whole weights count rows. Weights below one on average (normalised to a sum of one, say) are
        shares and no counts, so the bound is scaled down to them; whole ones are never below one.
        """
        if self.min_frequency < 1:
            return self.min_frequency * total
        return self.min_frequency * min(1.0, total / n_rows)


def refuse_infinite_levels(levels: list[Hashable], label: str) -> None:
    """Raise if infinity is among numbers that are categories."""
    for level in levels:
        if isinstance(level, float) and np.isinf(level):
            refuse_infinity(label)


def refuse_infinity(label: str) -> None:
    """Raise the error of an infinite value."""
    raise ValueError(
        f"Input X contains infinity in {label}. Values must be finite or missing: replace it by "
        "NaN if it stands for an unknown value, or by the largest value that makes sense."
    )


def categorical_mask(table: Table, categorical_features: Any) -> np.ndarray | None:
    """Columns that the user lists as categories, shape (n_columns,); None if dtypes decide.

    Lists, masks and their errors are those of `HistGradientBoostingClassifier`.
    """
    if isinstance(categorical_features, str) and categorical_features == "from_dtype":
        return None
    found = check_categorical_features(table.source, categorical_features)
    return np.zeros(table.shape[1], dtype=bool) if found is None else np.asarray(found)


def column_is(table: Table, j: int, listed: bool | None) -> str:
    """What column ``j`` is taken for: "number", "category" or "empty".

    Parameters
    ----------
    table : Table
        Rows of positive weight.
    j : int
    listed : bool or None
        Whether the user lists it as a category; None if the dtype decides.

    Raises
    ------
    TypeError
        For dates, times, and objects that are neither numbers, text nor bools.
    ValueError
        For complex numbers, and text mixed with numbers.
    """
    kind, label = table.column_type(j), table.label(j)
    if kind == "date":
        refuse_dates(label, table.dtype(j))
    if kind == "complex":
        refuse_complex(label)
    if listed is not None:
        if listed and kind == "object":
            values = table.values(j)
            refuse_mixture([v for v in values if isinstance(v, Hashable) and v == v], label)
        return "category" if listed else "number"
    if kind == "object":
        kind = content(np.asarray(table.values(j), dtype=object), label)
    return {"number": "number", "empty": "empty"}.get(kind, "category")


def fit_column(
    table: Table, j: int, name: Hashable, kind: str, weights: np.ndarray | None, rules: ColumnRules
) -> Column:
    """Learn a column.

    Parameters
    ----------
    table : Table
        Rows of positive weight.
    j : int
    name : str or int
    kind : str
        See `column_is`.
    weights : ndarray of shape (n_rows,) or None
        Positive.
    rules : ColumnRules
    """
    if kind == "empty":
        return EmptyColumn(name)
    if kind == "number":
        values, weights = table.weighted_values(j, weights)
        return fit_numbers(values, weights, name, table.label(j), rules.n_bins)
    return fit_levels(table.values(j), weights, name, table.label(j), rules)


def fit_numbers(
    values: np.ndarray,
    weights: np.ndarray | None,
    name: Hashable,
    label: str,
    n_bins: int | None,
) -> EmptyColumn | NumericColumn:
    """Median, scale and bins of numbers; NaN is missing."""
    present = ~np.isnan(values)
    missing = not present.all()
    if missing:
        values = values[present]
        weights = None if weights is None else weights[present]
    if len(values) == 0:
        return EmptyColumn(name)
    if np.isinf(values).any():
        refuse_infinity(label)
    ordered = sample(values, weights)
    low, first, median, third, high = (float(q) for q in ordered.quantiles(4))
    # Differences of halves: those of the values themselves may overflow.
    half = 0.5 * third - 0.5 * first
    if half == 0 and low < high:
        other = values != median
        distance = abs(0.5 * values[other] - 0.5 * median)
        typical = sample(distance, None if weights is None else weights[other]).quantiles(2)[1]
        half = min(float(typical), 0.5 * (0.5 * high - 0.5 * low))
    scale = min(2.0 * half, float(np.finfo(np.float64).max))
    edges = None if n_bins is None else _edges(ordered.bin_edges(n_bins))
    return NumericColumn(name, missing, median, scale, edges)


def _edges(edges: np.ndarray) -> tuple[float, ...] | None:
    """The edges of an embedding; None for too few."""
    # A bin needs a width, also between the smallest numbers there are.
    wide = np.append(np.diff(0.5 * edges) > 0, True)
    edges = edges[wide]
    return tuple(edges.tolist()) if len(edges) >= 3 else None


def fit_levels(
    values: Any, weights: np.ndarray | None, name: Hashable, label: str, rules: ColumnRules
) -> EmptyColumn | CategoryColumn:
    """Levels of a column that get an output."""
    levels, codes = levels_and_codes(values, label)
    known = codes >= 0
    missing = not known.all()
    n_rows = len(codes)
    total = float(n_rows if weights is None else weights.sum())
    counts = np.bincount(
        codes[known], weights=None if weights is None else weights[known], minlength=len(levels)
    )
    occurs = np.bincount(codes[known], minlength=len(levels)) > 0
    order = [i for i in in_order(levels) if occurs[i]]
    levels, counts = [levels[i] for i in order], counts[order]
    if not levels:
        return EmptyColumn(name)
    refuse_infinite_levels(levels, label)
    families = tuple(sorted({family(level) for level in levels}))
    if len(levels) == 2 and not missing:
        pair = (float(counts[0]), float(counts[1]))
        return CategoryColumn(name, missing, tuple(levels), pair, 2, families, signed=True)
    least = rules.least_weight(total, n_rows) if len(levels) > FEW_LEVELS else 0.0
    keep = frequent(counts, least, rules.max_categories, total)
    return CategoryColumn(
        name,
        missing,
        tuple(level for level, kept in zip(levels, keep, strict=True) if kept),
        tuple(counts[keep].tolist()),
        len(levels),
        families,
        signed=False,
    )
