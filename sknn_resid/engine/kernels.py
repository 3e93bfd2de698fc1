"""Bound operations: the smallest pieces a training step is made of.

A training step runs the same few dozen array operations on the same memory thousands of
times. Each function here *binds* one operation to its arrays once and returns a callable without
arguments, so that the step itself is a plain list of calls: no indexing, no allocation, no choice
left to make. The choice of kernel is made here and nowhere else:

* on the CPU in float32 or float64 compiled code (`native`), where it was built: many operations in
  one call, without the interpreter. What follows is for where it was not:
* one model on the CPU in float32 or float64: 2-D products by ``numpy.dot`` (OpenBLAS). Measured
  against ``torch.mm`` (MKL) on an AMD processor it is 10 to 20 % faster at 200 x 64 x 100 and
  1024 x 256 x 256, in both precisions, and leaves the results on the same memory.
* a stack of models on the CPU: ``numpy.matmul`` (one OpenBLAS call a model, looped in C), which was
  faster than ``torch.bmm`` at every shape measured but one: an outer product (a single output),
  where it leaves BLAS, is a multiplication with broadcasting.
* a product of a few rows is cut into blocks of columns (`SMALL_PRODUCT`).
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

from sknn_resid.engine import native
from sknn_resid.engine.native import Code

Op = Callable[[], object]

# Products of a few rows (class-major logits, gradient of the output layer) fall into OpenBLAS's
# kernels for small matrices (AVX-512) as long as they are small: at most so many multiplications,
# and where the right factor is transposed at most so many results. Beyond, the same product is 2 to
# 4 times slower (float32, 7 x 256 x 1024: logits 246 whole and 60 microseconds in blocks of
# columns, MKL's 137; gradient 123, 54 and 105). So they are cut into blocks of columns.
NARROW = 16
SMALL_PRODUCT = 1_000_000
SMALL_RESULT = 1200
# Below this many multiplications the fused product-and-bias of torch beats a faster product
# followed by an addition (150 x 4 x 100: 3.7 against 5.4 microseconds).
TINY_PRODUCT = 200_000
CLIP_TINY = 1e-30  # keeps 0 / 0 out of the clipping factor


def numpy_speaks(tensor: Tensor) -> bool:
    """Whether ``numpy`` can work on this tensor's memory (CPU, float32 or float64)."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def matmul(a_Mij: Tensor, b_Mjk: Tensor, out_Mik: Tensor) -> Op:
    """Bind ``out = a @ b`` for every model of the stack.

    Parameters
    ----------
    a_Mij, b_Mjk : Tensor of shape (M, i, j) and (M, j, k)
        Factors; each matrix is row- or column-major (a transposed view is free).
    out_Mik : Tensor of shape (M, i, k)
        Row-major result, overwritten by each call.
    """
    op = native.matmul(a_Mij, b_Mjk, out_Mik)
    if op is not None:
        return op
    M, j = out_Mik.shape[0], a_Mij.shape[2]
    if not numpy_speaks(out_Mik):
        if M == 1:
            return partial(torch.mm, a_Mij[0], b_Mjk[0], out=out_Mik[0])
        return partial(torch.bmm, a_Mij, b_Mjk, out=out_Mik)
    if M > 1 and j == 1:
        return partial(torch.mul, a_Mij, b_Mjk, out=out_Mik)
    a, b, out = (x.numpy() if M > 1 else x[0].numpy() for x in (a_Mij, b_Mjk, out_Mik))
    blocks = column_blocks(a_Mij, b_Mjk)
    if len(blocks) > 1:
        return in_turn([partial(np.matmul, a, b[..., part], out[..., part]) for part in blocks])
    return partial(np.matmul if M > 1 else np.dot, a, b, out)


def column_blocks(a_Mij: Tensor, b_Mjk: Tensor) -> list[slice]:
    """Equal blocks of the columns of ``a @ b``, each a small product; one block for many rows."""
    i, j, k = *a_Mij.shape[1:], b_Mjk.shape[2]
    if not 1 < i <= NARROW:
        return [slice(0, k)]
    most = SMALL_PRODUCT // (i * j)
    if b_Mjk.stride(2) != 1:
        most = min(most, SMALL_RESULT // i)
    n_blocks = -(-k // max(1, most))
    if k // n_blocks < NARROW:  # so long that blocks would be slivers
        return [slice(0, k)]
    ends = [k * (n + 1) // n_blocks for n in range(n_blocks)]
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def in_turn(ops: list[Op]) -> Op:
    """One operation that calls several, in their order."""

    def run() -> None:
        for op in ops:
            op()

    return run


def affine(x_Mij: Tensor, W_Mjk: Tensor, b_Mk: Tensor, out_Mik: Tensor) -> list[Op]:
    """Bind ``out = x @ W + b``, the bias along the last axis.

    torch adds the bias of a single model in bfloat16 or on a GPU on the way: half a pass less.
    """
    M, i, k = out_Mik.shape
    tiny = i * k * x_Mij.shape[2] < TINY_PRODUCT
    compiled = native.available(x_Mij, W_Mjk, out_Mik)  # adds the bias on the way as well
    if M == 1 and not compiled and (tiny or not numpy_speaks(out_Mik)):
        return [partial(torch.addmm, b_Mk[0], x_Mij[0], W_Mjk[0], out=out_Mik[0])]
    return [matmul(x_Mij, W_Mjk, out_Mik), add_row(out_Mik, b_Mk)]


def affine_columns(W_Mki: Tensor, v_Mji: Tensor, b_Mk: Tensor, out_Mkj: Tensor) -> list[Op]:
    """Bind ``out = W @ v' + b``, the bias along the middle axis (class-major logits)."""
    return [matmul(W_Mki, v_Mji.mT, out_Mkj), add_column(out_Mkj, b_Mk)]


def sum_rows(a_Mij: Tensor, out_Mj: Tensor) -> Op:
    """Bind ``out = a.sum(rows)`` for every model.

    On the CPU this is a product with a vector of ones: ``numpy.dot`` takes 1 microsecond where
    ``numpy.sum`` takes 5 and ``torch.sum`` 2 (200 x 100, float32), and ``numpy.matmul`` does for a
    stack what ``dot`` does for one.
    """
    _, i, j = a_Mij.shape
    op = native.bind(Code.SUM_ROWS, (a_Mij, out_Mj), (i, j))
    if op is None:  # class-major: rows along the last axis of memory
        op = native.bind(Code.SUM_COLUMNS, (a_Mij.mT, out_Mj), (j, i))
    if op is not None:
        return op
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
    op = native.bind(Code.ADD_ROW, (a_Mij, row_Mj), a_Mij.shape[1:])
    if op is not None:
        return op
    if a_Mij.shape[0] == 1:
        return partial(a_Mij[0].add_, row_Mj[0])
    return partial(a_Mij.add_, row_Mj.unsqueeze(1))


def add_column(a_Mij: Tensor, column_Mi: Tensor) -> Op:
    """Bind ``a += column`` (a bias along the middle axis: class-major logits)."""
    op = native.bind(Code.ADD_COLUMN, (a_Mij, column_Mi), a_Mij.shape[1:])
    if op is not None:
        return op
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
    op = native.bind(Code.SUM_SQUARES, (a_MP, out_M), (a_MP.shape[1],))
    if op is not None:
        return op
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
    op = native.bind(Code.CLIP, (grads_MP, clip_M), (grads_MP.shape[1],), (CLIP_TINY,))
    if op is not None:
        return op
    norm_M1 = torch.empty_like(clip_M)[:, None]

    def clip() -> None:
        torch.linalg.vector_norm(grads_MP, dim=1, keepdim=True, out=norm_M1)
        scale_M1 = clip_M[:, None] / norm_M1.clamp_min(CLIP_TINY)
        grads_MP.mul_(scale_M1.clamp_max(1.0))

    return clip


def add_decay(grads_MP: Tensor, params_MP: Tensor, decay_M1: Tensor) -> Op:
    """Bind ``grads += decay * params`` (the gradient of the penalty)."""
    op = native.bind(Code.ADD_DECAY, (grads_MP, params_MP, decay_M1), (grads_MP.shape[1],))
    if op is not None:
        return op
    return partial(grads_MP.addcmul_, params_MP, decay_M1)
