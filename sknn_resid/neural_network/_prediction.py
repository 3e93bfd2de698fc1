"""From fitted attributes to outputs: validation of X, the forward pass, hidden features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn import get_config
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sknn_resid._device import resolve_device
from sknn_resid._sklearn_compat import check_same_namespace, validate_data
from sknn_resid.engine.data import Features
from sknn_resid.engine.fitted import FittedNetwork
from sknn_resid.engine.forward import link_of
from sknn_resid.neural_network._arrays import NUMPY, Home, home_of


class NetworkPredictor(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Prediction with the public attributes ``coefs_`` and ``intercepts_``: what they say counts.

    Nothing is cached on the estimator, so one fitted model predicts from many threads at once.
    """

    def _network(self) -> FittedNetwork:
        """The fitted network, made from the public attributes: what they say is what predicts."""
        return FittedNetwork(
            self.coefs_, self.intercepts_, self._fitted_activations, self._fitted_loss
        )

    def _checked(self, X: Any, method: str) -> tuple[Features, Home]:
        """X in the engine's form, and where it came from."""
        if not hasattr(self, "coefs_"):
            check_is_fitted(self, "coefs_")  # raises; asked only here, for it takes a while
        if self._is_plain(X) and _all_finite(X):
            return X, NUMPY
        if get_config()["array_api_dispatch"]:
            check_same_namespace(X, self, attribute="_namespace_probe", method=method)
        home = home_of(X)
        X_ok = validate_data(self, X, accept_sparse=["csr"], dtype=home.float_dtypes, reset=False)
        return home.engine_features(X_ok), home

    def _is_plain(self, X: Any) -> bool:
        """Whether X, if it is finite, is certainly what full validation would let pass unchanged.

        Full validation takes 80 to 100 microseconds, many times what a small network needs for a
        row.
        """
        return (
            type(X) is np.ndarray
            and X.ndim == 2
            and hasattr(self, "coefs_")
            and X.dtype == self.coefs_[0].dtype
            and X.shape[0] > 0
            and X.shape[1] == self.n_features_in_
            and X.flags.c_contiguous
            and not hasattr(self, "feature_names_in_")
            and not get_config()["array_api_dispatch"]
        )

    def _at_once(self, X: Any, link: str | None) -> Any:
        """Validation and forward pass in one reading of X; None: one after the other.

        The compiled module ends at the first number that is not finite. The long way then says, in
        scikit-learn's words, what is wrong with X.
        """
        if not self._is_plain(X) or self.device_ != "cpu":
            return None
        return self._network().compiled(X, link, only_finite=True)

    def _outputs(self, X: Any, method: str) -> tuple[Any, Home]:
        """Predictions (n, K) on the scale of the target; a tensor stays on its device."""
        done = self._at_once(X, link_of(self._fitted_loss)) if hasattr(self, "coefs_") else None
        if done is not None:
            return done, NUMPY
        features, home = self._checked(X, method)
        network = self._network()
        if isinstance(features, torch.Tensor):
            return network.run_on_device(features), home
        return network.outputs(features, self._prediction_device()), home

    def _prediction_device(self) -> torch.device | None:
        """Where it was fitted if that device is there, else the CPU (None)."""
        if self.device_ == "cpu":
            return None
        try:
            return resolve_device(self.device_)
        except ValueError:
            return None

    def transform(self, X: Any) -> Any:
        """Activations of the last hidden layer.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input rows.

        Returns
        -------
        H : ndarray of shape (n_samples, hidden_layer_sizes[-1])
            What the output layer sees; X itself where there is no hidden layer.
        """
        features, home = self._checked(X, "transform")
        network = self._network()
        if isinstance(features, torch.Tensor):
            return home.send(network.run_on_device(features, hidden=True))
        return home.send(network.hidden(features, self._prediction_device()))

    @property
    def _n_features_out(self) -> int:
        return int(self.coefs_[-1].shape[0])


def _all_finite(X: np.ndarray) -> bool:
    """Whether every number is certainly finite.

    A finite sum of squares proves it; one that is not finite proves nothing (it may have
    overflowed). BLAS adds up without numpy's warnings, which a plain sum would need a context to
    silence.
    """
    flat = X.reshape(-1)
    return math.isfinite(np.dot(flat, flat))
