"""A prepared least-squares problem: what the kernels pass on between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ._decompose import EXACT_BITS, Decomposition, bits_needed, from_sums, normal_equations
from ._factor import Factor
from ._filters import shrinkage
from ._quick import Quick
from ._refine import Refiner


@dataclass(frozen=True, eq=False)
class Problem:
    """A prepared least-squares problem.

    Parameters
    ----------
    factor : Factor
        The factorisation, plain float64.
    decomposition : Decomposition or None
        Normal equations in words; None for a wide problem that is not refined, and for a quick
        one until they are needed.
    refined : bool
        Whether :func:`solve`, :func:`covariance` and :func:`variance_difference` refine.
    rows : tuple of (X, Y, sample_weight), or None
        The rows, by reference; None for a stream.
    quick : Quick or None, default=None
        What solves a well-conditioned problem in one step.
    """

    factor: Factor
    decomposition: Decomposition | None
    refined: bool
    rows: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None = None
    quick: Quick | None = None

    @cached_property
    def equations(self) -> Decomposition:
        """Normal equations of a refined problem."""
        if self.decomposition is not None:
            return self.decomposition
        assert self.quick is not None
        fit_intercept, sums = self.factor.fit_intercept, self.quick.sums
        if self.quick.strict and self.rows is not None:
            X, Y, w = self.rows
            return normal_equations(X, Y, sample_weight=w, fit_intercept=fit_intercept, sums=sums)
        return from_sums(sums, fit_intercept=fit_intercept, penalty=None, bits=EXACT_BITS)

    @property
    def mean(self) -> np.ndarray | None:
        """Weighted means of the shifted columns; None for a wide problem: shifted by them."""
        if self.quick is not None:
            return self.quick.mean
        return None if self.decomposition is None else self.decomposition.system.mean[0]

    @cached_property
    def typical(self) -> np.ndarray:
        """Size of the entries of the columns, shape (n_features,)."""
        factor, mean = self.factor, self.mean
        found = np.sqrt(factor.column_squares / factor.sum_weights) + np.abs(factor.shift)
        return found if mean is None else found + np.abs(mean)

    def enough(self, alpha: np.ndarray | float) -> bool:
        """Whether the bits of the sums suffice at these penalties, which mend the conditioning."""
        found, factor = self.equations, self.factor
        if found.enough or found.found.unresolved:
            return found.enough
        if factor.penalty is not None and not np.all(factor.penalty > 0):
            return False
        least = float(np.min(shrinkage(factor, np.min(alpha)), initial=1.0))
        return found.system.precision >= bits_needed(found.found.growth * least, EXACT_BITS)

    @cached_property
    def refiner(self) -> Refiner:
        """Solver of the normal equations."""
        found = self.equations
        return Refiner(found.system, found.factor, found.found)
