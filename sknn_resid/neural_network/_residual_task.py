"""A validated training call of a residual estimator, in the engine's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sknn_resid.engine.losses import Loss
from sknn_resid.neural_network._tables import TableEncoder


@dataclass(frozen=True, eq=False)
class Task:
    """Rows, and what was learned from them before any training.

    Attributes
    ----------
    X : ndarray of shape (n, D)
        Encoded rows of positive weight.
    y : ndarray of shape (n, T)
        Targets as the loss takes them.
    weight : ndarray of shape (n,) or None
    encoder : TableEncoder
    codec : LabelCodec or TargetScale
    loss : Loss
    device : torch.device
    dtypes : (dtype of the weights, dtype of the matrix products)
    distinct : ndarray of shape (n,), int64
        Number of the distinct row that each row is a copy of.
    n_distinct : int
    """

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None
    encoder: TableEncoder
    codec: Any
    loss: Loss
    device: torch.device
    dtypes: tuple[torch.dtype, torch.dtype]
    distinct: np.ndarray
    n_distinct: int

    def attributes(self) -> dict[str, Any]:
        """Fitted attributes that do not depend on training."""
        own, products = self.dtypes
        name = "bfloat16" if products == torch.bfloat16 else str(own).removeprefix("torch.")
        found = {
            "encoder_": self.encoder,
            "_codec": self.codec,
            "device_": str(self.device),
            "dtype_": name,
        }
        if hasattr(self.codec, "classes"):
            found["classes_"] = self.codec.classes
        return found
