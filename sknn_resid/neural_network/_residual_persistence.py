"""``save``, ``load`` and ``summary`` of a fitted ensemble: arrays and JSON, no code."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted

from sknn_resid.engine.residual_fitted import FittedResidual
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import Normalization, Periodic, ResidualSpec, Skip
from sknn_resid.neural_network._ensemble import Ensemble
from sknn_resid.neural_network._gradient_history import pack_history, unpack_history
from sknn_resid.neural_network._params import ACTIVATIONS, activation_name
from sknn_resid.neural_network._persistence import (
    ArrayFile,
    decode_loss,
    encode_loss,
    pack_codec,
    unpack_codec,
)
from sknn_resid.neural_network._table_state import encoder_from_state, encoder_state
from sknn_resid.neural_network._target_scale import TargetScale
from sknn_resid.neural_network._targets import LabelCodec

_PLAIN = (
    "n_features_in_",
    "n_iter_",
    "n_parameters_",
    "loss_",
    "loss_curve_",
    "validation_loss_curve_",
    "validation_iterations_",
    "device_",
    "dtype_",
)
_ARRAYS = ("member_weights_", "best_iteration_", "_noise_variance")


class ResidualPersistent(ArrayFile):
    """``save``, ``load`` and ``summary``."""

    _fitted_by = "encoder_"

    def _write(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        _pack(self, arrays, meta)

    def _read(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        _unpack(self, arrays, meta)

    def summary(self) -> pd.DataFrame:
        """Parameters of one member, layer by layer.

        Returns
        -------
        table : DataFrame
            One row per array of parameters: its shape, its numbers in one member, and in all
            members together. `n_parameters_` is the sum of the last column.
        """
        check_is_fitted(self, "encoder_")
        ensemble: Ensemble = self._ensemble  # type: ignore[attr-defined]
        entries = ResidualLayout(ensemble.members.spec).entries.values()
        table = pd.DataFrame(
            {
                "shape": [entry.shape for entry in entries],
                "parameters": [entry.stop - entry.start for entry in entries],
            },
            index=pd.Index([entry.name for entry in entries], name="layer"),
        )
        table["all members"] = table["parameters"] * len(ensemble.weights)
        return table


def _pack(est: Any, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    ensemble: Ensemble = est._ensemble
    members = ensemble.members
    meta["plain"] = {name: getattr(est, name) for name in _PLAIN if hasattr(est, name)}
    for name in _ARRAYS:
        if getattr(est, name, None) is not None:
            arrays[name] = np.asarray(getattr(est, name))
    meta["gradient_layers"] = pack_history(est.gradient_history_, arrays)
    meta["encoder"] = encoder_state(est.encoder_)
    meta["network"] = _pack_spec(members.spec)
    meta["temperature"] = ensemble.temperature
    arrays["params"], arrays["statistics"] = members.params, members.statistics
    if members.input_scale is not None:
        arrays["input_scale"] = members.input_scale
    if isinstance(est._codec, LabelCodec):
        pack_codec(est._codec, arrays, meta)
    else:
        for name, value in _scale_arrays(est._codec).items():
            arrays[f"target_{name}"] = value


def _unpack(est: Any, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    for name, value in meta["plain"].items():
        setattr(est, name, value)
    for name in _ARRAYS:
        if name in arrays:
            setattr(est, name, arrays[name])
    est.gradient_history_ = unpack_history(meta.get("gradient_layers"), arrays)
    est.encoder_ = encoder_from_state(meta["encoder"])
    if hasattr(est.encoder_, "feature_names_in_"):
        est.feature_names_in_ = est.encoder_.feature_names_in_
    members = FittedResidual(
        _unpack_spec(meta["network"]),
        arrays["params"],
        arrays["statistics"],
        arrays.get("input_scale"),
    )
    est._ensemble = Ensemble(members, est.member_weights_, float(meta["temperature"]))
    if "codec" in meta:
        est._codec = unpack_codec(meta, arrays)
        est.classes_, est.temperature_ = est._codec.classes, est._ensemble.temperature
    else:
        low, high = arrays.get("target_low"), arrays.get("target_high")
        est._codec = TargetScale(arrays["target_shift"], arrays["target_scale"], low, high)


def _scale_arrays(scale: TargetScale) -> dict[str, np.ndarray]:
    every = {"shift": scale.shift, "scale": scale.scale, "low": scale.low, "high": scale.high}
    return {name: value for name, value in every.items() if value is not None}


def _pack_spec(spec: ResidualSpec) -> dict[str, Any]:
    return {
        "sizes": {
            name: getattr(spec, name)
            for name in ("n_features", "width", "hidden", "n_blocks", "n_outputs")
        },
        "activation": activation_name(spec.activation),
        "loss": encode_loss(spec.loss),
        "dtype": str(spec.dtype).removeprefix("torch."),
        "product_dtype": str(spec.product_dtype).removeprefix("torch."),
        "n_layers_per_block": spec.n_layers_per_block,
        "normalization": spec.normalization.value,
        "skip": spec.skip.value,
        "preactivate": spec.preactivate,
        "normalize_inner": spec.normalize_inner,
        "tie_blocks": spec.tie_blocks,
        "periodic": None if spec.periodic is None else asdict(spec.periodic),
        "norm_epsilon": spec.norm_epsilon,
    }


def _unpack_spec(fields: dict[str, Any]) -> ResidualSpec:
    periodic = fields["periodic"]
    return ResidualSpec(
        **fields["sizes"],
        activation=ACTIVATIONS[fields["activation"]],
        loss=decode_loss(fields["loss"]),
        dtype=getattr(torch, fields["dtype"]),
        product_dtype=getattr(torch, fields["product_dtype"]),
        n_layers_per_block=fields["n_layers_per_block"],
        normalization=Normalization(fields["normalization"]),
        skip=Skip(fields["skip"]),
        preactivate=fields["preactivate"],
        normalize_inner=fields["normalize_inner"],
        tie_blocks=fields["tie_blocks"],
        periodic=None if periodic is None else Periodic(**periodic),
        norm_epsilon=fields["norm_epsilon"],
    )
