"""Image networks of He et al. (2015) as torch modules, by the names that torchvision gave them.

The forms, options and counts stand in `resnet_spec`. What these modules add to torchvision's: the
CIFAR form, shortcuts A and C, plain twins, preactivation, weights of rows in the normalizations,
random numbers from an explicit generator (torch's global one is not touched, also not while a
module is made), float64, and images of any size down to one pixel.

Axes: B rows of a batch, C channels, H height, W width, L blocks, K outputs, F features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sknn_resid.engine.processes import Processes
from sknn_resid.engine.resnet_norm import BatchNorm
from sknn_resid.engine.resnet_spec import BlockSpec, ResNetSpec

# torch 2.13's backward pass (oneDNN, AVX2) of a 1 x 1 convolution with a stride writes beyond its
# memory where rows of pixels have fewer than 8 channels: the process is aborted. With so few
# channels the pixels are picked first, which is the same convolution.
NARROW = 8


class Convolution(nn.Module):
    """A convolution without bias whose weights begin undefined, so that nothing random is drawn."""

    weight: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Convolve; the number of pixels n becomes n / stride, rounded up."""
        if self.padding == 0 and self.stride > 1 and x_BCHW.shape[1] < NARROW:
            pixels_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
            return F.conv2d(pixels_BCHW, self.weight)
        return F.conv2d(x_BCHW, self.weight, stride=self.stride, padding=self.padding)


class Linear(nn.Module):
    """The head; like `Convolution`, it begins undefined."""

    weight: Tensor
    bias: Tensor

    def __init__(self, n_in: int, n_out: int, dtype: torch.dtype, device: torch.device | str):
        super().__init__()
        self.weight = nn.Parameter(torch.empty((n_out, n_in), dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(n_out, dtype=dtype, device=device))

    def forward(self, h_BF: Tensor) -> Tensor:
        """Logits of shape (B, K)."""
        return F.linear(h_BF, self.weight, self.bias)


class Block(nn.Module):
    """Branch and shortcut; two convolutions, or the three of a bottleneck.

    Parameters
    ----------
    spec : ResNetSpec
    block : BlockSpec
    dtype : torch.dtype
    device : torch.device or str
    """

    def __init__(
        self, spec: ResNetSpec, block: BlockSpec, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        super().__init__()
        self.spec, self.block = spec, block
        self.preactivation = spec.preactivation
        convolutions = block.convolutions(spec.stride_in_1x1)
        self.n_convolutions = len(convolutions)
        for i, (c, out, kernel, stride) in enumerate(convolutions, start=1):
            norm = BatchNorm(c if spec.preactivation else out, dtype, device)
            self.add_module(f"conv{i}", Convolution(c, out, kernel, stride, dtype, device))
            self.add_module(f"bn{i}", norm)
        if block.projection:
            c, out = block.in_channels, block.out_channels
            parts: list[nn.Module] = [Convolution(c, out, 1, block.stride, dtype, device)]
            if not spec.preactivation:
                parts.append(BatchNorm(out, dtype, device))
            self.downsample: nn.Sequential | None = nn.Sequential(*parts)
        else:
            self.downsample = None

    def pairs(self) -> list[tuple[Convolution, BatchNorm]]:
        """Convolutions of the branch, each with the normalization that bears its number."""
        found = []
        for i in range(1, self.n_convolutions + 1):
            conv, norm = getattr(self, f"conv{i}"), getattr(self, f"bn{i}")
            found.append((conv, norm))
        return found

    def forward(self, x: Tensor, weights_B: Tensor | None, keep_B: Tensor | None) -> Tensor:
        """What the block leaves; ``keep_B`` multiplies the branch, row by row."""
        if self.preactivation:
            return self._preactivated(x, weights_B, keep_B)
        y = x
        for i, (conv, norm) in enumerate(self.pairs()):
            y = norm(conv(y if i == 0 else F.relu(y)), weights_B)
        if keep_B is not None:
            y = y * keep_B.to(y.dtype)[:, None, None, None]
        if self.spec.shortcut is not None:
            # Not in place, neither sum nor relu: hooks may look at the shortcut and at the sum.
            y = y + self._shortcut(x, weights_B)
        return F.relu(y)

    def _preactivated(self, x: Tensor, weights_B: Tensor | None, keep_B: Tensor | None) -> Tensor:
        y = x
        activated = x
        for i, (conv, norm) in enumerate(self.pairs()):
            y = F.relu(norm(y, weights_B))
            activated = y if i == 0 else activated
            y = conv(y)
        if keep_B is not None:
            y = y * keep_B.to(y.dtype)[:, None, None, None]
        if self.spec.shortcut is None:
            return y
        # A projection reads what the branch reads (He et al. 2016): x itself has no fixed scale.
        projects = self.downsample is not None
        return y + self._shortcut(activated if projects else x, weights_B)

    def _shortcut(self, x: Tensor, weights_B: Tensor | None) -> Tensor:
        if self.downsample is not None:
            y = self.downsample[0](x)
            return y if self.preactivation else self.downsample[1](y, weights_B)
        if not self.block.changes:
            return x
        return pad_channels(x, self.block, self.spec.option_a_padding)


def pad_channels(x_BCHW: Tensor, block: BlockSpec, padding: str) -> Tensor:
    """Shortcut A: every second pixel where the branch has stride 2, new channels zero."""
    added = block.out_channels - block.in_channels
    before = added // 2 if padding == "both" else 0
    x = x_BCHW[:, :, :: block.stride, :: block.stride]
    return F.pad(x, (0, 0, 0, 0, before, added - before))


class ResNet(nn.Module):
    """A network by its spec; weights undefined until `initialize` or `load_arrays`.

    Parameters
    ----------
    spec : ResNetSpec
    dtype : torch.dtype
    device : torch.device or str
    """

    def __init__(
        self,
        spec: ResNetSpec,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.spec = spec
        kernel, stride = spec.stem_convolution
        self.conv1 = Convolution(spec.in_channels, spec.width, kernel, stride, dtype, device)
        if not spec.preactivation:
            self.bn1 = BatchNorm(spec.width, dtype, device)
        blocks = iter(spec.blocks)
        for s, n_blocks in enumerate(spec.stages):
            stage = [Block(spec, next(blocks), dtype, device) for _ in range(n_blocks)]
            self.add_module(f"layer{s + 1}", nn.Sequential(*stage))
        if spec.preactivation:
            self.norm = BatchNorm(spec.n_features, dtype, device)
        self.fc = Linear(spec.n_features, spec.n_outputs, dtype, device)

    @property
    def own_dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.fc.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fc.weight.device

    # -- forward --------------------------------------------------------------------------------

    def forward(
        self, x_BCHW: Tensor, weights_B: Tensor | None = None, keep_LB: Tensor | None = None
    ) -> Tensor:
        """Logits of shape (B, K).

        Parameters
        ----------
        x_BCHW : Tensor
            Images; channels_last or not.
        weights_B : Tensor of shape (B,) or None
            Weights of the rows for the statistics of a training batch; None where they are equal.
        keep_LB : Tensor of shape (L, B) or None
            Factors of the branches, from `draw_keep`; needed for training with ``drop_path``.
        """
        return self.features(x_BCHW, "fc", weights_B, keep_LB)

    def features(
        self,
        x_BCHW: Tensor,
        stage: str = "avgpool",
        weights_B: Tensor | None = None,
        keep_LB: Tensor | None = None,
    ) -> Tensor:
        """What the network holds after a stage.

        Parameters
        ----------
        x_BCHW : Tensor
        stage : str
            One of ``spec.feature_names``: "stem" and "layer1" ... give maps of shape (B, C, H, W),
            "avgpool" their mean over the pixels (B, F), "fc" the logits (B, K).
        weights_B, keep_LB : Tensor or None
            As for `forward`.
        """
        names = self.spec.feature_names
        if stage not in names:
            raise ValueError(f"stage: must be one of {list(names)}, got {stage!r}.")
        if self.training and self.spec.drop_path and keep_LB is None:
            raise ValueError("keep_LB: training with drop_path needs the factors of draw_keep.")
        x = self._stem(x_BCHW, weights_B)
        if stage == "stem":
            return x
        index = 0
        for s in range(len(self.spec.stages)):
            for block in self.stage(s):
                x = block(x, weights_B, None if keep_LB is None else keep_LB[index])
                index += 1
            if stage == f"layer{s + 1}":
                return x
        if self.spec.preactivation:
            x = F.relu(self.norm(x, weights_B))
        h_BF = x.mean((2, 3))
        return h_BF if stage == "avgpool" else self.fc(h_BF)

    def stage(self, s: int) -> list[Block]:
        """The blocks of stage s = 0, 1, ..."""
        return list(getattr(self, f"layer{s + 1}"))

    def _stem(self, x: Tensor, weights_B: Tensor | None) -> Tensor:
        x = self.conv1(x)
        if not self.spec.preactivation:
            x = F.relu(self.bn1(x, weights_B))
        if self.spec.stem == "imagenet":
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        return x

    def freeze_to(self, stage: str) -> None:
        """Keep everything up to the end of a stage as it is: parameters and statistics.

        Parameters
        ----------
        stage : str
            One of ``spec.feature_names`` but "fc"; "avgpool" leaves the head alone to be trained.
        """
        names = self.spec.feature_names
        if stage not in names[:-1]:
            raise ValueError(f"freeze: must be one of {list(names[:-1])} or None, got {stage!r}.")
        kept = {"conv1", "bn1", *names[1 : names.index(stage) + 1]}
        if stage == "avgpool":
            kept.add("norm")
        for name, child in self.named_children():
            if name in kept:
                child.requires_grad_(False)
                for module in child.modules():
                    if isinstance(module, BatchNorm):
                        module.frozen = True

    def synchronize(self, processes: Processes | None) -> None:
        """Let the normalizations take their sums over the parts of a batch in all processes."""
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.processes = processes

    # -- what is drawn --------------------------------------------------------------------------

    def draw_keep(self, n_rows: int, generator: torch.Generator) -> Tensor | None:
        """Factors of the branches for one training batch, or None without ``drop_path``.

        Block l of L is kept with probability p_l = 1 - drop_path l / L, and then divided by it.
        Drawn row by row: a factor of the whole batch would change its statistics as well.

        Parameters
        ----------
        n_rows : int
        generator : torch.Generator
            On the device where the numbers are to be drawn.

        Returns
        -------
        Tensor of shape (L, B) or None
        """
        if not self.spec.drop_path:
            return None
        survival_LB = self._survival(n_rows).to(generator.device)
        keep_LB = torch.bernoulli(survival_LB, generator=generator) / survival_LB
        return keep_LB.to(self.fc.weight.device)

    def keep_all(self, n_rows: int) -> Tensor | None:
        """Factors 1, for a pass in training mode that drops nothing."""
        return torch.ones_like(self._survival(n_rows)) if self.spec.drop_path else None

    def _survival(self, n_rows: int) -> Tensor:
        n_blocks = len(self.spec.blocks)
        weight = self.fc.weight
        depth = torch.arange(1, n_blocks + 1, dtype=weight.dtype, device=weight.device) / n_blocks
        return (1 - self.spec.drop_path * depth)[:, None].expand(n_blocks, n_rows)


# -- weights ------------------------------------------------------------------------------------


def initialize(model: ResNet, generator: torch.Generator) -> None:
    """Draw all weights anew, in place.

    Convolutions: normal with variance 2 / (k^2 n_out) (He et al. 2015b, fan out). Normalizations: 1
    and 0. Head: weights and bias uniform within 1 / sqrt(n_in), torch's default. Always drawn in
    float32 on the CPU, so that a network begins alike in any dtype and on any device.

    Parameters
    ----------
    model : ResNet
    generator : torch.Generator
        Of the CPU.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Convolution):
                out, _, k, _ = module.weight.shape
                drawn = torch.empty(module.weight.shape, dtype=torch.float32)
                module.weight.copy_(
                    drawn.normal_(0, math.sqrt(2 / (k * k * out)), generator=generator)
                )
            elif isinstance(module, Linear):
                reset_head(module, generator)
            elif isinstance(module, BatchNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
                module.running_mean.zero_()
                module.running_var.fill_(1.0)
                module.num_batches_tracked.zero_()
        if model.spec.zero_init_residual:
            for module in model.modules():
                if isinstance(module, Block):
                    conv, norm = module.pairs()[-1]
                    (conv if module.preactivation else norm).weight.zero_()


def reset_head(head: Linear, generator: torch.Generator) -> None:
    """Draw the last layer anew: uniform within 1 / sqrt(n_in)."""
    bound = 1 / math.sqrt(head.weight.shape[1])
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            drawn = torch.empty(parameter.shape, dtype=torch.float32)
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def build(
    spec: ResNetSpec,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ResNet:
    """A network with weights as `initialize` draws them.

    Examples
    --------
    >>> import torch
    >>> from sknn_resid.engine.resnet import build
    >>> from sknn_resid.engine.resnet_spec import ResNetSpec
    >>> model = build(ResNetSpec(depth=8, n_outputs=10), torch.Generator().manual_seed(0))
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    model = ResNet(spec, dtype, device)
    initialize(model, generator)
    return model


def to_arrays(model: ResNet) -> dict[str, np.ndarray]:
    """Parameters and statistics as numpy arrays of their own, by their names."""
    return {name: t.detach().cpu().numpy().copy() for name, t in model.state_dict().items()}


def layers_of(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the convolutions and the head, from the input to the output: those with a matrix."""
    return [name.removesuffix(".weight") for name, array in arrays.items() if array.ndim > 1]


def load_arrays(model: ResNet, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy arrays of `to_arrays` into a model; ``num_batches_tracked`` may be absent.

    Raises
    ------
    ValueError
        Naming every array that is absent, left over, or of another shape.
    """
    wanted = model.state_dict()
    wrong = [
        f"{name}: {tuple(np.shape(arrays[name]))} where {tuple(t.shape)} is needed"
        for name, t in wanted.items()
        if name in arrays and np.shape(arrays[name]) != tuple(t.shape)
    ]
    optional = "num_batches_tracked"
    wrong += [f"{n}: absent" for n in wanted if n not in arrays and not n.endswith(optional)]
    wrong += [f"{n}: not in this network" for n in arrays if n not in wanted]
    if wrong:
        raise ValueError("weights: do not fit the network. " + "; ".join(wrong) + ".")
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name in arrays:
                tensor.copy_(torch.from_numpy(np.array(arrays[name])))
            else:
                tensor.zero_()
