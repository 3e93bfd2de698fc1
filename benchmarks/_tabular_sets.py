"""The real tables of ``tabular_accuracy.py``: reading them, and the splits, defined exactly.

The split of a set of n rows under a seed is one call of scikit-learn's ``train_test_split`` on the
row numbers 0 .. n - 1 in the order of the file, with ``random_state=seed`` and

* n - ceil(0.3 n) training rows, at most 4,000,
* ceil(0.3 n) test rows, at most 10,000,
* ``stratify=y`` for classes.

Below 5,716 rows nothing is left over: it is the plain 70 : 30 split. Everybody gets the same raw
frames: strings, categories and missing values as they are in the file.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

TRAIN_ROWS = 4_000
TEST_ROWS = 10_000
TEST_SHARE = 0.3
SEEDS = (11, 12)

# Sets with several targets: the columns, beside ``target``, that are predicted too. As a feature
# the second target would give the first away.
FURTHER_TARGETS = {"energy_two_targets": ("target_cooling",)}

# The sets on which the recipe of the defaults was found, with seed 11. All others, and seed 12,
# are free of that choice, and the report gives them separately.
SCREEN = (
    "vehicle",
    "credit_g",
    "uci_concrete",
    "phoneme",
    "abalone",
    "wine_white",
    "california_housing",
    "churn_telco",
    "bike_sharing",
    "satimage",
)


@dataclass(frozen=True)
class Table:
    """What the index says of a set.

    Attributes
    ----------
    name : str
        The file is ``<name>.parquet``.
    task : str
        "binary", "multiclass" or "regression".
    rows : int
        Rows of the file.
    """

    name: str
    task: str
    rows: int

    @property
    def classes(self) -> bool:
        """Whether classes are predicted."""
        return self.task != "regression"


@dataclass(frozen=True)
class Split:
    """One training and one test part; y is an array of shape (n,), or (n, n_targets)."""

    X_train: pd.DataFrame
    y_train: np.ndarray
    X_test: pd.DataFrame
    y_test: np.ndarray


def data_folder() -> Path:
    """Folder of the tables: ``$SKNN_RESID_DATA/tabular``.

    Raises
    ------
    SystemExit
        If the variable is unset or names no such folder.
    """
    root = os.environ.get("SKNN_RESID_DATA")
    folder = Path(root or ".") / "tabular"
    if not root or not (folder / "index.json").exists():
        raise SystemExit(
            "SKNN_RESID_DATA must name the folder of the real data (the one that holds "
            f"tabular/index.json); it is {root!r}"
        )
    return folder


def split_sizes(rows: int) -> tuple[int, int]:
    """Numbers of training and of test rows of a set with ``rows`` rows.

    Examples
    --------
    >>> split_sizes(1030), split_sizes(50_000)
    ((721, 309), (4000, 10000))
    """
    test = math.ceil(TEST_SHARE * rows)
    return min(rows - test, TRAIN_ROWS), min(test, TEST_ROWS)


def tables(folder: Path) -> dict[str, Table]:
    """All sets, fewest training rows first, then by rows, then by name."""
    entries = json.loads((folder / "index.json").read_text())
    found = [Table(entry["name"], entry["task"], entry["n_rows"]) for entry in entries]
    found.sort(key=lambda table: (split_sizes(table.rows)[0], table.rows, table.name))
    return {table.name: table for table in found}


def read(folder: Path, table: Table) -> tuple[pd.DataFrame, np.ndarray]:
    """Features and target of a set, in the order of the file."""
    frame = pd.read_parquet(folder / f"{table.name}.parquet")
    further = list(FURTHER_TARGETS.get(table.name, ()))
    X = frame.drop(columns=[*further, "target"])
    if further:
        return X, frame[[*further, "target"]].to_numpy(dtype=np.float64)
    if table.classes:
        return X, frame["target"].to_numpy(dtype=object)
    return X, frame["target"].to_numpy(dtype=np.float64)


def split(X: pd.DataFrame, y: np.ndarray, seed: int, *, classes: bool) -> Split:
    """Divide the rows as the module's docstring defines it."""
    train_rows, test_rows = split_sizes(len(X))
    train, test = train_test_split(
        np.arange(len(X)),
        train_size=train_rows,
        test_size=test_rows,
        random_state=seed,
        stratify=y if classes else None,
    )
    return Split(X.iloc[train], y[train], X.iloc[test], y[test])


def describe(X: pd.DataFrame) -> dict[str, Any]:
    """Columns, categorical columns and missing cells of a frame."""
    return {
        "columns": X.shape[1],
        "categorical": len(categorical_columns(X)),
        "missing_cells": int(X.isna().to_numpy().sum()),
    }


def categorical_columns(X: pd.DataFrame) -> list[Any]:
    """Names of the columns that hold no numbers: strings, categories, objects, truth values."""
    types = pd.api.types
    return [
        name
        for name in X.columns
        if types.is_bool_dtype(X[name].dtype) or not types.is_numeric_dtype(X[name].dtype)
    ]
