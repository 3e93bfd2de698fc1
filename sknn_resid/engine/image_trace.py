"""One forward and backward pass of an image network, and what it makes, by autograd.

The pass is that of a training step without what is random (augmentation, drop path) and without
decay: batch statistics, weighted rows. Layers are seen through an `ImageWatch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sknn_resid.engine.image_data import Scaling
from sknn_resid.engine.image_watch import ImageWatch
from sknn_resid.engine.resnet import ResNet, initialize, load_arrays
from sknn_resid.engine.resnet_spec import ResNetSpec


@dataclass(frozen=True, eq=False)
class ImageSubject:
    """An image network and the rows it is looked at with.

    Attributes
    ----------
    spec : ResNetSpec
    arrays : mapping of str to ndarray, or None
        Weights; None draws them from ``seed``, as training does.
    seed : int
    scaling : Scaling
    pixels : ndarray of shape (n, H, W, C)
    codes : ndarray of shape (n,), int64, or None
        None for passes without a loss.
    weight : ndarray of shape (n,) or None
    label_smoothing : float
    fitted : bool
    freeze : str or None
        Stage up to whose end normalizations always work with kept statistics.
    """

    spec: ResNetSpec
    arrays: Mapping[str, np.ndarray] | None
    seed: int
    scaling: Scaling
    pixels: np.ndarray
    codes: np.ndarray | None
    weight: np.ndarray | None
    label_smoothing: float
    fitted: bool
    freeze: str | None = None

    @property
    def row_weights(self) -> np.ndarray:
        """r = w / sum w."""
        n = len(self.pixels)
        return np.full(n, 1 / n) if self.weight is None else self.weight / self.weight.sum()


@dataclass(frozen=True)
class Way:
    """How a pass computes.

    Attributes
    ----------
    kept : bool
        With the statistics that prediction uses instead of those of the rows.
    dtype : torch.dtype
    """

    kept: bool = False
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True, eq=False)
class ImageForward:
    """A forward pass, by layer: convolutions and the head, by torchvision's names.

    Attributes
    ----------
    module : ResNet
    pixels_BHWC : Tensor
        What was read, in the units of the user.
    z : dict of str to Tensor (B, C, H, W) or (B, K)
        What each layer gives.
    v : dict of str to Tensor (B, C, H, W)
        The first relu that this goes through; none behind the head.
    """

    module: ResNet
    pixels_BHWC: Tensor
    z: dict[str, Tensor] = field(default_factory=dict)
    v: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, layer: str, what: str, tensor: Tensor) -> None:
        """What an `ImageWatch` calls."""
        {"z": self.z, "v": self.v}[what][layer] = tensor

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """W of each layer, in the order of the network."""
        named = self.parameters
        return {layer: named[f"{layer}.weight"] for layer in self.layers}

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Each parameter by name."""
        return {name: p.detach().numpy() for name, p in self.module.named_parameters()}

    @property
    def layers(self) -> list[str]:
        """In the order of the network, where a projection comes last in its block."""
        names = [name.removesuffix(".weight") for name, _ in self.module.named_parameters()]
        return [name for name in names if name in self.z]


@dataclass(frozen=True, eq=False)
class ImageBackward:
    """A backward pass.

    Attributes
    ----------
    loss : float
        J = sum_i r_i l_i.
    parameters : dict of str to ndarray
        dJ/dparameter by name.
    deltas : dict of str to ndarray
        dJ/dz of each layer, where they were asked for.
    pixels : ndarray of shape (n, H, W, C) or None
        dJ/dX, likewise.
    """

    loss: float
    parameters: dict[str, np.ndarray]
    deltas: dict[str, np.ndarray]
    pixels: np.ndarray | None


def run_images(
    subject: ImageSubject, way: Way, *, everything: bool
) -> tuple[ImageForward, ImageBackward]:
    """One pass over all rows as one batch, there and back, on the CPU.

    Parameters
    ----------
    subject : ImageSubject
    way : Way
    everything : bool
        Whether to keep derivatives by z and by the pixels too, and not by parameters only.
    """
    done = _begun(subject, way)
    done.pixels_BHWC.requires_grad_(everything)
    loss = torch.from_numpy(subject.row_weights).to(way.dtype) @ _losses(done, subject, way)
    named = dict(done.module.named_parameters())
    others = [done.z[layer] for layer in done.layers] + [done.pixels_BHWC] if everything else []
    found = [g.numpy() for g in torch.autograd.grad(loss, [*named.values(), *others])]
    parameters, rest = found[: len(named)], found[len(named) :]
    back = ImageBackward(
        float(loss.detach()),
        dict(zip(named, parameters, strict=True)),
        dict(zip(done.layers, rest[:-1], strict=True)) if everything else {},
        rest[-1] if everything else None,
    )
    return done, back


def forward_images(subject: ImageSubject, way: Way) -> ImageForward:
    """The way there; without targets, too."""
    with torch.no_grad():
        done = _begun(subject, way)
        _logits(done, subject, way)
    return done


def pixel_gradients(subject: ImageSubject) -> np.ndarray:
    """Gradient of sum_i l_i by the scaled pixels, (n, H W C): each row's own where BN ties none."""
    way = Way()
    done = _begun(subject, way)
    done.pixels_BHWC.requires_grad_()
    loss = _losses(done, subject, way).sum()
    (gradient,) = torch.autograd.grad(loss, done.pixels_BHWC)
    return (gradient.numpy() * subject.scaling.std).reshape(len(gradient), -1)


def _begun(subject: ImageSubject, way: Way) -> ImageForward:
    module = ResNet(subject.spec, way.dtype)
    if subject.arrays is None:
        initialize(module, torch.Generator().manual_seed(subject.seed))
    else:
        load_arrays(module, subject.arrays)
    if subject.freeze is not None:
        module.freeze_to(subject.freeze)
        module.requires_grad_()  # a gradient is there, whether it is followed or not
    module.train(not way.kept)
    return ImageForward(module, torch.from_numpy(subject.pixels).to(way.dtype))


def _logits(done: ImageForward, subject: ImageSubject, way: Way) -> Tensor:
    r_B = torch.from_numpy(subject.row_weights).to(way.dtype)
    weights_B = None if bool((r_B == r_B[0]).all()) else r_B
    scale = subject.scaling.bind(way.dtype, torch.device("cpu"))
    x_BCHW = scale(done.pixels_BHWC).permute(0, 3, 1, 2)
    with ImageWatch(done.module, done.keep):
        return done.module(x_BCHW, weights_B, done.module.keep_all(len(r_B)))


def _losses(done: ImageForward, subject: ImageSubject, way: Way) -> Tensor:
    """Loss of each row."""
    assert subject.codes is not None
    z_BK = _logits(done, subject, way)
    codes_B = torch.from_numpy(subject.codes)
    smoothing = subject.label_smoothing
    return F.cross_entropy(z_BK, codes_B, reduction="none", label_smoothing=smoothing)
