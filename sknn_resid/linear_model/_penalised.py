"""`PenalisedMixin`: what ridge regression adds to least squares once it is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sknn_resid._sklearn_compat import validate_data
from sknn_resid.linear_model._filters import orthonormal_rows
from sknn_resid.linear_model._fitted import FittedLinear


class PenalisedMixin:
    """Shrinkage, the decomposition of fitted values, and honest notes for the summary."""

    _fitted: FittedLinear
    _single_target: bool
    cov_type: str

    @property
    def shrinkage_(self) -> np.ndarray:
        """Factor of each direction, (rank,) or (n_targets, rank) for a two-dimensional y."""
        check_is_fitted(self)
        factors = self._fitted.shrinkage
        return factors[0] if self._single_target else factors

    def predict_components(self, X: Any) -> np.ndarray:
        """Predictions, decomposed along the singular directions.

        Ridge shrinks the fit along each left singular vector by its own factor:
        ``H y = mean + sum_j u_j f_j u_j'y``. Component j here is the term of ``u_j``, continued to
        any rows: their sum plus the weighted mean of y (the first term, which the intercept leaves
        unshrunk) is the prediction.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        ndarray of shape (n_samples, 1 + rank) or (n_samples, n_targets, 1 + rank)
            The constant, then one term for each of `singular_values_`; they sum to ``predict(X)``.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        factor = self._fitted.factor
        terms = orthonormal_rows(factor, X)
        first = int(factor.fit_intercept)
        found = np.empty((len(X), self._fitted.n_targets, 1 + terms.shape[1] - first))
        # The constant is y_shift and what the direction of the intercept adds to it.
        constant = terms[:, :first, None] * factor.z[None, :first]
        found[:, :, 0] = factor.y_shift + constant.sum(axis=1)
        weights = self._fitted.shrinkage * factor.z[first:].T
        found[:, :, 1:] = terms[:, None, first:] * weights
        return found[:, 0] if self._single_target else found

    def _undetermined(self) -> bool:
        """Whether some coefficients are determined by neither data nor penalty."""
        factor = self._fitted.factor
        if (self._fitted.alpha == 0).any():
            return factor.rank < self._fitted.n_features
        free = 0 if factor.penalty is None else np.count_nonzero(factor.penalty == 0)
        determined = np.count_nonzero(np.isinf(factor.singular_values)) - int(factor.fit_intercept)
        return bool(determined < free)

    def _summary_notes(self) -> list[str]:
        notes = [
            "standard errors, tests and intervals are conditional on alpha and leave the bias out: "
            "intervals cover the expectation of the ridge estimate, not the true coefficients; p "
            "values test that this expectation is 0",
            "residual df are n - tr(2H - HH'), df of the fit tr(H)",
        ]
        if self._fitted.robust is not None:
            notes.append(f"standard errors are robust to unequal variances ({self.cov_type})")
        return notes
