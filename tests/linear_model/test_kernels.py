"""Parts of the kernels: words, sums of products, factorisation, filters, leave-one-out, wide X.

Truth comes from fractions, from textbook formulas in plain numpy on well-conditioned data, and from
invariances. The whole is tested against rational arithmetic in test_exact.py.
"""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from linear_model import exact_oracle as oracle

from sknn_resid.linear_model import _words as words
from sknn_resid.linear_model._basis import directions
from sknn_resid.linear_model._factor import WideBasis
from sknn_resid.linear_model._filters import (
    coefficients,
    complement,
    degrees_of_freedom,
    leverage,
    orthonormal_rows,
    residual_sum,
    shrinkage,
    training_rows,
)
from sknn_resid.linear_model._gram import choose_shifts, gram, merge
from sknn_resid.linear_model._least_squares import (
    covariance,
    prepare,
    prepare_stream,
    residuals,
    solve,
    standard_variances,
    stream,
    variance_difference,
)
from sknn_resid.linear_model._loo import loo_blocks, loo_predictions, loo_squared_errors


def value(array):
    """Words as an array of fractions."""
    flat = np.asarray(array).reshape(len(array), -1)
    total = [sum((Fraction(float(v)) for v in column), Fraction(0)) for column in flat.T]
    return np.array(total, dtype=object).reshape(np.shape(array)[1:])


def random_words(rng, count, shape):
    return np.stack([rng.normal(size=shape) * 2.0 ** (-56 * k) for k in range(count)])


def largest(errors):
    return float(max((abs(e) for e in np.ravel(errors)), default=Fraction(0)))


# ---- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e12])
def test_sums_and_products_with_their_rounding_errors(size):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50) * size
    for result, exact in (
        (words.two_sum(a, b), [Fraction(x) + Fraction(y) for x, y in zip(a, b, strict=True)]),
        (words.two_prod(a, b), [Fraction(x) * Fraction(y) for x, y in zip(a, b, strict=True)]),
    ):
        assert (value(np.stack(result)) == np.array(exact, dtype=object)).all()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_arithmetic_of_words(count):
    rng = np.random.default_rng(count)
    a, b = random_words(rng, count, (5, 4)), random_words(rng, count, (5, 4))
    unit = 2.0 ** (6 - 53 * count)
    assert largest(value(words.add(a, b, count)) - (value(a) + value(b))) < unit
    assert largest(value(words.multiply(a, b, count)) - value(a) * value(b)) < 16 * unit
    one = np.array([3.0, *[2.0 ** (-60 * k) for k in range(1, count)]])
    inverse = words.reciprocal(one, count)
    assert abs(sum(map(Fraction, inverse)) * sum(map(Fraction, one)) - 1) < unit


@pytest.mark.parametrize(("slices", "bits"), [(1, 50), (2, 70), (3, 91), (4, 112), (6, 154)])
@pytest.mark.parametrize("inner", [1, 7, 300])
def test_matrix_product_of_words(slices, bits, inner):
    rng = np.random.default_rng(slices)
    a = random_words(rng, 3, (4, inner)) * 2.0 ** rng.integers(-60, 60, (4, 1))
    b = random_words(rng, 3, (inner, 3)) * 2.0 ** rng.integers(-60, 60, 3)
    got = value(words.matmul(a, b, slices, 4))
    exact = value(a) @ value(b)
    scale = np.abs(a[0]).max(axis=1)[:, None] * np.abs(b[0]).max(axis=0) * inner
    rounded = words.matmul(a, b, slices, 1)[0]
    assert (
        np.abs(rounded - exact.astype(float)) <= 2.0**-bits * scale + np.spacing(abs(rounded))
    ).all()
    error = np.array([[float(e) for e in row] for row in got - exact])
    assert (np.abs(error) <= 2.0**-bits * scale).all()


def test_dot_rounds_once():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(1, 4, 40)) * 10.0 ** rng.integers(-12, 12, (1, 4, 40))
    a = np.concatenate([a, -a[:, :, ::-1] * (1 + 1e-13)], axis=2)
    b = np.ones((1, 4, 80))
    got = words.dot(a, b, 2)
    assert got[0].tolist() == [math.fsum(row) for row in a[0].tolist()]


# ---- sums of products --------------------------------------------------------------------------


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_products_have_their_bits(slices, weighted):
    rng = np.random.default_rng(slices)
    X = rng.normal(size=(35, 3)) * [1, 1e3, 1] + [0, 1e5, 1e15]
    Y = rng.normal(size=(35, 2)) + np.array([0, 100])
    w = rng.uniform(size=35) * rng.integers(0, 2, 35) if weighted else None
    shift, y_shift = choose_shifts(X, Y, w)
    found = gram(X, Y, w, shift, y_shift, slices)
    A = np.array(
        [
            [Fraction(1), *(Fraction(v) - Fraction(s) for v, s in zip(r, shift, strict=True))]
            for r in X
        ]
    )
    T = np.array([[Fraction(v) - Fraction(s) for v, s in zip(r, y_shift, strict=True)] for r in Y])
    W = np.array([Fraction(v) for v in (np.ones(35) if w is None else w)])
    norms = [math.sqrt(sum(W * A[:, j] ** 2)) for j in range(4)]
    y_norms = [math.sqrt(sum(W * T[:, j] ** 2)) for j in range(2)]
    unit = 2.0**-found.precision
    error = np.abs((value(found.xx) - (A.T * W) @ A).astype(float))
    assert (error <= unit * np.outer(norms, norms)).all()
    error = np.abs((value(found.xy) - (A.T * W) @ T).astype(float))
    assert (error <= unit * np.outer(norms, y_norms)).all()
    error = np.abs((value(found.yy) - np.diag((T.T * W) @ T)).astype(float))
    assert (error <= unit * np.square(y_norms)).all()
    assert found.n_rows == (35 if w is None else np.count_nonzero(w))


def test_many_blocks_add_without_loss():
    """Rows of several blocks, integers so large that plain sums of their products round."""
    rng = np.random.default_rng(1)
    X = rng.integers(-(2**30), 2**30, (5000, 2)).astype(float)
    found = gram(X, X[:, :1], None, np.zeros(2), np.zeros(1), 4)
    whole = [[int(v) for v in row] for row in X]
    assert value(found.xx)[1, 2] == sum(a * b for a, b in whole)
    assert value(found.yy)[0] == sum(a * a for a, _ in whole)
    parts = [gram(X[k::3], X[k::3, :1], None, np.zeros(2), np.zeros(1), 4) for k in range(3)]
    together = merge(merge(parts[0], parts[1]), parts[2])
    assert (value(together.xx) == value(found.xx)).all()
    assert together.n_rows == 5000


def test_directions_of_ill_conditioned_columns():
    """Singular values down to 2^-46 of the largest, from sums of products alone."""
    rng = np.random.default_rng(2)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    d = 2.0 ** np.array([0, -3, -11, -24, -38, -44.0])
    exact = np.array(oracle.fractions(Q * d)) @ np.array(oracle.fractions(Q.T))
    G = exact.T @ exact
    W = np.zeros((4, 6, 6))
    for k in range(4):
        W[k] = G.astype(float)
        G = G - np.array(oracle.fractions(W[k]))
    norms = np.sqrt(W[0].diagonal())
    found = directions(W, norms, 154.0, 6, 6)
    assert found.rank == 6
    assert (found.scale == found.scale[0]).all()
    np.testing.assert_allclose(found.values * found.scale[0], d, rtol=1e-15 / d[-1])
    np.testing.assert_allclose((found.values * found.scale[0])[:4], d[:4], rtol=1e-7)
    assert directions(W, norms, 154.0, 6, 4).rank == 4


# ---- factorisation and filters -----------------------------------------------------------------


def textbook(X, Y, w, fit_intercept, penalty, alpha):
    """Design, inverse and hat matrix by inverting the normal equations."""
    A = np.column_stack([np.ones(len(X)) * fit_intercept, X])
    P = np.diag(np.concatenate([[0.0], penalty])) * alpha
    S = np.linalg.pinv((A.T * w) @ A + P, hermitian=True)
    return A, P, S, A @ S @ (A.T * w)


@pytest.mark.parametrize("alpha", [0.0, 1.7])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_everything_that_follows_from_the_factorisation(alpha, fit_intercept, refine, free):
    rng = np.random.default_rng(5)
    X, Y = rng.normal(size=(30, 4)) + 3, rng.normal(size=(30, 2))
    w = rng.integers(0, 3, 30) * rng.uniform(0.5, 2, 30)
    penalty = np.array([1.0, 2.0, 0.0 if free else 0.5, 3.0])
    A, _, S, H = textbook(X, Y, w, fit_intercept, penalty, alpha)
    problem = prepare(
        X, Y, sample_weight=w, fit_intercept=fit_intercept, penalty=penalty, refine=refine
    )
    factor = problem.factor
    found = solve(problem, alpha)
    full = S @ (A.T * w) @ Y
    close = {"rtol": 1e-9, "atol": 1e-11}
    np.testing.assert_allclose(found.coef.T, full[1:], **close)
    np.testing.assert_allclose(found.intercept, full[0] * fit_intercept, **close)
    np.testing.assert_allclose(found.rss, (w[:, None] * (Y - H @ Y) ** 2).sum(axis=0), **close)
    np.testing.assert_allclose(residual_sum(factor, alpha), found.rss, **close)
    np.testing.assert_allclose(residuals(found, X, Y), Y - A @ full, **close)
    C = S @ ((A.T * w) @ A) @ S
    spread = covariance(problem, alpha)
    np.testing.assert_allclose(spread.coef, C[1:, 1:], **close)
    if fit_intercept:
        np.testing.assert_allclose(spread.intercept_variance, C[0, 0], **close)
        np.testing.assert_allclose(spread.intercept_covariance, C[0, 1:], **close)
        np.testing.assert_allclose(spread.root @ spread.root.T, C, **close)
    variances, intercepts = standard_variances(problem, np.array([alpha, 0.0]))
    np.testing.assert_allclose(variances[0], np.diag(C)[1:], **close)
    np.testing.assert_allclose(intercepts[0], spread.intercept_variance, **close)
    trace, lost = degrees_of_freedom(factor, alpha)
    np.testing.assert_allclose(trace, np.trace(H), **close)
    np.testing.assert_allclose(lost, np.trace(2 * H - H @ H), **close)
    np.testing.assert_allclose(leverage(factor, X, w, alpha), np.diag(H), **close)
    np.testing.assert_allclose(
        leverage(factor, X, None, alpha, power=2), np.einsum("ij,jk,ik->i", A, C, A), **close
    )
    Cov0 = np.linalg.pinv((A.T * w) @ A, hermitian=True)
    np.testing.assert_allclose(
        variance_difference(problem, alpha).coef, (Cov0 - C)[1:, 1:], **close
    )
    U = orthonormal_rows(factor, X, w)
    np.testing.assert_allclose(U.T @ U, np.eye(U.shape[1]), **close)
    assert np.isinf(factor.singular_values[: fit_intercept + free]).all()


def test_filters_do_not_cancel_or_overflow():
    rng = np.random.default_rng(6)
    factor = prepare(rng.normal(size=(20, 3)), rng.normal(size=(20, 1))).factor
    alphas = np.array([0.0, 1e-300, 1.0, 1e300])
    f, g = shrinkage(factor, alphas), complement(factor, alphas)
    np.testing.assert_allclose(f + g, 1.0, rtol=1e-15)
    assert (f[:, 0] == 1.0).all()
    assert (g[0] == 0.0).all()
    d2 = factor.singular_values[1:] ** 2
    np.testing.assert_allclose(g[1, 1:], 1e-300 / d2, rtol=1e-14)
    np.testing.assert_allclose(f[3, 1:], d2 / 1e300, rtol=1e-14)


def test_alphas_of_targets_and_of_a_path():
    rng = np.random.default_rng(7)
    X, Y = rng.normal(size=(25, 4)), rng.normal(size=(25, 3))
    problem = prepare(X, Y)
    alphas = np.array([0.0, 2.0, 50.0])
    each = solve(problem, alphas)
    path, _ = coefficients(problem.factor, alphas[:, None])
    assert path.shape == (3, 3, 4)
    for target in range(3):
        alone = solve(problem, alphas[target])
        np.testing.assert_array_equal(each.coef[target], alone.coef[target])
        np.testing.assert_allclose(path[target, target], alone.coef[target], rtol=1e-12)


@pytest.mark.parametrize("alpha", [1e-300, 1e300])
def test_penalties_at_the_ends_of_the_range(alpha):
    rng = np.random.default_rng(8)
    X, Y = rng.integers(-5, 6, (12, 3)).astype(float), rng.normal(size=(12, 1))
    problem = prepare(X, Y)
    found, spread = solve(problem, alpha), covariance(problem, alpha)
    ols, most = solve(problem, 0.0), covariance(problem, 0.0)
    if alpha < 1:
        np.testing.assert_array_equal(found.coef, ols.coef)
        np.testing.assert_array_equal(spread.coef, most.coef)
    else:
        centred = X - X.mean(axis=0)
        np.testing.assert_allclose(found.coef[0], (centred.T @ Y)[:, 0] / alpha, rtol=1e-12)
        assert not spread.coef.any()
        np.testing.assert_array_equal(variance_difference(problem, alpha).coef, most.coef)


def test_deficient_rank_is_described():
    rng = np.random.default_rng(9)
    X = rng.normal(size=(20, 4))
    X = np.column_stack([X, X[:, 1] * 2.0**40, np.full(20, 7.0)])
    factor = prepare(X, X[:, :1]).factor
    assert factor.rank == 4
    assert factor.dependent.tolist() == [1, 4, 5]
    assert factor.rank_gap > 1e8
    assert prepare(X[:, :4], X[:, :1]).factor.rank_gap == np.inf
    assert prepare(X[:3, :4], X[:3, :1]).factor.dependent.tolist() == []


def test_the_limit_of_the_method_is_announced():
    """Condition numbers near 2^46: the digits may be right, but nothing guarantees it."""
    rng = np.random.default_rng(13)
    X = rng.integers(-9, 10, (8, 3)).astype(float)
    Y = rng.integers(-9, 10, (8, 1)).astype(float)
    X = np.column_stack([X, X[:, 0] + 2.0**-42 * rng.integers(-3, 4, 8)])
    problem = prepare(X, Y)
    assert problem.factor.rank == 4
    with pytest.warns(UserWarning, match="condition number of the scaled columns is"):
        found = solve(problem)
    assert not found.refined
    assert solve(problem, 1.0).refined


def test_squares_beyond_the_range_are_refused():
    X = np.array([[1.0, 1e200], [2.0, 3e200], [4.0, -1e200]])
    with pytest.raises(ValueError, match=r"X: the squares of column 1 .* 3e\+200"):
        prepare(X, X[:, :1])


# ---- streams -----------------------------------------------------------------------------------


def test_a_stream_is_its_rows_in_any_order():
    rng = np.random.default_rng(10)
    X, Y = rng.normal(size=(60, 4)) + 100, rng.normal(size=(60, 2))
    w = rng.uniform(size=60)
    whole = prepare(X, Y, sample_weight=w)
    state = None
    for part in np.array_split(rng.permutation(60), 7):
        before = state
        state = stream(state, X[part], Y[part], sample_weight=w[part])
        assert before is None or before.sums.n_rows < state.sums.n_rows
    problem = prepare_stream(pickle.loads(pickle.dumps(state)))
    for alpha in (0.0, 3.0):
        np.testing.assert_array_equal(solve(problem, alpha).coef, solve(whole, alpha).coef)
        np.testing.assert_array_equal(
            covariance(problem, alpha).coef, covariance(whole, alpha).coef
        )
        np.testing.assert_allclose(solve(problem, alpha).rss, solve(whole, alpha).rss, rtol=1e-15)


# ---- leave-one-out -----------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_leave_one_out_is_refitting(weighted, fit_intercept):
    rng = np.random.default_rng(11)
    X, Y = rng.normal(size=(15, 3)) + 2, rng.normal(size=(15, 2))
    w = rng.integers(0, 3, 15).astype(float) if weighted else np.ones(15)
    alphas = np.array([0.0, 0.3, 20.0])
    factor = prepare(X, Y, sample_weight=w, fit_intercept=fit_intercept).factor
    errors = np.full((3, 15, 2), np.nan)
    for rows, part in loo_blocks(factor, X, Y, alphas, w):
        errors[:, rows] = part
    present = np.flatnonzero(w)
    for a, alpha in enumerate(alphas):
        for i in present:
            keep = np.arange(15) != i
            weights = w[keep] + 0.0
            found = solve(
                prepare(X[keep], Y[keep], sample_weight=weights, fit_intercept=fit_intercept), alpha
            )
            left = Y[i] - found.coef @ X[i] - found.intercept
            np.testing.assert_allclose(errors[a, i], left, rtol=1e-9, atol=1e-12)
        predicted = loo_predictions(factor, X, Y, alpha, w)[present]
        np.testing.assert_allclose(predicted, Y[present] - errors[a, present], rtol=1e-9)
    sums, plain = loo_squared_errors(factor, X, Y, alphas, w if weighted else None)
    squares = errors[:, present] ** 2
    np.testing.assert_allclose(plain, squares.sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(sums, np.einsum("i,ait->at", w[present], squares), rtol=1e-9)


def test_a_row_that_determines_itself_has_no_prediction():
    X = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [3.0, 1.0]])
    Y = np.array([[1.0], [0.0], [2.0], [5.0]])
    factor = prepare(X, Y, fit_intercept=False).factor
    sums, _ = loo_squared_errors(factor, X, Y, np.array([0.0, 1.0]))
    assert np.isinf(sums[0, 0])
    assert np.isfinite(sums[1, 0])


# ---- more columns than rows --------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
def test_by_way_of_the_rows_equals_by_way_of_the_columns(
    weighted, fit_intercept, penalised, repeated
):
    rng = np.random.default_rng(12)
    X, Y = rng.normal(size=(25, 90)) + 5, rng.normal(size=(25, 2))
    w = rng.choice([0.0, 1.0, 2.5], 25) if weighted else None
    if repeated:
        X[3], X[:, 2] = X[5], X[:, 7]
    settings = {
        "sample_weight": w,
        "fit_intercept": fit_intercept,
        "penalty": rng.uniform(0.5, 2, 90) if penalised else None,
    }
    wide, exact = prepare(X, Y, refine=False, **settings), prepare(X, Y, refine=True, **settings)
    assert isinstance(wide.factor.directions, WideBasis)
    assert wide.factor.rank == exact.factor.rank
    close = {"rtol": 1e-8, "atol": 1e-10}
    np.testing.assert_allclose(wide.factor.singular_values, exact.factor.singular_values, **close)
    for alpha in (0.0, 3.0):
        a, b = solve(wide, alpha), solve(exact, alpha)
        np.testing.assert_allclose(a.coef, b.coef, **close)
        np.testing.assert_allclose(a.intercept, b.intercept, **close)
        np.testing.assert_allclose(a.rss, b.rss, **close)
        np.testing.assert_allclose(
            covariance(wide, alpha).coef, covariance(exact, alpha).coef, **close
        )
    alphas = np.array([0.1, 3.0])
    np.testing.assert_allclose(
        loo_squared_errors(wide.factor, X, Y, alphas, w)[0],
        loo_squared_errors(exact.factor, X, Y, alphas, w)[0],
        **close,
    )
    part = np.array([1, 4])
    np.testing.assert_allclose(
        training_rows(wide.factor, X, part), orthonormal_rows(wide.factor, X[part]), **close
    )
    copy = pickle.loads(pickle.dumps(wide.factor))
    assert isinstance(copy.directions, np.ndarray)  # no rows in it
    np.testing.assert_array_equal(copy.basis, wide.factor.basis)
