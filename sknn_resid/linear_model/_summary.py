"""The table of coefficients that `summary` returns: a pandas DataFrame that prints its context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd


class SummaryFrame(pd.DataFrame):
    """Table of coefficients with a header of figures and notes below it.

    It is a :class:`pandas.DataFrame` and behaves as one. Only ``repr`` and the HTML of notebooks
    differ: they show the figures of the fit above the table and the notes below it. Whatever is
    computed from it (a slice, a copy, a sorted table) is a plain DataFrame again, because the
    figures need not describe it any more.

    Attributes
    ----------
    title : str
        Name of the model.
    figures : dict of str to str
        What the header shows, such as the residual variance and R2.
    notes : tuple of str
        What a reader of the table has to know, one sentence each.

    Examples
    --------
    >>> frame = SummaryFrame.build({"coef": [1.25]}, ["x0"], "OLS", {"rows": 3}, ["One note."])
    >>> frame
    OLS
    rows: 3
    <BLANKLINE>
        coef
    x0  1.25
    <BLANKLINE>
    Note: One note.
    >>> frame.loc["x0", "coef"]
    np.float64(1.25)
    """

    # pandas' own list of attributes that belong to the object and are no columns.
    _metadata = ["title", "figures", "notes"]  # noqa: RUF012

    @classmethod
    def build(
        cls,
        columns: Mapping[str, Any],
        index: Sequence[Any] | pd.Index,
        title: str,
        figures: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> SummaryFrame:
        """Make a table.

        Parameters
        ----------
        columns : mapping from str to array-like of shape (n_rows,)
            The columns, in order.
        index : sequence or pandas.Index of length n_rows
            Names of the rows.
        title : str
            Name of the model.
        figures : mapping from str to anything
            Names and values of the header; floats are shown with six significant digits.
        notes : sequence of str
            Sentences for below the table.

        Returns
        -------
        SummaryFrame
        """
        frame = cls(dict(columns), index=index)
        frame.title = title
        frame.figures = {name: _shown(value) for name, value in figures.items()}
        frame.notes = tuple(notes)
        return frame

    def __repr__(self) -> str:
        lines = [self.title]
        width = max((len(f"{k}: {v}") for k, v in self.figures.items()), default=0) + 4
        per_line = max(1, 96 // max(width, 1))
        pairs = [f"{name}: {value}".ljust(width) for name, value in self.figures.items()]
        for start in range(0, len(pairs), per_line):
            lines.append("".join(pairs[start : start + per_line]).rstrip())
        table = pd.DataFrame(self).to_string(float_format=_number, max_rows=60)
        notes = [f"Note: {note}" for note in self.notes]
        return "\n".join([*lines, "", table, *([""] if notes else []), *notes])

    def _repr_html_(self) -> str:
        figures = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:right'>{escape(str(value))}</td></tr>"
            for name, value in self.figures.items()
        )
        table = pd.DataFrame(self).to_html(float_format=_number, max_rows=60)
        notes = "".join(f"<p><small>{escape(note)}</small></p>" for note in self.notes)
        return f"<div><h4>{escape(self.title)}</h4><table>{figures}</table>{table}{notes}</div>"


def _number(value: float) -> str:
    """Six significant digits, in the form that a table of coefficients is read in."""
    return f"{value:.6g}"


def _shown(value: Any) -> str:
    """Text of a figure; one number per target is written as a list of at most five."""
    if isinstance(value, str):
        return value
    values = np.atleast_1d(np.asarray(value))
    texts = [
        _number(float(v)) if np.issubdtype(values.dtype, np.floating) else str(v)
        for v in values[:5]
    ]
    return ", ".join(texts) + (", ..." if values.size > 5 else "")


def coefficient_index(
    feature_names: Sequence[str], with_intercept: bool, target_names: Sequence[str] | None
) -> pd.Index:
    """Row names of a table of coefficients: the intercept first, one block per target.

    Parameters
    ----------
    feature_names : sequence of str of length n_features
        Names of the columns of X.
    with_intercept : bool
        Whether the model has one.
    target_names : sequence of str or None
        Names of the targets; None for a one-dimensional y, which has no level of targets.

    Returns
    -------
    pandas.Index or pandas.MultiIndex
    """
    names = [*(["(intercept)"] if with_intercept else []), *feature_names]
    if target_names is None:
        return pd.Index(names, name="feature")
    return pd.MultiIndex.from_product([list(target_names), names], names=["target", "feature"])
