"""A fitted TableEncoder as plain data for JSON, and back: files without code hold it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sknn_resid.neural_network._columns import (
    CategoryColumn,
    Column,
    EmptyColumn,
    NumericColumn,
)
from sknn_resid.neural_network._tables import TableEncoder


def encoder_state(encoder: TableEncoder) -> dict[str, Any]:
    """Everything that a fitted encoder needs, as lists, strings and numbers.

    Parameters
    ----------
    encoder : TableEncoder
        Fitted.

    Returns
    -------
    dict
        What `json.dumps` takes; floats come back from JSON exactly.

    Raises
    ------
    ValueError
        If levels are other objects than text, numbers and bools.
    """
    params = encoder.get_params(deep=False)
    if isinstance(params["dtype"], type):
        params["dtype"] = np.dtype(params["dtype"]).name
    listed = params["categorical_features"]
    if listed is not None and not isinstance(listed, str):
        params["categorical_features"] = np.asarray(listed).tolist()
    names = getattr(encoder, "feature_names_in_", None)
    return {
        "params": {name: _plain(value) for name, value in params.items()},
        "columns": [_packed(column) for column in encoder.columns_],
        "dtype": encoder.dtype_.name,
        "feature_names_in": None if names is None else [str(name) for name in names],
    }


def encoder_from_state(state: dict[str, Any]) -> TableEncoder:
    """The encoder that `encoder_state` described.

    Parameters
    ----------
    state : dict

    Returns
    -------
    TableEncoder
        Fitted; it transforms bit for bit as the original one.
    """
    encoder = TableEncoder(**state["params"])
    columns = [_unpacked(fields) for fields in state["columns"]]
    encoder.dtype_ = np.dtype(state["dtype"])
    encoder.n_features_in_ = len(columns)
    if state["feature_names_in"] is not None:
        encoder.feature_names_in_ = np.array(state["feature_names_in"], dtype=object)
    encoder._adopt(columns)
    return encoder


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _packed(column: Column) -> dict[str, Any]:
    fields = asdict(column)
    for level in fields.get("levels", ()):
        if not isinstance(level, str | bool | int | float):
            raise ValueError(
                f"column {column.name!r} has levels of type {type(level).__name__}, such as "
                f"{level!r}, which a file of plain data cannot hold. Convert the column to text "
                "(.astype(str)) before fit, or use pickle."
            )
    return fields


def _unpacked(fields: dict[str, Any]) -> Column:
    if fields["kind"] == "empty":
        return EmptyColumn(**fields)
    tuples: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()
    }
    return NumericColumn(**tuples) if fields["kind"] == "numeric" else CategoryColumn(**tuples)
