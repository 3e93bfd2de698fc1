"""Seeing a pass of an image network from within, layer by layer.

A `TorchFunctionMode` watches torch's functions while a pass runs and is gone with it. A module hook
would have to be taken off again, does not see a relu that is a function, and disturbs operations in
place. What a function gives is shown as it is, so that the pass goes the same way, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sknn_resid.engine.resnet import ResNet

Show = Callable[[str, str, Tensor], None]


def weights_of(module: ResNet) -> dict[str, Tensor]:
    """Weights of the convolutions and the head, from the input to the output.

    By torchvision's names without ".weight": "conv1", "layer1.0.conv1", ..., "fc".
    """
    return {
        name.removesuffix(".weight"): parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1
    }


class ImageWatch(TorchFunctionMode):
    """Shows what the layers of a network make, from entering to leaving the context.

    Parameters
    ----------
    module : ResNet
    show : callable
        ``show(layer, what, tensor)``: "z" is what a convolution or the head gives, (B, C, H, W) or
        (B, K); "v" the result of the first relu that this goes through. A projection and the last
        convolution of its block share theirs; the head has none.
    """

    def __init__(self, module: ResNet, show: Show) -> None:
        super().__init__()
        self._layer_of = {id(weight): name for name, weight in weights_of(module).items()}
        self._show = show
        self._waiting: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.conv2d or func is F.linear:
            layer = self._layer_of[id(args[1])]
            self._waiting.append(layer)
            self._show(layer, "z", result)
        elif func is F.relu:
            for layer in self._waiting:
                self._show(layer, "v", result)
            self._waiting = []
        return result
