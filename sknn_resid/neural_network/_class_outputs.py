"""Labels, probabilities and accuracy from the outputs of a fitted classification network."""

from __future__ import annotations

import numpy as np
import torch

from sknn_resid.neural_network._arrays import as_numpy
from sknn_resid.neural_network._prediction import NetworkPredictor
from sknn_resid.neural_network._targets import log_of


class ClassPredictor(NetworkPredictor):
    """Prediction of classes; `_codec` knows their labels."""

    def predict(self, X):
        """Most probable class of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input rows.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predicted labels.
        """
        codes = self._at_once(X, self._codec.link) if hasattr(self, "coefs_") else None
        if codes is not None:
            return self._codec.decode(self._codec.single_codes(codes))
        features, home = self._checked(X, "predict")
        network = self._network()
        if isinstance(features, torch.Tensor):
            logits = as_numpy(network.run_on_device(features, linked=False))
            codes = self._codec.codes_from_logits(logits)
        else:
            codes = self._codec.codes_of(network, features, self._prediction_device())
        return home.send(self._codec.decode(codes))

    def predict_proba(self, X):
        """Probability of each class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input rows.

        Returns
        -------
        p : ndarray of shape (n_samples, n_classes), or list of such arrays
            In the order of `classes_`; for multi-label the probability of each label; for
            multiclass-multioutput one array per target.
        """
        return self._probabilities(X, "predict_proba")

    def _probabilities(self, X, method):
        outputs, home = self._outputs(X, method)
        parts = self._codec.probabilities(outputs)
        return [home.send(p) for p in parts] if isinstance(parts, list) else home.send(parts)

    def predict_log_proba(self, X):
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input rows.

        Returns
        -------
        log_p : ndarray of shape (n_samples, n_classes), or list of such arrays
            Logarithms of the probabilities.
        """
        return log_of(self._probabilities(X, "predict_log_proba"))

    def score(self, X, y, sample_weight=None):
        """Accuracy: the weighted part of rows that are predicted right, in all their targets.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input rows.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            True labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weight of each row.

        Returns
        -------
        score : float
        """
        if getattr(self, "_codec", None) is not None and self._codec.kind == "multioutput":
            right = (np.asarray(self.predict(X)) == np.asarray(y)).all(axis=1)
            return float(np.average(right, weights=sample_weight))
        return super().score(X, y, sample_weight)
