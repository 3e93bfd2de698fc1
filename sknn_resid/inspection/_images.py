"""From a `ResNetClassifier` and images to the engine's own network, to be looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_consistent_length

from sknn_resid._validation import check_weights
from sknn_resid.engine.image_data import ImageSet, Scaling
from sknn_resid.engine.image_trace import (
    ImageForward,
    ImageSubject,
    Way,
)
from sknn_resid.inspection._steps import through_steps
from sknn_resid.neural_network._class_weight import row_weights
from sknn_resid.neural_network._images import ImageRows, images_for_predict, laid_out_as
from sknn_resid.neural_network._params import random_generator
from sknn_resid.neural_network._resnet_base import BaseResNet
from sknn_resid.neural_network._resnet_params import check_parameters, check_stages, network_spec
from sknn_resid.neural_network._resnet_prediction import placed
from sknn_resid.neural_network._resnet_pretrained import starting_arrays, starting_scaling
from sknn_resid.neural_network._targets import encode_validation

_MOST_SEED = np.iinfo(np.int32).max


def is_image_network(estimator: Any) -> bool:
    """Whether it is an image network, or a pipeline that ends in one."""
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    return isinstance(last, BaseResNet)


@dataclass(frozen=True, eq=False)
class OpenImages:
    """An image network and the rows it is looked at with.

    Attributes
    ----------
    subject : ImageSubject
    way : Way
    laid_out : callable
        From pixels (n, height, width, channels) to the axes that X has.
    columns : list of str
        Of rows of a table; empty for images.
    """

    subject: ImageSubject
    way: Way
    laid_out: Callable[[np.ndarray], np.ndarray]
    columns: list[str]

    @property
    def X(self) -> np.ndarray:
        """The pixels that were read, with the axes of X."""
        return self.laid_out(self.subject.pixels)

    @staticmethod
    def activations(done: ImageForward) -> list[np.ndarray]:
        """v of each layer; of the head, the probabilities."""
        head = softmax(done.z["fc"].numpy(), axis=1)
        return [done.v[name].numpy() if name in done.v else head for name in done.layers]


def open_images(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    member: int = 0,
    statistics: Literal["batch", "fitted"] | None = None,
    dtype: Literal["float64", "float32"] | None = None,
) -> OpenImages:
    """The network of an image classifier on these images, fitted or as ``fit`` would begin.

    Parameters
    ----------
    estimator : ResNetClassifier or Pipeline that ends in one
    X, y, sample_weight
        As for ``fit``; y may be None where the estimator is fitted.
    member : int, default=0
        There is one only.
    statistics : {"batch", "fitted"} or None, default=None
        As in `open_network`.
    dtype : {"float64", "float32"} or None, default=None
        None is float64.

    Raises
    ------
    ValueError
        For bad input; if y is missing, there is no such member, or nothing was kept.
    """
    names = None
    if isinstance(estimator, Pipeline):
        estimator, X, names = through_steps(estimator, X, y)
    name, fitted = type(estimator).__name__, hasattr(estimator, "state_dict_")
    if member != 0:
        raise ValueError(f"member={member}: {name} is one network. Leave member at 0.")
    if y is None and not fitted:
        raise ValueError(
            f"y is missing: this {name} is not fitted, and how it would begin depends on y (the "
            "number of classes). Pass y, or fit it first."
        )
    if statistics == "fitted" and not fitted:
        raise ValueError(
            f"statistics='fitted': this {name} is not fitted, so that its batch normalizations "
            "have kept nothing. Use statistics='batch', or fit it first."
        )
    kept = fitted if statistics is None else statistics == "fitted"
    way = Way(kept, torch.float32 if dtype == "float32" else torch.float64)
    est, subject, flat = (_fitted if fitted else _new)(estimator, X, y, sample_weight)
    columns: list[str] = []
    if flat:
        own = getattr(est, "feature_names_in_", None)
        columns = [f"x{j}" for j in range(est.n_features_in_)] if own is None else list(own)
        columns = columns if names is None or len(names) != len(columns) else names
    return OpenImages(subject, way, partial(laid_out_as, X, est), columns)


def look_at_images(estimator: Any, X: Any, y: Any, sample_weight: Any) -> ImageSubject:
    """`open_images` for those who look at a step of training."""
    return open_images(estimator, X, y, sample_weight, statistics="batch").subject


def _new(est: Any, X: Any, y: Any, sample_weight: Any) -> tuple[Any, ImageSubject, bool]:
    """A clone that has seen X, and its network; whether images are rows of a table."""
    fresh = clone(est)
    fresh._validate_params()
    check_parameters(fresh)
    rng = random_generator(fresh.random_state)
    task = fresh._task(X, y, sample_weight, first_call=True, incremental=False)
    seed = int(rng.randint(_MOST_SEED))
    spec = network_spec(fresh, task.images.shape, len(fresh.classes_))
    check_stages(fresh, spec)
    data = ImageSet(placed(task.images, torch.device("cpu")), task.codes, task.weight, task.rows)
    subject = ImageSubject(
        spec=spec,
        arrays=starting_arrays(fresh, spec, seed),
        seed=seed,
        scaling=starting_scaling(fresh, data),
        pixels=_pixels(task.images),
        codes=task.codes,
        weight=task.weight,
        label_smoothing=float(fresh.label_smoothing),
        fitted=False,
        freeze=fresh.freeze,
    )
    return fresh, subject, task.images.flat


def _fitted(est: Any, X: Any, y: Any, sample_weight: Any) -> tuple[Any, ImageSubject, bool]:
    images = images_for_predict(est, X)
    codes = weight = None
    if y is not None:
        y_ok = est._labels(y, "y")
        check_consistent_length(range(images.n_rows), y_ok)
        codes = encode_validation(est._codec, y_ok, "y")[:, 0]
        weight = check_weights(sample_weight, y_ok)
        if est.class_weight is not None:
            by_class = row_weights(est.class_weight, est._codec, y_ok, weight)
            weight = by_class if weight is None else weight * by_class
    subject = ImageSubject(
        spec=est._spec,
        arrays=est.state_dict_,
        seed=0,
        scaling=Scaling(est.pixel_mean_, est.pixel_std_),
        pixels=_pixels(images),
        codes=codes,
        weight=weight,
        label_smoothing=float(est.label_smoothing),
        fitted=True,
        freeze=est.freeze,
    )
    return est, subject, images.flat


def _pixels(images: ImageRows) -> np.ndarray:
    return np.asarray(images.read(np.arange(images.n_rows)), dtype=np.float64)
