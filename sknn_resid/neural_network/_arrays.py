"""Where arrays come from and go back to: numpy, or another array API namespace.

Under scikit-learn's ``array_api_dispatch`` a tensor that comes in is used where it lies (through
DLPack, without a copy), and what goes out has its namespace, dtype and device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sknn_resid._sklearn_compat import (
    get_namespace_and_device,
    move_to,
    supported_float_dtypes,
)
from sknn_resid.engine.data import Features


@dataclass(frozen=True)
class Home:
    """Namespace and device of the caller's X.

    Attributes
    ----------
    xp : module or None
        None for numpy, lists, frames and sparse matrices.
    device : object
        Of ``xp``.
    """

    xp: Any
    device: Any

    @property
    def float_dtypes(self) -> tuple[Any, ...]:
        """Floating dtypes that are computed as given."""
        if self.xp is None:
            return (np.float64, np.float32)
        float16 = getattr(self.xp, "float16", None)
        return tuple(d for d in supported_float_dtypes(self.xp, self.device) if d != float16)

    def engine_features(self, X: Any) -> Features:
        """Validated X as the engine takes it: numpy memory, CSR, or a tensor off the CPU."""
        if self.xp is None:
            return X
        tensor = X if isinstance(X, Tensor) else torch.from_dlpack(X)
        return tensor.detach().numpy() if tensor.device.type == "cpu" else tensor.detach()

    def to_numpy(self, *arrays: Any) -> tuple[Any, ...]:
        """Targets and weights, which may live elsewhere than X, as numpy arrays."""
        return tuple(_to_numpy(array) for array in arrays)

    def send(self, result: np.ndarray | Tensor) -> Any:
        """A result in the caller's namespace and on the caller's device."""
        if self.xp is None:
            return result.cpu().numpy() if isinstance(result, Tensor) else result
        if isinstance(result, np.ndarray):
            if result.dtype.kind not in "biuf":
                return result  # labels that are no numbers exist in numpy only
            return self.xp.asarray(result, device=self.device)
        return result if _is_torch(self.xp) else self.xp.from_dlpack(result)

    def probe(self, X: Any) -> Any:
        """An empty array of X's namespace, dtype and device (see ``check_same_namespace``)."""
        if self.xp is None:
            return np.empty(0, dtype=X.dtype)
        return self.xp.empty(0, dtype=X.dtype, device=self.device)


NUMPY = Home(None, None)


def home_of(X: Any) -> Home:
    """Where X comes from; anything but an array of a dispatched namespace is numpy's."""
    xp, is_array_api, device = get_namespace_and_device(X)
    if not is_array_api or "numpy" in xp.__name__.rsplit(".", 1)[-1]:
        return NUMPY
    return Home(xp, device)


def _is_torch(xp: Any) -> bool:
    return xp.__name__.rsplit(".", 1)[-1] == "torch"


def _to_numpy(array: Any) -> Any:
    if array is None or (
        not hasattr(array, "__array_namespace__") and not isinstance(array, Tensor)
    ):
        return array
    if isinstance(array, np.ndarray):
        return array
    return move_to(array, xp=np, device="cpu")


def as_numpy(array: Any) -> np.ndarray:
    """Any array or tensor as numpy."""
    return np.asarray(_to_numpy(array))
