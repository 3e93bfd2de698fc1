"""Compiled operations of residual networks: against numpy, autograd, and the way without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine.residual_builders import (
    STRUCTURES,
    make_job,
    make_rows,
    make_spec,
    reference_gradients,
    relative_error,
    stack_gradients,
)

from sknn_resid._native import compiled
from sknn_resid.engine import bound
from sknn_resid.engine.data import ValidationData
from sknn_resid.engine.fused_judge import FusedJudge
from sknn_resid.engine.validation import _validation_logits, judge

needs_compiled = pytest.mark.skipif(
    compiled("residual") is None, reason="the compiled parts were not built, or are switched off"
)


@pytest.fixture(params=["compiled", "without"])
def way(request, monkeypatch):
    """Both ways to a result."""
    if request.param == "without":
        monkeypatch.setattr(bound, "compiled", lambda name: None)
    elif compiled("residual") is None:
        pytest.skip("the compiled parts were not built, or are switched off")
    return request.param


@pytest.mark.parametrize("random", [False, True], ids=["", "dropout"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_gradients_are_autograds_on_both_ways(structure, random, way):
    spec = make_spec("relu", **STRUCTURES[structure])
    X, y = make_rows()
    changes = {"dropout": 0.3} if random else {}
    jobs = [make_job(spec, X, y, m, scaled=m % 2 == 1, **changes) for m in range(5)]
    references = [reference_gradients(job) for job in jobs]
    for stack in ([0], [4, 3], [0, 1, 2, 3, 4]):
        gradients, loss_M = stack_gradients([jobs[m] for m in stack])
        assert np.isfinite(loss_M).all()
        for m, ours in zip(stack, gradients, strict=True):
            assert max(map(relative_error, ours, references[m])) < 1e-10


@needs_compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2), (62, 112, 64), (7, 300, 19), (40, 3, 1)])
def test_products_with_what_goes_before_and_after(shape, dtype):
    i, j, k = shape
    rng = np.random.default_rng(0)
    tolerance = 1e-13 if dtype == np.float64 else 2e-4
    for transposed in range(4):
        a, b, out = (
            torch.from_numpy(rng.standard_normal((2, *s)).astype(dtype))
            for s in ((i, j), (j, k), (i, k))
        )
        if transposed & 1:
            a = a.mT.contiguous().mT
        if transposed & 2:
            b = b.mT.contiguous().mT
        row, column = (torch.from_numpy(rng.standard_normal((2, n)).astype(dtype)) for n in (k, i))
        before = out.clone()
        bound.bind("gemm", [a, b, out, row, None], [bound.GEMM_ADD])()
        np.testing.assert_allclose(
            out, before + a @ b + row[:, None], rtol=tolerance, atol=tolerance
        )
        bound.bind("gemm", [a, b, out, None, column], [bound.GEMM_RELU])()
        expected = (a @ b + column[:, :, None]).clamp_min(0)
        np.testing.assert_allclose(out, expected, rtol=tolerance, atol=tolerance)


@needs_compiled
def test_what_is_no_number_stays_so():
    x = torch.tensor([[[np.nan, 1.0], [2.0, -np.inf]]])
    one = torch.ones(1, 2, 2)
    out = torch.zeros(1, 2, 2)
    bound.bind("gemm", [x, one, out, None, None], [bound.GEMM_RELU])()
    assert out[0, 0].isnan().all()
    r, line = torch.full((1, 2), 0.5), [torch.ones(1, 2) for _ in range(4)]
    kept, y = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    bound.bind("batch_norm", [x, r, line[0], line[1], kept, line[2], line[3], y], [1e-5, 1])()
    assert y.isnan().all()
    p, g, v = torch.ones(1, 4), torch.full((1, 4), np.nan), torch.zeros(1, 4)
    bound.bind("muon", [p, g, v], [0.9, 1, 1, 1, 1, 1, 0, 1, 2, 2])(0.1, 1.0)
    assert p.isnan().all()


REFUSED = {
    "sizes": ("sum_rows", [(2, 3, 4), (2, 5)], []),
    "axes": ("sum_rows", [(2, 3), (2, 4)], []),
    "numbers": ("gemm", [(1, 2, 2), (1, 2, 2), (1, 2, 2)], []),
    "runs beyond the row": ("muon", [(1, 4)] * 3, [0.9, 1, 1, 1, 1, 1, 0, 1, 2, 3]),
    "runs that begin before it": ("muon", [(1, 4)] * 3, [0.9, 1, 1, 1, 1, 1, -1, 1, 2, 2]),
    "half a description": ("muon", [(1, 4)] * 3, [0.9, 1, 1, 1, 1, 2, 0, 1, 2, 2]),
    "decay beyond the row": ("adam", [(1, 4)] * 4, [0.9, 0.9, 1e-8, 5]),
    "unknown": ("nothing", [(1, 4)], []),
}


@needs_compiled
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    name, shapes, numbers = REFUSED[case]
    with pytest.raises(ValueError, match=r"array|numbers|more parameters|no operation"):
        bound.bind(name, [torch.zeros(shape) for shape in shapes], numbers)


@needs_compiled
def test_other_types_strides_and_calls_are_refused():
    module = compiled("residual")
    f, d = np.zeros((1, 2, 2), np.float32), np.zeros((1, 2))
    with pytest.raises(ValueError, match="number type"):
        module.bind("sum_rows", (f, d), ())
    with pytest.raises(ValueError, match="neighbouring"):
        module.bind("sum_rows", (np.zeros((1, 2, 4), np.float32)[:, :, ::2], f[:, 0]), ())
    with pytest.raises(ValueError, match="strides"):
        module.bind("sum_rows", (f[:, ::-1], f[:, 0]), ())
    frozen = np.zeros((1, 2), np.float32)
    frozen.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        module.bind("sum_rows", (f, frozen), ())
    op = module.bind("sum_rows", (f, np.zeros((1, 2), np.float32)), ())
    with pytest.raises(TypeError):
        op(1.0)
    with pytest.raises(ValueError, match="one stack"):
        module.join((op, module.bind("sum_rows", (np.zeros((2, 2, 2)), np.zeros((2, 2))), ())))
    with pytest.raises(TypeError):
        module.Operation()


@needs_compiled
def test_operations_keep_their_arrays_alive():
    out = np.zeros((1, 3), np.float32)
    op = compiled("residual").bind("sum_rows", (np.ones((1, 1000, 3), np.float32), out), ())
    junk = [np.full((1, 1000, 3), 7, np.float32) for _ in range(50)]
    joined = compiled("residual").join((op,))
    del op, junk
    joined()
    assert (out == 1000).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_held_out_rows_are_judged_alike(structure, weighted):
    """One pass over training and held-out rows, and two by the definition."""
    spec = make_spec("relu", **STRUCTURES[structure])
    X, y = make_rows()
    others = np.random.default_rng(5).standard_normal((4, X.shape[1]))
    fused = FusedJudge()
    for m in range(3):
        job = make_job(spec, X, y, m, scaled=m > 0)
        object.__setattr__(job, "validation", ValidationData(others, y[:4], None))
        params = torch.from_numpy(job.params)
        expected = _validation_logits(job, params)
        ours = fused.logits(job, params)
        if ours is not None:
            np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-11)
        assert np.isfinite(judge(job, params, lambda: None, fused)[1])
    if structure in ("tabular", "tied", "preactivation"):
        assert (ours is not None) == (compiled("residual") is not None)
