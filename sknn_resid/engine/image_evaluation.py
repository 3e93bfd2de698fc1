"""Forward passes over any number of images in bounded memory, and statistics for prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.image_augment import epoch_generator
from sknn_resid.engine.image_data import Images, ImageSet, Scaling, batch_slices
from sknn_resid.engine.image_step import autocast, is_out_of_memory
from sknn_resid.engine.resnet import ResNet
from sknn_resid.engine.resnet_inference import AveragedViews, InferenceNetwork
from sknn_resid.engine.resnet_statistics import recompute_statistics

CPU_NUMBERS = 1 << 21  # of the largest activation of a chunk: what stays in a cache or near it
DEVICE_NUMBERS = 1 << 27
STATISTICS_ROWS = 2048  # enough for looks at a network in training
_STATISTICS_DRAW = 2**32 - 2  # an "epoch" that no training reaches


# Both have features(x, stage), and say where and in what dtype they take x.
AnyNetwork = ResNet | InferenceNetwork | AveragedViews


def rows_at_once(module: AnyNetwork, images: Images) -> int:
    """Rows of a chunk, by the size of the first stage's activations."""
    height, width, channels = images.shape
    _, stride = module.spec.stem_convolution
    numbers = max(-(-height // stride) * -(-width // stride) * module.spec.width, channels)
    budget = CPU_NUMBERS if images.device.type == "cpu" else DEVICE_NUMBERS
    return max(1, budget // numbers)


def forward_chunks(
    module: AnyNetwork,
    images: Images,
    rows: np.ndarray,
    scaling: Scaling,
    *,
    stage: str = "fc",
    product_dtype: torch.dtype | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """(which of the rows, what the network holds after a stage), in evaluation mode.

    Parameters
    ----------
    module : ResNet, InferenceNetwork or AveragedViews
        In evaluation mode.
    images : Images
    rows : ndarray of int64
    scaling : Scaling
    stage : str
        One of ``module.spec.feature_names``.
    product_dtype : torch.dtype or None
        Of the convolutions, where not the module's own.
    """
    scale = scaling.bind(module.own_dtype, module.device)
    chunk = rows_at_once(module, images)
    first = 0
    while first < len(rows):
        part = slice(first, min(first + chunk, len(rows)))
        result = _attempt(module, images, rows[part], scale, stage, product_dtype)
        if result is None:
            if part.stop - part.start == 1:
                raise MemoryError(
                    f"One image of shape {images.shape} does not fit the memory of {module.device}."
                )
            chunk = max(1, (part.stop - part.start) // 2)
            continue
        yield part, result.to(module.own_dtype)
        first = part.stop


def _attempt(
    module: AnyNetwork,
    images: Images,
    rows: np.ndarray,
    scale: Callable[[Tensor], Tensor],
    stage: str,
    product_dtype: torch.dtype | None,
) -> Tensor | None:
    """None where memory ran out."""
    try:
        with torch.inference_mode(), autocast(images.device, product_dtype):
            x_BHWC = scale(images.gather(rows))
            return module.features(x_BHWC.permute(0, 3, 1, 2), stage)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def measure_statistics(
    module: ResNet,
    data: ImageSet,
    scaling: Scaling,
    batch_size: int,
    *,
    seed: int,
    product_dtype: torch.dtype | None,
    most_rows: int | None = None,
) -> None:
    """Set the batch statistics that predictions use, from unchanged training images.

    Batches are drawn at random: in the order of the set a batch might hold one class only.

    Parameters
    ----------
    module : ResNet
    data : ImageSet
    scaling : Scaling
    batch_size : int
    seed : int
    product_dtype : torch.dtype or None
    most_rows : int or None
        So many rows only; None for all.
    """
    n = data.n_rows
    order = np.arange(n)
    if n > batch_size:
        epoch_generator(seed, _STATISTICS_DRAW).shuffle(order)
        order = order[:most_rows]
    weight = module.fc.weight
    scale = scaling.bind(weight.dtype, weight.device)

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for part in batch_slices(len(order), batch_size):
            rows = data.at(order[part])
            x_BCHW = scale(data.images.gather(rows)).permute(0, 3, 1, 2)
            w_B = None
            if data.weight is not None:
                w_B = torch.from_numpy(data.weight[rows]).to(weight.device, weight.dtype)
            yield x_BCHW, w_B

    with autocast(weight.device, product_dtype):
        recompute_statistics(module, batches())


def logits_of(
    module: ResNet,
    data: ImageSet,
    scaling: Scaling,
    product_dtype: torch.dtype | None,
) -> np.ndarray:
    """Raw outputs (N, K) of a set in host memory; the module is in training mode afterwards."""
    module.eval()
    rows = data.all_rows()
    found = np.empty((len(rows), module.spec.n_outputs))
    for part, z_BK in forward_chunks(
        module, data.images, rows, scaling, product_dtype=product_dtype
    ):
        found[part] = z_BK.cpu().numpy()
    module.train()
    return found
