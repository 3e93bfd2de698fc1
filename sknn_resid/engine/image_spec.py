"""How an image network is trained: frozen values beside those of every network (`TrainSpec`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sknn_resid.engine.image_augment import NOTHING, Augmentation
from sknn_resid.engine.spec import TrainSpec


@dataclass(frozen=True)
class ImageTrainSpec:
    """How one image network is trained.

    Attributes
    ----------
    train : TrainSpec
        Optimizer, schedule, batches, stopping. ``penalty`` is the decay of the weights (not of
        normalizations and biases), added to the gradient of the mean loss: lambda w; for AdamW it
        is decoupled.
    dtype : torch.dtype
        Of the master weights, the loss and the optimizer: float32 or float64.
    autocast : torch.dtype or None
        Of the convolutions where not ``dtype``: bfloat16 or float16. With float16 the loss is
        scaled up so that small gradients do not vanish.
    augmentation : Augmentation
    n_parts : int
        Parts that a batch is computed in, one after another; their gradients are added up. Batch
        statistics are those of a part.
    deterministic : bool
        On CUDA: no convolution whose sums come in a varying order.
    compile : bool
        Whether training steps go through ``torch.compile``.
    freeze : str or None
        Stage up to whose end parameters and statistics stay as they were.
    body_factor : float
        Factor of the updates of everything but the head.
    """

    train: TrainSpec
    dtype: torch.dtype
    autocast: torch.dtype | None = None
    augmentation: Augmentation = NOTHING
    n_parts: int = 1
    deterministic: bool = False
    compile: bool = False
    freeze: str | None = None
    body_factor: float = 1.0
