"""Bound operations: every kernel that may be chosen gives the same product.

Which kernel runs depends on device, dtype, stack size and shape. What an accelerator would run
(torch throughout) is run here on the CPU by making ``numpy_speaks`` say no, and what runs without a
compiler by leaving out what was compiled.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine.builders import leave_out_compiled
from engine.test_stack_equals_solo import assert_same, make_data, make_job

from sknn_resid.engine import kernels
from sknn_resid.engine.losses import SoftmaxCrossEntropy, SquaredError
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.spec import OptimizerKind

# One row, narrow (2 to 16), not narrow (17); 9 x 30 x 40 is tiny, 90 x 50 x 80 is not. An outer
# product; a narrow product with a result of more than `SMALL_RESULT` numbers, and not divisible.
SHAPES = [(1, 9, 5), (3, 9, 5), (16, 9, 5), (17, 9, 5), (9, 30, 40), (90, 50, 80)]
SHAPES += [(8, 1, 5), (7, 6, 401)]


def torch_only(monkeypatch):
    leave_out_compiled(monkeypatch)
    monkeypatch.setattr(kernels, "numpy_speaks", lambda tensor: False)


@pytest.fixture(params=["compiled", "numpy", "torch only"])
def numpy_allowed(request, monkeypatch):
    if request.param == "numpy":
        leave_out_compiled(monkeypatch)
    if request.param == "torch only":
        torch_only(monkeypatch)
    return request.param != "torch only"


def run(ops):
    for op in ops:
        op()


def draws(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_matmul(numpy_allowed, n_models, shape, transposed):
    i, j, k = shape
    a, b = draws(n_models, i, j), draws(n_models, j, k)
    if transposed:
        a, b = a.mT.contiguous().mT, b.mT.contiguous().mT
    out = torch.full((n_models, i, k), np.nan, dtype=torch.float64)
    run([kernels.matmul(a, b, out)])
    torch.testing.assert_close(out, torch.einsum("mij,mjk->mik", a, b), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_affine(numpy_allowed, n_models, shape):
    i, j, k = shape
    x, W, b = draws(n_models, i, j), draws(n_models, j, k), draws(n_models, k, seed=1)
    out = torch.full((n_models, i, k), np.nan, dtype=torch.float64)
    run(kernels.affine(x, W, b, out))
    expected = torch.einsum("mij,mjk->mik", x, W) + b[:, None]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_affine_columns(numpy_allowed, n_models, shape):
    k, i, n = shape
    W, v, b = draws(n_models, k, i), draws(n_models, n, i), draws(n_models, k, seed=1)
    out = torch.full((n_models, k, n), np.nan, dtype=torch.float64)
    run(kernels.affine_columns(W, v, b, out))
    expected = torch.einsum("mki,mni->mkn", W, v) + b[:, :, None]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 5, 900), (2, 700, 1500), (7, 256, 1024), (16, 9, 75), (17, 3, 900)]
)
def test_narrow_products_are_cut_into_small_ones(shape, transposed):
    i, j, k = shape
    a = torch.zeros(1, i, j)
    b = torch.zeros(1, k, j).mT if transposed else torch.zeros(1, j, k)
    blocks = kernels.column_blocks(a, b)
    assert [c for block in blocks for c in range(k)[block]] == list(range(k))
    widths = [block.stop - block.start for block in blocks]
    assert max(widths) - min(widths) <= 1
    if not 1 < i <= kernels.NARROW:
        assert len(blocks) == 1
        return
    assert i * j * max(widths) <= kernels.SMALL_PRODUCT
    assert not transposed or i * max(widths) <= kernels.SMALL_RESULT


def test_no_slivers():
    assert len(kernels.column_blocks(torch.zeros(1, 16, 100_000), torch.zeros(1, 100_000, 50))) == 1


@pytest.mark.parametrize("n_models", [1, 3])
def test_a_product_in_blocks_is_the_whole_product(n_models):
    v, W, delta = draws(n_models, 400, 30), draws(n_models, 7, 30), draws(n_models, 7, 400, seed=1)
    logits = torch.empty(n_models, 7, 400).double()
    run([kernels.matmul(W, v.mT, logits)])
    torch.testing.assert_close(logits, W @ v.mT, rtol=1e-12, atol=1e-12)
    wide = draws(n_models, 400, 900)
    out = torch.empty(n_models, 7, 900).double()
    run([kernels.matmul(delta, wide, out)])
    torch.testing.assert_close(out, delta @ wide, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("one_output", [False, True])
def test_one_factor_for_all_models(numpy_allowed, one_output):
    """A batch that a stack shares is an expanded view."""
    x, W = draws(1, 9, 4).expand(3, 9, 4), draws(3, 4, 5)
    out, back = torch.empty(3, 9, 5).double(), torch.empty(3, 4, 5).double()
    run([kernels.matmul(x, W, out), kernels.matmul(x.mT, out, back)])
    torch.testing.assert_close(out, x @ W, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back, x.mT @ out, rtol=1e-12, atol=1e-12)
    a, b = draws(2, 3, 4, 7), draws(2, 1, 1 if one_output else 4, 7)
    expected = (a * b).sum((2, 3))
    np.testing.assert_allclose(kernels.batch_dots(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("n_models", [1, 3])
def test_sums(numpy_allowed, n_models):
    a = draws(n_models, 7, 4)
    flat = draws(n_models, 30)[:, :20]  # the leading part of a longer row
    rows, squares = torch.empty(n_models, 4).double(), torch.empty(n_models).double()
    run([kernels.sum_rows(a, rows), kernels.sum_squares(flat, squares)])
    torch.testing.assert_close(rows, a.sum(1))
    torch.testing.assert_close(squares, (flat**2).sum(1))
    run([kernels.sum_rows(a.mT, torch.empty(n_models, 7).double())])
    batches, weights = draws(n_models, 3, 4, 7), draws(n_models, 3, 1, 7, seed=1)
    for factor in (batches, weights):
        expected = (batches * factor).sum((2, 3))
        np.testing.assert_allclose(kernels.batch_dots(batches, factor), expected, rtol=1e-12)


def test_bfloat16_goes_to_torch():
    a, b = draws(1, 8, 8, dtype=torch.bfloat16), draws(1, 8, 8, dtype=torch.bfloat16, seed=1)
    out = torch.empty(1, 8, 8, dtype=torch.bfloat16)
    assert not kernels.numpy_speaks(a)
    run([kernels.matmul(a, b, out)])
    torch.testing.assert_close(out, a @ b)


@pytest.mark.parametrize("n_models", [1, 4])
@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy((3,)), SquaredError()], ids=["ce", "squared"])
def test_training_with_torch_only(monkeypatch, n_models, loss):
    """The whole path of an accelerator, on the CPU: the same fit as with numpy's products."""
    X, y = make_data(loss, np.random.default_rng(0))

    def jobs():
        return [make_job(m, X, y, loss, 3, kind=OptimizerKind.ADAM) for m in range(n_models)]

    expected = run_jobs(jobs())
    torch_only(monkeypatch)
    for mine, theirs in zip(run_jobs(jobs()), expected, strict=True):
        assert_same(mine, theirs)
