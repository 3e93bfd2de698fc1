"""The committee: which epoch each group keeps, and when all members stop."""

import math

import numpy as np
import pytest

from sknn_resid.engine.history import EpochView, StopReason
from sknn_resid.neural_network._committee import Committee


def view(epoch, held_out, parameters, *, loss=1.0, reason=None):
    """What the engine would report."""
    return EpochView(
        epoch, loss, None, held_out, 0.1, reason, None, None, lambda: np.array([parameters])
    )


def play(committee, held_out, *, reasons=None):
    """Report epoch after epoch: ``held_out[epoch][member]``; parameters say epoch and member.

    A member is asked until its hook returns True, as the engine does. Gives the epochs of each.
    """
    n_members = len(held_out[0])
    hooks = [committee.hook(m) for m in range(n_members)]
    running, n_epochs = set(range(n_members)), [0] * n_members
    for epoch, losses in enumerate(held_out, 1):
        for m in sorted(running):
            reason = (reasons or {}).get((epoch, m))
            if epoch == len(held_out) and reason is None:
                reason = StopReason.MAX_EPOCHS
            loss = math.nan if reason is StopReason.DIVERGED else 1.0
            stop = hooks[m](view(epoch, losses[m], 100 * epoch + m, loss=loss, reason=reason))
            n_epochs[m] = epoch
            if stop or reason is not None:
                running.discard(m)
    return n_epochs


def test_each_group_keeps_its_own_best_epoch():
    committee = Committee([0, 1, 0, 1], patience=math.inf, judged=True)
    #      group 0 is best in epoch 3, group 1 in epoch 1, by the mean of its members
    play(committee, [[5, 1, 5, 2], [4, 3, 2, 3], [1, 4, 4, 4], [3, 5, 3, 5]])
    assert committee.kept_epoch == [3, 1, 3, 1]
    assert [int(kept[0]) for kept in committee.kept] == [300, 101, 302, 103]
    assert committee.validation_curve == [3.25, 3.0, 3.25, 4.0]
    assert committee.judged_epochs == [1, 2, 3, 4]


def test_a_tie_keeps_the_earlier_epoch():
    committee = Committee([0], patience=math.inf, judged=True)
    play(committee, [[2.0], [1.0], [1.0]])
    assert committee.kept_epoch == [2]


def test_all_stop_when_no_group_has_improved():
    committee = Committee([0, 1], patience=4, judged=True)
    n_epochs = play(committee, [[4, 4], [2, 3], [3, 2], [3, 3], [3, 3], [9, 9], [0, 0]])
    # best in epochs 2 and 3; two epochs later (half of the patience) each has stopped, and who has
    # reported before it was decided hears it in the next epoch
    assert n_epochs == [5, 5]
    assert committee.kept_epoch == [2, 3]
    assert committee.validation_curve == [4.0, 2.5, 2.5, 3.0, 3.0]


def test_a_group_that_has_stopped_leaves_the_others_to_go_on():
    reports = []

    def tell(report):
        reports.append((report.members, report.parameters()[:, 0].tolist()))
        return False

    committee = Committee([0, 1], patience=2, judged=True, after_epoch=tell)
    held_out = [[2.0, 9.0], [1.0, 8.0], [3.0, 7.0], [0.0, 6.0], [0.0, 5.0]]
    assert play(committee, held_out) == [4, 5]
    assert committee.kept_epoch == [2, 5]
    # the mean goes on with what the group had at the end, and so do its weights
    assert committee.validation_curve == [5.5, 4.5, 5.0, 4.5, 4.0]
    assert committee.loss_curve == [1.0] * 5
    assert reports[2] == ((0, 1), [300, 301])
    assert reports[4] == ((0, 1), [200, 501])


@pytest.mark.parametrize(("best", "stop"), [(1, 9), (10, 18), (24, 36), (40, 56)])
def test_how_long_is_waited_grows_with_the_best_epoch(best, stop):
    """Half as many epochs as the best one took, within half of the patience and all of it."""
    committee = Committee([0], patience=16, judged=True)
    held_out = [[float(abs(epoch - best))] for epoch in range(1, 100)]
    assert play(committee, held_out) == [stop]
    assert committee.kept_epoch == [best]


def test_a_group_that_is_lost_does_not_keep_the_others_from_stopping():
    committee = Committee([0, 1], patience=4, judged=True)
    held_out = [[1.0, 3.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 1.0], [1.0, 1.0]]
    n_epochs = play(committee, held_out, reasons={(1, 0): StopReason.DIVERGED})
    assert n_epochs == [1, 4]


def test_epochs_without_a_look_do_not_count():
    """Between two looks the engine shows the loss of the last one."""
    committee = Committee([0, 0], patience=math.inf, judged=True, judge_every=2)
    play(committee, [[9, 9], [3, 3], [3, 3], [1, 2], [1, 2], [5, 5], [5, 5]])
    assert committee.judged_epochs == [2, 4, 6, 7]
    assert committee.kept_epoch == [4, 4]
    assert len(committee.loss_curve) == 7


def test_nothing_is_kept_without_held_out_rows():
    committee = Committee([0, 0], patience=1, judged=False)
    assert play(committee, [[None, None]] * 5) == [5, 5]
    assert committee.kept == [None, None]
    assert committee.validation_curve == []


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_member_that_diverges_keeps_its_best_weights_and_has_no_say(lost):
    committee = Committee([0, 0, 0], patience=math.inf, judged=True)
    held_out = [[3.0] * 3, [2.0] * 3, [1.5] * 3, [1.0] * 3]
    play(committee, held_out, reasons={(3, lost): StopReason.DIVERGED})
    expected = [4, 4, 4]
    expected[lost] = 2
    assert committee.kept_epoch == expected
    assert int(committee.kept[lost][0]) == 200 + lost
    assert len(committee.loss_curve) == 4
    assert np.isfinite(committee.loss_curve).all()


def test_epochs_are_compared_over_the_members_that_are_left():
    """The one that was lost was the good one: that must not keep the others at an early epoch."""
    committee = Committee([0, 0], patience=math.inf, judged=True)
    play(
        committee,
        [[1.0, 9.0], [1.0, 8.0], [1.0, 7.0]],
        reasons={(2, 0): StopReason.DIVERGED},
    )
    assert committee.kept_epoch == [1, 3]


def test_all_members_lost():
    committee = Committee([0, 1], patience=math.inf, judged=True)
    play(
        committee,
        [[1.0, 1.0], [1.0, 1.0]],
        reasons={(1, 0): StopReason.DIVERGED, (1, 1): StopReason.DIVERGED},
    )
    assert committee.kept == [None, None]
    assert committee.loss_curve == []


def test_a_loss_that_is_no_number_is_never_the_best():
    committee = Committee([0, 0], patience=math.inf, judged=True)
    play(committee, [[2.0, 2.0], [math.nan, 0.0], [3.0, 3.0]])
    assert committee.kept_epoch == [1, 1]


def test_reports_tell_the_whole_ensemble():
    reports = []

    def tell(report):
        reports.append((report.epoch, report.loss, report.validation_loss, report.last))
        np.testing.assert_array_equal(report.parameters()[:, 0] % 100, report.members)
        return report.epoch == 2

    committee = Committee([0, 0], patience=math.inf, judged=True, after_epoch=tell)
    assert play(committee, [[4, 2], [2, 2], [1, 1], [1, 1]]) == [3, 2]
    assert reports == [(1, 1.0, 3.0, False), (2, 1.0, 2.0, False)]
