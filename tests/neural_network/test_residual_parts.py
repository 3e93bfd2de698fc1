"""Parts of the residual estimators that can be tested alone: folds, target scale, calibration."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, mean_pinball_loss, mean_poisson_deviance

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
from sknn_resid.neural_network._calibration import (
    TEMPERATURES,
    group_weights,
    linked,
    loss_of_outputs,
    raw_of,
    sharpened,
    temperature,
)
from sknn_resid.neural_network._folds import assign_folds, distinct_rows, n_folds_for
from sknn_resid.neural_network._target_scale import fit_target_scale, loss_of_scaled, unscaled


def rng(seed=0):
    return np.random.RandomState(seed)


# -- folds --------------------------------------------------------------------------------------


def test_distinct_rows_are_those_of_unique():
    for seed in range(20):
        X = rng(seed).randint(0, 3, (60, 4)).astype(float)
        number, n_distinct = distinct_rows(X)
        theirs, inverse = np.unique(X, axis=0, return_inverse=True)
        assert n_distinct == len(theirs)
        np.testing.assert_array_equal(number, inverse.ravel())


def test_distinct_rows_of_few_columns_and_rows():
    assert distinct_rows(np.zeros((0, 2)))[1] == 0
    assert distinct_rows(np.ones((5, 3)))[1] == 1
    number, n_distinct = distinct_rows(np.array([[2.0], [1.0], [2.0]]))
    assert n_distinct == 2
    np.testing.assert_array_equal(number, [1, 0, 1])


def test_minus_zero_is_zero():
    assert distinct_rows(np.array([[0.0], [-0.0]]))[1] == 1


def test_copies_share_a_fold_and_folds_follow_content():
    X = rng(1).randn(40, 3)
    copies = rng(2).randint(1, 4, 40)
    repeated = np.repeat(X, copies, axis=0)
    shuffle = rng(3).permutation(len(repeated))
    once = assign_folds(*distinct_rows(X), 8, rng(5))
    again = assign_folds(*distinct_rows(repeated[shuffle]), 8, rng(5))
    np.testing.assert_array_equal(np.repeat(once.of_row, copies)[shuffle], again.of_row)


def test_folds_do_not_follow_the_last_bit():
    X = rng(1).randn(40, 3)
    nudged = np.nextafter(X, np.inf)
    one = assign_folds(*distinct_rows(X), 4, rng(5))
    two = assign_folds(*distinct_rows(nudged), 4, rng(5))
    np.testing.assert_array_equal(one.of_row, two.of_row)


def test_folds_are_of_equal_size_and_split_the_rows():
    folds = assign_folds(*distinct_rows(rng().randn(43, 2)), 8, rng(0))
    sizes = np.bincount(folds.of_row)
    assert len(sizes) == 8
    assert sizes.max() - sizes.min() <= 1
    train, out = folds.split(3)
    assert sorted([*train, *out]) == list(range(43))
    assert (folds.of_row[out] == 3).all()


def test_too_few_distinct_rows_for_folds():
    one, other = rng(0), rng(0)
    assert assign_folds(*distinct_rows(np.eye(5)), 8, one) is None
    assign_folds(*distinct_rows(np.eye(5)), 2, other)
    assert one.randint(1000) == other.randint(1000)  # the same draws either way


@pytest.mark.parametrize(("fraction", "n_folds"), [(0.125, 8), (0.1, 10), (0.3, 3), (0.9, 2)])
def test_number_of_folds(fraction, n_folds):
    assert n_folds_for(fraction) == n_folds


# -- target scale ---------------------------------------------------------------------------------


def test_standardisation_is_weighted():
    y = rng().randn(30, 2) * [3, 100] + [5, -7]
    copies = rng(1).randint(0, 4, 30)
    weighted = fit_target_scale(y, copies.astype(float), SquaredError(), clamp=False)
    repeated = fit_target_scale(np.repeat(y, copies, axis=0), None, SquaredError(), clamp=False)
    np.testing.assert_allclose(weighted.shift, repeated.shift, rtol=1e-13)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-13)
    learned = repeated.to_learned(np.repeat(y, copies, axis=0))
    np.testing.assert_allclose(learned.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(learned.std(0), 1, rtol=1e-12)


def test_there_and_back():
    y = rng().randn(30, 2) * [1e-200, 1e200]
    scale = fit_target_scale(y, None, SquaredError(), clamp=False)
    np.testing.assert_allclose(scale.to_user(scale.to_learned(y)), y, rtol=1e-13)
    assert np.isfinite(scale.scale).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9, 1e300])
def test_constant_target(value):
    y = np.full((7, 1), value)
    scale = fit_target_scale(y, None, SquaredError(), clamp=True)
    assert scale.scale == 1
    np.testing.assert_array_equal(scale.to_user(np.full((3, 1), 0.3)), np.full((3, 1), value))


def test_clamping():
    y = np.array([[1.0], [2.0], [4.0]])
    scale = fit_target_scale(y, None, SquaredError(), clamp=True)
    np.testing.assert_allclose(
        scale.to_user(np.array([[-9.0], [0.0], [9.0]])).ravel(), [1, 7 / 3, 4]
    )
    free = fit_target_scale(y, None, SquaredError(), clamp=False)
    assert free.to_user(np.array([[9.0]])) > 4


def test_poisson_is_only_divided():
    y = rng().poisson(3, (50, 1)) * 1000.0
    scale = fit_target_scale(y, None, Poisson(), clamp=False)
    assert scale.shift == 0
    assert scale.scale == y.mean()
    f = np.exp(rng(1).randn(50, 1))
    small = mean_poisson_deviance(scale.to_learned(y), f)
    assert small * scale.scale[0] == pytest.approx(mean_poisson_deviance(y, scale.to_user(f)))


def test_huber_keeps_its_threshold_in_units_of_y():
    y = rng().randn(50, 2) * [1, 100]
    loss = Huber(3.0)
    scale = fit_target_scale(y, None, loss, clamp=False)
    assert scale.scale[0] == scale.scale[1]
    inner = loss_of_scaled(loss, scale)
    z = rng(1).randn(50, 2) * 10
    ours = loss_of_outputs(inner, scale.to_learned(z), scale.to_learned(y), None)
    theirs = loss_of_outputs(loss, z, y, None)
    assert ours * scale.scale[0] ** 2 == pytest.approx(theirs)


def test_a_callable_sees_the_units_of_y():
    y = rng().randn(20, 1) * 50 + 1000
    seen = []

    def squared(y_true, y_pred):
        seen.append(y_true.numpy())
        return ((y_true - y_pred) ** 2).sum(1)

    scale = fit_target_scale(y, None, SquaredError(), clamp=False)
    loss = loss_of_scaled(CallableLoss(squared), scale)
    z = rng(1).randn(20, 1)
    value = loss_of_outputs(loss, z, scale.to_learned(y), None)
    assert value == pytest.approx(((y - scale.to_user(z)) ** 2).mean())
    np.testing.assert_allclose(seen[0], y)


def test_unscaled_changes_nothing():
    y = rng().randn(4, 3)
    np.testing.assert_array_equal(unscaled(3).to_user(unscaled(3).to_learned(y)), y)


@pytest.mark.parametrize("loss", [SquaredError(), AbsoluteError(), Pinball(0.3), Poisson()])
def test_other_losses_stay(loss):
    scale = fit_target_scale(rng().rand(9, 1), None, loss, clamp=False)
    assert loss_of_scaled(loss, scale) is loss


# -- calibration ----------------------------------------------------------------------------------


def test_loss_of_outputs_is_sklearns():
    p = rng().dirichlet([1, 2, 3], 40)
    y = rng(1).randint(0, 3, 40)
    w = rng(2).rand(40)
    ours = loss_of_outputs(SoftmaxCrossEntropy((3,)), p, y[:, None], w)
    assert ours == pytest.approx(log_loss(y, p, sample_weight=w))
    binary = loss_of_outputs(BinaryCrossEntropy(), p[:, :1], (y == 0)[:, None], w)
    assert binary == pytest.approx(log_loss(y == 0, p[:, 0], sample_weight=w))
    t = rng(3).randn(40)
    pinball = loss_of_outputs(Pinball(0.2), p[:, :1], t[:, None], w)
    assert pinball == pytest.approx(mean_pinball_loss(t, p[:, 0], sample_weight=w, alpha=0.2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy((2, 3)), BinaryCrossEntropy(), Poisson()])
def test_raw_and_linked_are_inverse(loss, dtype):
    p = np.hstack([rng().dirichlet([1, 1], 30), rng(1).dirichlet([1, 1, 1], 30)]).astype(dtype)
    found = linked(loss, raw_of(loss, p))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, p, rtol=2e-5 if dtype == np.float32 else 1e-12)
    saturated = np.array([[0.0, 1.0, 0.0, 1.0, 0.0]], dtype=dtype)
    assert np.isfinite(raw_of(loss, saturated)).all()


def test_group_weights_find_the_better_group():
    truth = rng().randn(200, 1)
    good, bad = truth + 0.1 * rng(1).randn(200, 1), rng(2).randn(200, 1)
    groups = np.stack([bad, good])
    np.testing.assert_array_equal(group_weights(SquaredError(), groups, truth, None), [0, 1])


def test_group_weights_are_the_best_of_the_list():
    truth = rng().randn(300, 1)
    groups = np.stack([truth + 0.5 * rng(1).randn(300, 1), truth + 0.8 * rng(2).randn(300, 1)])
    found = group_weights(SquaredError(), groups, truth, None)
    listed = [
        ((truth - (w * groups[0] + (1 - w) * groups[1])) ** 2).mean() for w in np.arange(11) / 10
    ]
    assert found[0] == pytest.approx(np.argmin(listed) / 10)
    assert 0.5 < found[0] < 1


def test_group_weights_of_three():
    truth = rng().randn(500, 1)
    noise = [0.5, 0.5, 5.0]
    groups = np.stack([truth + s * rng(k).randn(500, 1) for k, s in enumerate(noise)])
    found = group_weights(SquaredError(), groups, truth, None)
    assert found.sum() == pytest.approx(1)
    assert found[2] == 0
    assert abs(found[0] - found[1]) < 0.25


def test_group_weights_survive_a_group_that_failed():
    truth = rng().randn(50, 1)
    groups = np.stack([truth, np.full((50, 1), 1e300)])
    np.testing.assert_array_equal(group_weights(SquaredError(), groups, truth, None), [1, 0])
    assert group_weights(SquaredError(), truth[None], truth, None) == 1


def test_temperature_recovers_the_true_one():
    """Labels drawn from p, probabilities flattened to p^(1/2): the temperature is 2."""
    p = rng().dirichlet([1, 1, 1], 20000)
    y = (rng(1).rand(20000, 1) > p.cumsum(1)).sum(1)
    loss = SoftmaxCrossEntropy((3,))
    flat = sharpened(loss, p, 0.5)
    found = temperature(loss, flat, y[:, None], None)
    assert found == pytest.approx(2, rel=0.06)
    assert found in TEMPERATURES
    np.testing.assert_allclose(sharpened(loss, flat, 2.0), p, atol=1e-12)


def test_temperature_is_weighted_and_only_for_probabilities():
    p = rng().rand(60, 1) * 0.9 + 0.05
    y = (rng(1).rand(60, 1) < p**2).astype(float)
    copies = rng(2).randint(0, 3, 60)
    weighted = temperature(BinaryCrossEntropy(), p, y, copies.astype(float))
    repeated = temperature(
        BinaryCrossEntropy(), np.repeat(p, copies, 0), np.repeat(y, copies, 0), None
    )
    assert weighted == repeated
    assert temperature(SquaredError(), p, y, None) == 1
    assert sharpened(SquaredError(), p, 2.0) is p
