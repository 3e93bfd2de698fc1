"""Each loss by itself: value and derivative from logits, extremes, smoothing, weights, links."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special as special
import torch
import torch.nn.functional as F
from engine.builders import LOSSES, log_cosh_elements

from sknn_resid.engine.losses import (
    AbsoluteError,
    BinaryCrossEntropy,
    CallableLoss,
    Huber,
    Pinball,
    Poisson,
    SoftmaxCrossEntropy,
    SquaredError,
)

N_MODELS, N_BATCHES, N_ROWS = 2, 3, 6
DTYPES = [torch.float32, torch.float64]


def evaluate(loss, z_MGBK, y_MGBT, r_MGB, smoothing_M=None):
    """Value (M, G) and delta (M, G, B, K) of a loss; rows first here, class-major in the engine."""
    z_MGKB = z_MGBK.mT.contiguous()
    r_MG1B = r_MGB.unsqueeze(2)
    t_MGKB = torch.zeros_like(z_MGKB)
    loss.load_targets(t_MGKB, y_MGBT, r_MG1B, smoothing_M)
    d_MGKB = torch.full_like(z_MGKB, torch.nan)
    before = z_MGKB.clone()
    for g in range(z_MGKB.shape[1]):
        d_MKB = torch.full_like(z_MGKB[:, g], torch.nan).contiguous()
        for op in loss.bind_delta(z_MGKB[:, g], t_MGKB[:, g], r_MG1B[:, g], d_MKB):
            op()
        d_MGKB[:, g] = d_MKB
    targets = t_MGKB.clone()
    value_MG = loss.value(z_MGKB, t_MGKB, r_MG1B)
    assert torch.equal(z_MGKB, before), "the logits were changed"
    assert torch.equal(t_MGKB, targets), "the targets were changed"
    return value_MG, d_MGKB.mT


def evaluate_rows(loss, z, y, weight=None, smoothing=None):
    """As `evaluate` for one batch of one model; numpy in, numpy out."""
    z = torch.as_tensor(z)[None, None]
    y = torch.as_tensor(y)[None, None]
    if y.dtype != torch.int64:
        y = y.to(z.dtype)
    if weight is None:
        weight = np.full(z.shape[2], 1 / z.shape[2])
    r = torch.as_tensor(weight, dtype=z.dtype)[None, None]
    s = None if smoothing is None else torch.tensor([smoothing], dtype=z.dtype)
    value, delta = evaluate(loss, z, y, r, s)
    return float(value[0, 0]), delta[0, 0].numpy()


def stacked_case(name, seed=0):
    """Logits, targets and row weights (zeros among them) of 2 models and 3 batches."""
    case, rng = LOSSES[name], np.random.default_rng(seed)
    shape = (N_MODELS, N_BATCHES, N_ROWS)
    z = rng.normal(0, 2, (*shape, case.n_outputs))
    y = case.draw(rng, int(np.prod(shape)))
    y = y.reshape(*shape, -1)
    weight = rng.uniform(0.1, 2, shape) * (rng.random(shape) > 0.3)
    return z, y, weight / weight.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing_M", [None, (0.0, 0.2)])
def test_value_and_delta(name, smoothing_M):
    """Against the formulas in numpy and autograd through torch's own losses, model by model."""
    case = LOSSES[name]
    z, y, r = stacked_case(name)
    s_M = None if smoothing_M is None else torch.tensor(smoothing_M, dtype=torch.float64)
    value_MG, d_MGBK = evaluate(
        case.engine, torch.from_numpy(z), torch.from_numpy(y), torch.from_numpy(r), s_M
    )
    for m in range(N_MODELS):
        smoothing = 0.0 if smoothing_M is None else smoothing_M[m]
        for g in range(N_BATCHES):
            expected = (case.numpy(z[m, g], y[m, g], smoothing) * r[m, g]).sum()
            np.testing.assert_allclose(value_MG[m, g], expected, rtol=1e-13)
            logits = torch.from_numpy(z[m, g]).requires_grad_()
            rows = case.torch(logits, torch.from_numpy(y[m, g]), smoothing)
            (rows * torch.from_numpy(r[m, g])).sum().backward()
            np.testing.assert_allclose(d_MGBK[m, g], logits.grad, rtol=1e-12, atol=1e-16)
            assert (d_MGBK[m, g][r[m, g] == 0] == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_softmax_against_torch_cross_entropy(smoothing):
    heads = (4, 2, 3)
    rng = np.random.default_rng(1)
    z = rng.normal(0, 3, (N_ROWS, sum(heads)))
    y = np.stack([rng.integers(0, size, N_ROWS) for size in heads], axis=1)
    logits = torch.from_numpy(z).requires_grad_()
    expected = sum(
        F.cross_entropy(part, torch.from_numpy(y[:, t]), label_smoothing=smoothing)
        for t, part in enumerate(logits.split(heads, dim=1))
    )
    expected.backward()
    value, delta = evaluate_rows(SoftmaxCrossEntropy(heads), z, y, smoothing=smoothing)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-14)
    np.testing.assert_allclose(delta, logits.grad, rtol=1e-12, atol=1e-17)


def test_smoothing_of_zero_changes_nothing():
    for name in ("binary", "multilabel", "softmax", "heads"):
        z, y, r = (a[0, 0] for a in stacked_case(name))
        with_s = evaluate_rows(LOSSES[name].engine, z, y, r, smoothing=0.0)
        without = evaluate_rows(LOSSES[name].engine, z, y, r)
        np.testing.assert_allclose(with_s[0], without[0], rtol=1e-15)
        np.testing.assert_allclose(with_s[1], without[1], rtol=1e-15)


def test_one_softmax_head_of_two_classes_is_the_logistic_loss():
    rng = np.random.default_rng(2)
    z, y = rng.normal(0, 3, (N_ROWS, 2)), rng.integers(0, 2, (N_ROWS, 1))
    softmax = evaluate_rows(SoftmaxCrossEntropy((2,)), z, y)
    binary = evaluate_rows(BinaryCrossEntropy(), z[:, 1:] - z[:, :1], y.astype(float))
    np.testing.assert_allclose(softmax[0], binary[0], rtol=1e-13)
    np.testing.assert_allclose(softmax[1][:, 1:], binary[1], rtol=1e-12)


# -- extremes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_logistic_loss_of_extreme_logits(dtype):
    z = torch.tensor([[1000.0], [1000.0], [-1000.0], [-1000.0], [0.0]], dtype=dtype)
    y = np.array([[1.0], [0.0], [1.0], [0.0], [1.0]])
    losses, deltas = [0, 1000, 1000, 0, np.log(2)], [0, 1, -1, 0, -0.5]
    for i in range(5):
        value, delta = evaluate_rows(BinaryCrossEntropy(), z[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(value, losses[i], rtol=torch.finfo(dtype).eps)
        np.testing.assert_allclose(delta, [[deltas[i]]], rtol=0, atol=torch.finfo(dtype).tiny)


@pytest.mark.parametrize("logit", [-40.0, -30.0, -3.0, 20.5, 30.0, 36.0])
def test_logistic_loss_keeps_its_tail(logit):
    """log(1 + e^z) - z for y = 1: the tail e^-z is what a long fit still learns from."""
    value, delta = evaluate_rows(BinaryCrossEntropy(), np.array([[logit]]), np.array([[0.0]]))
    np.testing.assert_allclose(value, np.logaddexp(0, logit), rtol=1e-15)
    np.testing.assert_allclose(delta, [[special.expit(logit)]], rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(3,), (3, 2)])
def test_softmax_loss_of_extreme_logits(dtype, heads):
    z = torch.zeros((2, sum(heads)), dtype=dtype)
    z[:, 0], z[:, 1] = 1000.0, -1000.0
    y = np.zeros((2, len(heads)), dtype=np.int64)
    y[1, 0] = 1  # sure of class 0, and wrong
    other = np.log(2) * (len(heads) - 1)
    for i, expected in enumerate([0.0, 2000.0]):
        value, delta = evaluate_rows(SoftmaxCrossEntropy(heads), z[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(value, expected + other, rtol=torch.finfo(dtype).eps)
        np.testing.assert_array_equal(delta[0, :3], [[0, 0, 0], [1, -1, 0]][i])


@pytest.mark.parametrize("dtype", DTYPES)
def test_regression_losses_of_extreme_logits(dtype):
    z, y = torch.tensor([[1000.0], [-1000.0]], dtype=dtype), np.zeros((2, 1))
    expected = {
        SquaredError(): (5e5, [1000, -1000]),
        AbsoluteError(): (1000, [1, -1]),
        Huber(2.0): (1998, [2, -2]),
        Pinball(0.25): (0.5 * (750 + 250), [0.75, -0.25]),
    }
    eps = torch.finfo(dtype).eps
    for loss, (value, delta) in expected.items():
        ours = evaluate_rows(loss, z, y)
        np.testing.assert_allclose(ours[0], value, rtol=2 * eps)
        np.testing.assert_allclose(ours[1][:, 0], np.array(delta) / 2, rtol=2 * eps)


def test_poisson():
    """Half the deviance; at y = 0 it is f, and in the far left f is 0."""
    z = np.array([[0.3], [-1.0], [-1000.0], [2.0], [2.0]])
    y = np.array([[0.0], [0.0], [0.0], [7.0], [np.exp(2.0)]])
    expected = [np.exp(0.3), np.exp(-1.0), 0.0, 7 * np.log(7) - 14 - 7 + np.exp(2), 0.0]
    for i in range(len(z)):
        value, delta = evaluate_rows(Poisson(), z[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(value, expected[i], rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(delta, np.exp(z[i : i + 1]) - y[i : i + 1], rtol=1e-15)


def test_poisson_overflow_is_seen():
    """A mean that no float holds must show in the value: that is how divergence is noticed."""
    value, delta = evaluate_rows(Poisson(), np.array([[1000.0], [0.0]]), np.ones((2, 1)))
    assert value == np.inf
    np.testing.assert_array_equal(delta[:, 0], [np.inf, 0])


def test_at_the_kink():
    """z = y: no loss and no force, whatever the quantile."""
    z = np.array([[1.5, -2.0]])
    for loss in (AbsoluteError(), Huber(0.5), Pinball(0.1), Pinball(0.9), SquaredError()):
        value, delta = evaluate_rows(loss, z, z)
        assert value == 0
        np.testing.assert_array_equal(delta, 0)


def test_huber_is_continuous_at_its_threshold():
    u = np.array([[0.7 - 1e-9], [0.7], [0.7 + 1e-9]])
    for sign in (1, -1):
        values, deltas = zip(
            *[evaluate_rows(Huber(0.7), sign * u[i : i + 1], np.zeros((1, 1))) for i in range(3)],
            strict=True,
        )
        np.testing.assert_allclose(values, special.huber(0.7, u[:, 0]), rtol=1e-15)
        np.testing.assert_allclose(np.ravel(deltas), sign * np.minimum(u[:, 0], 0.7), rtol=1e-15)


def test_the_quantile_minimises_the_pinball_loss():
    """With one constant prediction the delta sums to 0 exactly between the right two targets."""
    y = np.arange(10.0)[:, None]
    for quantile in (0.25, 0.75):
        at = 10 * quantile - 0.5  # 2.5 of ten below: between the second and the third
        _, below = evaluate_rows(Pinball(quantile), np.full_like(y, np.floor(at) - 0.5), y)
        _, above = evaluate_rows(Pinball(quantile), np.full_like(y, np.floor(at) + 0.5), y)
        assert below.sum() < 0 < above.sum()


# -- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [None, 0.1])
def test_rows_of_weight_zero_have_no_influence(name, smoothing):
    """Leaving them out gives the same value; their own delta is 0, whatever they hold."""
    z, y, _ = (a[0, 0] for a in stacked_case(name))
    weight = np.array([0.4, 0, 0.25, 0, 0.35, 0])
    far = z.copy()
    far[weight == 0] = np.array([[50.0], [-50.0], [300.0]])
    loss, live = LOSSES[name].engine, weight > 0
    value, delta = evaluate_rows(loss, far, y, weight, smoothing)
    expected, rows = evaluate_rows(loss, z[live], y[live], weight[live], smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(delta[live], rows, rtol=1e-14)
    np.testing.assert_array_equal(delta[~live], 0)


def log_loss_rows(y_true, y_pred):
    """A user's loss that is infinite, with an infinite slope, at y_pred = 0."""
    return (y_pred.log() - y_true).square().sum(1)


def root_rows(y_true, y_pred):
    """Finite at y_pred = y_true, with an infinite slope."""
    return (y_pred - y_true).abs().sqrt().sum(1)


@pytest.mark.parametrize("function", [log_loss_rows, root_rows])
@pytest.mark.parametrize("stray", [0.0, -1.0])
def test_callable_loss_without_a_value_on_a_row_of_weight_zero(function, stray):
    """Padding may hold anything: 0 * inf and 0 * NaN must not come of it."""
    z = np.array([[1.0], [stray], [3.0]])
    y = np.array([[0.5], [stray], [0.5]])
    weight, live = np.array([0.5, 0.0, 0.5]), [0, 2]
    value, delta = evaluate_rows(CallableLoss(function), z, y, weight)
    expected, rows = evaluate_rows(CallableLoss(function), z[live], y[live], weight[live])
    np.testing.assert_allclose(value, expected, rtol=1e-15)
    np.testing.assert_allclose(delta[live], rows, rtol=1e-15)
    np.testing.assert_array_equal(delta[1], 0)


@pytest.mark.parametrize("name", LOSSES)
def test_doubling_a_weight_is_repeating_the_row(name):
    z, y, _ = (a[0, 0] for a in stacked_case(name))
    counts = np.array([2, 1, 3, 1, 1, 2])
    loss = LOSSES[name].engine
    value, delta = evaluate_rows(loss, z, y, counts / counts.sum())
    expected, rows = evaluate_rows(loss, np.repeat(z, counts, 0), np.repeat(y, counts, 0))
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(
        np.repeat(delta, counts, 0), rows * np.repeat(counts, counts)[:, None]
    )


# -- callables -----------------------------------------------------------------------------------

SAME_AS_BUILT_IN = {
    "squared_3": (SquaredError(), lambda y, z: 0.5 * (z - y) ** 2),
    "absolute": (AbsoluteError(), lambda y, z: (z - y).abs()),
    "huber": (Huber(0.7), lambda y, z: F.huber_loss(z, y, reduction="none", delta=0.7)),
    "pinball": (Pinball(0.3), lambda y, z: torch.maximum(0.3 * (y - z), -0.7 * (y - z))),
}


@pytest.mark.parametrize("name", SAME_AS_BUILT_IN)
@pytest.mark.parametrize("per_row", [False, True])
def test_callable_equals_the_built_in_loss(name, per_row):
    built_in, elements = SAME_AS_BUILT_IN[name]
    function = (lambda y, z: elements(y, z).sum(1)) if per_row else elements
    z, y, r = (torch.from_numpy(a) for a in stacked_case(name))
    for ours, expected in zip(
        evaluate(CallableLoss(function), z, y, r), evaluate(built_in, z, y, r), strict=True
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=1e-17)
    assert CallableLoss(function).reported_scale(3) == built_in.reported_scale(3)


@pytest.mark.parametrize(
    ("function", "seen"),
    [
        (lambda y, z: (z - y).square().mean(), r"\(\)"),
        (lambda y, z: (z - y).square().sum(0), r"\(2,\)"),
        (lambda y, z: (z - y).square()[:, :1], r"\(6, 1\)"),
        (lambda y, z: (z - y).square().sum(1)[:-1], r"\(5,\)"),
        (lambda y, z: (z - y).square().numpy(force=True), "ndarray"),
        (lambda y, z: None, "NoneType"),
    ],
)
def test_callable_of_a_wrong_shape_is_refused(function, seen):
    loss = CallableLoss(function)
    z, y, _ = (torch.from_numpy(a[:1, :1]) for a in stacked_case("absolute"))
    r = torch.full((1, 1, N_ROWS), 1 / N_ROWS, dtype=torch.float64)
    message = rf"loss: .*one loss per row.*\({N_ROWS},\) or \({N_ROWS}, 2\), got {seen}"
    with pytest.raises(ValueError, match=message):
        evaluate(loss, z, y, r)
    with pytest.raises(ValueError, match=message):
        loss.value(z.mT.contiguous(), y.mT.contiguous(), r.unsqueeze(2))


def test_callable_on_a_batch_without_weight():
    """Padding of a stack, a batch of zero weights: no row is left to show to the function."""
    z, y, r = (torch.from_numpy(a) for a in stacked_case("callable"))
    r[1, 2] = 0
    value, delta = evaluate(CallableLoss(log_cosh_elements), z, y, r)
    assert value[1, 2] == 0
    assert (delta[1, 2] == 0).all()
    assert (value[0] > 0).all()


def test_callable_works_inside_no_grad():
    z, y, r = (torch.from_numpy(a) for a in stacked_case("callable"))
    with torch.no_grad():
        _, inside = evaluate(CallableLoss(log_cosh_elements), z, y, r)
    _, outside = evaluate(CallableLoss(log_cosh_elements), z, y, r)
    assert torch.equal(inside, outside)
    assert not outside.requires_grad


@pytest.mark.parametrize("name", ["squared", "squared_3"])
def test_callable_may_not_reach_into_the_batch(name):
    """The user's function gets copies: working in place harms nobody."""

    def in_place(y_true, y_pred):
        y_true.neg_()
        return (y_pred + y_true).square().sum(1)

    z, y, r = (torch.from_numpy(a) for a in stacked_case(name))
    value, delta = evaluate(CallableLoss(in_place), z, y, r)
    expected_value, expected_delta = evaluate(SquaredError(), z, y, r)
    np.testing.assert_allclose(value, 2 * expected_value, rtol=1e-13)
    np.testing.assert_allclose(delta, 2 * expected_delta, rtol=1e-13, atol=1e-17)


# -- links and reported figures ------------------------------------------------------------------


def link(loss, z_NK, dtype=torch.float64):
    """Predictions rows first; the engine keeps them class-major."""
    return loss.link_(torch.tensor(z_NK, dtype=dtype).T.contiguous()).T.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logistic_link_is_strictly_inside(dtype):
    z = np.array([[-1e3, 1e3], [-800.0, 800.0], [-40.0, 40.0], [0.0, 1.0]])
    p = link(BinaryCrossEntropy(), z, dtype)
    eps = torch.finfo(dtype).eps
    assert p.dtype == torch.zeros((), dtype=dtype).numpy().dtype
    assert ((p > 0) & (p < 1)).all()
    assert (p[:3, 0] < 1e-15).all()
    assert (p[:3, 1] >= 1 - eps).all()
    np.testing.assert_allclose(p[3], special.expit(z[3]), rtol=2 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_link(dtype):
    z = np.array([[1000.0, -1000.0, 0.0, -1000.0, 1000.0], [0.1, 0.2, 0.3, 1.0, 2.0]])
    rtol = 4 * torch.finfo(dtype).eps
    for heads in [(3, 2), (5,)]:
        p = link(SoftmaxCrossEntropy(heads), z, dtype)
        start = 0
        for size in heads:
            part = slice(start, start + size)
            expected = special.softmax(z[:, part], axis=1)
            np.testing.assert_allclose(p[:, part], expected, rtol=rtol)
            start += size


def test_other_links():
    z = np.array([[0.5, -3.0], [0.0, 2.0]])
    np.testing.assert_allclose(link(Poisson(), z), np.exp(z), rtol=1e-15)
    for loss in (SquaredError(), AbsoluteError(), Huber(), Pinball(), CallableLoss(root_rows)):
        np.testing.assert_array_equal(link(loss, z), z)


def test_reported_scale_is_scikit_learns():
    """The squared error is reported per output; cross-entropies and Poisson as their sum."""
    per_output = (SquaredError(), AbsoluteError(), Huber(), Pinball(), CallableLoss(root_rows))
    assert {loss.reported_scale(4) for loss in per_output} == {0.25}
    summed = (Poisson(), BinaryCrossEntropy(), SoftmaxCrossEntropy((4,)))
    assert {loss.reported_scale(4) for loss in summed} == {1.0}


def test_losses_are_values():
    """Equal constants make equal losses: jobs may share a stack."""
    assert Huber(1.0) == Huber(1.0) != Huber(2.0)
    assert hash(SoftmaxCrossEntropy((2, 3))) == hash(SoftmaxCrossEntropy((2, 3)))
    assert CallableLoss(root_rows) == CallableLoss(root_rows) != CallableLoss(log_loss_rows)
