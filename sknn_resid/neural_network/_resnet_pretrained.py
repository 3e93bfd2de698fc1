"""Trained weights from files: an estimator that predicts with them, or a start for a fit."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from sknn_resid._device import resolve_device
from sknn_resid.engine.image_data import ImageSet, Scaling
from sknn_resid.engine.resnet import Linear, reset_head
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.neural_network._resnet_params import pixel_scaling
from sknn_resid.neural_network._targets import LabelCodec
from sknn_resid.neural_network._weight_files import read_weights, write_weights
from sknn_resid.neural_network._weight_specs import Unsaid, adapt_arrays, infer_spec

# Of pixels between 0 and 1, red, green, blue: what nearly all published networks were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SIDE_BY_STEM = (("cifar", 32), ("imagenet", 224), ("imagenet_3x3", 32))
_SEEN = ("depth", "stem", "width", "shortcut", "preactivation")


class Pretrained:
    """``from_pretrained`` and ``save_weights``."""

    state_dict_: dict[str, np.ndarray]

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        class_names: Sequence[Any] | None = None,
        image_shape: tuple[int, ...] | None = None,
        pixel_mean: Any = None,
        pixel_std: Any = None,
        shortcut: str | None = "auto",
        option_a_padding: str = "both",
        stride_in_1x1: bool = False,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Any:
        """An estimator with the weights of a file, ready to predict; ``fit`` starts from them.

        Depth, width, stem, channels and classes are read off the file's shapes. Parameters of
        training are set with ``set_params``.

        Parameters
        ----------
        path : str or path-like
            torchvision's or timm's .pth or .safetensors of a ResNet, a CIFAR checkpoint, or what
            `save_weights` wrote. No code in it is run, and if its name ends in the first digits of
            its checksum, as torchvision's do, they are compared.
        class_names : sequence of length n_classes or None, default=None
            What the outputs mean, in their order; None numbers them from 0. A name that occurs more
            than once gets its number behind it, "crane (134)". `classes_` is sorted, as always, and
            the rows of the output layer with it.
        image_shape : (int, int) or None, default=None
            Height and width of images; files are cut and resized to it. None is 224 pixels
            a side for the ImageNet stem, else 32.
        pixel_mean, pixel_std : float, array-like of shape (n_channels,) or None, default=None
            What pixels are shifted and divided by, in the units of X. None is ImageNet's for bytes,
            255 (0.485, 0.456, 0.406) and 255 (0.229, 0.224, 0.225), or their averages where there
            are not three channels.
        shortcut : {'auto', 'A', 'B', 'C'} or None, default='auto'
            Where the file has no projections, shapes do not tell option 'A' ('auto') from a plain
            network (None).
        option_a_padding : {'both', 'end'}, default='both'
            Where option A puts its zero channels.
        stride_in_1x1 : bool, default=False
            True for weights converted from Caffe, whose bottlenecks have their stride in the first
            1x1 convolution: shapes do not tell, and the wrong one just predicts badly.
        device : str, default='auto'
            As for the estimator.
        dtype : {'auto', 'float32', 'float64', 'bfloat16', 'float16'}, default='auto'
            Of the computations. 'bfloat16' is about twice as fast as 'auto', float32, on
            processors that have it.

        Returns
        -------
        estimator : object
            Its ``weights`` is ``path``.

        Raises
        ------
        ValueError
            If the file cannot be read or is no such network, with all that does not fit.
        """
        file = read_weights(path)
        unsaid = Unsaid(shortcut, option_a_padding, stride_in_1x1)  # type: ignore[arg-type]
        spec = infer_spec(file.arrays, unsaid, str(file))
        default = _default_scaling(spec.in_channels)
        maker: Any = cls  # its parameters are those of the estimator below it
        est = maker(
            depth=spec.depth,
            width=spec.width,
            stem=spec.stem,
            shortcut=spec.shortcut,
            option_a_padding=option_a_padding,
            stride_in_1x1=stride_in_1x1,
            preactivation=spec.preactivation,
            image_shape=image_shape,
            pixel_mean=default.mean if pixel_mean is None else pixel_mean,
            pixel_std=default.std if pixel_std is None else pixel_std,
            weights=os.fspath(path),
            device=device,
            dtype=dtype,
        )
        _adopt_weights(est, spec, file.arrays, class_names)
        return est

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write `state_dict_` so that torchvision's and timm's networks load it.

        Parameters
        ----------
        path : str or path-like
            Ends in ".safetensors" for that format; else a file of ``torch.save``. Outputs are in
            the order of `classes_`.
        """
        check_is_fitted(self, "state_dict_")
        write_weights(path, self.state_dict_)


def _default_scaling(n_channels: int) -> Scaling:
    """ImageNet's, for bytes; averages over the colours where there are not three channels."""
    mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
    if n_channels != 3:
        mean, std = np.full(n_channels, mean.mean()), np.full(n_channels, std.mean())
    return Scaling(mean, std)


def _adopt_weights(
    est: Any, spec: ResNetSpec, arrays: Mapping[str, np.ndarray], class_names: Any
) -> None:
    """Set the attributes that a fit would have set."""
    codec, order = _codec(class_names, spec.n_outputs)
    device = resolve_device(est.device)
    own = np.float64 if est.dtype == "float64" else np.float32
    found = {}
    for name, shape in spec.shapes().items():
        array = np.asarray(arrays.get(name, np.zeros(shape)))
        array = array[order] if name.startswith("fc.") else array
        found[name] = array.astype(np.int64 if name.endswith("tracked") else own)
    side = dict(_SIDE_BY_STEM)[spec.stem]
    pixels = (side, side) if est.image_shape is None else tuple(est.image_shape)
    if len(pixels) != 2 or min(pixels) < 1:
        raise ValueError(
            f"image_shape: must be (height, width) or None, got {est.image_shape!r}. The number of "
            "channels is that of the file."
        )
    height, width = pixels
    est._codec, est.classes_ = codec, codec.classes
    est._spec, est.state_dict_ = spec, found
    est.image_shape_ = (int(height), int(width), spec.in_channels)
    est.n_features_in_ = math.prod(est.image_shape_)
    est.pixel_mean_ = np.broadcast_to(np.asarray(est.pixel_mean, float), spec.in_channels).copy()
    est.pixel_std_ = np.broadcast_to(np.asarray(est.pixel_std, float), spec.in_channels).copy()
    est.n_parameters_ = spec.n_parameters
    est.device_ = str(device)
    est.dtype_ = "float32" if est.dtype == "auto" else est.dtype
    est.n_iter_ = est.t_ = est._n_epochs = est._seed = est._no_improvement = 0
    est.loss_ = math.nan
    est.loss_curve_ = []
    est.validation_scores_ = est.validation_loss_curve_ = None
    est.best_loss_ = est.best_validation_score_ = None
    est._channels_first = False


def _codec(class_names: Any, n_outputs: int) -> tuple[LabelCodec, np.ndarray]:
    """Sorted classes, and which output belongs to each."""
    if class_names is None:
        return LabelCodec("multiclass", np.arange(n_outputs)), np.arange(n_outputs)
    names = list(class_names)
    if len(names) != n_outputs:
        raise ValueError(f"class_names: the file has {n_outputs} outputs, got {len(names)} names.")
    count = Counter(names)
    names = [f"{n} ({i})" if count[n] > 1 else n for i, n in enumerate(names)]
    classes, order = np.unique(np.asarray(names), return_index=True)
    if len(classes) < n_outputs:
        raise ValueError("class_names: two of the names are equal once their numbers are added.")
    return LabelCodec("multiclass", classes), order


def starting_arrays(est: Any, spec: ResNetSpec, seed: int) -> dict[str, np.ndarray] | None:
    """What ``fit`` starts from, None where weights are to be drawn.

    Raises
    ------
    ValueError
        If the file's network is another one than the parameters ask for.
    """
    if est.weights is None:
        return None
    file = read_weights(est.weights)
    unsaid = Unsaid(
        option_a_padding=spec.option_a_padding,
        stride_in_1x1=spec.stride_in_1x1,
        shortcut=None if spec.shortcut is None else "auto",
    )
    found = infer_spec(file.arrays, unsaid, str(file))
    differs = [n for n in _SEEN if getattr(found, n) != getattr(spec, n)]
    if differs:
        wanted = ", ".join(f"{name}={getattr(spec, name)!r}" for name in differs)
        there = ", ".join(f"{name}={getattr(found, name)!r}" for name in differs)
        raise ValueError(
            f"weights: {file} has {there}, but the parameters ask for {wanted}. Set {there}, or "
            f"begin with {type(est).__name__}.from_pretrained, which reads them off the file."
        )
    head = Linear(spec.n_features, spec.n_outputs, torch.float32, "cpu")
    reset_head(head, torch.Generator().manual_seed(seed))
    drawn = {f"fc.{name}": p.detach().numpy() for name, p in head.named_parameters()}
    return adapt_arrays(file.arrays, spec, drawn)


def starting_scaling(est: Any, data: ImageSet) -> Scaling:
    """Given, ImageNet's for bytes of three channels on trained weights, or learned."""
    n_channels = data.images.shape[2]
    colours = n_channels == 3 and data.images.gather(data.all_rows()[:1]).dtype == torch.uint8
    if est.weights is None or not colours or est.pixel_mean is not None:
        return pixel_scaling(est, data)
    if est.pixel_std is not None:
        return pixel_scaling(est, data)
    return _default_scaling(n_channels)
