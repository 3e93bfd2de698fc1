"""What the values of one column are, where its dtype does not say it: Python objects and levels."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

# Up to here tables are read as Python objects: one call for all columns, and a dictionary.
FEW_ROWS = 16

_DATES = {"datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period"}
_NUMBERS = {"integer", "floating", "mixed-integer-float", "decimal"}
_LEVELS = {"string": "text", "bytes": "text", "boolean": "bool"}


def content(values: np.ndarray, label: str) -> str:
    """What a column of Python objects holds: "number", "bool", "text" or "empty".

    Missing values (None, NaN, NaT, ``pd.NA``) say nothing.

    Parameters
    ----------
    values : ndarray of shape (n,), dtype object
    label : str
        The column in messages.

    Raises
    ------
    TypeError
        If they are dates, times, or objects that are no numbers.
    ValueError
        If they are complex, or text and numbers mixed.
    """
    found = infer_dtype(values, skipna=True)
    if found == "empty":
        return "empty"
    if found in _NUMBERS:
        return "number"
    if found in _LEVELS:
        return _LEVELS[found]
    if found in _DATES:
        refuse_dates(label, found)
    if found == "complex":
        refuse_complex(label)
    present = values[~pd.isna(values)]
    refuse_mixture(present, label)
    floats(present, label)  # says which object is no number
    return "number"


def refuse_dates(label: str, dtype: Any) -> None:
    """Raise the error of a column of dates or durations."""
    raise TypeError(
        f"{label} holds dates or times ({dtype}), and how they matter is not in the dtype. Turn "
        "them into numbers first, such as the days since a fixed date, the month or the hour "
        "(durations: their seconds), or into text if each is a category, or drop the column."
    )


def refuse_complex(label: str) -> None:
    """Raise the error of a column of complex numbers."""
    raise ValueError(
        f"Complex data not supported: {label} holds complex numbers. Pass their real and "
        "imaginary parts, or modulus and angle, as two columns."
    )


def refuse_mixture(values: Iterable[Any], label: str) -> None:
    """Raise if there are text and something else among values that are not missing.

    Whether 1 and "1" are the same level is the user's to say.
    """
    text = other = None
    for value in values:
        if isinstance(value, str | bytes):
            text = value
        else:
            other = value
        if text is not None and other is not None:
            raise ValueError(
                f"{label} mixes text and other values, such as {text!r} and {other!r}. Make it "
                "one kind: .astype(str) for categories, pandas.to_numeric for numbers."
            )


def floats(values: np.ndarray, label: str) -> np.ndarray:
    """Python objects as float64, missing ones as NaN.

    Parameters
    ----------
    values : ndarray of shape (n,), dtype object
    label : str
        The column in messages.

    Returns
    -------
    ndarray of shape (n,)

    Raises
    ------
    TypeError, ValueError
        If a value is not missing and no number; text that reads like a number is text.
    """
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    result = np.full(len(values), np.nan)
    present = ~pd.isna(values)
    doubtful = infer_dtype(values, skipna=True) not in _NUMBERS
    for value in values[present] if doubtful else ():
        if isinstance(value, str | bytes):
            raise ValueError(
                f"{label} holds numbers, and the text {value!r} is none. Convert the column with "
                "pandas.to_numeric, or list it in categorical_features (or leave "
                'categorical_features="from_dtype") if its values are categories.'
            )
        if isinstance(value, complex | np.complexfloating):
            refuse_complex(label)
    try:
        result[present] = values[present].astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        _refuse_object(values[present], label, error)
    return result


def _refuse_object(values: np.ndarray, label: str, error: Exception) -> None:
    """Raise the error of the first value that is no number, in Python's words."""
    for value in values:
        try:
            if isinstance(value, np.ndarray):  # nested, even if of one number
                value = value.tolist()
            float(value)
        except (TypeError, ValueError, OverflowError) as its_own:
            error = its_own
            break
    kind = TypeError if isinstance(error, TypeError) else ValueError
    raise kind(
        f"{label}: {error}. A column must hold numbers, text, bools or categories."
    ) from error


def levels_and_codes(values: Any, label: str) -> tuple[list[Hashable], np.ndarray]:
    """The distinct values of a column, and which of them each row has.

    `pandas.factorize` and not scikit-learn's `OrdinalEncoder`: that one takes no weights, so the
    levels are found here in any case, and looking them up costs it 8 times as much on a table and
    10 times as much on a single row.

    Parameters
    ----------
    values : pandas Categorical, pandas extension array or ndarray, of shape (n,)
    label : str
        The column in messages.

    Returns
    -------
    levels : list
        Python objects; a categorical's in its own order and with those that do not occur, all
        others as they come.
    codes : ndarray of shape (n,), integer
        Index into ``levels``, -1 for missing values.
    """
    if isinstance(values, pd.Categorical):
        return [_plain(v) for v in values.categories], np.asarray(values.codes)
    if isinstance(values, np.ndarray) and values.dtype.kind in "US":
        values = values.astype(object)
    few = len(values) <= FEW_ROWS and isinstance(values, np.ndarray) and values.dtype == object
    try:
        codes, levels = _factorize_few(values) if few else pd.factorize(values)
    except TypeError as error:
        present = np.asarray(values, dtype=object)
        present = present[~pd.isna(present)]
        floats(present[[not isinstance(v, Hashable) for v in present]], label)
        raise TypeError(f"{label}: {error}. A level must be hashable.") from error
    return [_plain(v) for v in levels], codes


def _factorize_few(values: np.ndarray) -> tuple[np.ndarray, list[Hashable]]:
    """`pandas.factorize` of a few objects, without its 30 microseconds for each column."""
    seen: dict[Hashable, int] = {}
    codes = []
    for value in values:
        hash(value)  # a list is no missing value, but an error
        missing = value is None or value is pd.NA or value is pd.NaT or value != value
        codes.append(-1 if missing else seen.setdefault(value, len(seen)))
    return np.array(codes, dtype=np.intp), list(seen)


def family(level: Hashable) -> str:
    """Kind of a level; levels of different families are never equal."""
    if isinstance(level, str):
        return "text"
    if isinstance(level, bytes):
        return "bytes"
    return "number" if isinstance(level, Number | np.bool_) else type(level).__name__


def in_order(levels: list[Hashable]) -> list[int]:
    """Positions of levels in ascending order, whatever the order of the rows was."""
    try:
        return sorted(range(len(levels)), key=levels.__getitem__)  # type: ignore[arg-type]
    except TypeError:  # levels without an order
        return sorted(range(len(levels)), key=lambda i: repr(levels[i]))


def _plain(level: Any) -> Hashable:
    if isinstance(level, np.datetime64 | np.timedelta64):
        return pd.Series([level])[0]  # item() makes a number of them
    return level.item() if isinstance(level, np.generic) else level
