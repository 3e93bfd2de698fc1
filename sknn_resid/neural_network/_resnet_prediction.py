"""From fitted arrays to outputs of an image network. Nothing is cached on the estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from sknn_resid._device import resolve_device
from sknn_resid.engine.image_data import Scaling, place_images
from sknn_resid.engine.image_fitted import FittedImages
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.neural_network._images import ImageRows, images_for_predict
from sknn_resid.neural_network._resnet_params import check_features, n_features_out


class ImagePredictor(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Prediction from the public attribute ``state_dict_``: what it says counts."""

    _spec: ResNetSpec
    state_dict_: dict[str, np.ndarray]
    pixel_mean_: np.ndarray
    pixel_std_: np.ndarray
    features: str
    device_: str
    dtype_: str

    def _outputs(self, X: Any, stage: str) -> np.ndarray:
        """What the network holds after a stage, one row an image."""
        check_is_fitted(self, "state_dict_")
        images = images_for_predict(self, X)
        device = self._prediction_device()
        return self._network().outputs(placed(images, device), stage)

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
