"""The compiled kernels of least squares: against rational arithmetic, against numpy, and misuse."""

import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from linear_model import exact_oracle as oracle
from sklearn.base import clone

from sknn_resid import OLS, Ridge, RidgeCV
from sknn_resid.linear_model import _compiled
from sknn_resid.linear_model._decompose import first_sums, wanted_bits
from sknn_resid.linear_model._filters import leverage, shrinkage
from sknn_resid.linear_model._gram import choose_shifts, gram, small_gram
from sknn_resid.linear_model._least_squares import prepare, solve
from sknn_resid.linear_model._loo import loo_pass
from sknn_resid.linear_model._quick import covariance_quickly, solve_quickly
from sknn_resid.linear_model._rows import residuals_and_statistics

KERNELS = _compiled.KERNELS
pytestmark = pytest.mark.skipif(KERNELS is None, reason="the compiled parts are not there")
ALPHAS = np.geomspace(1e-3, 1e4, 30)


def _rows(n=60, p=5, t=2, offset=0.0, weighted=False, seed=0):
    rng = np.random.default_rng([77, seed, n, p])
    X = rng.normal(size=(n, p)) + offset
    Y = X @ rng.normal(size=(p, t)) + rng.normal(size=(n, t))
    return X, Y, rng.uniform(0.2, 3.0, n) if weighted else None


@pytest.fixture
def numpy_only(monkeypatch):
    """A function that runs another with numpy alone."""

    def run(function, *arguments, **more):
        with monkeypatch.context() as patch:
            patch.setattr(_compiled, "KERNELS", None)
            return function(*arguments, **more)

    return run


# ---- sums of products ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("n", [1, 7, 96, 97, 205])
@pytest.mark.parametrize("order", ["C", "F", "every other"])
def test_sums_against_rational_arithmetic(weighted, moved, n, order):
    X, Y, w = _rows(n, 4, 2, weighted=weighted)
    if order == "F":
        X = np.asfortranarray(X)
    if order == "every other":
        X, Y = np.repeat(X, 2, axis=0)[::2], np.repeat(Y, 3, axis=1)[:, ::3]
    shift = np.array([0.1, 0.0, -3.3, 1e3]) * moved
    y_shift = np.array([0.7, 0.0]) * moved
    found = _compiled.sums(X, Y, w, shift, y_shift)
    A = [
        [Fraction(1)]
        + [Fraction(a) - Fraction(b) for a, b in zip(x, shift, strict=True)]
        + [Fraction(a) - Fraction(b) for a, b in zip(y, y_shift, strict=True)]
        for x, y in zip(X.tolist(), Y.tolist(), strict=True)
    ]
    weights = [Fraction(v) for v in (np.ones(n) if w is None else w).tolist()]
    norms = np.sqrt(found[0].diagonal())
    for i in range(7):
        for j in range(7):
            true = sum(v * a[i] * a[j] for v, a in zip(weights, A, strict=True))
            off = Fraction(found[0, i, j]) + Fraction(found[1, i, j]) - true
            assert abs(float(off)) <= 2.0**-92 * norms[i] * norms[j]
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))


@pytest.mark.parametrize("size", [1e-170, 1e-130, 1e140, 1e170])
def test_sums_beyond_the_range_of_exact_products_are_left_to_slices(size):
    X, Y, _ = _rows()
    assert small_gram(X, Y, None, np.zeros(5), np.zeros(2)) is not None
    assert small_gram(X * size, Y, None, np.zeros(5), np.zeros(2)) is None
    assert small_gram(X, Y * size, None, np.zeros(5), np.zeros(2)) is None


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_are_those_of_slices(numpy_only, weighted):
    X, Y, w = _rows(120, 6, offset=1e4, weighted=weighted)
    found = first_sums(X, Y, w, True, wanted_bits(X))
    slices = numpy_only(first_sums, X, Y, w, True, wanted_bits(X))
    assert found.slices == slices.slices == 3
    if weighted:
        np.testing.assert_array_equal(found.shift, slices.shift)
    else:
        np.testing.assert_allclose(found.shift, slices.shift, rtol=1e-14)
        slices = gram(X, Y, w, found.shift, found.y_shift, 4)
    size = np.sqrt(slices.xx[0].diagonal())
    off = (found.xx[0] - slices.xx[0]) + (found.xx[1] - slices.xx[1:].sum(axis=0))
    assert (np.abs(off) <= 2.0 ** (1.0 - 91.0) * np.outer(size, size)).all()


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_two_slices_are_numpys(numpy_only, offset, order):
    X, Y, _ = _rows(3000, 40, 1, offset)
    X = np.asarray(X, order=order)
    shifts = choose_shifts(X, Y)
    assert (offset != 0.0) == bool(shifts[0].any())
    found = gram(X, Y, None, *shifts, 2)
    expected = numpy_only(gram, X, Y, None, *shifts, 2)
    for name in ("xx", "xy", "yy"):
        np.testing.assert_allclose(getattr(found, name)[0], getattr(expected, name)[0], rtol=1e-15)
    size = np.sqrt(expected.xx[0].diagonal())
    off = (found.xx[0] - expected.xx[0]) + (found.xx[1] - expected.xx[1])
    assert (np.abs(off) <= 2.0 ** (1.0 - expected.precision) * np.outer(size, size)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", ["C", "F", "every other"])
def test_finite_sees_what_is_no_number(bad, order):
    X = np.random.default_rng(0).normal(size=(14, 9)) * 1e300
    if order == "F":
        X = np.asfortranarray(X)
    if order == "every other":
        X = np.repeat(np.repeat(X, 2, axis=0), 2, axis=1)[::2, ::2]
    assert _compiled.finite(X)
    assert _compiled.finite(X[:, 0])
    for i, j in [(0, 0), (13, 8), (6, 3), (0, 8), (13, 0)]:
        kept, X[i, j] = X[i, j], bad
        assert not _compiled.finite(X)
        assert not _compiled.finite(X[i])
        assert not _compiled.finite(X[:, j])
        X[i, j] = kept


# ---- one step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1, 2, 5, 8])
def test_rotations_give_eigenvalues_and_vectors(p):
    rng = np.random.default_rng(p)
    for spread in (1.0, 1e3):
        Z = rng.normal(size=(20, p)) * np.geomspace(1.0, spread, p)
        A = Z.T @ Z
        h, V = _compiled.eigh(A)
        np.testing.assert_allclose(h, np.linalg.eigvalsh(A), rtol=0, atol=1e-14 * h[-1])
        np.testing.assert_allclose(V.T @ V, np.eye(p), rtol=0, atol=1e-14)
        np.testing.assert_allclose(V * h @ V.T, A, rtol=0, atol=1e-14 * h[-1])
    h, V = _compiled.eigh(np.diag([3.0, 1.0, 2.0]))
    assert h.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("alpha", [[0.0, 0.0], [0.7, 0.7], [0.0, 5.0]])
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("size", [(12, 3), (90, 10), (700, 30)])
def test_a_step_is_numpys(numpy_only, alpha, offset, weighted, fit_intercept, size):
    X, Y, w = _rows(*size, 2, offset if fit_intercept else 0.0, weighted)
    alpha = np.array(alpha)
    quick = prepare(X, Y, sample_weight=w, fit_intercept=fit_intercept).quick
    other = numpy_only(prepare, X, Y, sample_weight=w, fit_intercept=fit_intercept).quick
    assert (quick is None) == (other is None)
    if quick is None:  # more columns far from 0 than the bits are good for
        assert size == (700, 30)
        assert offset == 3.0
        return
    for name in ("tss", "rss_outside", "column_squares", "singular_values"):
        a, b = getattr(quick.factor, name), getattr(other.factor, name)
        np.testing.assert_allclose(a, b, rtol=1e-12)
    np.testing.assert_allclose(quick.norms, other.norms, rtol=1e-15)
    found, expected = solve_quickly(quick, alpha), numpy_only(solve_quickly, other, alpha)
    if found is not None and expected is not None:
        # Correctly rounded both, but for a bound of the last words.
        np.testing.assert_allclose(found[0][0], expected[0][0], rtol=2.3e-16)
        np.testing.assert_allclose(found[1][0], expected[1][0], rtol=2.3e-16)
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-14)
        np.testing.assert_allclose(found[3], expected[3], rtol=1e-12)
    # The kernels have more bits: they may do more, never less.
    assert found is not None or expected is None
    spread, same = covariance_quickly(quick), numpy_only(covariance_quickly, other)
    assert spread is not None or same is None
    if spread is not None and same is not None:
        size = np.sqrt(np.outer(np.diag(same), np.diag(same)))
        assert (np.abs(spread - same) <= 2.3e-16 * (np.abs(same) + 2.0**-12 * size)).all()


def test_the_measured_rate_of_a_step_is_that_of_rational_arithmetic():
    """What the covariance's bound rests on: |I - S M| is the remainder, and small."""
    X, Y, _ = _rows(40, 4)
    quick = prepare(X, Y).quick
    A = oracle.fractions(np.column_stack([np.ones(40), X]))
    S = oracle.product(oracle.transpose(A), A)
    found = covariance_quickly(quick)
    rest = np.array(oracle.product(S, oracle.fractions(found)), dtype=object)
    rest = (rest - np.eye(5, dtype=int).astype(object)).astype(float)
    norms = quick.norms
    assert np.abs(rest * norms / norms[:, None]).max() <= 5 * 2.0**-52


@pytest.mark.parametrize("case", ["zeros", "scales", "constant", "near constant", "constant y"])
def test_a_step_is_refused_where_numpy_refuses_it(numpy_only, case):
    X, Y, _ = _rows(30, 3, 1)
    if case == "zeros":
        X[:, 1] = 0.0
    elif case == "scales":
        X[:, 1] *= 100.0
    elif case == "constant":
        X[:, 1] = 2.0
    elif case == "near constant":
        X[:, 1] = 1.0 + 0.2 * np.sign(X[:, 0])
    else:
        Y[:] = 3.0
    refused = numpy_only(prepare, X, Y).quick is None
    assert (prepare(X, Y).quick is None) == refused
    if case != "near constant":
        assert refused


# ---- rows and leave-one-out ---------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("size", [(9, 2), (96, 13), (300, 7)])
def test_statistics_of_rows_are_numpys(numpy_only, alpha, weighted, offset, size):
    X, Y, w = _rows(*size, 3, offset, weighted)
    if weighted:
        w[2] = 0.0
    problem = prepare(X, Y, sample_weight=w)
    same = np.full(3, alpha)
    arguments = (solve(problem, same), problem.factor, X, Y, same, w)
    errors, found = residuals_and_statistics(*arguments)
    expected_errors, expected = numpy_only(residuals_and_statistics, *arguments)
    close = {"rtol": 1e-10, "atol": 1e-11}
    np.testing.assert_allclose(errors, expected_errors, **close)
    np.testing.assert_allclose(found.leverage, expected.leverage, **close)
    np.testing.assert_allclose(found.loo_residuals, expected.loo_residuals, **close)
    assert not weighted or found.leverage[2, 0] == 0.0


def test_a_row_that_determines_itself_and_residuals_that_are_nothing(numpy_only):
    X, Y, _ = _rows(20, 3, 1)
    X[:, 2] = 0.0
    X[7, 2] = 1.0
    model, other = OLS().fit(X, Y), numpy_only(OLS().fit, X, Y)
    assert np.isinf(model.loo_residuals_[7]).all()
    np.testing.assert_allclose(
        np.delete(model.leverage_, 7), np.delete(other.leverage_, 7), rtol=1e-11
    )
    nearly = X @ np.array([[1.0], [2.0], [-1.0]])  # what is left is the rounding of these
    model, other = OLS().fit(X, nearly), numpy_only(OLS().fit, X, nearly)
    np.testing.assert_allclose(model.loo_residuals_, other.loo_residuals_, rtol=1e-10)


@pytest.mark.parametrize("high", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [(40, 3, 2), (400, 30, 1), (3000, 40, 3), (130, 100, 9)])
def test_leave_one_out_is_numpys(numpy_only, high, weighted, size):
    X, Y, w = _rows(*size, offset=2.0, weighted=weighted)
    if high:
        X[5] *= 300.0
    factor = prepare(X, Y, sample_weight=w).factor
    found = loo_pass(factor, X, Y, ALPHAS, w)
    expected = numpy_only(loo_pass, factor, X, Y, ALPHAS, w)
    # An error is divided by 1 - h, which has the rounding errors of h.
    slack = 1.0 - leverage(factor, X, w, ALPHAS[0]).max()
    assert (slack < 2.0**-10) == high
    close = {"rtol": 1e-12 + 64 * np.finfo(float).eps / slack}
    np.testing.assert_allclose(found[0], expected[0], **close)
    np.testing.assert_allclose(found[1], expected[1], **close)
    assert (found[2] is None) == (expected[2] is None)
    if found[2] is not None:
        number = np.array([0, 29])
        a, b = found[2].leverage(number), expected[2].leverage(number)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


def test_without_a_prediction_the_error_is_infinite():
    X, Y, _ = _rows(20, 3, 1)
    X[:, 2] = 0.0
    X[7, 2] = 1.0
    factor = prepare(X, Y).factor
    weighted, plain, squares = loo_pass(factor, X, Y, np.array([0.0, 1.0]))
    assert np.isinf(plain[0]).all()
    assert np.isinf(weighted[0]).all()
    assert np.isfinite(plain[1]).all()
    assert squares is None


@pytest.mark.parametrize("spread", [1.0, 1.7, 2.5, 1e4])
def test_a_skeleton_gives_the_table_back(spread):
    d = np.geomspace(10.0, 10.0 * spread, 40)
    F = 1.0 / (1.0 + np.geomspace(1e-3, 1e5, 90)[:, None] / d**2)
    found = _compiled.skeleton(F, 2.0**-47)
    if spread < 1e4:
        columns, mix = found
        assert columns.shape[1] < 25
        np.testing.assert_allclose(columns @ mix, F, rtol=0, atol=1e-14)
        assert all((c[:, None] == F).all(axis=0).any() for c in columns.T)
    else:
        assert found is False


# ---- estimators, misuse, levels -----------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [OLS(), Ridge(2.0), RidgeCV(ALPHAS)], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize("size", [(16, 6, 1), (200, 20, 2), (900, 50, 1), (700, 150, 9)])
def test_models_say_the_same_without_the_kernels(numpy_only, model, size):
    X, Y, _ = _rows(*size, offset=1.0)
    names = ["coef_", "intercept_", "standard_errors_", "p_values_", "leverage_", "rss_"]

    def said():
        fitted = clone(model).fit(X, Y)
        found = [np.asarray(getattr(fitted, name)) for name in names]
        return [*found, fitted.confidence_interval()]

    for found, expected in zip(said(), numpy_only(said), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def _calls():
    X, Y, _ = _rows(10, 3, 1)
    z, one = np.zeros(3), np.zeros(1)
    wide = np.empty((2, 5, 5))
    F = shrinkage(prepare(X, Y).factor, ALPHAS)
    return {
        "sums: short weights": ("sums", (X, Y, np.ones(9), z, one, wide), ValueError),
        "sums: small result": ("sums", (X, Y, None, z, one, np.empty((2, 4, 4))), ValueError),
        "sums: float32": ("sums", (X.astype(np.float32), Y, None, z, one, wide), TypeError),
        "sums: swapped bytes": ("sums", (X.astype(">f8"), Y, None, z, one, wide), TypeError),
        "sums: one axis": ("sums", (X[:, 0], Y, None, z, one, wide), TypeError),
        "sums: few": ("sums", (X, Y), TypeError),
        "sums: result in another order": ("sums", (X, Y, None, z, one, wide.T), TypeError),
        "cut: other rows": ("cut", (X, Y[:9], z, one, *[np.empty((10, 5))] * 3, 21), ValueError),
        "cut: no number": ("cut", (X, Y, z, one, *[np.empty((10, 5))] * 3), TypeError),
        "eigh: not square": ("eigh", (X, z, np.empty((3, 3))), ValueError),
        "skeleton: no room": ("skeleton", (F, np.empty(3), np.empty(3), 1e-14), ValueError),
        "shifts: no room": ("shifts", (X, Y, z), ValueError),
        "finite: a list": ("finite", ([[1.0]],), TypeError),
    }


@pytest.mark.parametrize("case", _calls() if KERNELS is not None else [])
def test_what_does_not_fit_is_refused(case):
    name, arguments, error = _calls()[case]
    with pytest.raises((error, BufferError)):
        getattr(KERNELS, name)(*arguments)


def test_results_are_not_written_to_what_is_only_to_be_read():
    X, Y, _ = _rows(10, 3, 1)
    out = np.zeros((2, 5, 5))
    out.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        KERNELS.sums(X, Y, None, np.zeros(3), np.zeros(1), out)
    assert not out.any()


@pytest.mark.skipif(os.environ.get("SKNN_RESID_NATIVE") == "base", reason="is what this runs")
def test_the_plainest_instructions_do_the_same():
    """All of the above on a processor without fused multiply-add."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "SKNN_RESID_NATIVE": "base"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
