"""Statistics that prediction uses, over given rows instead of the last few batches of training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sknn_resid.engine.resnet import ResNet
from sknn_resid.engine.resnet_norm import BatchNorm


def recompute_statistics(model: ResNet, batches: Iterable[tuple[Tensor, Tensor | None]]) -> None:
    """Set the statistics of every normalization to those of the given rows.

    He et al. (2015) predict with averages over training rows, not with a moving average, which
    depends on what came last. Each layer normalizes by its batch meanwhile, as in training; the
    statistics are those of all batches together:

    mu = sum_k n_k mu_k / n,  v = sum_k n_k (v_k + (mu_k - mu)^2) / n

    and ``num_batches_tracked`` is their number.

    Frozen normalizations keep theirs.

    Parameters
    ----------
    model : ResNet
        Its mode (training or evaluation) is as before when this returns.
    batches : iterable of (x_BCHW, weights_B or None)
        In the dtype and on the device of the model; at least one. Batches of weight zero are
        skipped.
    """
    was_training = model.training
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    try:
        model.train()
        for norm in norms:
            norm.totals = []
        with torch.no_grad():
            for x_BCHW, weights_B in batches:
                if weights_B is None or bool(weights_B.sum() > 0):
                    model(x_BCHW, weights_B, model.keep_all(x_BCHW.shape[0]))
        for norm in norms:
            if norm.totals:
                _pool(norm, norm.totals)
    finally:
        for norm in norms:
            norm.totals = None
        model.train(was_training)


def _pool(norm: BatchNorm, totals: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    n_K = torch.stack([n for n, _, _ in totals])
    mean_KC = torch.stack([mean for _, mean, _ in totals])
    var_KC = torch.stack([var for _, _, var in totals])
    r_K1 = (n_K / n_K.sum())[:, None]
    mean_C = (r_K1 * mean_KC).sum(0)  # no product of matrices, which autocast would round
    norm.running_mean.copy_(mean_C)
    norm.num_batches_tracked.fill_(len(totals))
    norm.running_var.copy_((r_K1 * (var_KC + (mean_KC - mean_C).square())).sum(0))
