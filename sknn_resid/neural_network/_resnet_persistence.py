"""``save`` and ``load`` of a fitted image network: arrays and JSON, no code."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sknn_resid.engine.optimizers import OptimizerState
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.engine.spec import OptimizerKind
from sknn_resid.neural_network._gradient_history import pack_history, unpack_history
from sknn_resid.neural_network._persistence import ArrayFile, pack_codec, unpack_codec

_PLAIN = (
    "n_features_in_",
    "n_iter_",
    "t_",
    "loss_",
    "loss_curve_",
    "validation_scores_",
    "validation_loss_curve_",
    "best_loss_",
    "best_validation_score_",
    "n_parameters_",
    "device_",
    "dtype_",
    "_channels_first",
    "_no_improvement",
    "_n_epochs",
    "_seed",
    "_streaming",
)
_STATE = "state:"


class ImagePersistent(ArrayFile):
    """Of an image network."""

    _fitted_by = "state_dict_"

    def _write(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        _pack(self, arrays, meta)

    def _read(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        _unpack(self, arrays, meta)


def _pack(est: Any, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    meta["plain"] = {name: getattr(est, name) for name in _PLAIN if hasattr(est, name)}
    meta["image_shape"] = list(est.image_shape_)
    meta["network"] = asdict(est._spec)
    for name, array in est.state_dict_.items():
        arrays[f"{_STATE}{name}"] = np.asarray(array)
    arrays["pixel_mean"], arrays["pixel_std"] = est.pixel_mean_, est.pixel_std_
    pack_codec(est._codec, arrays, meta)
    meta["gradient_layers"] = pack_history(getattr(est, "gradient_history_", None), arrays)
    if hasattr(est, "feature_names_in_"):
        arrays["feature_names_in_"] = np.asarray(est.feature_names_in_, dtype=str)
    state = getattr(est, "_optimizer", None)
    if state is not None and meta["plain"].get("_streaming"):
        meta["optimizer"] = [state.kind.value, state.learning_rate, state.steps]
        arrays |= {f"moment_{i}": moment for i, moment in enumerate(state.moments)}


def _unpack(est: Any, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    for name, value in meta["plain"].items():
        setattr(est, name, value)
    est.image_shape_ = tuple(meta["image_shape"])
    est._spec = ResNetSpec(**meta["network"])
    est.state_dict_ = {
        name.removeprefix(_STATE): array
        for name, array in arrays.items()
        if name.startswith(_STATE)
    }
    est.pixel_mean_, est.pixel_std_ = arrays["pixel_mean"], arrays["pixel_std"]
    est._codec = unpack_codec(meta, arrays)
    est.classes_ = est._codec.classes
    est.gradient_history_ = unpack_history(meta.get("gradient_layers"), arrays)
    if "feature_names_in_" in arrays:
        est.feature_names_in_ = arrays["feature_names_in_"].astype(object)
    if "optimizer" in meta:
        kind, rate, steps = meta["optimizer"]
        moments = tuple(arrays[name] for name in sorted(arrays) if name.startswith("moment_"))
        est._optimizer = OptimizerState(OptimizerKind(kind), rate, steps, moments)
