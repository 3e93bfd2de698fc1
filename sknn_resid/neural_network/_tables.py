"""TableEncoder: raw tables in, finite numbers out, everything learned by weight."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sknn_resid._sklearn_compat import (
    Interval,
    Options,
    RealNotInt,
    StrOptions,
    check_feature_names_in,
    fit_context,
)
from sknn_resid._validation import check_weights
from sknn_resid.neural_network._blocks import NumericBlock, encode, layout
from sknn_resid.neural_network._columns import (
    CategoryColumn,
    Column,
    ColumnRules,
    categorical_mask,
    column_is,
    fit_column,
)
from sknn_resid.neural_network._frames import Table, as_table, numpy_float


class TableEncoder(TransformerMixin, BaseEstimator):
    """Encode a raw table as numbers that a network can be trained on.

    Numbers are scaled robustly, categories become indicators, missing values of both are kept
    apart; the output is dense and always finite. Everything that is learned is weighted: a row of
    weight 2 is the row twice, a row of weight 0 is no row.

    Parameters
    ----------
    categorical_features : "from_dtype", array-like of {bool, int, str}, or None, \
default="from_dtype"
        Which columns hold categories.

        - "from_dtype": columns of text, bools and (pandas, polars or pyarrow) categories; a column
          of Python objects by what it holds. Frames and arrays alike.
        - names or indices of columns, or a mask: these and no others, as in
          `HistGradientBoostingClassifier`.
        - None: none; all columns are numbers.
    numeric_embedding : {"piecewise"} or None, default=None
        Beside the scaled value, add the piecewise-linear embedding of columns of numbers with at
        least 3 distinct values.
    n_bins : int, default=16
        Bins of the embedding, between weighted quantiles; fewer where quantiles coincide. A column
        with at most ``n_bins + 1`` distinct values has these as edges.
    min_frequency : int or float, default=3
        In a column of more than 10 levels, the weight of rows (an int) or the share of all weight
        (a float below 1) that a level needs for an output of its own. Where weights are below one
        on average, an int is scaled down by that average.
    max_categories : int or None, default=255
        Levels of a column that get an output at most: the most frequent ones.
    dtype : {"float32", "float64"}, numpy.float32, numpy.float64 or None, default=None
        Of the output. None: float32 if all columns of numbers are of float32 (or integers that
        float32 holds exactly), else float64. Statistics are computed in float64.

    Attributes
    ----------
    columns_ : list of objects
        What was learned from each input column: ``pandas.DataFrame(encoder.columns_)`` shows it.
        Each has a ``name`` and a ``kind``: "numeric" (with ``median``, ``scale``, ``edges``,
        ``missing``), "category" (``levels``, ``counts``, ``n_levels``, ``missing``) or "empty".
    kinds_ : ndarray of shape (n_outputs,)
        What each output column is: "numeric", "missing" (indicator of a missing number),
        "piecewise" (part of the embedding) or "onehot", in this order.
    source_ : ndarray of shape (n_outputs,)
        Index of the input column that each output column comes from.
    is_categorical_ : ndarray of shape (`n_features_in_`,), dtype bool
        Which input columns were taken for categories.
    dtype_ : numpy dtype
        Of the output.
    n_features_in_ : int
        Number of input columns.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the input columns, if all are strings.

    Notes
    -----
    Numbers: z = (x - median) / IQR, then z / sqrt(1 + (z/3)^2), which is near z around the median
    and never beyond 3. Where the IQR is zero, as with counts that are mostly zero, the median
    distance from the median of all other values takes its place, at most half of the whole range;
    a constant gives no output. A missing value gives 0, and an indicator column if fit met missing
    values.

    Categories: one 0/1 output a level; exactly two levels without missing values share one output,
    -1 and +1. Missing, rare and unknown values are 0 in all of them.

    A table without any information gives one column of zeros. Infinity, complex numbers, dates and
    text mixed with numbers are errors that name the column.

    Examples
    --------
    >>> import pandas as pd
    >>> from sknn_resid.neural_network import TableEncoder
    >>> X = pd.DataFrame({"age": [30, 50, None, 40], "pet": ["cat", "dog", "cat", None]})
    >>> encoder = TableEncoder().set_output(transform="pandas")
    >>> encoder.fit_transform(X).round(2)
        age  missingindicator_age  pet_cat  pet_dog
    0 -0.49                   0.0      1.0      0.0
    1  0.49                   0.0      0.0      1.0
    2  0.00                   1.0      1.0      0.0
    3  0.00                   0.0      0.0      0.0
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "categorical_features": ["array-like", StrOptions({"from_dtype"}), None],
        "numeric_embedding": [StrOptions({"piecewise"}), None],
        "n_bins": [Interval(Integral, 2, None, closed="left")],
        "min_frequency": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="neither"),
        ],
        "max_categories": [Interval(Integral, 1, None, closed="left"), None],
        "dtype": [
            StrOptions({"float32", "float64"}),
            Options(type, {np.float32, np.float64}),
            None,
        ],
    }

    def __init__(
        self,
        *,
        categorical_features: Any = "from_dtype",
        numeric_embedding: str | None = None,
        n_bins: int = 16,
        min_frequency: float = 3,
        max_categories: int | None = 255,
        dtype: Any = None,
    ) -> None:
        self.categorical_features = categorical_features
        self.numeric_embedding = numeric_embedding
        self.n_bins = n_bins
        self.min_frequency = min_frequency
        self.max_categories = max_categories
        self.dtype = dtype

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> TableEncoder:
        """Learn kinds, scales, bins and levels of the columns.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.
        y : None
            Ignored.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the rows; rows of weight zero have no influence at all.

        Returns
        -------
        self : TableEncoder
            Fitted.

        Raises
        ------
        ValueError
            If a value is infinite or complex, a column mixes text and numbers, or column names
            repeat.
        TypeError
            If a column holds dates, times or objects of another kind.
        """
        table = as_table(self, X, reset=True)
        weights = check_weights(sample_weight, table.source)
        mask = categorical_mask(table, self.categorical_features)
        if weights is not None and (weights == 0).any():
            rows = np.flatnonzero(weights)
            table, weights = table.take(rows), weights[rows]
        rules = ColumnRules(
            n_bins=self.n_bins if self.numeric_embedding == "piecewise" else None,
            min_frequency=float(self.min_frequency),
            max_categories=self.max_categories,
        )
        names = getattr(self, "feature_names_in_", range(table.shape[1]))
        kinds = [
            column_is(table, j, None if mask is None else bool(mask[j]))
            for j in range(table.shape[1])
        ]
        self.dtype_ = self._output_dtype(table, kinds)
        columns = [
            fit_column(table, j, name, kind, weights, rules)
            for j, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]
        self._adopt(columns)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Encode a table as the one in fit was.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.

        Returns
        -------
        ndarray of shape (n_samples, n_outputs)
            Finite, of dtype ``dtype_``.

        Raises
        ------
        ValueError
            If a value is infinite, or text stands in a column of numbers.
        TypeError
            If levels of a column are of another kind than in fit, such as 1 instead of "1".
        """
        return self.encoded(X)

    def encoded(self, X: Any) -> np.ndarray:
        """As `transform`, but an ndarray whatever ``set_output`` or the configuration ask for."""
        check_is_fitted(self, "columns_")
        table = as_table(self, X, reset=False)
        out = np.zeros((table.shape[0], len(self.kinds_)), dtype=self.dtype_)
        encode(self.columns_, self._block, table, out)
        return out

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the output columns.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the input columns; None for those of fit, or x0, x1, ...

        Returns
        -------
        ndarray of shape (n_outputs,), dtype object
            For a column ``a``: "a", "missingindicator_a", "a_bin0", ..., "a_level", ...; a name
            that comes twice gets a number.
        """
        check_is_fitted(self, "columns_")
        names = check_feature_names_in(self, input_features)
        found: dict[str, None] = {}
        for kind, j, part in zip(self.kinds_, self.source_, self._part, strict=True):
            name = _output_name(str(names[j]), kind, self.columns_[j], part)
            # A column "a_b" and a level "b" of a column "a".
            number, unique = 1, name
            while unique in found:
                number += 1
                unique = f"{name}#{number}"
            found[unique] = None
        return np.array(list(found), dtype=object)

    def _adopt(self, columns: list[Column]) -> None:
        """Set everything that follows from the fitted columns."""
        self.columns_ = columns
        self.is_categorical_ = np.array([isinstance(c, CategoryColumn) for c in columns])
        outputs = layout(columns)
        self.kinds_, self.source_, self._part = outputs.kinds, outputs.source, outputs.part
        self._block = NumericBlock(columns)

    def _output_dtype(self, table: Table, kinds: list[str]) -> np.dtype:
        if self.dtype is not None:
            return np.dtype(self.dtype)
        floats = {numpy_float(table.dtype(j)) for j, kind in enumerate(kinds) if kind == "number"}
        single = bool(floats) and np.result_type(*floats) == np.float32
        return np.dtype(np.float32 if single else np.float64)

    @property
    def _n_features_out(self) -> int:
        return len(self.kinds_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        # As HistGradientBoosting's. Text and categories are welcome, but these two tags promise
        # more than that: any object as text, and whole numbers as categories.
        tags.input_tags.allow_nan = True
        tags.input_tags.string = False
        tags.input_tags.categorical = False
        tags.transformer_tags.preserves_dtype = [] if self.dtype else ["float64", "float32"]
        return tags


def _output_name(name: str, kind: str, column: Column, part: int) -> str:
    if kind == "missing":
        return f"missingindicator_{name}"
    if kind == "piecewise":
        return f"{name}_bin{part}"
    if kind == "onehot" and isinstance(column, CategoryColumn):
        return f"{name}_{column.levels[1 if column.signed else part]}"
    return name
