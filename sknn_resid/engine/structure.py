"""One door to both kinds of networks: what the training loop needs to know of a structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine.layout import DenseLayout, dense_layout
from sknn_resid.engine.network import StackedNetwork
from sknn_resid.engine.pieces import Pieces
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_network import StackedResidualNetwork
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec
from sknn_resid.engine.spec import AnySpec, TrainSpec
from sknn_resid.engine.watch import Watch

AnyNetwork: TypeAlias = StackedNetwork | StackedResidualNetwork
AnyLayout: TypeAlias = DenseLayout | ResidualLayout


def layout_of(spec: AnySpec) -> AnyLayout:
    """Where the parameters of a structure lie."""
    if isinstance(spec, ResidualSpec):
        return ResidualLayout(spec)
    return dense_layout(spec.layer_sizes, spec.ties)


def numbers_per_row(spec: AnySpec) -> int:
    """Numbers that a step holds for each row of a batch: activations and their derivatives."""
    if isinstance(spec, ResidualSpec):
        inner = spec.hidden * (spec.n_layers_per_block - 1)
        per_block = spec.width + inner
        if spec.normalization is not Normalization.NONE:
            per_block *= 2  # the normalized numbers are kept beside what follows from them
        return 2 * (spec.width * 2 + spec.n_blocks * per_block + spec.n_outputs)
    return 2 * sum(spec.layer_sizes[1:])


def unpacked(spec: AnySpec, flat_P: np.ndarray) -> Any:
    """Parameters of one model as views: (coefs, intercepts), or named arrays."""
    return layout_of(spec).unpack(flat_P)


def input_dtype(spec: AnySpec) -> torch.dtype:
    """Dtype that rows are gathered in; a residual network casts them itself where it must."""
    return spec.dtype if isinstance(spec, ResidualSpec) else spec.product_dtype


def make_network(
    spec: AnySpec,
    params_MP: Tensor,
    batch_size: int,
    train_M: Sequence[TrainSpec],
    generators: Sequence[torch.Generator],
    input_scale_M: Sequence[np.ndarray | None],
    statistics_MS: Tensor | None = None,
    watch: Watch | None = None,
    *,
    model_by_model: bool = False,
    pieces: Pieces | None = None,
) -> AnyNetwork:
    """The stack's network of this structure.

    ``statistics_MS`` are means and variances to normalize with instead of those of each batch (for
    a residual network with batch normalization); ``watch`` is shown what a step makes;
    ``model_by_model`` is for compiled steps of dense networks; ``pieces`` for batches of a residual
    network that come packed.
    """
    dropout_M = [train.dropout for train in train_M]
    if isinstance(spec, ResidualSpec):
        drop_path_M = [train.drop_path for train in train_M]
        return StackedResidualNetwork(
            spec,
            params_MP,
            batch_size,
            dropout_M,
            drop_path_M,
            generators,
            input_scale_M,
            statistics_MS,
            watch,
            pieces,
        )
    return StackedNetwork(
        spec,
        params_MP,
        batch_size,
        dropout_M,
        generators,
        watch,
        model_by_model=model_by_model,
    )
