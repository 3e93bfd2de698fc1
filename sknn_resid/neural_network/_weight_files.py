"""Files with weights of image networks, read and written as numpy arrays by torchvision's names.

Read are files of ``torch.save`` (never with code: ``weights_only``) and safetensors. Names are
those of torchvision after taking off what wrappers put before them ("module.", "_orig_mod."), and
after renaming what CIFAR checkpoints call ``linear`` (the head) and ``shortcut`` (a projection).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PREFIXES = ("module.", "_orig_mod.", "model.")
# Where checkpoints keep the weights, beside optimizer states and scores.
CONTAINERS = ("state_dict", "model_state_dict", "model")

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.\w+$")
_TORCHVISION = "torchvision ResNet-{} ({})"
_CIFAR = "CIFAR-10 ResNet-{} by Y. Idelbayev"
# First 8 digits of the SHA-256, which are part of these files' names.
_KNOWN = (
    ("f37072fd", _TORCHVISION.format(18, "IMAGENET1K_V1")),
    ("5c106cde", _TORCHVISION.format(18, "IMAGENET1K_V1, the file before 2020")),
    ("b627a593", _TORCHVISION.format(34, "IMAGENET1K_V1")),
    ("333f7ec4", _TORCHVISION.format(34, "IMAGENET1K_V1, the file before 2020")),
    ("0676ba61", _TORCHVISION.format(50, "IMAGENET1K_V1")),
    ("19c8e357", _TORCHVISION.format(50, "IMAGENET1K_V1, the file before 2020")),
    ("11ad3fa6", _TORCHVISION.format(50, "IMAGENET1K_V2")),
    ("63fe2227", _TORCHVISION.format(101, "IMAGENET1K_V1")),
    ("5d3b4d8f", _TORCHVISION.format(101, "IMAGENET1K_V1, the file before 2020")),
    ("cd907fc2", _TORCHVISION.format(101, "IMAGENET1K_V2")),
    ("394f9c45", _TORCHVISION.format(152, "IMAGENET1K_V1")),
    ("b121ed2d", _TORCHVISION.format(152, "IMAGENET1K_V1, the file before 2020")),
    ("f82ba261", _TORCHVISION.format(152, "IMAGENET1K_V2")),
    ("12fca82f", _CIFAR.format(20)),
    ("d509ac18", _CIFAR.format(32)),
    ("014dd654", _CIFAR.format(44)),
    ("4bfd9763", _CIFAR.format(56)),
    ("1d1ed7c2", _CIFAR.format(110)),
    ("f3b1deed", _CIFAR.format(1202)),
)

_SAFE_DTYPES = (
    ("F64", "<f8"),
    ("F32", "<f4"),
    ("F16", "<f2"),
    ("BF16", "<u2"),
    ("I64", "<i8"),
    ("I32", "<i4"),
    ("U8", "|u1"),
)


@dataclass(frozen=True, eq=False)
class WeightFile:
    """What a file held.

    Attributes
    ----------
    path : str
    arrays : dict of str to ndarray
        Weights and statistics by torchvision's names; half precision as float32.
    sha256 : str
        Of the whole file.
    known_as : str or None
        What the file is, if it is one of the well-known ones (by its checksum, not its name).
    """

    path: str
    arrays: dict[str, np.ndarray]
    sha256: str
    known_as: str | None

    def __str__(self) -> str:
        return f"{self.path!r}" + (f" ({self.known_as})" if self.known_as else "")


def read_weights(path: str | os.PathLike[str]) -> WeightFile:
    """Read a file of weights.

    Parameters
    ----------
    path : str or path-like
        A file of ``torch.save`` (.pth, .pt, .th) or of safetensors; the content decides, not the
        name.

    Raises
    ------
    ValueError
        If the file is not there, is none of the two, is damaged (its checksum is not the one in its
        name), or holds no weights.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise ValueError(f"weights: there is no file {path!r}.")
    sha256 = _checksum(path)
    said = _HASH_IN_NAME.search(path)
    if said is not None and not sha256.startswith(said[1]):
        raise ValueError(
            f"weights: {path!r} should have a SHA-256 that begins with {said[1]}, by its name, but "
            f"has {sha256[:8]}. Load it again: it is damaged or not complete."
        )
    with open(path, "rb") as file:
        start = file.read(9)
    tensors = _read_safetensors(path) if start[8:] == b"{" else _read_torch(path)
    return WeightFile(path, _plain_names(tensors, path), sha256, dict(_KNOWN).get(sha256[:8]))


def write_weights(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays so that torchvision's and timm's networks load them.

    Parameters
    ----------
    path : str or path-like
        Ends in ".safetensors" for that format; else a file of ``torch.save``.
    arrays : mapping of str to ndarray
    """
    path = os.fspath(path)
    if path.endswith(".safetensors"):
        _write_safetensors(path, arrays)
        return
    import torch

    torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path)


def _checksum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- the two formats ----------------------------------------------------------------------------


def _read_torch(path: str) -> dict[str, Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason, _, _ = str(error).partition("\n")
        raise ValueError(
            f"weights: {path!r} is neither safetensors nor a file of torch.save that holds nothing "
            f"but tensors ({type(error).__name__}: {reason})."
        ) from error
    for name in CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = dict(found) if isinstance(found, Mapping) else {}
    arrays = {str(k): _as_array(t) for k, t in tensors.items() if isinstance(t, torch.Tensor)}
    if not arrays:
        raise ValueError(f"weights: {path!r} holds no tensors by name.")
    return arrays


def _as_array(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
    """By the format's own description: 8 bytes length, a JSON header, then the numbers."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        stop = 8 + int(data[:8].view("<u8")[0])
        header = json.loads(bytes(data[8:stop]))
        return {
            name: _safe_array(data[stop:], entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(
            f"weights: {path!r} begins like a safetensors file but is not a whole one ({error})."
        ) from error


def _safe_array(data: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
    start, stop = entry["data_offsets"]
    kinds = dict(_SAFE_DTYPES)
    if entry["dtype"] not in kinds:
        raise ValueError(f"its dtype {entry['dtype']} is not supported")
    n_bytes = math.prod(entry["shape"]) * np.dtype(kinds[entry["dtype"]]).itemsize
    if not 0 <= start <= stop <= len(data) or stop - start != n_bytes:
        raise ValueError("its numbers do not fill its shapes")
    array = np.array(data[start:stop]).view(kinds[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (array.astype("<u4") << 16).view("<f4")
    return array.astype(np.float32) if entry["dtype"] == "F16" else array


def _write_safetensors(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    names = {np.dtype(code): name for name, code in _SAFE_DTYPES if name != "BF16"}
    header, parts, start = {}, [], 0
    # The widest first, so that every array begins at a multiple of its item size.
    for name, array in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        shape, stop = list(array.shape), start + data.nbytes
        header[name] = {
            "dtype": names[data.dtype],
            "shape": shape,
            "data_offsets": [start, stop],
        }
        parts.append(data)
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for data in parts:
            file.write(data.tobytes())


# -- names --------------------------------------------------------------------------------------


def _plain_names(arrays: Mapping[str, np.ndarray], path: str) -> dict[str, np.ndarray]:
    """torchvision's names; two arrays of one name are refused."""
    names = list(arrays)
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if names and all(name.startswith(prefix) for name in names):
                names = [name.removeprefix(prefix) for name in names]
                stripped = True
    names = [re.sub(r"^linear\.", "fc.", n).replace(".shortcut.", ".downsample.") for n in names]
    found = dict(zip(names, arrays.values(), strict=True))
    if len(found) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"weights: {path!r} holds {', '.join(twice)} more than once.")
    return found
