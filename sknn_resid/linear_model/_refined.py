"""Refined covariances of a fit, computed when they are first asked for.

They cost as much as the fit, and predictions need none of them. What is kept until then is of the
size of the columns squared: the sums of products in words, no rows. Results are the same as if they
had been computed in the fit, before and after pickling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sknn_resid.linear_model._filters import distinct
from sknn_resid.linear_model._least_squares import Problem, covariance, standard_variances
from sknn_resid.linear_model._quick import covariance_quickly

# Refined covariance matrices are kept up to this many numbers; beyond, only their diagonals are.
MAX_KEPT = 2**18


@dataclass(frozen=True, eq=False)
class Covariances:
    """Unscaled covariances that the kernels have refined, one per target.

    Parameters
    ----------
    variances : ndarray of shape (n_targets, n_features)
        Of the coefficients.
    intercept_variances : ndarray of shape (n_targets,)
        NaN without an intercept.
    covariances : tuple of ndarray of shape (n_features, n_features), or None
        One for each distinct penalty; None where they would be large.
    intercept_covariances : tuple of ndarray of shape (n_features,), or None
        As ``covariances``.
    which : ndarray of int of shape (n_targets,)
        Entry of ``covariances`` that belongs to a target.
    """

    variances: np.ndarray
    intercept_variances: np.ndarray
    covariances: tuple[np.ndarray, ...] | None
    intercept_covariances: tuple[np.ndarray, ...] | None
    which: np.ndarray


class Refined:
    """:class:`Covariances` of a problem, computed at the first access.

    Parameters
    ----------
    problem : Problem
        A refined one, without rows.
    alpha : ndarray of shape (n_targets,)
        Penalty of each target.
    """

    def __init__(self, problem: Problem, alpha: np.ndarray) -> None:
        self._found: Covariances | None = None
        self._pending: tuple[Problem, np.ndarray] | None = (problem, alpha)

    @property
    def found(self) -> Covariances:
        """The covariances. What they follow from is let go."""
        pending = self._pending
        if pending is not None:
            # Threads that meet here compute the same; the result is there before its source goes.
            self._found = _covariances(*pending)
            self._pending = None
        assert self._found is not None
        return self._found


def refined_covariance(problem: Problem, alpha: np.ndarray) -> Refined | None:
    """Covariances beyond plain float64; None where the kernels did not refine this problem.

    Parameters
    ----------
    problem : Problem
        The problem.
    alpha : ndarray of shape (n_targets,)
        Penalty of each target.

    Returns
    -------
    Refined or None
    """
    if not problem.refined:
        return None
    large = distinct(alpha)[0].size * problem.factor.n_features**2 > MAX_KEPT
    if large and np.ptp(alpha) > 0:
        # Many penalties of a large problem would take longer than everything else: plain float64
        # has them when they are asked for.
        return None
    # Diagonals are smaller than what they follow from; the smallest problems may need their rows.
    eager = large or (problem.quick is not None and problem.quick.strict)
    if not eager:
        return Refined(replace(problem, rows=None), alpha)
    refined = Refined(problem, alpha)
    _ = refined.found
    return refined


def _covariances(problem: Problem, alpha: np.ndarray) -> Covariances:
    values, which = distinct(alpha)
    if values.size * problem.factor.n_features**2 > MAX_KEPT:
        coef, intercept = standard_variances(problem, values)
        return Covariances(coef[which], intercept[which], None, None, which)
    if problem.quick is not None and not alpha.any():
        quickly = covariance_quickly(problem.quick)
        if quickly is not None:
            return _of_one(quickly, problem.factor.fit_intercept, which)
    found = [covariance(problem, float(value)) for value in values]
    coef = np.stack([np.diagonal(c.coef) for c in found])
    intercept = np.array([c.intercept_variance for c in found])
    return Covariances(
        variances=coef[which],
        intercept_variances=intercept[which],
        covariances=tuple(c.coef for c in found),
        intercept_covariances=tuple(c.intercept_covariance for c in found),
        which=which,
    )


def _of_one(C: np.ndarray, fit_intercept: bool, which: np.ndarray) -> Covariances:
    """From the covariance of [intercept, coefficients], or of coefficients alone."""
    own = int(fit_intercept)
    diagonal = C.diagonal()
    return Covariances(
        variances=diagonal[own:][None][which],
        intercept_variances=(diagonal[:1] if own else np.full(1, np.nan))[which],
        covariances=(C[own:, own:],),
        intercept_covariances=(C[0, 1:] if own else np.full(len(C), np.nan),),
        which=which,
    )
