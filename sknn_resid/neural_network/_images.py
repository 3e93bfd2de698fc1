"""What a user may call images, as one thing: rows of pixels in the order height, width, channels.

- An array of four axes, rows first: channels last (n, H, W, C) or first (n, C, H, W). Of three axes
  (n, H, W): one channel.
- A table of two axes: each row is an image laid out as ``image_shape`` says; without one, the
  smallest square of one channel that holds the row, filled up with zeros at its end.
- A sequence of paths: files, read when they are needed (`ImageFolder` is one).

Bytes stay bytes, also those of a mapped file, which is never read as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sknn_resid._sklearn_compat import validate_data
from sknn_resid.engine.data import is_mapped, row_chunks
from sknn_resid.neural_network._image_files import (
    CACHED_BYTES,
    as_paths,
    first_shape,
    read_images,
)

Shape = tuple[int, int, int]

_CHECKED_ROWS = 256
_KEPT_DTYPES = (np.float64, np.float32, np.uint8)


@dataclass(frozen=True, eq=False)
class ImageRows:
    """X as images.

    Attributes
    ----------
    n_rows : int
    shape : (int, int, int)
        Height, width, channels.
    dtype : dtype
        Of the pixels as they are stored: uint8, float32 or float64.
    array : ndarray of shape (n, H, W, C) or None
        All of them, where they are in memory.
    read : callable
        ``read(rows)`` gives some of them, shape (B, H, W, C); rows in increasing order.
    flat : bool
        Whether they came as rows of a table.
    """

    n_rows: int
    shape: Shape
    dtype: np.dtype
    array: np.ndarray | None
    read: Callable[[np.ndarray], np.ndarray]
    flat: bool = False

    @property
    def n_features(self) -> int:
        return math.prod(self.shape)


def images_for_fit(est: Any, X: Any, *, reset: bool) -> ImageRows:
    """Training images. Sets ``n_features_in_``, ``feature_names_in_`` and `image_shape_`.

    Parameters
    ----------
    est : estimator
        With ``image_shape`` and ``channels``.
    X : array-like or sequence of paths
    reset : bool
        False holds X to what an earlier call has seen.
    """
    if not reset:
        return images_for_predict(est, X)
    paths, first = as_paths(X), False
    if paths is not None:
        shape = _file_shape(est, paths)
        rows = _file_rows(est, paths, shape)
    elif _n_axes(X) >= 3:
        array = _image_array(est, X, "X")
        shape, first = layout_of(array.shape[1:], est.channels, "X")
        rows = _array_rows(array, shape, first)
    else:
        X = validate_data(est, X, dtype=_KEPT_DTYPES, reset=True)
        shape, first = _row_layout(est, X.shape[1])
        est.image_shape_, est._channels_first = shape, first
        return _flat_rows(X, shape, first)
    est.__dict__.pop("feature_names_in_", None)
    est.n_features_in_, est.image_shape_ = rows.n_features, rows.shape
    est._channels_first = first  # rows of a table, later on, are read in the same order
    return rows


def images_for_predict(est: Any, X: Any) -> ImageRows:
    """Images like those of fit, in any of the forms."""
    shape: Shape = est.image_shape_
    paths = as_paths(X)
    if paths is not None:
        return _file_rows(est, paths, shape)
    if _n_axes(X) >= 3:
        array = _image_array(est, X, "X")
        h, w, c = shape
        seen = array.shape[1:] if array.ndim == 4 else (*array.shape[1:], 1)
        if seen == shape and est.channels != "first":
            return _array_rows(array, shape, False)
        if seen == (c, h, w) and est.channels != "last":
            return _array_rows(array, shape, True)
        raise ValueError(
            f"X: images of shape {tuple(array.shape[1:])}, but {type(est).__name__} was fitted on "
            f"(height, width, channels) = {shape} and takes those, or {(c, h, w)} with the "
            f"channels first (channels={est.channels!r}). Resize the images first."
        )
    X = validate_data(est, X, dtype=_KEPT_DTYPES, reset=False)
    return _flat_rows(X, shape, est._channels_first)


def laid_out_as(X: Any, est: Any, pixels: np.ndarray) -> np.ndarray:
    """Numbers of pixels (n, height, width, channels) with the axes that X has; files have these.

    Parameters
    ----------
    X : array-like or sequence of paths
        Images, validated by one of the functions above.
    est : estimator
        What they were validated for.
    pixels : ndarray of shape (n, height, width, channels)
    """
    if as_paths(X) is not None:
        return pixels
    n_axes = _n_axes(X)
    if n_axes == 3:
        return pixels[..., 0]
    first = bool(est._channels_first)
    if n_axes == 4:
        last = np.shape(X)[1:] == est.image_shape_ and est.channels != "first"
        return pixels if last else pixels.transpose(0, 3, 1, 2)
    rows = pixels.transpose(0, 3, 1, 2) if first else pixels
    return rows.reshape(len(pixels), -1)[:, : est.n_features_in_]


def _n_axes(X: Any) -> int:
    """Number of axes; a list is only looked into along its first items."""
    if hasattr(X, "ndim"):
        return int(X.ndim)
    axes = 0
    while isinstance(X, (list, tuple)) and axes < 4:
        axes += 1
        if not X:
            break
        X = X[0]
        if hasattr(X, "ndim"):
            return axes + int(X.ndim)
    return axes


# -- arrays of images ---------------------------------------------------------------------------


def _image_array(est: Any, X: Any, name: str) -> np.ndarray:
    """An array of three or four axes with numbers that can be computed with."""
    array = X if isinstance(X, np.ndarray) else np.asarray(X)
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{name}: an array of images has 4 axes (rows, height, width, channels) or 3 (rows, "
            f"height, width), got {array.ndim} axes of shape {array.shape}."
        )
    if array.shape[0] == 0 or 0 in array.shape:
        raise ValueError(
            f"{name}: found array with 0 sample(s) or empty images (shape={array.shape}) while a "
            f"minimum of 1 is required by {type(est).__name__}."
        )
    if array.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got dtype {array.dtype}.")
    if array.dtype.kind not in "fuib":
        raise ValueError(
            f"{name}: pixels must be numbers, got dtype {array.dtype}. Convert them with "
            "astype('uint8') or astype('float32')."
        )
    if array.dtype not in (np.uint8, np.float32, np.float64):
        array = array.astype(np.float32)
    if array.dtype.kind == "f":
        _check_finite(array, name)
    return array


def _check_finite(array: np.ndarray, name: str) -> None:
    """Refuse numbers that are none, and say where the first of them is."""
    for part in row_chunks(len(array), _CHECKED_ROWS):
        finite = np.isfinite(array[part])
        if finite.all():
            continue
        where = [int(i) for i in np.argwhere(~finite)[0]]
        value = array[part][tuple(where)]
        where[0] += part.start
        kind = "NaN" if np.isnan(value) else "infinity"
        raise ValueError(
            f"Input {name} contains {kind}: pixel [{', '.join(map(str, where))}] (the first index "
            "is the row). Leave such images out, or replace the values."
        )


def _array_rows(array: np.ndarray, shape: Shape, channels_first: bool) -> ImageRows:
    def read(rows: np.ndarray) -> np.ndarray:
        return _channels_last(np.asarray(array[rows]), channels_first)

    whole = None
    if not is_mapped(array):
        whole = np.ascontiguousarray(_channels_last(array, channels_first))
    return ImageRows(len(array), shape, array.dtype, whole, read)


def _channels_last(array: np.ndarray, channels_first: bool) -> np.ndarray:
    if array.ndim == 3:
        return array[..., None]
    return array.transpose(0, 2, 3, 1) if channels_first else array


def layout_of(axes: tuple[int, ...], channels: str, name: str) -> tuple[Shape, bool]:
    """((height, width, channels), whether they come first) of axes behind the rows.

    "auto" takes the smaller one of the two outer axes for the channels. It is refused where that is
    a guess: if both are equal, or if only the other reading makes the images square.
    """
    if len(axes) == 2:
        return (axes[0], axes[1], 1), False
    a, b, c = axes
    last, first = ((a, b, c), False), ((b, c, a), True)
    if channels == "last":
        return last
    if channels == "first":
        return first
    chosen, other = (last, first) if c < a else (first, last)
    square = chosen[0][0] == chosen[0][1]
    other_square = other[0][0] == other[0][1]
    if a == c or (other_square and not square):
        raise ValueError(
            f"{name}: which axis of {axes} holds the channels cannot be told. Set channels='last' "
            "for (height, width, channels), channels='first' for (channels, height, width)."
        )
    return chosen


# -- rows of a table ----------------------------------------------------------------------------


def _row_layout(est: Any, n_columns: int) -> tuple[Shape, bool]:
    if est.image_shape is None:
        side = math.ceil(math.sqrt(n_columns))
        return (side, side, 1), False
    axes = _given_axes(est)
    shape, first = layout_of(axes, est.channels, "image_shape")
    if math.prod(shape) != n_columns:
        raise ValueError(
            f"image_shape: {axes} has {math.prod(shape)} numbers, but the rows of X have "
            f"{n_columns}. Give the shape of one row as an image, or None."
        )
    return shape, first


def _given_axes(est: Any) -> tuple[int, ...]:
    axes = tuple(int(n) for n in est.image_shape)
    if len(axes) not in (2, 3) or min(axes) < 1:
        raise ValueError(
            "image_shape: must be (height, width) or (height, width, channels), or with the "
            f"channels first, each at least 1, got {est.image_shape!r}."
        )
    return axes


def _flat_rows(X: np.ndarray, shape: Shape, channels_first: bool) -> ImageRows:
    def as_images(rows: np.ndarray) -> np.ndarray:
        missing = math.prod(shape) - rows.shape[1]
        if missing:
            rows = np.pad(rows, ((0, 0), (0, missing)))
        h, w, c = shape
        axes = (c, h, w) if channels_first else shape
        return _channels_last(rows.reshape(len(rows), *axes), channels_first)

    def read(rows: np.ndarray) -> np.ndarray:
        return as_images(np.asarray(X[rows]))

    whole = None if is_mapped(X) else np.ascontiguousarray(as_images(X))
    return ImageRows(len(X), shape, X.dtype, whole, read, flat=True)


# -- files --------------------------------------------------------------------------------------


def _file_shape(est: Any, paths: list[str]) -> Shape:
    if est.image_shape is None:
        return first_shape(paths[0])
    shape, _ = layout_of(_given_axes(est), est.channels, "image_shape")
    if len(tuple(est.image_shape)) == 2:
        return (shape[0], shape[1], 3)
    if shape[2] not in (1, 3, 4):
        raise ValueError(
            f"image_shape: files are read with 1, 3 or 4 channels, got {est.image_shape!r}."
        )
    return shape


def _file_rows(est: Any, paths: list[str], shape: Shape) -> ImageRows:
    resize = est.image_shape is not None

    def read(rows: np.ndarray) -> np.ndarray:
        return read_images([paths[int(i)] for i in rows], shape, resize=resize)

    whole = None
    if len(paths) * math.prod(shape) <= CACHED_BYTES:
        whole = read(np.arange(len(paths)))
    return ImageRows(len(paths), shape, np.dtype(np.uint8), whole, read)
