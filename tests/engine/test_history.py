"""Counting, best weights and stopping of one model, against a plain reading of the rules."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from sknn_resid.engine.history import Progress, Resume, StopReason
from sknn_resid.engine.schedules import Adaptive, InverseScaling, Schedule
from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec

N_ROWS, RATE = 10, 0.5


def make_progress(*, resume=None, schedule=None, rate=RATE, **changes):
    fields = {
        "optimizer": OptimizerSpec(OptimizerKind.SGD, RATE),
        "schedule": schedule or Schedule(),
        "penalty": 0.0,
        "batch_size": 5,
        "max_epochs": 1000,
        "tolerance": 0.1,
        "patience": 2,
    }
    spec = TrainSpec(**fields | changes)
    return Progress(spec, resume or Resume(), rate, weights_of(-1))


def weights_of(epoch):
    """Weights that tell which epoch they come from."""
    return torch.full((3,), float(epoch), dtype=torch.float64)


def best_epoch(progress, *, diverged=False):
    """The epoch whose final weights are kept; -1 for the initial ones."""
    kept = progress.best_params(diverged=diverged)
    assert kept.isfinite().all()
    assert (kept == kept[0]).all()
    return int(kept[0])


def feed_losses(progress, losses):
    """Epochs with these losses until the model stops; returns how many there were."""
    for epoch, loss in enumerate(losses):
        if not progress.record_loss(loss, N_ROWS, weights_of(epoch)):
            return epoch + 1
        progress.end_epoch(RATE)
        if progress.reason is not None:
            return epoch + 1
    return len(losses)


def feed_scores(progress, scores, losses=None):
    losses = np.zeros(len(scores)) if losses is None else losses
    for epoch, (score, loss) in enumerate(zip(scores, losses, strict=True)):
        progress.record_loss(1.0, N_ROWS, weights_of(epoch))
        progress.record_score(score, loss, weights_of(epoch))
        progress.end_epoch(RATE)
        if progress.reason is not None:
            return epoch + 1
    return len(scores)


# -- scikit-learn's rules, read plainly ----------------------------------------------------------


def sklearn_without_validation(losses, tol, patience):
    """Epochs, best loss, count: ``_update_no_improvement_count`` and the stop test after it."""
    best, count = math.inf, 0
    for epoch, loss in enumerate(losses):
        if loss > best - tol:
            count += 1
        else:
            count = 0
        if loss < best:
            best = loss
        if count > patience:
            return epoch + 1, best, count
    return len(losses), best, count


def sklearn_with_validation(scores, tol, patience):
    """Epochs, best score, count, epoch whose weights are kept."""
    best, count, kept = -math.inf, 0, -1
    for epoch, score in enumerate(scores):
        if score < best + tol:
            count += 1
        else:
            count = 0
        if score > best:
            best, kept = score, epoch
        if count > patience:
            return epoch + 1, best, count, kept
    return len(scores), best, count, kept


def sequences(n):
    """Every short sequence over values closer and farther apart than the tolerance."""
    yield from itertools.product([1.0, 0.95, 0.9, 0.7], repeat=n)


@pytest.mark.parametrize("tol", [0.1, 0.0, -0.03])
@pytest.mark.parametrize("patience", [1, 2, math.inf])
def test_losses_are_counted_as_scikit_learn_does(tol, patience):
    for losses in sequences(5):
        progress = make_progress(tolerance=tol, patience=patience)
        n_epochs = feed_losses(progress, losses)
        expected, best, count = sklearn_without_validation(losses, tol, patience)
        assert (n_epochs, progress.best_loss) == (expected, best)
        assert progress.no_improvement == count
        assert (progress.reason is StopReason.PLATEAU) == (count > patience)
        assert progress.loss_curve == list(losses[:expected])
        assert progress.n_epochs == expected
        assert progress.rows_seen == expected * N_ROWS


@pytest.mark.parametrize("tol", [0.1, 0.0])
@pytest.mark.parametrize("patience", [1, 2])
def test_scores_are_counted_as_scikit_learn_does(tol, patience):
    for scores in sequences(5):
        progress = make_progress(tolerance=tol, patience=patience, watch_validation=True)
        n_epochs = feed_scores(progress, scores)
        expected, best, count, kept = sklearn_with_validation(scores, tol, patience)
        assert (n_epochs, progress.best_score, progress.no_improvement) == (expected, best, count)
        assert best_epoch(progress) == kept
        assert progress.validation_scores == list(scores[:expected])


@pytest.mark.parametrize(
    "scores",
    [
        [math.nan, math.nan, 0.5, math.nan, 0.7],
        [0.5, 0.5, math.nan, 0.5, 0.5, 0.5, 0.5],
        [-math.inf, -math.inf, 0.2],
    ],
)
def test_scores_that_are_no_numbers(scores):
    """NaN compares False: it is no best score and resets the count."""
    progress = make_progress(tolerance=0.0, watch_validation=True)
    n_epochs = feed_scores(progress, scores)
    expected, best, count, kept = sklearn_with_validation(scores, 0.0, 2)
    assert (n_epochs, progress.best_score, progress.no_improvement) == (expected, best, count)
    assert best_epoch(progress) == kept


def test_known_example():
    """tol 10, patience 3: the losses fall by less, and the fit ends in the fifth epoch."""
    progress = make_progress(tolerance=10, patience=3)
    assert feed_losses(progress, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]) == 5
    assert progress.reason is StopReason.PLATEAU


def test_a_recorded_validation_part_decides_nothing():
    """Without early stopping the scores are noted, the losses count, their weights are kept."""
    progress = make_progress()
    for epoch, (loss, score) in enumerate([(3.0, 0.1), (1.0, 0.9), (2.0, 0.2)]):
        progress.record_loss(loss, N_ROWS, weights_of(epoch))
        progress.record_score(score, 0.0, weights_of(epoch))
        progress.end_epoch(RATE)
    assert progress.validation_scores == [0.1, 0.9, 0.2]
    assert progress.best_score == 0.9
    assert progress.no_improvement == 1
    assert best_epoch(progress) == 1


# -- ends ----------------------------------------------------------------------------------------


def test_the_last_epoch_ends_the_fit():
    progress = make_progress(max_epochs=3)
    assert feed_losses(progress, [3.0, 2.0, 1.0, 0.5]) == 3
    assert progress.reason is StopReason.MAX_EPOCHS


def test_a_plateau_in_the_last_epoch_is_a_plateau():
    """scikit-learn stops before it comes to its warning about max_iter."""
    progress = make_progress(max_epochs=4)
    assert feed_losses(progress, [1.0, 1.0, 1.0, 1.0]) == 4
    assert progress.reason is StopReason.PLATEAU


def test_counting_without_stopping():
    """``partial_fit`` counts on, and never ends on a plateau."""
    progress = make_progress(stop_on_plateau=False)
    assert feed_losses(progress, [1.0] * 9) == 9
    assert progress.reason is None
    assert progress.no_improvement == 8


@pytest.mark.parametrize("stop_on_plateau", [True, False])
def test_adaptive_rates_fall_on_each_plateau(stop_on_plateau):
    """Also where nothing stops: scikit-learn's partial_fit divides the rate all the same."""
    progress = make_progress(
        schedule=Adaptive(), rate=1e-5, patience=1, stop_on_plateau=stop_on_plateau
    )
    seen = []
    for epoch in range(12):
        progress.record_loss(1.0, N_ROWS, weights_of(epoch))
        progress.end_epoch(RATE)
        seen.append((progress.lowered_rate, progress.no_improvement))
        if progress.reason is not None:
            break
    first, second = 1e-5 / 5, 1e-5 / 5 / 5
    # The first epoch improves on infinity; then every second one is a plateau.
    assert seen[:6] == [(None, 0), (None, 1), (first, 0), (None, 1), (second, 0), (None, 1)]
    assert progress.rate == second  # below the floor it is not divided again
    if stop_on_plateau:
        assert len(seen) == 7
        assert progress.reason is StopReason.PLATEAU
    else:
        assert len(seen) == 12
        assert progress.reason is None


def test_inverse_scaling_counts_rows_over_all_calls():
    schedule = InverseScaling(power=0.5)
    progress = make_progress(schedule=schedule, resume=Resume(rows_seen=90))
    feed_losses(progress, [1.0])
    assert progress.rows_seen == 100
    assert progress.rate == RATE / math.sqrt(101)


def test_resuming_is_going_on():
    """Best loss and count of an earlier call; the curve and the epochs are this call's."""
    losses = [1.0, 0.8, 0.78, 0.77, 0.76]
    whole = make_progress(patience=10)
    feed_losses(whole, losses)
    first = make_progress(patience=10)
    feed_losses(first, losses[:3])
    rest = make_progress(
        patience=10,
        resume=Resume(
            best_loss=first.best_loss,
            no_improvement=first.no_improvement,
            rows_seen=first.rows_seen,
        ),
    )
    feed_losses(rest, losses[3:])
    assert rest.best_loss == whole.best_loss
    assert rest.no_improvement == whole.no_improvement == 3
    assert rest.rows_seen == whole.rows_seen
    assert rest.loss_curve == losses[3:]
    assert rest.n_epochs == 2


def test_resuming_with_validation_needs_a_better_score():
    """Where no epoch of this call beats the earlier ones, their weights stay."""
    progress = make_progress(watch_validation=True, resume=Resume(best_score=0.9))
    feed_scores(progress, [0.5, 0.6])
    assert best_epoch(progress) == -1
    assert progress.best_score == 0.9


# -- best weights --------------------------------------------------------------------------------


def test_weights_of_the_lowest_loss_are_kept():
    """An interrupted fit goes back to the end of the best epoch, a diverged one to its start.

    A loss is measured on the weights that an epoch starts from and passes through. An equal loss
    later is not lower.
    """
    for losses in sequences(4):
        progress = make_progress(patience=math.inf)
        feed_losses(progress, losses)
        assert best_epoch(progress) == int(np.argmin(losses))
        assert best_epoch(progress, diverged=True) == int(np.argmin(losses)) - 1
        assert progress.has_finite_epoch()


def test_kept_weights_are_copies():
    progress = make_progress()
    params = weights_of(0)
    progress.record_loss(2.0, N_ROWS, params)
    params.fill_(1)
    progress.record_loss(1.0, N_ROWS, params)
    params.fill_(99)
    assert best_epoch(progress) == 1
    assert best_epoch(progress, diverged=True) == 0


def test_before_any_epoch_the_initial_weights_stand():
    for watch in (False, True):
        progress = make_progress(watch_validation=watch)
        assert best_epoch(progress) == best_epoch(progress, diverged=True) == -1
        assert not progress.has_finite_epoch()


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite(loss):
    """It stays visible in the curve; counts, best loss and best weights are untouched."""
    progress = make_progress()
    feed_losses(progress, [2.0, 1.0, 1.5])
    assert not progress.record_loss(loss, N_ROWS, torch.full((3,), math.nan))
    assert progress.loss_curve[:3] == [2.0, 1.0, 1.5]
    assert not math.isfinite(progress.loss_curve[3])
    assert progress.best_loss == 1.0
    assert progress.no_improvement == 1
    assert progress.n_epochs == 4
    assert best_epoch(progress, diverged=True) == 0
    assert progress.has_finite_epoch()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_no_finite_loss_at_all(loss):
    progress = make_progress()
    assert not progress.record_loss(loss, N_ROWS, torch.full((3,), math.nan))
    assert not progress.has_finite_epoch()
    assert best_epoch(progress, diverged=True) == -1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("diverged", [True, False])
def test_weights_that_overflowed_in_the_last_step(bad, diverged):
    """The newest weights may not be finite though the loss is: two copies are kept for that."""
    overflowed = weights_of(0)
    overflowed[1] = bad
    progress = make_progress(patience=math.inf)
    for epoch, loss in enumerate([3.0, 2.0, 2.5]):
        progress.record_loss(loss, N_ROWS, weights_of(epoch))
    progress.record_loss(1.0, N_ROWS, overflowed)  # the best loss, and no weights to go with it
    assert best_epoch(progress, diverged=diverged) == 2

    progress = make_progress()
    progress.record_loss(1.0, N_ROWS, overflowed)
    assert best_epoch(progress, diverged=diverged) == -1


def test_a_watched_score_decides_what_a_diverged_fit_goes_back_to():
    """Weights with a validation score were finite when they were scored."""
    progress = make_progress(watch_validation=True, patience=9)
    feed_scores(progress, [0.5, 0.9, 0.7])
    progress.record_loss(math.nan, N_ROWS, torch.full((3,), math.nan))
    progress.record_score(math.nan, math.nan, torch.full((3,), math.nan))
    assert best_epoch(progress, diverged=True) == 1
    assert progress.validation_scores[:3] == [0.5, 0.9, 0.7]


# -- ties ----------------------------------------------------------------------------------------


def test_ties_of_scores_go_to_the_lower_loss():
    """Accuracies that differ by less than the tolerance are one accuracy: the loss decides."""
    scores = [0.90, 0.90, 0.95, 0.90, 0.90]
    losses = [0.50, 0.30, 0.40, 0.60, 0.10]
    progress = make_progress(watch_validation=True, break_ties_by_loss=True, patience=9)
    feed_scores(progress, scores, losses)
    assert best_epoch(progress) == 4
    plain = make_progress(watch_validation=True, patience=9)
    feed_scores(plain, scores, losses)
    assert best_epoch(plain) == 2


def test_a_better_score_beats_any_loss():
    progress = make_progress(watch_validation=True, break_ties_by_loss=True)
    feed_scores(progress, [0.5, 0.8], [0.1, 9.0])
    assert best_epoch(progress) == 1
    worse = make_progress(watch_validation=True, break_ties_by_loss=True)
    feed_scores(worse, [0.8, 0.5], [9.0, 0.1])
    assert best_epoch(worse) == 0


def test_a_falling_loss_keeps_a_tied_fit_going():
    """The score stands still, the loss falls by more than the tolerance: that is progress."""
    falling = np.arange(10, 0, -1.0)
    progress = make_progress(watch_validation=True, break_ties_by_loss=True)
    assert feed_scores(progress, [0.9] * 10, falling) == 10
    assert progress.no_improvement == 0
    still = make_progress(watch_validation=True, break_ties_by_loss=True)
    assert feed_scores(still, [0.9] * 10, np.ones(10)) == 4
    assert still.reason is StopReason.PLATEAU


def test_ties_without_the_option_do_not_count_as_progress():
    progress = make_progress(watch_validation=True)
    assert feed_scores(progress, [0.9] * 10, np.arange(10, 0, -1.0)) == 4


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_tie_with_a_loss_that_is_no_number_is_not_better(loss):
    progress = make_progress(watch_validation=True, break_ties_by_loss=True, patience=9)
    feed_scores(progress, [0.9, 0.9], [0.5, loss])
    assert best_epoch(progress) == 0


def test_ties_do_not_drift():
    """A chain of small steps down is a step down: a tie is a tie with the best score so far."""
    scores = [0.90, 0.85, 0.80, 0.75]  # each within 0.1 of the one before
    losses = [4.0, 3.0, 2.0, 1.0]
    progress = make_progress(watch_validation=True, break_ties_by_loss=True, patience=9)
    feed_scores(progress, scores, losses)
    assert progress.best_score == 0.9
    # 0.80 and 0.90 are a tolerance apart, to rounding; 0.75 is farther and cannot win.
    assert best_epoch(progress) != 3
