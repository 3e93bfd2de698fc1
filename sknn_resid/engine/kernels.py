"""Bound operations: the smallest pieces a training step is made of.

A training step runs the same few dozen array operations on the same memory thousands of
times. Each function here *binds* one operation to its arrays once and returns a callable without
arguments, so that the step itself is a plain list of calls: no indexing, no allocation, no choice
left to make. The choice of kernel is made here and nowhere else:

* one model on the CPU in float32 or float64: 2-D products by ``numpy.dot`` (OpenBLAS). Measured
  against ``torch.mm`` (MKL) on an AMD processor it is 10 to 20 % faster at 200 x 64 x 100 and
  1024 x 256 x 256, in both precisions, and leaves the results on the same memory.
* a stack of models on the CPU: ``numpy.matmul`` (one OpenBLAS call a model, looped in C), which was
  faster than ``torch.bmm`` at every shape measured but two: an outer product (a single output),
  where it leaves BLAS, is a multiplication with broadcasting; a narrow product with a transposed
  factor is cut into blocks (`SMALL_RESULT`).
* everything else (bfloat16, GPU): ``torch.mm`` and ``torch.bmm``.

Elementwise work is torch's everywhere: its vectorised ``relu`` or Adam is 3 to 5 times faster than
numpy's on a 200 x 100 array.

Legend for axes in names: M models, N rows, B rows of a batch, D features, H hidden units, K
outputs, P parameters, G batches of a segment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

Op = Callable[[], object]

# Class-major products with 2 to 16 rows (logits, gradient of the output layer): MKL is up to 30 %
# faster than OpenBLAS there (10 x 100 x 200: 5.3 against 7.7 microseconds). Small ones only: MKL
# shares a large one among threads of its own where the user has set torch's thread count, and those
# fight with OpenBLAS's for the cores (a fit at (256, 256) then took 4 times longer).
NARROW = 16
NARROW_PRODUCT = 1_000_000
# OpenBLAS's kernels for small matrices (AVX-512) take a product with a transposed right factor only
# if the result has at most so many numbers; beyond, the same product is 2 to 4 times slower (10
# models, float32, K x 100 x 200: K = 5 2.9, K = 7 13.9 microseconds). Blocks of columns stay below.
SMALL_RESULT = 1200
# Below this many multiplications the fused product-and-bias of torch beats a faster product
# followed by an addition (150 x 4 x 100: 3.7 against 5.4 microseconds).
TINY_PRODUCT = 200_000
CLIP_TINY = 1e-30  # keeps 0 / 0 out of the clipping factor


def numpy_speaks(tensor: Tensor) -> bool:
    """Whether ``numpy`` can work on this tensor's memory (CPU, float32 or float64)."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def _suits_mkl(rows: int, per_row: int) -> bool:
    """Whether a product of so many rows, and multiplications per row, is a small narrow one."""
    return 1 < rows <= NARROW and rows * per_row < NARROW_PRODUCT


def matmul(a_Mij: Tensor, b_Mjk: Tensor, out_Mik: Tensor) -> Op:
    """Bind ``out = a @ b`` for every model of the stack.

    Parameters
    ----------
    a_Mij, b_Mjk : Tensor of shape (M, i, j) and (M, j, k)
        Factors; each matrix is row- or column-major (a transposed view is free).
    out_Mik : Tensor of shape (M, i, k)
        Row-major result, overwritten by each call.
    """
    M, i, _ = out_Mik.shape
    if numpy_speaks(out_Mik):
        if M > 1 and a_Mij.shape[2] == 1:
            return partial(torch.mul, a_Mij, b_Mjk, out=out_Mik)
        if M > 1:
            return partial(np.matmul, a_Mij.numpy(), b_Mjk.numpy(), out_Mik.numpy())
        if not _suits_mkl(i, a_Mij.shape[2] * b_Mjk.shape[2]):
            return partial(np.dot, a_Mij[0].numpy(), b_Mjk[0].numpy(), out_Mik[0].numpy())
    if M == 1:
        return partial(torch.mm, a_Mij[0], b_Mjk[0], out=out_Mik[0])
    return partial(torch.bmm, a_Mij, b_Mjk, out=out_Mik)


def affine(x_Mij: Tensor, W_Mjk: Tensor, b_Mk: Tensor, out_Mik: Tensor) -> list[Op]:
    """Bind ``out = x @ W + b``, the bias along the last axis."""
    M, i, k = out_Mik.shape
    tiny = M == 1 and i * k * x_Mij.shape[2] < TINY_PRODUCT
    if tiny:
        return [partial(torch.addmm, b_Mk[0], x_Mij[0], W_Mjk[0], out=out_Mik[0])]
    return [matmul(x_Mij, W_Mjk, out_Mik), add_row(out_Mik, b_Mk)]


def affine_columns(W_Mki: Tensor, v_Mji: Tensor, b_Mk: Tensor, out_Mkj: Tensor) -> list[Op]:
    """Bind ``out = W @ v' + b``, the bias along the middle axis (class-major logits)."""
    M, k, n = out_Mkj.shape
    if M == 1 and _suits_mkl(k, W_Mki.shape[2] * n):
        return [partial(torch.addmm, b_Mk[0].unsqueeze(1), W_Mki[0], v_Mji[0].T, out=out_Mkj[0])]
    blocks = [slice(0, n)]
    if M > 1 and numpy_speaks(out_Mkj) and k <= SMALL_RESULT:
        blocks = column_blocks(k, n)
    products = [matmul(W_Mki, v_Mji[:, part].mT, out_Mkj[:, :, part]) for part in blocks]
    return [*products, add_column(out_Mkj, b_Mk)]


def column_blocks(n_rows: int, n_columns: int) -> list[slice]:
    """Equal blocks of columns, so many that each has at most `SMALL_RESULT` numbers."""
    n_blocks = -(-n_rows * n_columns // SMALL_RESULT)
    ends = [n_columns * (b + 1) // n_blocks for b in range(n_blocks)]
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def sum_rows(a_Mij: Tensor, out_Mj: Tensor) -> Op:
    """Bind ``out = a.sum(rows)`` for every model.

    On the CPU this is a product with a vector of ones: ``numpy.dot`` takes 1 microsecond where
    ``numpy.sum`` takes 5 and ``torch.sum`` 2 (200 x 100, float32), and ``numpy.matmul`` does for a
    stack what ``dot`` does for one.
    """
    if numpy_speaks(a_Mij) and a_Mij.shape[0] > 1:
        row_M1i = np.ones((1, 1, a_Mij.shape[1]), dtype=out_Mj.numpy().dtype)
        return partial(np.matmul, row_M1i, a_Mij.numpy(), out_Mj.numpy()[:, None])
    if numpy_speaks(a_Mij) and a_Mij.shape[0] == 1:
        a_ij = a_Mij[0].numpy()
        ones = np.ones(a_ij.shape[0], dtype=a_ij.dtype)
        return partial(np.dot, ones, a_ij, out_Mj[0].numpy())
    return partial(torch.sum, a_Mij, 1, out=out_Mj)


def add_row(a_Mij: Tensor, row_Mj: Tensor) -> Op:
    """Bind ``a += row`` (a bias along the last axis)."""
    if a_Mij.shape[0] == 1:
        return partial(a_Mij[0].add_, row_Mj[0])
    return partial(a_Mij.add_, row_Mj.unsqueeze(1))


def add_column(a_Mij: Tensor, column_Mi: Tensor) -> Op:
    """Bind ``a += column`` (a bias along the middle axis: class-major logits)."""
    if a_Mij.shape[0] == 1:
        if numpy_speaks(a_Mij):
            a_ij = a_Mij[0].numpy()
            return partial(np.add, a_ij, column_Mi[0].numpy()[:, None], a_ij)
        return partial(a_Mij[0].add_, column_Mi[0].unsqueeze(1))
    return partial(a_Mij.add_, column_Mi.unsqueeze(2))


def batch_dots(a_MGKB: Tensor, b_MGKB: Tensor) -> np.ndarray:
    """Inner product of each batch's numbers, shape (M, G), on the host.

    ``b`` may have one output where ``a`` has K (weights of rows), and 1 on either of the leading
    axes where it is the same for all. Not bound: it runs once per segment.
    """
    if not numpy_speaks(a_MGKB):
        return (a_MGKB * b_MGKB).sum((2, 3)).cpu().numpy()
    a, b = a_MGKB.numpy(), b_MGKB.numpy()
    if a.shape[2:] != b.shape[2:]:
        b = np.broadcast_to(b, (*b.shape[:2], *a.shape[2:]))
    return np.vecdot(a.reshape(*a.shape[:2], -1), b.reshape(*b.shape[:2], -1))


def sum_squares(a_MP: Tensor, out_M: Tensor) -> Op:
    """Bind ``out = sum_p a_p^2`` for every model."""
    if a_MP.shape[0] == 1:
        flat = a_MP[0]
        if numpy_speaks(flat):
            return partial(np.dot, flat.numpy(), flat.numpy(), out_M[0].numpy())
        return partial(torch.dot, flat, flat, out=out_M[0])
    if numpy_speaks(a_MP):
        return partial(np.vecdot, a_MP.numpy(), a_MP.numpy(), out_M.numpy())

    def stacked() -> None:
        torch.linalg.vector_norm(a_MP, dim=1, out=out_M)
        out_M.square_()

    return stacked


def clip_norms(grads_MP: Tensor, clip_M: Tensor) -> Op:
    """Bind: scale each model's gradient to a norm of at most ``clip_M`` (Pascanu et al. 2013)."""
    norm_M1 = torch.empty_like(clip_M)[:, None]

    def clip() -> None:
        torch.linalg.vector_norm(grads_MP, dim=1, keepdim=True, out=norm_M1)
        scale_M1 = clip_M[:, None] / norm_M1.clamp_min(CLIP_TINY)
        grads_MP.mul_(scale_M1.clamp_max(1.0))

    return clip
