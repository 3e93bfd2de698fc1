"""From arrays of weights to the network that they belong to, and to one a little different.

Depth, width, stem, channels, classes and projections are read off the names and shapes. What
shapes do not tell is said by the caller: whether a network without projections pads (option A) or
is plain, on which side it pads, and where a bottleneck has its stride.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sknn_resid.engine.resnet_spec import (
    IMAGENET_DEPTHS,
    Padding,
    ResNetSpec,
    Shortcut,
    Stem,
)

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(?:conv1|downsample\.0)\.weight")
_MANY = 12  # misfits that a message lists


@dataclass(frozen=True)
class Unsaid:
    """What shapes do not tell.

    Attributes
    ----------
    shortcut : {"auto", "A", "B", "C"} or None
        "auto": by the projections there are; without any, A. Another value must agree with them.
    option_a_padding : {"both", "end"}
    stride_in_1x1 : bool
    """

    shortcut: str | None = "auto"
    option_a_padding: Padding = "both"
    stride_in_1x1: bool = False


def infer_spec(
    arrays: Mapping[str, np.ndarray], unsaid: Unsaid = Unsaid(), source: str = "the file"
) -> ResNetSpec:
    """The network that arrays belong to.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        By torchvision's names.
    unsaid : Unsaid
    source : str
        What error messages call the arrays.

    Raises
    ------
    ValueError
        If they are no network of He et al. (2015), with everything that does not fit.
    """
    for name in ("conv1.weight", "layer1.0.conv1.weight", "fc.weight"):
        if name not in arrays:
            raise ValueError(
                f"weights: {source} has no {name!r}, so it is not a residual network by "
                f"torchvision's names. It has {_listed(sorted(arrays))}."
            )
    stages = _stages(arrays)
    bottleneck = "layer1.0.conv3.weight" in arrays
    width, channels, kernel, _ = np.shape(arrays["conv1.weight"])
    stem: Stem = "imagenet" if kernel == 7 else "cifar" if len(stages) == 3 else "imagenet_3x3"
    spec = ResNetSpec(
        depth=_depth(stages, bottleneck, source),
        n_outputs=len(arrays["fc.weight"]),
        in_channels=channels,
        width=width,
        stem=stem,
        shortcut=_shortcut(arrays, unsaid.shortcut, source),
        option_a_padding=unsaid.option_a_padding,
        stride_in_1x1=unsaid.stride_in_1x1,
        preactivation="bn1.weight" not in arrays and "norm.weight" in arrays,
    )
    check_arrays(spec, arrays, source)
    return spec


def check_arrays(spec: ResNetSpec, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Refuse arrays that are not all that a network needs and nothing else.

    Raises
    ------
    ValueError
        Listing every array that is absent, of another shape, not finite, or not in the network.
    """
    shapes = spec.shapes()
    wrong = []
    for name, shape in shapes.items():
        if name not in arrays:
            if not name.endswith("num_batches_tracked"):  # files from before 2018 have none
                wrong.append(f"{name} is absent")
        elif np.shape(arrays[name]) != shape:
            wrong.append(f"{name} is {np.shape(arrays[name])} and must be {shape}")
        elif not np.isfinite(arrays[name]).all():
            wrong.append(f"{name} holds values that are not finite")
    wrong += [f"{name} is not part of it" for name in arrays if name not in shapes]
    if wrong:
        raise ValueError(
            f"weights: {source} does not fit a ResNet of depth {spec.depth} (stem {spec.stem!r}, "
            f"shortcut {spec.shortcut!r}, width {spec.width}): {_listed(wrong, '; ')}."
        )


def _listed(items: list[str], between: str = ", ") -> str:
    more = f"{between}and {len(items) - _MANY} more" if len(items) > _MANY else ""
    return between.join(items[:_MANY]) + more


def _stages(arrays: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """Number of blocks of each stage."""
    blocks = {(int(m[1]), int(m[2])) for name in arrays if (m := _BLOCK.fullmatch(name))}
    n_stages = max(stage for stage, _ in blocks)
    return tuple(
        max((block for stage, block in blocks if stage == s), default=-1) + 1
        for s in range(1, n_stages + 1)
    )


def _depth(stages: tuple[int, ...], bottleneck: bool, source: str) -> int:
    if len(stages) == 3 and len(set(stages)) == 1 and not bottleneck:
        return 6 * stages[0] + 2
    for depth in IMAGENET_DEPTHS:
        form = ResNetSpec(depth, 1, stem="imagenet", shortcut="B")
        if form.stages == stages and form.bottleneck == bottleneck:
            return depth
    kind = "bottlenecks" if bottleneck else "blocks of two convolutions"
    raise ValueError(
        f"weights: {source} has {stages} {kind}. Such a network is not among those of He et al. "
        "(2015): (n, n, n) of two convolutions, or the ImageNet forms of depth 18, 34, 50, 101, "
        "152."
    )


def _shortcut(arrays: Mapping[str, np.ndarray], asked: str | None, source: str) -> Shortcut | None:
    projections = [name for name in arrays if name.endswith("downsample.0.weight")]
    every = {name.rpartition(".conv1.")[0] for name in arrays if ".conv1.weight" in name}
    seen: tuple[str | None, ...] = ("A", None)
    if projections:
        seen = ("C",) if len(projections) == len(every) else ("B",)
    if asked == "auto":
        return seen[0]  # type: ignore[return-value]  # one of the literals above
    if asked not in seen:
        raise ValueError(
            f"shortcut: {source} has {len(projections)} projections in {len(every)} blocks, which "
            f"is option {' or '.join(map(repr, seen))}, but shortcut={asked!r} was asked for."
        )
    return asked  # type: ignore[return-value]


def adapt_arrays(
    arrays: Mapping[str, np.ndarray], spec: ResNetSpec, head: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Arrays for a network that differs in its number of classes or of input channels only.

    Another number of classes gets the new head. The first convolution sums over its input channels,
    so from C of them to

    - one: their sum. An image of one channel then gives what it gave as C equal ones.
    - C': copies of the old ones in turn, times C / C'. Without the factor, six channels would enter
      the trained statistics of the normalization twice as large. (Where C' is a multiple of C,
      images whose channels are all alike give what they gave.) Zeros for the new channels would
      leave those without any response at first.

    Parameters
    ----------
    arrays : mapping of str to ndarray
    spec : ResNetSpec
        The network that is wanted.
    head : mapping of str to ndarray
        "fc.weight" and "fc.bias" to begin with where the number of classes differs.

    Returns
    -------
    dict of str to ndarray
    """
    adapted = dict(arrays)
    if len(adapted["fc.weight"]) != spec.n_outputs:
        adapted |= {name: np.asarray(head[name]) for name in ("fc.weight", "fc.bias")}
    stem = np.asarray(adapted["conv1.weight"])
    old, new = stem.shape[1], spec.in_channels
    if new == 1:
        stem = stem.sum(axis=1, keepdims=True)
    elif new != old:
        stem = stem[:, np.arange(new) % old]
        stem = stem * np.asarray(old / new, dtype=stem.dtype)
    adapted["conv1.weight"] = stem
    check_arrays(spec, adapted, "the adapted file")
    return adapted
