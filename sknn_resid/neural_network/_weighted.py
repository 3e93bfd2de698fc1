"""Statistics of weighted rows that are those of repeated rows, to the last bit for whole weights.

scikit-learn's ``RobustScaler``, ``QuantileTransformer`` and ``OneHotEncoder`` take no weights, and
what is learned from a table has to follow them: a row of weight 2 is the row twice, a row of weight
0 is no row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Sums of weights that differ by less than this share of the total are equal: 0.1 + 0.2 is 0.3.
_TIE = 1e-12


@dataclass(frozen=True, eq=False)
class Sample:
    """Values in ascending order, and how much weight lies at or below each of them.

    Attributes
    ----------
    values : ndarray of shape (n,)
        Finite, ascending, at least one.
    below : ndarray of shape (n,)
        Cumulative weights; the last one is the total.
    """

    values: np.ndarray
    below: np.ndarray

    def quantiles(self, parts: int) -> np.ndarray:
        """The quantiles 0, 1/parts, 2/parts, ..., 1.

        The inverse of the distribution function, with the mean of both neighbours where it is not
        unique ("averaged_inverted_cdf" of `numpy.quantile`, type 2 of [1]_). Interpolation by rank,
        numpy's default, is defined by a number of rows, so it does not carry over to weights.

        Parameters
        ----------
        parts : int
            At least 1.

        Returns
        -------
        ndarray of shape (parts + 1,)
            Ascending; the ends are the smallest and the largest value.

        References
        ----------
        .. [1] Hyndman and Fan, "Sample quantiles in statistical packages", 1996.

        Examples
        --------
        >>> from sknn_resid.neural_network._weighted import sample
        >>> sample([3.0, 1.0, 2.0, 9.0], [1, 2, 1, 0]).quantiles(2)
        array([1. , 1.5, 3. ])
        """
        total = self.below[-1]
        target = total * np.arange(parts + 1) / parts
        last = len(self.values) - 1
        at = np.searchsorted(self.below, target - _TIE * total, side="left").clip(max=last)
        on_edge = np.abs(self.below[at] - target) <= _TIE * total
        after = np.where(on_edge, at + 1, at).clip(max=last)
        # Half and half, and not half of the sum, which may overflow.
        found = 0.5 * self.values[at] + 0.5 * self.values[after]
        return np.where(self.values[at] == self.values[after], self.values[at], found)

    def distinct(self) -> np.ndarray:
        """The values that occur, ascending, shape (n_distinct,)."""
        first = np.ones(len(self.values), dtype=bool)
        np.not_equal(self.values[1:], self.values[:-1], out=first[1:])
        return self.values[first]

    def bin_edges(self, n_bins: int) -> np.ndarray:
        """Edges of at most ``n_bins`` bins: quantiles, or all values if these are no more.

        A value that holds several quantiles at once (the zeros of a count) leaves fewer bins. To
        give these to the other values was tried and rejected: on tables with such columns it made
        errors smaller where there are many rows and larger where there are few, nothing on average.

        Parameters
        ----------
        n_bins : int

        Returns
        -------
        ndarray of shape (at most n_bins + 1,)
            Ascending, without repetition.
        """
        values = self.distinct()
        return values if len(values) <= n_bins + 1 else np.unique(self.quantiles(n_bins))


def sample(values: np.ndarray, weights: np.ndarray | None = None) -> Sample:
    """Put weighted values in order.

    Parameters
    ----------
    values : array-like of shape (n,)
        Finite numbers, at least one.
    weights : array-like of shape (n,), default=None
        Not negative, not all zero; None is a weight of one each.

    Returns
    -------
    Sample
        The values of positive weight.
    """
    values = np.asarray(values, dtype=np.float64)
    if weights is None:
        return Sample(np.sort(values), np.arange(1.0, len(values) + 1))
    weights = np.asarray(weights, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    order = order[weights[order] > 0]
    return Sample(values[order], np.cumsum(weights[order]))


def frequent(counts: np.ndarray, at_least: float, at_most: int | None, total: float) -> np.ndarray:
    """Which levels occur often enough, and are among the most frequent ones.

    Parameters
    ----------
    counts : ndarray of shape (n_levels,)
        Weight of the rows of each level.
    at_least : float
        Weight that a level needs.
    at_most : int or None
        Number of levels to keep; among levels of equal weight the first ones stay.
    total : float
        Sum of all weights.

    Returns
    -------
    ndarray of shape (n_levels,), dtype bool
    """
    keep = counts >= at_least - _TIE * total
    if at_most is not None and keep.sum() > at_most:
        # Sums of weights in another order of rows may differ in the last digit: not a difference.
        rank = np.argsort(-np.round(counts / total, 12), kind="stable")
        rank = rank[keep[rank]]
        keep = np.zeros(len(counts), dtype=bool)
        keep[rank[:at_most]] = True
    return keep
