"""Parameters of `ResNetClassifier` -> engine specs: pure functions, no defaults of their own."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
import torch

from sknn_resid.engine.image_augment import NOTHING, Augmentation, Flip
from sknn_resid.engine.image_data import ImageSet, Scaling, learn_scaling
from sknn_resid.engine.image_spec import ImageTrainSpec
from sknn_resid.engine.resnet_spec import (
    ResNetSpec,
    default_shortcut,
    default_width,
    resolve_stem,
)
from sknn_resid.engine.schedules import Cosine, Milestones, OneCycle, Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec
from sknn_resid.neural_network._images import ImageRows

SMALL_IMAGE = 64  # pixels: up to here the ImageNet form begins with a 3x3 convolution
PADDING_PART = 8  # a window moves by up to an eighth of the image (4 of 32 pixels) either way

_FLIPS = {
    "crop_flip": Flip.RANDOM,
    "crop_alternating_flip": Flip.ALTERNATE,
    "flip": Flip.RANDOM,
    "alternating_flip": Flip.ALTERNATE,
}


def check_parameters(est: Any) -> None:
    """Rules between parameters, before the data are looked at."""
    resolve_stem(int(est.depth), est.stem)
    if est.data_parallel and not isinstance(est.random_state, Integral):
        raise ValueError(
            "data_parallel: all processes have to draw the same numbers. Set random_state to an "
            f"int (now {est.random_state!r})."
        )
    if est.checkpoint_dir is not None and not isinstance(est.random_state, Integral):
        raise ValueError(
            "checkpoint_dir: a fit can only be gone on with if it can be repeated. Set "
            f"random_state to an int (now {est.random_state!r})."
        )
    fractions = np.asarray(est.milestones, dtype=float)
    if fractions.ndim != 1 or not ((fractions > 0) & (fractions < 1)).all():
        raise ValueError(
            "milestones: must be parts of the training between 0 and 1, such as (0.5, 0.75), got "
            f"{est.milestones!r}."
        )
    if est.batch_size < 2 * est.accumulate_steps:
        raise ValueError(
            f"accumulate_steps: each part of a batch needs two rows, but batch_size="
            f"{est.batch_size} in {est.accumulate_steps} parts has fewer. Lower accumulate_steps."
        )


def network_spec(est: Any, shape: tuple[int, int, int], n_outputs: int) -> ResNetSpec:
    """The network, with "auto" and None filled in."""
    stem = resolve_stem(int(est.depth), est.stem)
    if est.stem == "auto" and stem == "imagenet" and max(shape[:2]) <= SMALL_IMAGE:
        stem = "imagenet_3x3"
    return ResNetSpec(
        depth=int(est.depth),
        n_outputs=n_outputs,
        in_channels=shape[2],
        width=default_width(stem) if est.width is None else int(est.width),
        stem=stem,
        shortcut=default_shortcut(stem) if est.shortcut == "auto" else est.shortcut,
        option_a_padding=est.option_a_padding,
        stride_in_1x1=bool(est.stride_in_1x1),
        zero_init_residual=bool(est.zero_init_residual),
        drop_path=float(est.drop_path),
        preactivation=bool(est.preactivation),
    )


def check_features(est: Any, spec: ResNetSpec) -> None:
    """Refuse a stage that the network does not have."""
    if est.features not in spec.feature_names:
        raise ValueError(
            f"features: must be one of {list(spec.feature_names)}, got {est.features!r}."
        )


def check_stages(est: Any, spec: ResNetSpec) -> None:
    """Refuse stages that the network does not have."""
    check_features(est, spec)
    if est.freeze is not None and est.freeze not in spec.feature_names[:-1]:
        raise ValueError(
            f"freeze: must be None or one of {list(spec.feature_names[:-1])}, got {est.freeze!r}."
        )


def n_features_out(spec: ResNetSpec, stage: str) -> int:
    """Columns of ``transform``."""
    if stage == "fc":
        return spec.n_outputs
    if stage == "stem":
        return spec.width
    return spec.n_features if stage == "avgpool" else spec.stage_channels[int(stage[-1]) - 1]


def augmentation(est: Any, images: ImageRows) -> Augmentation:
    """Which changes; "auto" is none for rows of a table, and no flip without colours."""
    name = est.augmentation
    if name == "auto":
        if images.flat:
            name = None
        else:
            name = "crop_flip" if images.shape[2] >= 3 else "crop"
    padding = 0
    if name is not None and name.startswith("crop"):
        height, width, _ = images.shape
        padding = est.crop_padding
        padding = min(height, width) // PADDING_PART if padding == "auto" else int(padding)
    flip = Flip.NEVER if name is None else _FLIPS.get(name, Flip.NEVER)
    found = Augmentation(padding, flip, int(est.cutout), float(est.mixup))
    return found if found.moves or found.mixup else NOTHING


def schedule(est: Any, *, incremental: bool) -> Schedule:
    """How the rate moves. ``partial_fit`` knows no end, so its rate is constant."""
    if incremental:
        return Schedule()
    warmup = float(est.warmup_fraction)
    if est.learning_rate == "one_cycle":
        return OneCycle(warmup)
    if est.learning_rate == "milestones":
        return Milestones(warmup, tuple(float(f) for f in est.milestones))
    return Cosine(warmup) if est.learning_rate == "cosine" else Schedule(warmup)


def working_dtypes(est: Any, images: ImageRows, device: torch.device) -> tuple[torch.dtype, Any]:
    """(of weights, of convolutions where other). "auto": float64 for flat float64 rows on a CPU."""
    if est.dtype in ("bfloat16", "float16"):
        return torch.float32, getattr(torch, est.dtype)
    if est.dtype != "auto":
        return getattr(torch, est.dtype), None
    double = images.flat and images.dtype == np.float64 and device.type == "cpu"
    return (torch.float64 if double else torch.float32), None


def train_spec(
    est: Any,
    images: ImageRows,
    dtypes: tuple[torch.dtype, Any],
    *,
    incremental: bool,
    watch_validation: bool,
) -> ImageTrainSpec:
    """How the network is trained; without a watched validation part nothing stops it early."""
    kind = OptimizerKind(est.solver)
    train = TrainSpec(
        optimizer=OptimizerSpec(
            kind=kind,
            learning_rate=float(est.learning_rate_init),
            momentum=float(est.momentum),
            nesterov=bool(est.nesterovs_momentum) and est.momentum > 0,
        ),
        schedule=schedule(est, incremental=incremental),
        penalty=float(est.weight_decay),
        batch_size=int(est.batch_size),
        max_epochs=1 if incremental else int(est.max_iter),
        tolerance=float(est.tol),
        patience=float(est.n_iter_no_change) if watch_validation else math.inf,
        watch_validation=watch_validation,
        break_ties_by_loss=est.class_weight is not None and est.early_stopping_metric != "loss",
        stop_on_plateau=watch_validation,
        shuffle=bool(est.shuffle),
        clip_norm=None if est.clip_norm is None else float(est.clip_norm),
        label_smoothing=float(est.label_smoothing),
        max_seconds=None if est.max_time is None else float(est.max_time),
        average_horizon=0.0 if incremental else float(est.average_fraction),
        record_flow=bool(est.record_gradients),
    )
    own, products = dtypes
    return ImageTrainSpec(
        train=train,
        dtype=own,
        autocast=products,
        augmentation=augmentation(est, images),
        n_parts=int(est.accumulate_steps),
        deterministic=bool(est.deterministic),
        compile=bool(est.compile),
        freeze=est.freeze,
        body_factor=float(est.body_lr_factor),
    )


def pixel_scaling(est: Any, data: ImageSet) -> Scaling:
    """Given, or learned from the training images."""
    learned = None
    if est.pixel_mean is None or est.pixel_std is None:
        learned = learn_scaling(data)
    n_channels = data.images.shape[2]
    mean = _per_channel("pixel_mean", est.pixel_mean, n_channels)
    std = _per_channel("pixel_std", est.pixel_std, n_channels)
    if std is not None and not (std > 0).all():
        raise ValueError(f"pixel_std: must be positive, got {est.pixel_std!r}.")
    if learned is not None:
        mean, std = learned.mean if mean is None else mean, learned.std if std is None else std
    assert mean is not None
    assert std is not None
    return Scaling(mean, std)


def _per_channel(name: str, value: Any, n_channels: int) -> np.ndarray | None:
    if value is None:
        return None
    array = np.asarray(value, dtype=float)
    if array.shape not in ((), (1,), (n_channels,)) or not np.isfinite(array).all():
        raise ValueError(
            f"{name}: must be one finite number, or one for each of the {n_channels} channels, got "
            f"{value!r}."
        )
    return np.broadcast_to(array.reshape(-1), (n_channels,)).copy()
