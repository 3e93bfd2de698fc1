"""Which rows each member of an ensemble leaves out: folds of rows, or of distinct rows.

Where folds follow content, not position, a row of weight two is the same as the row twice, which
scikit-learn asks for and which positions cannot give: a row that occurs twice lands in one fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Below this number of distinct rows per fold the loss of what is left out is mostly chance.
FEWEST_PER_FOLD = 2


@dataclass(frozen=True, eq=False)
class Folds:
    """A fold for each row.

    Attributes
    ----------
    of_row : ndarray of shape (n,), int64
        Fold of each row, from 0.
    n_folds : int
    """

    of_row: np.ndarray
    n_folds: int

    def split(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows left out, where this fold is left out."""
        out = self.of_row == fold
        return np.flatnonzero(~out), np.flatnonzero(out)


def distinct_rows(X: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the distinct rows in an order that depends on their content only.

    Parameters
    ----------
    X : ndarray of shape (n, D)
        Finite numbers.

    Returns
    -------
    of_row : ndarray of shape (n,), int64
        Number of the distinct row that each row is a copy of.
    n_distinct : int

    Notes
    -----
    The order is lexicographic by value. Comparing bytes would be quicker to write, but the last bit
    of a scaled value may differ between a weighted and a repeated table, and in bytes the last bit
    comes first. Columns are looked at only until all rows are told apart, and only for the rows
    that are still tied: for continuous data, one column.
    """
    n = X.shape[0]
    number = np.zeros(n, dtype=np.int64)
    n_distinct = min(n, 1)
    for column in X.T:
        counts = np.bincount(number, minlength=n_distinct)
        tied = np.flatnonzero(counts[number] > 1)
        if not len(tied):
            break
        values, rank = np.unique(column[tied], return_inverse=True)
        if len(values) == 1:
            continue
        # Keys of tied rows lie between those of their group and of the next group.
        key = number * (len(values) + 1)
        key[tied] += rank
        found, number = np.unique(key, return_inverse=True)
        n_distinct = len(found)
    return number, n_distinct


def assign_folds(
    of_row: np.ndarray, n_distinct: int, n_folds: int, rng: np.random.RandomState
) -> Folds | None:
    """Deal the distinct rows out to folds of equal size.

    Parameters
    ----------
    of_row, n_distinct : as `distinct_rows` gives them
    n_folds : int
    rng : RandomState
        Is drawn from once, whatever the number of rows.

    Returns
    -------
    folds : Folds or None
        None where there are fewer than two distinct rows per fold: what is left out would then say
        nothing.
    """
    order = rng.permutation(n_distinct)
    if n_distinct < FEWEST_PER_FOLD * n_folds:
        return None
    of_distinct = np.empty(n_distinct, dtype=np.int64)
    of_distinct[order] = np.arange(n_distinct) % n_folds
    return Folds(of_distinct[of_row], n_folds)


def n_folds_for(fraction: float) -> int:
    """Number of folds of which one is ``fraction`` of the rows: at least 2."""
    return max(2, round(1.0 / fraction))
