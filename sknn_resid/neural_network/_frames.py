"""One view of every kind of table: frames of any library, arrays, lists, sparse matrices."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types as pandas_types
from scipy import sparse

from sknn_resid._sklearn_compat import validate_data
from sknn_resid.neural_network._arrays import as_numpy
from sknn_resid.neural_network._objects import FEW_ROWS, floats, refuse_dates

Rows = slice | np.ndarray

# dtype.kind -> what a column of that dtype holds; objects are looked at one by one.
_KINDS = {
    "b": "bool",
    "i": "number",
    "u": "number",
    "f": "number",
    "c": "complex",
    "U": "text",
    "S": "text",
    "M": "date",
    "m": "date",
}


class Table(ABC):
    """Columns of any source, one at a time as they are or many at a time as numbers.

    Attributes
    ----------
    shape : tuple (n_rows, n_columns)
    source : pandas frame, ndarray or sparse matrix
        What the table wraps.
    """

    shape: tuple[int, int]
    source: Any

    @abstractmethod
    def label(self, j: int) -> str:
        """The column in messages."""

    @abstractmethod
    def dtype(self, j: int) -> Any:
        """The column's numpy or pandas dtype."""

    @abstractmethod
    def values(self, j: int) -> Any:
        """A column as it is: an ndarray or a pandas array of shape (n_rows,)."""

    @abstractmethod
    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        """Columns as float64 with NaN for missing, shape (n_rows, len(columns)); read only."""

    @abstractmethod
    def weighted_values(
        self, j: int, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """A column of numbers with NaN for missing, and the weights of these values.

        Values that are not stored may come as one value with the weight of all of them.
        """

    @abstractmethod
    def take(self, rows: Rows) -> Table:
        """Some of the rows."""

    def column_type(self, j: int) -> str:
        """What the dtype says: number, bool, text, category, date, complex or object."""
        return column_type(self.dtype(j))


class FrameTable(Table):
    """A pandas frame."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.source = frame
        self._dtypes = list(frame.dtypes)
        self._objects: np.ndarray | None = None
        self.shape = frame.shape

    def label(self, j: int) -> str:
        return f"column {self.source.columns[j]!r}"

    def dtype(self, j: int) -> Any:
        return self._dtypes[j]

    def values(self, j: int) -> Any:
        if len(self.source) <= FEW_ROWS:
            if self._objects is None:
                self._objects = self.source.to_numpy(dtype=object)
            return self._objects[:, j]
        array = self.source.iloc[:, j].array
        if isinstance(self._dtypes[j], np.dtype | pd.SparseDtype):
            return np.asarray(array)
        if isinstance(self._dtypes[j], pd.CategoricalDtype | pd.StringDtype):
            return array
        return self.source.iloc[:, j].to_numpy(dtype=object)  # nullable and foreign dtypes

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        if all(isinstance(self._dtypes[j], np.dtype) for j in columns) and all(
            self._dtypes[j].kind in "fiub" for j in columns
        ):
            return self.source.iloc[:, columns].to_numpy(dtype=np.float64)
        result = np.empty((self.shape[0], len(columns)))
        for at, j in enumerate(columns):
            result[:, at] = self._floats(j)
        return result

    def weighted_values(
        self, j: int, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        return self._floats(j), weights

    def take(self, rows: Rows) -> FrameTable:
        return FrameTable(self.source.iloc[rows])

    def _floats(self, j: int) -> np.ndarray:
        column, dtype = self.source.iloc[:, j], self._dtypes[j]
        if column_type(dtype) in ("number", "bool"):
            if isinstance(dtype, pd.SparseDtype):
                return np.asarray(column.array, dtype=np.float64)
            return column.to_numpy(dtype=np.float64, na_value=np.nan)
        if column_type(dtype) == "date":
            refuse_dates(self.label(j), dtype)
        return floats(column.to_numpy(dtype=object), self.label(j))


class ArrayTable(Table):
    """A numpy array of shape (n_rows, n_columns), of numbers, strings or objects."""

    def __init__(self, array: np.ndarray, names: Sequence[Hashable] | None = None) -> None:
        self.source, self._names = array, names
        self.shape = (array.shape[0], array.shape[1])

    def label(self, j: int) -> str:
        return f"column {j}" if self._names is None else f"column {self._names[j]!r}"

    def dtype(self, j: int) -> np.dtype:
        return self.source.dtype

    def values(self, j: int) -> np.ndarray:
        return self.source[:, j]

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        if self.source.dtype.kind in "fiub":
            whole = len(columns) == self.shape[1]
            some = self.source if whole else self.source[:, columns]
            return some.astype(np.float64, copy=False)
        if self.source.dtype.kind in "mM":  # as objects, some of them are plain integers
            refuse_dates(self.label(columns[0]), self.source.dtype)
        result = np.empty((self.shape[0], len(columns)))
        for at, j in enumerate(columns):
            result[:, at] = floats(self.source[:, j].astype(object), self.label(j))
        return result

    def weighted_values(
        self, j: int, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        return self.numbers([j])[:, 0], weights

    def take(self, rows: Rows) -> ArrayTable:
        return ArrayTable(self.source[rows], self._names)


class SparseTable(Table):
    """A sparse matrix of numbers; what is not stored is zero."""

    def __init__(self, matrix: Any, names: Sequence[Hashable] | None = None) -> None:
        self.source = matrix
        self._names = names
        self._columns: Any = None
        self.shape = matrix.shape

    def label(self, j: int) -> str:
        return f"column {j}" if self._names is None else f"column {self._names[j]!r}"

    def dtype(self, j: int) -> np.dtype:
        # A sparse matrix of bools counts what is there: numbers.
        dtype = self.source.dtype
        return np.dtype(np.uint8) if dtype.kind == "b" else dtype

    def values(self, j: int) -> np.ndarray:
        return self.numbers([j])[:, 0]

    def numbers(self, columns: Sequence[int]) -> np.ndarray:
        some = self.source if len(columns) == self.shape[1] else self.source[:, columns]
        return some.toarray().astype(np.float64, copy=False)

    def weighted_values(
        self, j: int, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        # By column and once: a table object lives as long as one fit.
        if self._columns is None:
            self._columns = self.source.tocsc()
            self._columns.sum_duplicates()
        span = slice(self._columns.indptr[j], self._columns.indptr[j + 1])
        stored = self._columns.data[span].astype(np.float64)
        rows = self._columns.indices[span]
        not_stored = self.shape[0] - len(stored)
        if not_stored == 0:
            return stored, None if weights is None else weights[rows]
        own = np.ones(len(stored)) if weights is None else weights[rows]
        rest = not_stored if weights is None else np.delete(weights, rows).sum()
        return np.append(stored, 0.0), np.append(own, rest)

    def take(self, rows: Rows) -> SparseTable:
        return SparseTable(self.source[rows], self._names)


def column_type(dtype: Any) -> str:
    """What a numpy or pandas dtype says about a column, see `Table.column_type`."""
    if isinstance(dtype, np.dtype):
        return _KINDS.get(dtype.kind, "object")
    if isinstance(dtype, pd.SparseDtype):
        return column_type(dtype.subtype)
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if isinstance(dtype, pd.DatetimeTZDtype | pd.PeriodDtype):
        return "date"
    if str(getattr(dtype, "pyarrow_dtype", "")).startswith("dictionary"):
        return "category"
    if pandas_types.is_bool_dtype(dtype):
        return "bool"
    if pandas_types.is_string_dtype(dtype):
        return "text"
    if pandas_types.is_float_dtype(dtype) or pandas_types.is_integer_dtype(dtype):
        return "number"
    return _KINDS.get(getattr(dtype, "kind", "O"), "object")


def numpy_float(dtype: Any) -> np.dtype:
    """Numpy dtype with the precision of a column of numbers; objects are float64."""
    if isinstance(dtype, pd.SparseDtype):
        dtype = dtype.subtype
    if not isinstance(dtype, np.dtype):
        dtype = getattr(dtype, "numpy_dtype", np.dtype(np.float64))
    return dtype if dtype.kind in "fiu" else np.dtype(np.float64)


def as_table(estimator: Any, X: Any, *, reset: bool) -> Table:
    """Validate X against an estimator and wrap it.

    Sets (``reset=True``) or checks ``n_features_in_`` and ``feature_names_in_`` by scikit-learn's
    own rules.

    Parameters
    ----------
    estimator : estimator
    X : array-like, sparse matrix or frame of shape (n_samples, n_features)
    reset : bool
        True in fit.

    Raises
    ------
    ValueError
        If X is not two-dimensional, is empty, complex, or has column names twice.
    TypeError
        If some column names are strings and others are not, or if X is a lazy frame.
    """
    frame = as_pandas(X)
    if frame is not None:
        _check_frame(frame, type(estimator).__name__)
        validate_data(estimator, frame, reset=reset, skip_check_array=True)
        return FrameTable(frame)
    array = validate_data(
        estimator,
        _as_array(X),
        reset=reset,
        dtype=None,
        accept_sparse=["csr"],
        ensure_all_finite=False,
    )
    names = getattr(estimator, "feature_names_in_", None)
    return SparseTable(array, names) if sparse.issparse(array) else ArrayTable(array, names)


def as_pandas(X: Any) -> pd.DataFrame | None:
    """A frame of any library as a pandas frame, None if X is no frame.

    polars needs no pyarrow for it. Categories stay categories.
    """
    if isinstance(X, pd.DataFrame):
        return X
    if hasattr(X, "collect_schema") and hasattr(X, "collect"):
        raise TypeError(
            f"X is a lazy frame ({type(X).__module__}.{type(X).__name__}), whose rows are not "
            "there yet. Pass X.collect()."
        )
    polars = sys.modules.get("polars")
    if polars is not None and isinstance(X, polars.DataFrame):
        columns = {name: _from_polars(X[name], polars) for name in X.columns}
        return pd.DataFrame(columns, index=pd.RangeIndex(X.height), copy=False)
    # pyarrow's tables and record batches, modin, cudf, ... know the way themselves. narwhals,
    # which scikit-learn uses, is wrong here: it reads missing dictionary entries as the last one.
    if hasattr(X, "to_pandas") and hasattr(X, "shape") and len(X.shape) == 2:
        return X.to_pandas()
    return None


def _from_polars(column: Any, polars: Any) -> Any:
    values = column.to_numpy()
    if column.dtype == polars.Categorical:
        return pd.Categorical(values)
    if column.dtype == polars.Enum:
        return pd.Categorical(values, categories=column.dtype.categories.to_list())
    if column.dtype == polars.String:
        return pd.array(values, dtype="str")
    return values


def _check_frame(frame: pd.DataFrame, estimator: str) -> None:
    if not frame.columns.is_unique:
        twice = list(frame.columns[frame.columns.duplicated()].unique())
        raise ValueError(
            f"X has column names more than once: {twice[:5]}. A column is found by its name, so "
            "names must be unique. Rename the columns or drop copies, e.g. "
            "X.loc[:, ~X.columns.duplicated()]."
        )
    # In the words of scikit-learn's check_array.
    for count, noun in zip(frame.shape, ("sample", "feature"), strict=True):
        if count == 0:
            raise ValueError(
                f"Found array with 0 {noun}(s) (shape={frame.shape}) while a minimum of 1 is "
                f"required by {estimator}."
            )


def _as_array(X: Any) -> Any:
    """X for scikit-learn's validation, without losing the types or the mask of its entries."""
    if isinstance(X, list | tuple):
        array = np.asarray(X)
        # numpy turns numbers beside text into text; as objects they stay what they are.
        return np.array(X, dtype=object) if array.dtype.kind in "US" else array
    if isinstance(X, np.ma.MaskedArray):
        missing: Any = np.nan if X.dtype.kind in "fiub" else None
        return np.where(np.ma.getmaskarray(X), missing, X.data)
    if isinstance(X, np.ndarray) or not hasattr(X, "__dlpack__"):
        return X
    return as_numpy(X)  # a tensor, which scikit-learn's dispatch would leave where it is
