"""Learning-rate schedules against torch's schedulers and scikit-learn's SGD, step by step."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.neural_network._stochastic_optimizers import SGDOptimizer

from sknn_resid.engine.schedules import Adaptive, Cosine, InverseScaling, OneCycle, Schedule

BASE = 0.3


def torch_rates(make_scheduler, n_steps, base=BASE):
    """Rates that an optimizer of torch sees under a scheduler, one a step."""
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=base)
    with warnings.catch_warnings():
        # torch asks for optimizer.step() between the steps of a scheduler; there is nothing to do.
        warnings.simplefilter("ignore")
        scheduler = make_scheduler(optimizer)
        rates = []
        for k in range(n_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            if k < n_steps - 1:
                scheduler.step()
    return np.array(rates)


@pytest.mark.parametrize("horizon", [1, 2, 7, 100])
def test_cosine(horizon):
    expected = torch_rates(
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=horizon), horizon
    )
    factors = Cosine().factors(0, horizon, horizon)
    np.testing.assert_allclose(BASE * factors, expected, rtol=1e-11)
    assert factors[0] == 1


@pytest.mark.parametrize("horizon", [8, 10, 33, 100, 1001])
def test_one_cycle(horizon):
    expected = torch_rates(
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(
            opt, max_lr=BASE, total_steps=horizon, cycle_momentum=False
        ),
        horizon,
    )
    np.testing.assert_allclose(BASE * OneCycle().factors(0, horizon, horizon), expected, rtol=1e-12)


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5])
def test_one_cycle_of_a_few_steps(horizon):
    """Too short for a rise: torch divides by zero there. Ours stays between its ends."""
    cycle = OneCycle()
    factors = cycle.factors(0, horizon, horizon)
    assert np.isfinite(factors).all()
    assert (factors >= cycle.end * (1 - 1e-12)).all()
    assert (factors <= 1).all()


@pytest.mark.parametrize("n_warm", [2, 5, 40])
def test_warmup(n_warm):
    """torch's LinearLR that starts at 1/w and takes w - 1 steps to 1."""
    horizon = 50
    expected = torch_rates(
        lambda opt: torch.optim.lr_scheduler.LinearLR(
            opt, start_factor=1 / n_warm, total_iters=n_warm - 1
        ),
        horizon,
    )
    factors = Schedule(n_warm / horizon).factors(0, horizon, horizon)
    np.testing.assert_allclose(BASE * factors, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "schedule", [Schedule(0.25), Schedule(1.0), Cosine(0.1), OneCycle(0.1), InverseScaling(0.2)]
)
def test_warmup_multiplies(schedule):
    """The ramp is a factor on whatever the schedule does by itself."""
    horizon = 40
    plain = type(schedule)().factors(0, horizon, horizon)
    n_warm = round(schedule.warmup_fraction * horizon)
    ramp = np.minimum(1, np.arange(1, horizon + 1) / n_warm)
    expected = ramp if plain is None else ramp * plain
    np.testing.assert_allclose(schedule.factors(0, horizon, horizon), expected, rtol=1e-15)


@pytest.mark.parametrize("fraction", [1e-6, 0.5 / 40])
def test_a_tiny_warmup_leaves_every_step_whole(fraction):
    np.testing.assert_array_equal(Schedule(fraction).factors(0, 40, 40), 1)


@pytest.mark.parametrize("schedule", [Cosine(), OneCycle(), Schedule(0.3), OneCycle(0.2)])
@pytest.mark.parametrize("n_steps", [1, 3, 8])
def test_epochs_join_without_a_seam(schedule, n_steps):
    """Factors asked for epoch by epoch are those of the whole run."""
    horizon = 24
    pieces = [schedule.factors(k, n_steps, horizon) for k in range(0, horizon, n_steps)]
    np.testing.assert_array_equal(np.concatenate(pieces), schedule.factors(0, horizon, horizon))


@pytest.mark.parametrize("schedule", [Cosine(), OneCycle(), Schedule(0.3)])
def test_beyond_the_horizon_the_last_value_stays(schedule):
    """A fit that is resumed past its epochs must not climb again."""
    beyond = schedule.factors(24, 30, 24)
    assert np.ptp(beyond) == 0
    last = schedule.factors(23, 1, 24)[0]
    assert 0 <= beyond[0] <= last


def test_a_constant_rate_costs_nothing():
    for schedule in (Schedule(), Adaptive(), InverseScaling()):
        assert schedule.factors(0, 10, 100) is None
    assert Schedule().after_epoch(0.1, 0.2, 50) == 0.1
    assert Schedule().on_plateau(0.1) is None


# -- scikit-learn's ------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 0.25, 1.0])
def test_inverse_scaling(power):
    reference = SGDOptimizer([np.zeros(1)], BASE, "invscaling", power_t=power)
    schedule, rate = InverseScaling(power=power), BASE
    for rows_seen in (120, 240, 360, 1_000_000):
        reference.iteration_ends(rows_seen)
        rate = schedule.after_epoch(rate, BASE, rows_seen)
        assert rate == reference.learning_rate
    assert schedule.on_plateau(rate) is None
    assert reference.trigger_stopping("", verbose=False)


def test_adaptive():
    """Down by five until the floor; then it stops, at the same plateau as scikit-learn."""
    for base in (0.3, 1e-6, 1.0000001e-6, 1e-3):
        reference = SGDOptimizer([np.zeros(1)], base, "adaptive")
        schedule, rate = Adaptive(), base
        for _ in range(20):
            stops = reference.trigger_stopping("", verbose=False)
            lower = schedule.on_plateau(rate)
            assert (lower is None) == stops
            if stops:
                break
            rate = lower
            assert rate == reference.learning_rate
        assert stops
        reference.iteration_ends(100)
        assert schedule.after_epoch(rate, base, 100) == reference.learning_rate == rate


def test_schedules_are_values():
    assert Cosine(0.1) == Cosine(0.1) != Cosine(0.2)
    assert Schedule() != Cosine()
    assert hash(OneCycle(0.1)) == hash(OneCycle(0.1))
