"""Image networks in the form that predicts: normalizations folded, sums and relus inside products.

A normalization behind a convolution is one more factor and one more bias of it,

    gamma (w * x - mu) / sqrt(v + eps) + beta = (s w) * x + (beta - s mu),
    s = gamma / sqrt(v + eps)

so none is left, except those of ``preactivation`` that stand behind a sum. On a CPU the relu and
the sum with the shortcut become part of the convolution's last pass over its output (oneDNN's
post-operations, through the operators that torch's own compiler calls), weights are laid out once,
and images go through with channels last. One thread of an AVX-512 CPU against the module of
`resnet`, in times as fast (``benchmarks/resnet.py`` repeats it):

================================  =======  ========
network                           float32  bfloat16
================================  =======  ========
depth 20, 64 images of 32 x 32    2.1      4.4
depth 56, 64 images of 32 x 32    2.3      4.7
depth 50, 1 image of 224 x 224    1.4      2.7
================================  =======  ========

(1.4 and 2.6 for the first two where torch's allocator has learned to keep its memory.)

Where torch lacks these operators (other devices, float64, builds without oneDNN), the folded
convolutions run as torch's ordinary ones. Nothing is compiled and nothing measured at run time.

A network of this form is not changed by predicting: many threads may use one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sknn_resid.engine.resnet import Block, Convolution, ResNet, pad_channels
from sknn_resid.engine.resnet_norm import EPSILON, BatchNorm
from sknn_resid.engine.resnet_spec import ResNetSpec

VIEWS = ("none", "flip", "ten_crop")
TEN_CROP_RATIO = 224 / 256  # of each side, as in the paper


class Folded(ABC):
    """A convolution with bias that ends in a relu or in a sum."""

    @abstractmethod
    def plain(self, x: Tensor, *, relu: bool) -> Tensor:
        """The convolution of x, with or without relu."""

    @abstractmethod
    def added(self, x: Tensor, other: Tensor, *, relu: bool) -> Tensor:
        """``other`` plus the convolution of x, with or without relu, in the memory of ``other``."""


@dataclass(frozen=True, eq=False)
class TorchConvolution(Folded):
    """By torch's ordinary operations, on any device in any dtype."""

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int

    def plain(self, x: Tensor, *, relu: bool) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return y.relu_() if relu else y

    def added(self, x: Tensor, other: Tensor, *, relu: bool) -> Tensor:
        y = other.add_(F.conv2d(x, self.weight, self.bias, self.stride, self.padding))
        return y.relu_() if relu else y


@dataclass(frozen=True, eq=False)
class FusedConvolution(Folded):
    """By oneDNN with post-operations; ``weight`` in the layout that oneDNN asked for."""

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int

    def plain(self, x: Tensor, *, relu: bool) -> Tensor:
        attribute, algorithm = ("relu", "") if relu else ("none", None)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self._geometry(), attribute, [], algorithm
        )

    def added(self, x: Tensor, other: Tensor, *, relu: bool) -> Tensor:
        attribute, algorithm = ("relu", "") if relu else (None, None)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other,
            x,
            self.weight,
            self.bias,
            *self._geometry(),
            "add",
            1.0,
            attribute,
            [],
            algorithm,
        )

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return [self.padding] * 2, [self.stride] * 2, [1, 1], 1


def fuses(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch has oneDNN's operators for this dtype and device."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops, "mkldnn")):
        return False
    operators = torch.ops.mkldnn
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    if not all(hasattr(operators, name) for name in names):
        return False
    # Without the instructions, oneDNN refuses bfloat16; torch's ordinary operations do not.
    return dtype == torch.float32 or bool(operators._is_mkldnn_bf16_supported())


@dataclass(frozen=True, eq=False)
class _Affine:
    """A normalization that could not be folded, with its relu."""

    scale_C11: Tensor
    shift_C11: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift_C11, x, self.scale_C11).relu_()


@dataclass(frozen=True, eq=False)
class _FoldedBlock:
    first: _Affine | None
    branch: tuple[Folded, ...]
    projection: Folded | None
    block: Block


class InferenceNetwork:
    """A trained network, folded.

    Parameters
    ----------
    model : ResNet
        Its weights are copied; its mode does not matter.
    dtype : torch.dtype
        Of the convolutions; the mean over pixels and the head are float32 at least. bfloat16 moves
        logits by about 0.4 % of their norm.
    sizes : tuple (rows, height, width)
        Batches that weights are laid out for. Any others work, more slowly where the layout that
        oneDNN likes differs.

    Attributes
    ----------
    spec : ResNetSpec
    dtype : torch.dtype
        Of the convolutions.
    own_dtype : torch.dtype
        Of mean and head.
    device : torch.device

    Examples
    --------
    >>> import torch
    >>> from sknn_resid.engine.resnet import build
    >>> from sknn_resid.engine.resnet_inference import InferenceNetwork
    >>> from sknn_resid.engine.resnet_spec import ResNetSpec
    >>> model = build(ResNetSpec(depth=8, n_outputs=10), torch.Generator().manual_seed(0)).eval()
    >>> images = torch.ones(2, 3, 32, 32)
    >>> torch.allclose(InferenceNetwork(model)(images), model(images), rtol=1e-4, atol=1e-5)
    True
    """

    def __init__(
        self,
        model: ResNet,
        dtype: torch.dtype = torch.float32,
        sizes: tuple[int, int, int] = (64, 32, 32),
    ) -> None:
        head = model.fc.weight
        self.spec: ResNetSpec = model.spec
        self.dtype, self.device = dtype, head.device
        self._fused = fuses(dtype, head.device)
        self.own_dtype = torch.promote_types(dtype, torch.float32)
        with torch.no_grad():
            n, *pixels = sizes
            norm = None if self.spec.preactivation else model.bn1
            self._stem, pixels = self._fold(model.conv1, norm, n, pixels)
            if self.spec.stem == "imagenet":
                pixels = [-(-side // 2) for side in pixels]
            self._stages: list[list[_FoldedBlock]] = []
            for s in range(len(self.spec.stages)):
                stage = []
                for block in model.stage(s):
                    folded, pixels = self._fold_block(block, n, pixels)
                    stage.append(folded)
                self._stages.append(stage)
            self._last = self._affine(model.norm) if self.spec.preactivation else None
            self._head = [p.detach().to(self.own_dtype, copy=True) for p in model.fc.parameters()]

    # -- folding --------------------------------------------------------------------------------

    def _fold(
        self, conv: Convolution, norm: BatchNorm | None, n: int, pixels: list[int]
    ) -> tuple[Folded, list[int]]:
        """The convolution with the normalization behind it, and how many pixels it leaves."""
        weight = conv.weight.detach()
        bias = weight.new_zeros(weight.shape[0])
        if norm is not None:
            scale, bias = _scale_and_shift(norm)
            weight = weight * scale.to(weight.dtype)[:, None, None, None]
        weight = weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
        bias = bias.to(self.dtype)
        left = [-(-side // conv.stride) for side in pixels]
        if not self._fused:
            return TorchConvolution(weight, bias, conv.stride, conv.padding), left
        geometry = [conv.padding] * 2, [conv.stride] * 2, [1, 1], 1
        size = [n, weight.shape[1], *pixels]
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, size)
        return FusedConvolution(packed, bias, conv.stride, conv.padding), left

    def _fold_block(
        self, block: Block, n: int, pixels: list[int]
    ) -> tuple[_FoldedBlock, list[int]]:
        pairs = block.pairs()
        norms: list[BatchNorm | None] = [norm for _, norm in pairs]
        first = None
        if block.preactivation:
            assert norms[0] is not None
            first, norms = self._affine(norms[0]), [*norms[1:], None]
        branch, size = [], pixels
        for (conv, _), norm in zip(pairs, norms, strict=True):
            folded, size = self._fold(conv, norm, n, size)
            branch.append(folded)
        projection = None
        if block.downsample is not None:
            first_part, *rest = block.downsample
            after = rest[0] if rest else None
            assert isinstance(first_part, Convolution)
            assert after is None or isinstance(after, BatchNorm)
            projection, _ = self._fold(first_part, after, n, pixels)
        return _FoldedBlock(first, tuple(branch), projection, block), size

    def _affine(self, norm: BatchNorm) -> _Affine:
        scale, shift = _scale_and_shift(norm)
        return _Affine(*(t.to(self.dtype)[:, None, None] for t in (scale, shift)))

    # -- forward --------------------------------------------------------------------------------

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        """Logits of shape (B, K), float32 at least."""
        return self.features(x_BCHW, "fc")

    def features(self, x_BCHW: Tensor, stage: str = "avgpool") -> Tensor:
        """What the network holds after a stage; names and shapes as in `ResNet.features`."""
        names = self.spec.feature_names
        if stage not in names:
            raise ValueError(f"stage: must be one of {list(names)}, got {stage!r}.")
        if x_BCHW.shape[0] == 0:  # oneDNN does not take empty batches
            shape = x_BCHW.shape[2:]
            return x_BCHW.new_zeros(_empty_shape(self.spec, stage, shape), dtype=self.own_dtype)
        with torch.inference_mode():
            x = x_BCHW.to(self.dtype).contiguous(memory_format=torch.channels_last)
            x = self._stem.plain(x, relu=not self.spec.preactivation)
            if self.spec.stem == "imagenet":
                x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
            if stage == "stem":
                return x
            for s, blocks in enumerate(self._stages):
                for block in blocks:
                    x = self._block(block, x)
                if stage == f"layer{s + 1}":
                    return x
            if self._last is not None:
                x = self._last(x)
            h_BF = x.mean((2, 3), dtype=self.own_dtype)
            return h_BF if stage == "avgpool" else F.linear(h_BF, *self._head)

    def _block(self, folded: _FoldedBlock, x: Tensor) -> Tensor:
        """What a block leaves. The memory of x, which is ours from the stem on, may be reused."""
        activated = x if folded.first is None else folded.first(x)
        y = activated
        for conv in folded.branch[:-1]:
            y = conv.plain(y, relu=True)
        last, relu = folded.branch[-1], folded.first is None
        if self.spec.shortcut is None:
            return last.plain(y, relu=relu)
        shortcut = x
        if folded.projection is not None:
            shortcut = folded.projection.plain(activated, relu=False)
        elif folded.block.block.changes:
            padded = pad_channels(x, folded.block.block, self.spec.option_a_padding)
            shortcut = padded.contiguous(memory_format=torch.channels_last)
        return last.added(y, shortcut, relu=relu)


def _scale_and_shift(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """s and beta - s mu, in float64."""
    weight, bias, mean, var = (
        t.detach().double() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight * torch.rsqrt(var + EPSILON)
    return scale, bias - mean * scale


def _empty_shape(spec: ResNetSpec, stage: str, pixels: torch.Size) -> tuple[int, ...]:
    if stage == "fc":
        return (0, spec.n_outputs)
    if stage == "avgpool":
        return (0, spec.n_features)
    halvings = 2 if spec.stem == "imagenet" else 0
    channels = spec.width
    if stage != "stem":
        s = int(stage.removeprefix("layer")) - 1
        channels, halvings = spec.stage_channels[s], halvings + s
    return (0, channels, *(-(-side // 2**halvings) for side in pixels))


# -- several views of an image ------------------------------------------------------------------


def views_of(x_BCHW: Tensor, views: str) -> Iterator[Tensor]:
    """The images that test-time augmentation averages over.

    Parameters
    ----------
    x_BCHW : Tensor
    views : {"none", "flip", "ten_crop"}
        The image; it and its mirror image; or the four corners and the centre, 7/8 of each side
        (224 of 256 pixels), each with its mirror image (He et al. 2015, section 3.4).

    Yields
    ------
    Tensor of shape (B, C, h, w)
    """
    if views not in VIEWS:
        raise ValueError(f"views: must be one of {list(VIEWS)}, got {views!r}.")
    if views != "ten_crop":
        yield x_BCHW
        if views == "flip":
            yield x_BCHW.flip(3)
        return
    height, width = x_BCHW.shape[2:]
    h, w = (max(1, round(side * TEN_CROP_RATIO)) for side in (height, width))
    down, right = height - h, width - w
    for top, left in ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)):
        crop = x_BCHW[:, :, top : top + h, left : left + w]
        yield crop
        yield crop.flip(3)


class AveragedViews:
    """A network whose logits are those of the mean probabilities of several views of an image.

    Softmax of what it gives is the mean over the views v of softmax(z_v), so it stands wherever a
    network does.

    Parameters
    ----------
    network : InferenceNetwork
    views : {"flip", "ten_crop"}
    """

    def __init__(self, network: InferenceNetwork, views: str) -> None:
        self._network, self._views = network, views
        self.spec, self.device, self.own_dtype = network.spec, network.device, network.own_dtype

    def features(self, x_BCHW: Tensor, stage: str = "fc") -> Tensor:
        """log(mean_v softmax(z_v)) for the stage "fc"; other stages are those of the image."""
        if stage != "fc":
            return self._network.features(x_BCHW, stage)
        logs = [self._network(view).log_softmax(1) for view in views_of(x_BCHW, self._views)]
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))
