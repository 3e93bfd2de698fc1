"""From a raw table to outputs: validation, encoding, the members' forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sknn_resid._device import resolve_device
from sknn_resid._sklearn_compat import safe_indexing, validate_data
from sknn_resid.neural_network._ensemble import Ensemble
from sknn_resid.neural_network._tables import TableEncoder

ROWS_AT_ONCE = 1 << 15  # a raw table is encoded in pieces of so many rows


def validated_rows(est: Any, encoder: TableEncoder, X: Any, dtype: np.dtype) -> np.ndarray:
    """Encoded rows of a table like the one in fit."""
    # The encoder refuses what is no table; what is said of the number and names of columns should
    # carry the estimator's own name.
    if getattr(X, "ndim", 2) == 2:
        validate_data(est, X, skip_check_array=True, reset=False)
    return np.ascontiguousarray(encoder.encoded(X), dtype=dtype)


class EnsemblePredictor(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Outputs of a fitted ensemble. Nothing is cached: one model predicts from many threads."""

    _ensemble: Ensemble
    encoder_: TableEncoder
    device_: str

    def _pieces(self, X: Any) -> Iterator[np.ndarray]:
        """Encoded rows, a piece at a time."""
        check_is_fitted(self, "encoder_")
        dtype = self._ensemble.members.params.dtype
        table = hasattr(X, "shape") and getattr(X, "ndim", 2) == 2
        n = int(X.shape[0]) if table else 0
        if n <= ROWS_AT_ONCE:
            yield validated_rows(self, self.encoder_, X, dtype)
            return
        if scipy.sparse.issparse(X):
            X = X.tocsr()  # other formats cannot be cut into rows
        for first in range(0, n, ROWS_AT_ONCE):
            rows = np.arange(first, min(first + ROWS_AT_ONCE, n))
            yield validated_rows(self, self.encoder_, safe_indexing(X, rows), dtype)

    def _outputs(self, X: Any) -> np.ndarray:
        """Averaged probabilities or means (n, K), on the scale the network learned."""
        device = self._prediction_device()
        return np.concatenate([self._ensemble.outputs(part, device) for part in self._pieces(X)])

    def _mean_and_variance(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        device = self._prediction_device()
        parts = [self._ensemble.mean_and_variance(part, device) for part in self._pieces(X)]
        means, variances = zip(*parts, strict=True)
        return np.concatenate(means), np.concatenate(variances)

    def _prediction_device(self) -> torch.device | None:
        """Where it was fitted if that device is there, else the CPU (None)."""
        if not hasattr(self, "device_") or self.device_ == "cpu":
            return None
        try:
            return resolve_device(self.device_)
        except ValueError:
            return None

    def transform(self, X: Any) -> Any:
        """What the members' output layers read: the representation that was learned.

        Parameters
        ----------
        X : frame, array-like or sparse matrix of shape (n_samples, n_features)
            The table.

        Returns
        -------
        H : ndarray of shape (n_samples, n_estimators * width)
            Members side by side.
        """
        device = self._prediction_device()
        parts = [self._ensemble.hidden(part, device) for part in self._pieces(X)]
        return np.concatenate(parts).astype(self.encoder_.dtype_, copy=False)

    @property
    def _n_features_out(self) -> int:
        members = self._ensemble.members
        return len(members.params) * members.spec.width

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
