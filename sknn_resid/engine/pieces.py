"""Columns that hold one number in pieces: looked up, not multiplied.

Every row of such a run of K columns is 1/2, ..., 1/2, v, -1/2, ..., -1/2
(`ResidualSpec.piecewise`), so it is told by two numbers: the column where v stands, and v. Its
product with K rows of a matrix is v times one of them and a sum of the others that depends on the
column alone: two rows of a table in the place of K (the formulas stand in
``_native/src/pieces.inc``). And a step gathers two numbers of each row in the place of K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sknn_resid.engine import bound as compiled
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.residual_spec import ResidualSpec

# A number's lookups take as long as a product with so many of its columns (AMD Zen 3, AVX2).
LOOKED_UP_FROM = 4


@dataclass(frozen=True)
class Pieces:
    """Which columns are looked up, and rows without them.

    Attributes
    ----------
    runs : tuple of (int, int)
        First column and last but one of each number.
    others : tuple of slice
        The columns in between, of X and of the rows of a matrix.
    """

    runs: tuple[tuple[int, int], ...]
    others: tuple[slice, ...]

    @classmethod
    def of(cls, spec: ResidualSpec) -> Pieces | None:
        """The numbers in pieces, or None where looking them up saves nothing."""
        runs = spec.piecewise
        ends = [0, *(end for run in runs for end in run), spec.n_features]
        gaps = zip(ends[::2], ends[1::2], strict=True)
        others = tuple(slice(a, b) for a, b in gaps if a < b)
        # the first product of other columns is what the numbers' parts are added to
        if not others or sum(b - a for a, b in runs) < LOOKED_UP_FROM * max(1, len(runs)):
            return None
        return cls(runs, others)

    @property
    def n_columns(self) -> int:
        """Columns of packed rows: the others, then the place of each number, then its v."""
        return self._n_others + 2 * len(self.runs)

    @property
    def _n_others(self) -> int:
        return sum(c.stop - c.start for c in self.others)

    def pack(self, X_ND: np.ndarray) -> np.ndarray:
        """Rows of X, each number in pieces told by two numbers, in the dtype of X."""
        packed = np.empty((len(X_ND), self.n_columns), dtype=X_ND.dtype)
        np.concatenate([X_ND[:, c] for c in self.others], axis=1, out=packed[:, : self._n_others])
        places, values = np.split(packed[:, self._n_others :], 2, axis=1)
        every = np.arange(len(X_ND))
        for f, (first, stop) in enumerate(self.runs):
            # the last column is v wherever all before it are 1/2
            place = first + (X_ND[:, first : stop - 1] == 0.5).sum(axis=1)
            places[:, f], values[:, f] = place, X_ND[every, place]
        return packed

    def parts(self, packed: Tensor) -> list[tuple[Tensor, slice]]:
        """The columns that are not looked up, and which rows of a matrix are theirs."""
        found, start = [], 0
        for c in self.others:
            stop = start + c.stop - c.start
            found.append((packed[:, :, start:stop], c))
            start = stop
        return found

    def add(self, packed: Tensor, W: Tensor, out: Tensor) -> Op:
        """Bind ``out += X[:, runs] @ W[runs]``."""
        return self._bind("pieces_in", [*self._numbers(packed), W, out])

    def gradient(self, packed: Tensor, d: Tensor, gW: Tensor) -> Op:
        """Bind ``gW[runs] = X[:, runs].T @ d``."""
        return self._bind("pieces_back", [*self._numbers(packed), d, gW])

    def _numbers(self, packed: Tensor) -> list[Tensor]:
        start, F = self._n_others, len(self.runs)
        return [packed[:, :, start : start + F], packed[:, :, start + F :]]

    def _bind(self, name: str, arrays: list[Tensor]) -> Op:
        op = compiled.bind(name, arrays, [end for run in self.runs for end in run])
        assert op is not None, f"{name}: asked for although it does not suit"
        return op
