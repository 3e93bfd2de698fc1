"""One file of plain arrays and JSON: ``save`` and ``load``. Loading runs no code.

The file is numpy's ``.npz``, read with ``allow_pickle=False``. Beside the arrays it holds one JSON
text: the class, the version, the constructor's parameters and the fitted scalars.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sknn_resid._version import __version__
from sknn_resid.engine import losses
from sknn_resid.engine.losses import CallableLoss, Loss
from sknn_resid.engine.optimizers import OptimizerState
from sknn_resid.engine.spec import OptimizerKind
from sknn_resid.engine.ties import Ties
from sknn_resid.neural_network._gradient_history import pack_history, unpack_history
from sknn_resid.neural_network._params import ACTIVATIONS, activation_name
from sknn_resid.neural_network._targets import LabelCodec

FORMAT = "sknn_resid model"
FORMAT_VERSION = 1
_SCALARS = (
    "loss_",
    "best_loss_",
    "best_validation_score_",
    "t_",
    "n_iter_",
    "n_layers_",
    "n_outputs_",
    "n_parameters_",
    "out_activation_",
    "n_features_in_",
    "device_",
    "dtype_",
    "_no_improvement_count",
    "_streaming",
)
_CURVES = ("loss_curve_", "validation_scores_", "validation_loss_curve_")


class ArrayFile(ABC):
    """``save`` and ``load`` of a fitted estimator.

    Attributes
    ----------
    _fitted_by : str
        Attribute that only a fitted estimator has.
    """

    _fitted_by: ClassVar[str]

    @abstractmethod
    def _write(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Add the fitted state to both parts of the file."""

    @abstractmethod
    def _read(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take the fitted state from both parts of the file."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to one file.

        Parameters
        ----------
        path : str or path-like
            File to write; by custom it ends in ``.npz``. An existing file is replaced.

        Raises
        ------
        ValueError
            If a parameter is code (a callable loss or scorer), which a file of data cannot hold.
        """
        check_is_fitted(self, self._fitted_by)
        arrays: dict[str, np.ndarray] = {}
        meta = header(self, arrays)
        self._write(arrays, meta)
        write_model(path, arrays, meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Any:
        """Read an estimator that `save` wrote; no code in the file is run.

        Parameters
        ----------
        path : str or path-like
            File to read.

        Returns
        -------
        estimator : object
            The fitted estimator, which predicts as the saved one did.

        Raises
        ------
        ValueError
            If the file is not one of ours, or holds an estimator of another class.
        """
        meta, arrays = read_model(path, cls.__name__)
        est = from_header(cls, meta, arrays)
        est._read(arrays, meta)
        return est


class Persistent(ArrayFile):
    """Of an MLP."""

    _fitted_by = "coefs_"

    def _write(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        _pack(self, arrays, meta)

    def _read(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        _unpack(self, arrays, meta)


def write_model(
    path: str | os.PathLike[str], arrays: dict[str, np.ndarray], meta: dict[str, Any]
) -> None:
    """One file of arrays and a JSON text, written beside the target and moved.

    An interrupted save leaves the old file.
    """
    contents: dict[str, Any] = {"meta": np.array(json.dumps(meta)), **arrays}
    target = os.fspath(path)
    partial = f"{target}.partial"
    try:
        with open(partial, "wb") as file:
            np.savez(file, **contents)
        os.replace(partial, target)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def read_model(
    path: str | os.PathLike[str], class_name: str
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """JSON part and arrays of a file that `write_model` wrote for this class.

    Raises
    ------
    ValueError
        If the file is not one of ours, is of a newer format, or holds another class.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        known = meta["format"] == FORMAT
    except OSError:
        raise
    except Exception as error:
        raise ValueError(_foreign(path)) from error
    if not known:
        raise ValueError(_foreign(path))
    if meta["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{os.fspath(path)!r} was written by sknn_resid {meta['version']}, whose format "
            f"{meta['format_version']} is newer than {FORMAT_VERSION}. Upgrade sknn_resid."
        )
    if meta["class"] != class_name:
        raise ValueError(
            f"{os.fspath(path)!r} holds a {meta['class']}, not a {class_name}: "
            f"use {meta['class']}.load."
        )
    return meta, arrays


def header(est: Any, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What every file says first: format, version, class and parameters."""
    params = est.get_params(deep=False)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "class": type(est).__name__,
        "params": {name: encode_value(name, value, arrays) for name, value in params.items()},
    }


def from_header(cls: type, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """The unfitted estimator with the parameters of the file."""
    return cls(**{name: decode_value(value, arrays) for name, value in meta["params"].items()})


def _foreign(path: str | os.PathLike[str]) -> str:
    return (
        f"{os.fspath(path)!r} is not a model file of sknn_resid: it must be an .npz file without "
        "pickled objects that save() wrote."
    )


def _pack(est: Any, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    meta |= {
        "scalars": {n: getattr(est, n) for n in _SCALARS if hasattr(est, n)},
        "curves": [n for n in _CURVES if getattr(est, n, None) is not None],
        "empty_curves": [n for n in _CURVES if getattr(est, n, 0) is None],
        "activations": [activation_name(a) for a in est._fitted_activations],
        "loss": encode_loss(est._fitted_loss),
        "n_weights": len(est.coefs_),
        "ties": None if est._fitted_ties is None else asdict(est._fitted_ties),
    }
    meta["gradient_layers"] = pack_history(getattr(est, "gradient_history_", None), arrays)
    for name in meta["curves"]:
        arrays[name] = np.asarray(getattr(est, name), dtype=float)
    for i, (w, b) in enumerate(zip(est.coefs_, est.intercepts_, strict=True)):
        arrays[f"coef_{i}"], arrays[f"intercept_{i}"] = np.ascontiguousarray(w), b
    if hasattr(est, "feature_names_in_"):
        arrays["feature_names_in_"] = np.asarray(est.feature_names_in_, dtype=str)
    if hasattr(est, "_codec"):
        pack_codec(est._codec, arrays, meta)
    state = getattr(est, "_optimizer", None)
    if state is not None and meta["scalars"].get("_streaming"):
        meta["optimizer"] = [state.kind.value, state.learning_rate, state.steps]
        for i, moment in enumerate(state.moments):
            arrays[f"moment_{i}"] = moment


def _unpack(est: Any, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    for name, value in meta["scalars"].items():
        setattr(est, name, value)
    for name in meta["curves"]:
        setattr(est, name, arrays[name].tolist())
    for name in meta["empty_curves"]:
        setattr(est, name, None)
    est.gradient_history_ = unpack_history(meta.get("gradient_layers"), arrays)
    n = meta["n_weights"]
    est.coefs_ = [arrays[f"coef_{i}"] for i in range(n)]
    est.intercepts_ = [arrays[f"intercept_{i}"] for i in range(n)]
    est._fitted_activations = tuple(ACTIVATIONS[name] for name in meta["activations"])
    est._fitted_loss = decode_loss(meta["loss"])
    est._fitted_ties = _decode_ties(meta.get("ties"))
    if not hasattr(est, "n_parameters_"):  # a file of a version that did not count them
        est.n_parameters_ = sum(w.size for w in est.coefs_ + est.intercepts_)
    est._namespace_probe = np.empty(0)
    if "feature_names_in_" in arrays:
        est.feature_names_in_ = arrays["feature_names_in_"].astype(object)
    if "codec" in meta:
        est._codec = unpack_codec(meta, arrays)
        est.classes_ = est._codec.classes
    if "optimizer" in meta:
        kind, rate, steps = meta["optimizer"]
        moments = tuple(arrays[name] for name in sorted(arrays) if name.startswith("moment_"))
        est._optimizer = OptimizerState(OptimizerKind(kind), rate, steps, moments)


def _decode_ties(fields: dict[str, Any] | None) -> Ties | None:
    """Ties from JSON, which has lists only."""
    if fields is None:
        return None
    groups = {
        kind: tuple(tuple(tuple(place) for place in group) for group in found)
        for kind, found in fields.items()
    }
    return Ties(**groups)


def encode_loss(loss: Loss) -> dict[str, Any]:
    """A loss as its name and constants."""
    if isinstance(loss, CallableLoss):
        raise ValueError(_is_code("loss", loss.function))
    return {"type": type(loss).__name__, **asdict(loss)}


def decode_loss(fields: dict[str, Any]) -> Loss:
    """The loss that `encode_loss` wrote."""
    known = {
        kind.__name__: kind
        for kind in (
            losses.SquaredError,
            losses.AbsoluteError,
            losses.Huber,
            losses.Pinball,
            losses.Poisson,
            losses.BinaryCrossEntropy,
            losses.SoftmaxCrossEntropy,
        )
    }
    kind: type[Any] = known[fields["type"]]
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k != "type"}
    return kind(**values)


def pack_codec(codec: LabelCodec, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Class labels as arrays of numbers or text."""
    parts = codec.classes if codec.kind == "multioutput" else [codec.classes]
    is_object = [part.dtype == object for part in parts]
    meta["codec"] = {"kind": codec.kind, "object": is_object}
    for i, part in enumerate(parts):
        if part.dtype == object and not all(isinstance(label, str) for label in part):
            raise ValueError(
                "save: classes_ holds labels that are neither numbers nor strings, got "
                f"{part.tolist()}. Use plain labels, or pickle the estimator."
            )
        arrays[f"classes_{i}"] = part.astype(str) if part.dtype == object else np.asarray(part)


def unpack_codec(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> LabelCodec:
    """The codec that `pack_codec` wrote."""
    fields = meta["codec"]
    parts = [
        arrays[f"classes_{i}"].astype(object) if is_object else arrays[f"classes_{i}"]
        for i, is_object in enumerate(fields["object"])
    ]
    return LabelCodec(fields["kind"], parts if fields["kind"] == "multioutput" else parts[0])


# -- constructor parameters: JSON with tags for what JSON lacks ---------------------------------


def encode_value(name: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A value as JSON; arrays go to ``arrays``. Code is refused."""
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        items = [encode_value(name, item, arrays) for item in value]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if isinstance(value, np.ndarray) and value.dtype != object:
        arrays[f"param_{name}"] = value
        return {"array": f"param_{name}"}
    if isinstance(value, dict):
        pairs = [
            [encode_value(name, k, arrays), encode_value(name, v, arrays)] for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, np.random.RandomState):
        kind, keys, *rest = value.get_state(legacy=True)
        arrays[f"param_{name}"] = np.asarray(keys)
        return {"random_state": [kind, f"param_{name}", *rest]}
    raise ValueError(_is_code(name, value))


def decode_value(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value that `encode_value` wrote."""
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag in ("tuple", "list"):
        items = [decode_value(item, arrays) for item in content]
        return tuple(items) if tag == "tuple" else items
    if tag == "array":
        return arrays[content]
    if tag == "dict":
        return {decode_value(k, arrays): decode_value(v, arrays) for k, v in content}
    kind, keys, *rest = content
    rng = np.random.RandomState()
    rng.set_state((kind, arrays[keys], *rest))
    return rng


def _is_code(name: str, value: Any) -> str:
    return (
        f"{name}={value!r} cannot be saved: the file holds arrays and numbers, no code. "
        f"Set {name} to a plain value first, or pickle the estimator."
    )
