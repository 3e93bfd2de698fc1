"""ImagePreprocessor: photographs of any size to arrays of one, as trained networks expect them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from sknn_resid._sklearn_compat import Interval, StrOptions, fit_context
from sknn_resid.neural_network._image_files import as_paths, opened
from sknn_resid.neural_network._images import layout_of

_SIDE = [Interval(Integral, 1, None, closed="left"), None]


class ImagePreprocessor(TransformerMixin, BaseEstimator):
    """Resize the shorter side, cut out the centre, and scale pixels, image by image.

    The preprocessing with which published networks are evaluated. Nothing is learned; `fit` checks
    parameters only.

    Parameters
    ----------
    resize : int or None, default=256
        Length that the shorter side gets; the longer one keeps the proportions (rounded down).
        Bilinear over the area of each new pixel (antialiased). None resizes nothing. 256 for
        torchvision's weights IMAGENET1K_V1 and most others, 232 for its IMAGENET1K_V2, None for
        CIFAR.
    crop : int or None, default=224
        Side of the square that is cut out about the centre; what is missing is black. None cuts
        nothing, and then all images must have one size.
    normalize : bool, default=False
        False leaves pixels as they are, bytes as bytes, for `ResNetClassifier`, which scales them
        itself. True makes float32 numbers of them: bytes are divided by 255, then ``mean`` is
        subtracted and divided by ``std``. Floating point pixels must then lie between 0 and 1.
    mean, std : float or array-like of shape (n_channels,)
        Of pixels between 0 and 1, by default ImageNet's.
    channels : {'auto', 'last', 'first'}, default='auto'
        Which axis of an array holds the channels; 'auto' as for `ResNetClassifier`.

    See Also
    --------
    ResNetClassifier : Networks, and `ResNetClassifier.from_pretrained`.
    ImageFolder : Paths of a folder with a subfolder for each class.

    Notes
    -----
    Files and PIL images are resized by Pillow, in bytes, as torchvision does it; arrays by torch,
    in float32, bytes rounded at the end. The two differ by one grey level here and there.

    Examples
    --------
    >>> import numpy as np
    >>> from sknn_resid import ImagePreprocessor
    >>> photographs = [np.zeros((300, 400, 3), np.uint8), np.zeros((500, 333, 3), np.uint8)]
    >>> ImagePreprocessor().fit_transform(photographs).shape
    (2, 224, 224, 3)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "resize": _SIDE,
        "crop": _SIDE,
        "normalize": ["boolean"],
        "mean": ["array-like", Real],
        "std": ["array-like", Interval(Real, 0, None, closed="neither")],
        "channels": [StrOptions({"auto", "last", "first"})],
    }

    def __init__(
        self,
        resize=256,
        crop=224,
        *,
        normalize=False,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        channels="auto",
    ):
        self.resize = resize
        self.crop = crop
        self.normalize = normalize
        self.mean = mean
        self.std = std
        self.channels = channels

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check the parameters; nothing is learned.

        Parameters
        ----------
        X : object
            Not read.
        y : object
            Not read.

        Returns
        -------
        self : object
            The transformer.
        """
        return self

    def transform(self, X):
        """Images of one size.

        Parameters
        ----------
        X : sequence of paths, of PIL images or of arrays, or one array
            Paths and PIL images become red, green, blue. Arrays are (height, width, channels),
            (channels, height, width) or (height, width); in a sequence they may have different
            sizes.

        Returns
        -------
        images : ndarray of shape (n_samples, height, width, n_channels)
            uint8 where X was bytes and ``normalize=False``, else float32.

        Raises
        ------
        ImportError
            For paths, without Pillow.
        ValueError
            If images end with different sizes or channels, or pixels cannot be scaled, with the
            number of the image.
        """
        self._validate_params()
        paths = as_paths(X)
        if paths is not None:
            found = [self._photograph(opened(path)) for path in paths]
        elif isinstance(X, np.ndarray) and X.dtype != object:
            found = list(self._arrays(X, "X"))
        else:
            found = [self._item(item, i) for i, item in enumerate(_items(X))]
        if not found:
            raise ValueError("X: found 0 images while a minimum of 1 is required.")
        for i, image in enumerate(found):
            if image.shape != found[0].shape:
                raise ValueError(
                    f"X: image {i} ends as (height, width, channels) = {image.shape}, image 0 as "
                    f"{found[0].shape}. Set resize and crop so that all get one size."
                )
        images = np.stack(found)
        return self._normalized(images) if self.normalize else images

    # -- one image ------------------------------------------------------------------------------

    def _item(self, item: Any, i: int) -> np.ndarray:
        if hasattr(item, "convert") and hasattr(item, "size"):  # a PIL image
            return self._photograph(item)
        array = np.asarray(item)
        if array.ndim not in (2, 3):
            raise ValueError(
                f"X: item {i} must be a path, a PIL image or an array of 2 or 3 axes, got "
                f"{type(item).__name__} of shape {array.shape}."
            )
        return next(iter(self._arrays(array[None], f"X[{i}]")))

    def _photograph(self, image: Any) -> np.ndarray:
        """By Pillow."""
        from PIL import Image

        with image:
            rgb = image.convert("RGB")
        width, height = rgb.size
        size = self._resized(height, width)
        if size != (height, width):
            rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
        return self._centre(np.asarray(rgb)[None])[0]

    def _arrays(self, array: np.ndarray, name: str) -> np.ndarray:
        """By torch; (n, H, W, C) of bytes or float32."""
        if array.ndim not in (3, 4):
            raise ValueError(
                f"{name}: an array of images has 4 axes (n, height, width, channels) or 3 (n, "
                f"height, width), got shape {array.shape}."
            )
        if array.dtype.kind not in "fuib" or 0 in array.shape:
            raise ValueError(
                f"{name}: pixels must be numbers and images not empty, got dtype {array.dtype} and "
                f"shape {array.shape}."
            )
        _, first = layout_of(array.shape[1:], self.channels, name)
        array = array[..., None] if array.ndim == 3 else array
        array = array.transpose(0, 2, 3, 1) if first else array
        if array.dtype != np.uint8:
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                i = int(np.argwhere(~np.isfinite(array))[0][0])
                raise ValueError(f"{name}: image {i} holds NaN or infinity.")
        height, width = array.shape[1:3]
        size = self._resized(height, width)
        if size != (height, width):
            array = _resize(array, size)
        return self._centre(array)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        short, long = min(height, width), max(height, width)
        other = max(1, int(self.resize * long / short))
        return (self.resize, other) if height <= width else (other, self.resize)

    def _centre(self, images: np.ndarray) -> np.ndarray:
        """The square about the centre, black where an image is smaller."""
        if self.crop is None:
            return images
        n, height, width, n_channels = images.shape
        found = np.zeros((n, self.crop, self.crop, n_channels), dtype=images.dtype)
        places = []
        for side in (height, width):
            # Rounding halves to even, as torchvision does.
            start = round((side - self.crop) / 2) if side >= self.crop else 0
            at = 0 if side >= self.crop else (self.crop - side) // 2
            kept = min(side, self.crop)
            places.append((slice(start, start + kept), slice(at, at + kept)))
        (rows, to_rows), (columns, to_columns) = places
        found[:, to_rows, to_columns] = images[:, rows, columns]
        return found

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        n_channels = images.shape[-1]
        mean, std = (np.asarray(v, dtype=np.float32) for v in (self.mean, self.std))
        for name, value in (("mean", mean), ("std", std)):
            if value.shape not in ((), (1,), (n_channels,)):
                raise ValueError(
                    f"{name}: must be one number or one for each of the {n_channels} channels of "
                    f"these images, got {getattr(self, name)!r}."
                )
        if not (std > 0).all():
            raise ValueError(f"std: must be positive, got {self.std!r}.")
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        elif images.min() < 0 or images.max() > 1:
            raise ValueError(
                f"X: with normalize=True floating point pixels must lie between 0 and 1, seen "
                f"{images.min():g} to {images.max():g}. Pass bytes (uint8), or divide them first."
            )
        return (images - mean) / std


def _items(X: Any) -> Sequence[Any]:
    """X as a sequence of images; one path or one image alone is refused."""
    if isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.ndim == 1):
        return list(X)
    if hasattr(X, "convert"):
        raise ValueError("X: got one image. Give a list of them.")
    return list(np.asarray(X))


def _resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with antialiasing, bytes rounded."""
    import torch

    x_NCHW = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    y_NCHW = torch.nn.functional.interpolate(
        x_NCHW, size=size, mode="bilinear", align_corners=False, antialias=True
    )
    y = y_NCHW.permute(0, 2, 3, 1).numpy()
    if images.dtype == np.uint8:
        return np.clip(np.rint(y), 0, 255).astype(np.uint8)
    return y
