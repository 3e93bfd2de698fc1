"""From a `ResNetClassifier` and images to the engine's own network, to be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_consistent_length

from sknn_resid._validation import check_weights
from sknn_resid.engine.image_data import ImageSet, Scaling
from sknn_resid.engine.image_trace import ImageSubject
from sknn_resid.neural_network._class_weight import row_weights
from sknn_resid.neural_network._images import ImageRows, images_for_predict
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


def look_at_images(estimator: Any, X: Any, y: Any, sample_weight: Any) -> ImageSubject:
    """The network of an image classifier on these images, fitted or as ``fit`` would begin.

    Raises
    ------
    ValueError
        For bad input.
    """
    if isinstance(estimator, Pipeline):
        before, estimator = estimator[:-1], estimator[-1]
        if before.steps:
            fitted = hasattr(estimator, "state_dict_")
            X = before.transform(X) if fitted else clone(before).fit_transform(X, y)
    look = _fitted if hasattr(estimator, "state_dict_") else _new
    return look(estimator, X, y, sample_weight)


def _new(est: Any, X: Any, y: Any, sample_weight: Any) -> ImageSubject:
    fresh = clone(est)
    fresh._validate_params()
    check_parameters(fresh)
    rng = random_generator(fresh.random_state)
    task = fresh._task(X, y, sample_weight, first_call=True, incremental=False)
    seed = int(rng.randint(_MOST_SEED))
    spec = network_spec(fresh, task.images.shape, len(fresh.classes_))
    check_stages(fresh, spec)
    data = ImageSet(placed(task.images, torch.device("cpu")), task.codes, task.weight, task.rows)
    return ImageSubject(
        spec=spec,
        arrays=starting_arrays(fresh, spec, seed),
        seed=seed,
        scaling=starting_scaling(fresh, data),
        pixels=_pixels(task.images),
        codes=task.codes,
        weight=task.weight,
        label_smoothing=float(fresh.label_smoothing),
        fitted=False,
    )


def _fitted(est: Any, X: Any, y: Any, sample_weight: Any) -> ImageSubject:
    images = images_for_predict(est, X)
    y_ok = est._labels(y, "y")
    check_consistent_length(range(images.n_rows), y_ok)
    codes = encode_validation(est._codec, y_ok, "y")[:, 0]
    weight = check_weights(sample_weight, y_ok)
    if est.class_weight is not None:
        by_class = row_weights(est.class_weight, est._codec, y_ok, weight)
        weight = by_class if weight is None else weight * by_class
    return ImageSubject(
        spec=est._spec,
        arrays=est.state_dict_,
        seed=0,
        scaling=Scaling(est.pixel_mean_, est.pixel_std_),
        pixels=_pixels(images),
        codes=codes,
        weight=weight,
        label_smoothing=float(est.label_smoothing),
        fitted=True,
    )


def _pixels(images: ImageRows) -> np.ndarray:
    return np.asarray(images.read(np.arange(images.n_rows)), dtype=np.float64)
