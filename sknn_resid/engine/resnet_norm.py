"""Batch normalization of images, with weights of the rows where they differ.

With r_b the weight of row b over the sum of the weights of the batch, and P pixels, per channel:

    mu = sum_b r_b mean_p x_bp,  v = sum_b r_b mean_p (x_bp - mu)^2
    y_bp = gamma (x_bp - mu) / sqrt(v + eps) + beta

so that a row of weight 2 counts as that row twice (Ioffe and Szegedy 2015 for equal weights, where
torch's own kernel is taken: it is several times faster). Where several processes hold parts of the
batch, the sums over b go over all of them, derivatives included; torch's SyncBatchNorm does so on
CUDA only, and without weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sknn_resid.engine.processes import Processes

EPSILON = 1e-5
MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """Batch normalization with the parameters and buffers of ``torch.nn.BatchNorm2d``.

    Not a subclass of that: a forward pass with weights is another function, and torch's refuses a
    single value per channel, which is what an image of one pixel is. Here it becomes ``bias``.

    Parameters
    ----------
    n_channels : int
    dtype : torch.dtype
    device : torch.device or str

    Attributes
    ----------
    weight, bias : Parameter of shape (C,)
    running_mean, running_var : Tensor of shape (C,)
        Used in evaluation. In training they move by 0.1 of the way to a batch's mean and unbiased
        variance, n / (n - 1) v, with n the weights' sum times the pixels (the factor is at most 2).
    num_batches_tracked : Tensor of shape ()
    totals : list of (Tensor, Tensor, Tensor) or None
        While a list, training passes append (weight, mean, variance) and leave the statistics as
        they are.
    frozen : bool
        Whether training passes are as in evaluation, so that the statistics stay what they are.
    processes : Processes or None
        Those that hold the other parts of a training batch; with them a pass needs weights.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, n_channels: int, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_channels, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(n_channels, dtype=dtype, device=device))
        self.register_buffer("running_mean", torch.zeros(n_channels, dtype=dtype, device=device))
        self.register_buffer("running_var", torch.ones(n_channels, dtype=dtype, device=device))
        count = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("num_batches_tracked", count)
        self.totals: list[tuple[Tensor, Tensor, Tensor]] | None = None
        self.frozen = False
        self.processes: Processes | None = None

    def forward(self, x_BCHW: Tensor, weights_B: Tensor | None = None) -> Tensor:
        """Normalize; in training by the statistics of the batch.

        Parameters
        ----------
        x_BCHW : Tensor
        weights_B : Tensor of shape (B,) or None
            Weights of the rows, not all zero; None where they are equal. Not read in evaluation.
        """
        if not self.training or self.frozen:
            return F.batch_norm(
                x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON
            )
        n_values = x_BCHW.numel() // x_BCHW.shape[1]
        if weights_B is None and self.totals is None and n_values > 1:
            self.num_batches_tracked.add_(1)
            return F.batch_norm(
                x_BCHW,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                True,
                MOMENTUM,
                EPSILON,
            )
        if weights_B is None:
            weights_B = self.weight.new_ones(x_BCHW.shape[0])
        return self._weighted(x_BCHW, weights_B)

    def _weighted(self, x_BCHW: Tensor, weights_B: Tensor) -> Tensor:
        dtype = self.weight.dtype  # also under autocast: sums of bfloat16 would lose the mean
        x, w_B = x_BCHW.to(dtype), weights_B.to(dtype)
        # Statistics for prediction are pooled from passes that each process makes by itself.
        processes = self.processes if self.totals is None else None
        total = w_B.sum()
        if processes is not None:
            total = processes.sum_(total.detach())
        # Sums, not products of matrices: autocast would turn those into bfloat16.
        r_B1 = (w_B / total)[:, None]
        mean_C = (r_B1 * x.mean((2, 3))).sum(0)
        if processes is not None:
            mean_C = processes.sum_with_derivative(mean_C)
        centred = x - mean_C[:, None, None]
        var_C = (r_B1 * centred.square().mean((2, 3))).sum(0)
        if processes is not None:
            var_C = processes.sum_with_derivative(var_C)
        n = total * (x.shape[2] * x.shape[3])
        self._remember(n.detach(), mean_C.detach(), var_C.detach())
        scale_C = self.weight * torch.rsqrt(var_C + EPSILON)
        y = centred * scale_C[:, None, None] + self.bias[:, None, None]
        return y.to(x_BCHW.dtype)

    def _remember(self, n: Tensor, mean_C: Tensor, var_C: Tensor) -> None:
        if self.totals is not None:
            self.totals.append((n, mean_C, var_C))
            return
        self.num_batches_tracked.add_(1)
        unbiased_C = var_C * (n / torch.maximum(n - 1, n / 2))
        self.running_mean.lerp_(mean_C, MOMENTUM)
        self.running_var.lerp_(unbiased_C, MOMENTUM)
