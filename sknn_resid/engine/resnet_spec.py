"""What an image network of He et al. (2015) is: frozen values, names and shapes of its parameters.

Two forms, by the stem:

=================  ====================  ==========  =========  ===================================
stem               first layers          stages      blocks     depths
=================  ====================  ==========  =========  ===================================
``cifar``          3x3                   w, 2w, 4w   n each     6n + 2: 8, 14, 20, ..., 1202, ...
``imagenet``       7x7 / 2, pool / 2     w ... 8w    see below  18, 34, 50, 101, 152
``imagenet_3x3``   3x3                   w ... 8w    see below  the same; for images of 32 pixels
=================  ====================  ==========  =========  ===================================

with w = 16 and 64 channels in the paper. The ImageNet form has (2, 2, 2, 2) blocks at depth 18,
(3, 4, 6, 3) at 34 and 50, (3, 4, 23, 3) at 101, (3, 8, 36, 3) at 152; from 50 on a block is a
bottleneck of 1x1, 3x3, 1x1 convolutions with four times as many channels at its end. After the last
stage: mean over the pixels, then one linear layer. Parameters, 10 classes and 1000 classes:

=======  =========  =========      =======  ==========  ==========  ==========
CIFAR    option A   option B       ImageNet option A    option B    option C
=======  =========  =========      =======  ==========  ==========  ==========
20       269,722    272,474        18                   11,689,512
56       853,018    855,770        34       21,623,848  21,797,672  22,716,840
110      1,727,962  1,730,714      50                   25,557,032
1202     19,421,274 19,424,026     152                  60,192,808
=======  =========  =========      =======  ==========  ==========  ==========

A block is y = relu(F(x) + s(x)). Where the number of channels or pixels changes, the shortcut s is

- A: every second pixel, new channels zero (no parameters);
- B: a 1x1 convolution with batch normalization; the identity elsewhere;
- C: a 1x1 convolution with batch normalization in every block;
- None: no shortcut at all, y = relu(F(x)): the plain twin. It has the parameters of option A.

Names of parameters are torchvision's.

References
----------
He, Zhang, Ren and Sun (2015), Deep residual learning for image recognition, table 1, section 4.2.
He, Zhang, Ren and Sun (2016), Identity mappings in deep residual networks (``preactivation``).
Huang, Sun, Liu, Sedra and Weinberger (2016), Deep networks with stochastic depth (``drop_path``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Stem = Literal["cifar", "imagenet", "imagenet_3x3"]
Shortcut = Literal["A", "B", "C"]
Padding = Literal["both", "end"]

STEMS = ("cifar", "imagenet", "imagenet_3x3")
SHORTCUTS = ("A", "B", "C", None)
PADDINGS = ("both", "end")
_STAGES = (
    (18, (2, 2, 2, 2)),
    (34, (3, 4, 6, 3)),
    (50, (3, 4, 6, 3)),
    (101, (3, 4, 23, 3)),
    (152, (3, 8, 36, 3)),
)
IMAGENET_DEPTHS = tuple(depth for depth, _ in _STAGES)
_BOTTLENECK_FROM = 50
EXPANSION = 4  # channels at the end of a bottleneck, over those inside
NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def _is_cifar_depth(depth: int) -> bool:
    return depth >= 8 and (depth - 2) % 6 == 0


def _nearest(depth: int, stem: str) -> str:
    """The valid depths on both sides, for an error message."""
    n = max(1, (depth - 2) // 6)
    near = {6 * n + 2, 6 * n + 8} if stem in ("auto", "cifar") else set()
    if stem != "cifar":
        near |= {d for d in IMAGENET_DEPTHS if stem != "auto" or abs(d - depth) < 6}
    below = max((d for d in near if d < depth), default=None)
    above = min((d for d in near if d > depth), default=None)
    return " and ".join(str(d) for d in (below, above) if d is not None)


def resolve_stem(depth: int, stem: str = "auto") -> Stem:
    """The stem that a depth takes, and a check that such a depth exists.

    "auto" is the ImageNet form at its five depths (50 and 152 are also 6n + 2: ``stem="cifar"``
    asks for those), else the CIFAR form.

    Raises
    ------
    ValueError
        If there is no such depth, with the valid ones; if ``stem`` is none of its values.

    Examples
    --------
    >>> from sknn_resid.engine.resnet_spec import resolve_stem
    >>> resolve_stem(20), resolve_stem(50), resolve_stem(50, "cifar")
    ('cifar', 'imagenet', 'cifar')
    """
    if stem not in ("auto", *STEMS):
        raise ValueError(f"stem: must be 'auto' or one of {list(STEMS)}, got {stem!r}.")
    cifar, imagenet = _is_cifar_depth(depth), depth in IMAGENET_DEPTHS
    if stem == "auto" and imagenet:
        return "imagenet"
    if stem in ("auto", "cifar") and cifar:
        return "cifar"
    if stem in ("imagenet", "imagenet_3x3") and imagenet:
        return stem  # type: ignore[return-value]  # mypy does not narrow by "in"
    six = "6n + 2 with n >= 1 (8, 14, 20, 32, 44, 56, 110, 1202, ...; stem 'cifar')"
    five = "18, 34, 50, 101 or 152 (stem 'imagenet')"
    valid = {"auto": f"{six}, or {five}", "cifar": six}.get(stem, five)
    raise ValueError(
        f"depth: must be {valid}, got {depth} with stem={stem!r}. Nearest: {_nearest(depth, stem)}."
    )


def default_width(stem: str) -> int:
    """Channels of the first stage in the paper: 16 in the CIFAR form, else 64."""
    return 16 if stem == "cifar" else 64


def default_shortcut(stem: str) -> Shortcut:
    """The option of the paper's tables: A in the CIFAR form, B in the ImageNet form."""
    return "A" if stem == "cifar" else "B"


@dataclass(frozen=True)
class BlockSpec:
    """One block of a network.

    Attributes
    ----------
    name : str
        Such as "layer2.0".
    in_channels, inner, out_channels : int
        What it reads; width of its convolutions; what it leaves.
    stride : int
        2 where the number of pixels is halved in both directions.
    bottleneck : bool
        Three convolutions, or two.
    projection : bool
        Whether its shortcut is a 1x1 convolution with batch normalization.
    """

    name: str
    in_channels: int
    inner: int
    out_channels: int
    stride: int
    bottleneck: bool
    projection: bool

    @property
    def changes(self) -> bool:
        """Whether channels or pixels change, so that the identity does not fit."""
        return self.stride != 1 or self.in_channels != self.out_channels

    def convolutions(self, stride_in_1x1: bool) -> tuple[tuple[int, int, int, int], ...]:
        """(in, out, kernel, stride) of each convolution of the branch."""
        if not self.bottleneck:
            return (
                (self.in_channels, self.inner, 3, self.stride),
                (self.inner, self.out_channels, 3, 1),
            )
        first, second = (self.stride, 1) if stride_in_1x1 else (1, self.stride)
        return (
            (self.in_channels, self.inner, 1, first),
            (self.inner, self.inner, 3, second),
            (self.inner, self.out_channels, 1, 1),
        )


@dataclass(frozen=True)
class ResNetSpec:
    """Structure of an image network.

    Attributes
    ----------
    depth : int
        Number of weighted layers on the longest path, by the table above.
    n_outputs : int
        Outputs of the head.
    in_channels : int
    width : int
        Channels of the first stage.
    stem : {"cifar", "imagenet", "imagenet_3x3"}
    shortcut : {"A", "B", "C", None}
    option_a_padding : {"both", "end"}
        Where option A puts its zero channels: half of them on each side, or all behind the old
        ones. Weights trained with one do not fit the other.
    stride_in_1x1 : bool
        Of a bottleneck that halves the pixels: stride in its first 1x1 convolution (the paper,
        Caffe's files), or in the 3x3 (torchvision, "v1.5"). Same parameters, other function.
    zero_init_residual : bool
        Each branch starts as zero (Goyal et al. 2017): the last gamma of a block, with
        ``preactivation`` its last convolution.
    drop_path : float
        Probability that the last block's branch is left out for a row, while training; block l of L
        has l / L times as much. A kept branch is divided by its probability.
    preactivation : bool
        Normalization and relu before each convolution, nothing after the sum; one more of both
        after the last block, as ``norm``. A projection reads what the branch's first convolution
        reads, and has no normalization of its own.

    Raises
    ------
    ValueError
        If a value is out of range, or values contradict each other.

    Examples
    --------
    >>> from sknn_resid.engine.resnet_spec import ResNetSpec
    >>> spec = ResNetSpec(depth=20, n_outputs=10)
    >>> spec.n_parameters, len(spec.blocks), spec.n_features
    (269722, 9, 64)
    """

    depth: int
    n_outputs: int
    in_channels: int = 3
    width: int = 16
    stem: Stem = "cifar"
    shortcut: Shortcut | None = "A"
    option_a_padding: Padding = "both"
    stride_in_1x1: bool = False
    zero_init_residual: bool = False
    drop_path: float = 0.0
    preactivation: bool = False

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise ValueError(f"stem: must be one of {list(STEMS)}, got {self.stem!r}.")
        resolve_stem(self.depth, self.stem)
        if self.shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut: must be one of {list(SHORTCUTS)}, got {self.shortcut!r}.")
        if self.option_a_padding not in PADDINGS:
            raise ValueError(
                f"option_a_padding: must be one of {list(PADDINGS)}, got {self.option_a_padding!r}."
            )
        for name in ("n_outputs", "in_channels", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path: must be in [0, 1), got {self.drop_path}.")
        if self.shortcut is None and (self.drop_path or self.zero_init_residual):
            raise ValueError(
                "shortcut: None (the plain network) has nothing beside its branches, so drop_path "
                "must be 0 and zero_init_residual False."
            )

    @property
    def bottleneck(self) -> bool:
        """Whether blocks are bottlenecks."""
        return self.stem != "cifar" and self.depth >= _BOTTLENECK_FROM

    @property
    def stages(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        if self.stem == "cifar":
            return ((self.depth - 2) // 6,) * 3
        return dict(_STAGES)[self.depth]

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels at the end of each stage."""
        factor = EXPANSION if self.bottleneck else 1
        return tuple(factor * self.width * 2**s for s in range(len(self.stages)))

    @property
    def n_features(self) -> int:
        """What the head reads: channels of the last stage."""
        return self.stage_channels[-1]

    @property
    def stem_convolution(self) -> tuple[int, int]:
        """Kernel and stride of the first convolution."""
        return (7, 2) if self.stem == "imagenet" else (3, 1)

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """All blocks in their order."""
        found = []
        channels = self.width
        for s, (n_blocks, out) in enumerate(zip(self.stages, self.stage_channels, strict=True)):
            for i in range(n_blocks):
                stride = 2 if s > 0 and i == 0 else 1
                changes = stride != 1 or channels != out
                found.append(
                    BlockSpec(
                        name=f"layer{s + 1}.{i}",
                        in_channels=channels,
                        inner=self.width * 2**s,
                        out_channels=out,
                        stride=stride,
                        bottleneck=self.bottleneck,
                        projection=self.shortcut == "C" or (self.shortcut == "B" and changes),
                    )
                )
                channels = out
        return tuple(found)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of what can be taken out, from the stem to the logits."""
        stages = [f"layer{s + 1}" for s in range(len(self.stages))]
        return ("stem", *stages, "avgpool", "fc")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter and every statistic, in torchvision's order."""
        kernel, _ = self.stem_convolution
        found: dict[str, tuple[int, ...]] = {
            "conv1.weight": (self.width, self.in_channels, kernel, kernel)
        }
        if not self.preactivation:
            found.update(_norm_shapes("bn1", self.width))
        for block in self.blocks:
            for i, (c, out, k, _) in enumerate(block.convolutions(self.stride_in_1x1), start=1):
                found[f"{block.name}.conv{i}.weight"] = (out, c, k, k)
                normalized = c if self.preactivation else out
                found.update(_norm_shapes(f"{block.name}.bn{i}", normalized))
            if block.projection:
                shape = (block.out_channels, block.in_channels, 1, 1)
                found[f"{block.name}.downsample.0.weight"] = shape
                if not self.preactivation:
                    found.update(_norm_shapes(f"{block.name}.downsample.1", block.out_channels))
        if self.preactivation:
            found.update(_norm_shapes("norm", self.n_features))
        found["fc.weight"] = (self.n_outputs, self.n_features)
        found["fc.bias"] = (self.n_outputs,)
        return found

    @property
    def n_parameters(self) -> int:
        """Numbers that are learned."""
        return sum(
            math.prod(shape) for name, shape in self.shapes().items() if not is_statistic(name)
        )

    def multiplications(self, height: int, width: int) -> int:
        """Multiplications of one image's forward pass, in convolutions and head."""
        kernel, stride = self.stem_convolution
        height, width = -(-height // stride), -(-width // stride)
        total = height * width * self.width * self.in_channels * kernel**2
        if self.stem == "imagenet":
            height, width = -(-height // 2), -(-width // 2)
        for block in self.blocks:
            h, w = height, width
            for c, out, k, s in block.convolutions(self.stride_in_1x1):
                h, w = -(-h // s), -(-w // s)
                total += h * w * c * out * k**2
            height, width = h, w
            if block.projection:
                total += height * width * block.in_channels * block.out_channels
        return total + self.n_features * self.n_outputs


def is_statistic(name: str) -> bool:
    """Whether a key of `ResNetSpec.shapes` names a batch statistic, not a parameter."""
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def _norm_shapes(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key in NORM_KEYS:
        yield f"{name}.{key}", () if key == "num_batches_tracked" else (channels,)
