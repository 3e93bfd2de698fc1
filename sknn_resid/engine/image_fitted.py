"""A trained image network: arrays and numbers only, from which each call makes what it needs.

No module, no graph and no device memory is kept, so it pickles small, loads anywhere, and one
object predicts from many threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sknn_resid.engine.image_data import Images, Scaling
from sknn_resid.engine.image_evaluation import AnyNetwork, forward_chunks, rows_at_once
from sknn_resid.engine.resnet import ResNet, load_arrays
from sknn_resid.engine.resnet_inference import AveragedViews, InferenceNetwork
from sknn_resid.engine.resnet_spec import ResNetSpec


@dataclass(frozen=True, eq=False)
class FittedImages:
    """A network by its spec, its arrays and the scaling of its pixels.

    Attributes
    ----------
    spec : ResNetSpec
    arrays : mapping of str to ndarray
        By torchvision's names.
    scaling : Scaling
    dtype : torch.dtype
    product_dtype : torch.dtype or None
        Of the convolutions, where not ``dtype``.
    """

    spec: ResNetSpec
    arrays: Mapping[str, np.ndarray]
    scaling: Scaling
    dtype: torch.dtype
    product_dtype: torch.dtype | None = None

    def outputs(self, images: Images, stage: str = "fc", views: str | None = None) -> np.ndarray:
        """What the network holds after a stage for every image, (n, K); maps by their mean.

        Parameters
        ----------
        images : Images
            On the device that is to compute.
        stage : str
            One of ``spec.feature_names``.
        views : {"flip", "ten_crop"} or None
            What logits are averaged over, by their probabilities.
        """
        bound = self._bind(images)
        network: AnyNetwork = bound if views is None else AveragedViews(bound, views)
        parts = []
        rows = np.arange(images.n_rows)
        for _, part in forward_chunks(network, images, rows, self.scaling, stage=stage):
            parts.append((part.mean((2, 3)) if part.ndim == 4 else part).cpu().numpy())
        return np.concatenate(parts)

    def _bind(self, images: Images) -> InferenceNetwork:
        """The network in the form that predicts, laid out for chunks of these images.

        Made anew in each call (a tenth of a second for ResNet-50): the arrays are public, and what
        they say counts.
        """
        module = ResNet(self.spec, self.dtype, images.device)
        load_arrays(module, self.arrays)
        height, width, _ = images.shape
        n_rows = min(rows_at_once(module, images), images.n_rows)
        return InferenceNetwork(module, self.product_dtype or self.dtype, (n_rows, height, width))
