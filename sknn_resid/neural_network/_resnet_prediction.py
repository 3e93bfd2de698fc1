"""From fitted arrays to outputs of an image network. Nothing is cached on the estimator."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax, softmax
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sknn_resid._device import resolve_device
from sknn_resid.engine.image_data import Scaling, place_images
from sknn_resid.engine.image_fitted import FittedImages
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.neural_network._images import ImageRows, images_for_predict
from sknn_resid.neural_network._resnet_params import check_features, n_features_out
from sknn_resid.neural_network._targets import LabelCodec


class ImagePredictor(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Prediction from the public attribute ``state_dict_``: what it says counts."""

    _spec: ResNetSpec
    state_dict_: dict[str, np.ndarray]
    pixel_mean_: np.ndarray
    pixel_std_: np.ndarray
    classes_: np.ndarray
    _codec: LabelCodec
    features: str
    test_augmentation: str | None
    device_: str
    dtype_: str

    def _outputs(self, X: Any, stage: str) -> np.ndarray:
        """What the network holds after a stage, one row an image."""
        check_is_fitted(self, "state_dict_")
        images = images_for_predict(self, X)
        device = self._prediction_device()
        views = self.test_augmentation if stage == "fc" else None
        return self._network().outputs(placed(images, device), stage, views)

    def _network(self) -> FittedImages:
        own = torch.float64 if self.dtype_ == "float64" else torch.float32
        lower = None if self.dtype_ in ("float32", "float64") else getattr(torch, self.dtype_)
        scaling = Scaling(self.pixel_mean_, self.pixel_std_)
        return FittedImages(self._spec, self.state_dict_, scaling, own, lower)

    def _prediction_device(self) -> torch.device:
        """Where it was fitted if that device is there, else the CPU."""
        try:
            return resolve_device(self.device_)
        except ValueError:
            return torch.device("cpu")

    def predict(self, X):
        """Most probable class of each image.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images, as in ``fit``.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Predicted labels.
        """
        z = self._logits(X)
        return self._codec.decode(self._codec.codes_from_logits(z))

    def predict_proba(self, X):
        """Probability of each class.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images, as in ``fit``.

        Returns
        -------
        p : ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        return softmax(self._logits(X), axis=1)

    def predict_log_proba(self, X):
        """Logarithm of `predict_proba`, exact also where a probability is too small for a number.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images, as in ``fit``.

        Returns
        -------
        log_p : ndarray of shape (n_samples, n_classes)
            Logarithms of the probabilities.
        """
        return log_softmax(self._logits(X), axis=1)

    def decision_function(self, X):
        """Raw outputs of the network; for two classes the log-odds of the second.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images, as in ``fit``.

        Returns
        -------
        z : ndarray of shape (n_samples, n_classes), or (n_samples,) for two classes
            Their order is that of the probabilities.
        """
        z = self._logits(X)
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z

    def predict_top(self, X, k=5):
        """The k most probable classes of each image, the most probable first.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images, as in ``fit``.
        k : int, default=5
            At most the number of classes.

        Returns
        -------
        labels : ndarray of shape (n_samples, k)
            Class labels.
        probabilities : ndarray of shape (n_samples, k)
            Their probabilities.

        Raises
        ------
        ValueError
            If there are not so many classes.
        """
        check_is_fitted(self, "state_dict_")
        whole = isinstance(k, Integral) and not isinstance(k, bool)
        if not whole or not 1 <= int(k) <= len(self.classes_):
            raise ValueError(
                f"k: must be an integer from 1 to {len(self.classes_)}, the number of classes, got "
                f"{k!r}."
            )
        p = self.predict_proba(X)
        order = np.argsort(-p, axis=1, kind="stable")[:, :k]
        return self.classes_[order], np.take_along_axis(p, order, axis=1)

    def _logits(self, X: Any) -> np.ndarray:
        return self._outputs(X, "fc")

    def transform(self, X: Any) -> Any:
        """What the network holds after the stage that ``features`` names, for other estimators.

        Parameters
        ----------
        X : array-like or sequence of paths
            Images, as in ``fit``.

        Returns
        -------
        H : ndarray of shape (n_samples, n_channels)
            Means over the pixels; by default what the output layer reads.
        """
        check_is_fitted(self, "state_dict_")
        check_features(self, self._spec)
        return self._outputs(X, self.features)

    @property
    def _n_features_out(self) -> int:
        return n_features_out(self._spec, self.features)


def placed(images: ImageRows, device: torch.device) -> Any:
    """Images where the device can read them."""
    return place_images(images.array, images.read, images.n_rows, images.shape, device)
