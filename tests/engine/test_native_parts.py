"""Compiled products and functions, at every level the processor has, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from sknn_resid._native import compiled

forward = compiled("forward")
pytestmark = pytest.mark.skipif(forward is None, reason="the compiled parts were not built")
LEVELS = range(forward.levels()) if forward is not None else ()
ADD, RELU = 1, 2
DTYPES = ("float32", "float64")


def inside(shape, dtype, rng):
    """A random matrix amid a larger one: rows apart, at an odd address. Also the larger one."""
    rows, columns = shape
    offset = int(rng.integers(1, 9))
    whole = rng.standard_normal((rows + 2, columns + offset + 17)).astype(dtype)
    return whole, whole[1 : rows + 1, offset : offset + columns]


def laid_out(A, how):
    if how == "steps":  # no stride is 1
        return A.repeat(2, 0).repeat(3, 1)[::2, ::3]
    return np.asfortranarray(A) if how == "columns" else A


def check_product(
    shape, dtype, level, rng, *, transposed=False, layout="rows", start=None, flags=0
):
    i, j, k = shape
    A = laid_out(rng.standard_normal((i, j)).astype(dtype), layout)
    _, B = inside((k, j) if transposed else (j, k), dtype, rng)
    whole, C = inside((i, k), dtype, rng)
    before, C_before = whole.copy(), C.copy()
    bias_k = rng.standard_normal(k).astype(dtype) if start == "k" else None
    bias_i = rng.standard_normal(i).astype(dtype) if start == "i" else None
    forward.gemm(A, B, C, bias_k, bias_i, int(transposed), flags, level)

    right = B.T if transposed else B
    wide = A.astype(float) @ right.astype(float)
    size = np.abs(A).astype(float) @ np.abs(right).astype(float) + 1
    starts = [
        bias_k,
        None if bias_i is None else bias_i[:, None],
        C_before if flags & ADD else None,
    ]
    for part in starts:
        if part is not None:
            wide, size = wide + part, size + np.abs(part)
    wide = np.maximum(wide, 0) if flags & RELU else wide
    # The sum of j products may be off by j roundings of the sum of their sizes.
    assert (np.abs(C - wide) <= (j + 3) * np.finfo(dtype).eps * size).all(), (shape, flags, start)
    C[...] = C_before
    np.testing.assert_array_equal(whole, before)  # nothing beside C was touched


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_every_edge_of_a_tile(dtype, level, transposed):
    rng = np.random.default_rng(0)
    for i in range(1, 20):
        for k in range(1, 36):
            check_product((i, 5, k), dtype, level, rng, transposed=transposed, start="k")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("layout", ["rows", "columns", "steps"])
def test_random_shapes_starts_and_ends(dtype, level, transposed, layout):
    rng = np.random.default_rng(1)
    for _ in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 90, 3))
        for start in (None, "k", "i"):
            options = {"layout": layout, "start": start, "flags": int(rng.integers(4))}
            check_product(shape, dtype, level, rng, transposed=transposed, **options)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(1, 700, 130), (3, 513, 65), (7, 257, 40), (130, 300, 33), (200, 600, 20), (301, 3, 7)],
)
def test_several_blocks(shape, dtype, level, transposed):
    rng = np.random.default_rng(2)
    for start, flags in ((None, 0), ("k", RELU), ("i", ADD), (None, ADD | RELU)):
        check_product(shape, dtype, level, rng, transposed=transposed, start=start, flags=flags)


@pytest.mark.parametrize("level", LEVELS)
def test_no_terms_leave_the_start(level):
    C = np.ones((3, 5))
    bias = np.array([-1.0, 0, 1, 2, 3])
    forward.gemm(np.empty((3, 0)), np.empty((0, 5)), C, bias, None, 0, RELU, level)
    np.testing.assert_array_equal(C, np.tile(np.maximum(bias, 0), (3, 1)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_stays_behind_relu(dtype, level):
    A = np.full((3, 2), np.nan, dtype)
    C = np.empty((3, 11), dtype)
    forward.gemm(A, np.ones((2, 11), dtype), C, None, None, 0, RELU, level)
    assert np.isnan(C).all()


def test_shapes_that_do_not_fit_are_refused():
    A, B, C = np.ones((2, 3)), np.ones((3, 4)), np.ones((2, 4))
    for wrong in ((A.T, B, C), (A, B.T, C), (A, B, C.T), (A, B[:, ::2], C[:, ::2])):
        with pytest.raises(ValueError, match="do not fit"):
            forward.gemm(*wrong, None, None, 0, 0, 0)
    with pytest.raises(ValueError, match="another type"):
        forward.gemm(A, B.astype("float32"), C, None, None, 0, 0, 0)
    with pytest.raises(ValueError, match="do not fit"):
        forward.gemm(A, B, C, np.ones(3), None, 0, 0, 0)


def wide_function(name, x):
    """The function in numpy's widest float, which is exact enough to count units of `x.dtype`."""
    x = x.astype(np.longdouble)
    if name == "logistic":
        e = np.exp(-np.abs(x))
        return np.where(x < 0, e, 1) / (1 + e)
    return np.exp(x) if name == "exp" else np.tanh(x)


def mapped(name, x, level):
    out = np.empty_like(x)
    forward.map(name, x, out, level)
    return out


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="needs a float wider than 64 bits")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "units"), [("exp", 2), ("logistic", 3), ("tanh", 3)])
def test_units_in_the_last_place(name, units, dtype, level):
    rng = np.random.default_rng(3)
    ends = (-103, 88) if dtype == "float32" else (-744, 709)
    parts = [rng.uniform(-1, 1, 20_000), 10 * rng.standard_normal(20_000)]
    parts += [rng.uniform(*ends, 20_000), 10.0 ** rng.uniform(-37, 0, 5_000)]
    x = np.concatenate(parts).astype(dtype)
    right = wide_function(name, x)
    unit = np.spacing(np.abs(right.astype(dtype))).astype(np.longdouble)
    assert (np.abs(mapped(name, x, level) - right) <= units * unit).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_out_of_range(dtype, level):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30], dtype)
    nan, inf = np.nan, np.inf
    np.testing.assert_array_equal(mapped("exp", x, level), [nan, inf, 0, 1, 1, inf, 0])
    np.testing.assert_array_equal(mapped("logistic", x, level), [nan, 1, 0, 0.5, 0.5, 1, 0])
    tanh = mapped("tanh", x, level)
    np.testing.assert_array_equal(tanh, [nan, 1, -1, 0, 0, 1, -1])
    np.testing.assert_array_equal(np.signbit(tanh[3:5]), [False, True])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["exp", "logistic", "tanh"])
def test_results_do_not_depend_on_the_place_in_an_array(name, level):
    x = np.random.default_rng(4).standard_normal(67)
    alone = np.concatenate([mapped(name, x[n : n + 1], level) for n in range(67)])
    np.testing.assert_array_equal(mapped(name, x, level), alone)
