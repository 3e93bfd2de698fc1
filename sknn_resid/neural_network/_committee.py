"""The members of one ensemble while they train: which epoch each group keeps, and when all stop.

Members of a group see the columns at the same strength and peak at about the same time; groups do
not, on most tables by a factor of two or three. So the best epoch is chosen per group, by the mean
loss of its members on the rows that each of them leaves out, and a group stops when that has not
improved for a while: half as many epochs as its best one took, within the patience P and half of
it. Curves flatten by ratios of epochs, so what is best at the 8th is not waited for as long as what
is best at the 40th. The other groups go on without it.

The hooks of one ensemble are called in lockstep: every member that is still running after each
judged epoch, in the order of the members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sknn_resid.engine.history import EpochView, StopReason


@dataclass(frozen=True)
class EpochReport:
    """One epoch of the whole ensemble.

    Attributes
    ----------
    epoch : int
    loss : float
        Mean training loss of the members.
    validation_loss : float or None
        Mean loss on held-out rows, where the epoch was judged.
    last : bool
        Whether training ends with this epoch.
    members : tuple of int
        The members that have a finite loss; those that have stopped show what they have kept.
    parameters : callable
        Gives the flat parameters of each of them, shape (len(members), P).
    """

    epoch: int
    loss: float
    validation_loss: float | None
    last: bool
    members: tuple[int, ...]
    parameters: Callable[[], np.ndarray]


@dataclass
class _Group:
    """What a group has kept so far."""

    members: list[int]
    best_epoch: int = 0
    best_losses: np.ndarray = field(default_factory=lambda: np.full(0, math.inf))
    stopped: bool = False


class Committee:
    """Collects what the members report after each epoch; one object per fit.

    Parameters
    ----------
    group_of : sequence of int
        Group of each member.
    patience : float
        Most epochs without improvement of its mean held-out loss after which a group stops;
        infinite never stops.
    judged : bool
        Whether there are held-out rows to choose by.
    judge_every : int
        Epochs between two looks at them; the last epoch always has one.
    after_epoch : callable or None
        ``after_epoch(report) -> bool``, once per epoch; True stops training.
    """

    def __init__(
        self,
        group_of: Sequence[int],
        *,
        patience: float,
        judged: bool,
        judge_every: int = 1,
        after_epoch: Callable[[EpochReport], bool] | None = None,
    ) -> None:
        self._groups = [
            _Group([m for m, g in enumerate(group_of) if g == group])
            for group in sorted(set(group_of))
        ]
        self._patience, self._after_epoch = patience, after_epoch
        self._judged, self._judge_every = judged, judge_every
        n_members = len(group_of)
        self._alive = np.ones(n_members, dtype=bool)
        self._views: dict[int, EpochView] = {}
        self._group_of = {m: group for group in self._groups for m in group.members}
        self._loss_M, self._held_out_M = np.full(n_members, math.nan), np.full(n_members, math.nan)
        self._stop = False
        self.kept: list[np.ndarray | None] = [None] * n_members
        self.kept_epoch = [0] * n_members
        self.loss_curve: list[float] = []
        self.validation_curve: list[float] = []
        self.judged_epochs: list[int] = []

    def hook(self, member: int) -> Callable[[EpochView], bool]:
        """What the engine calls after each epoch of this member."""
        return lambda view: self._report(member, view)

    def _report(self, member: int, view: EpochView) -> bool:
        # Its group may have decided after the hooks of this epoch's earlier members were called.
        if self._stop or self._group_of[member].stopped:
            return True
        if view.reason is StopReason.DIVERGED:
            self._alive[member] = False
        else:
            self._views[member] = view
        # Not "==": the last one may just have diverged.
        waiting = [m for m, group in self._group_of.items() if self._alive[m] and not group.stopped]
        if member >= max(waiting, default=-1):
            self._end_epoch(view.epoch)
        return self._stop or self._group_of[member].stopped

    def _end_epoch(self, epoch: int) -> None:
        """All members have reported: keep what is best, tell, decide."""
        views, self._views = self._views, {}
        if not views:
            return
        shown = tuple(m for m in sorted(self._group_of) if m in views or self._has_stopped(m))
        self._loss_M[list(views)] = [view.loss for view in views.values()]
        self.loss_curve.append(float(np.mean(self._loss_M[list(shown)])))
        found = None
        last = self._stop or any(view.reason is not None for view in views.values())
        # An epoch without a look still shows the loss of the last look.
        if self._judged and (last or epoch % self._judge_every == 0):
            found = self._judge(epoch, views, shown)
        if self._after_epoch is not None:
            report = EpochReport(
                epoch,
                self.loss_curve[-1],
                found,
                last,
                shown,
                lambda: np.stack([self._parameters(m, views) for m in shown]),
            )
            self._stop |= self._after_epoch(report)

    def _has_stopped(self, member: int) -> bool:
        """Whether it has stopped with its group, and has weights to show."""
        stopped = self._group_of[member].stopped and bool(self._alive[member])
        return stopped and self.kept[member] is not None

    def _parameters(self, member: int, views: dict[int, EpochView]) -> np.ndarray:
        if member in views:
            return views[member].parameters()
        kept = self.kept[member]
        assert kept is not None
        return kept

    def _judge(self, epoch: int, views: dict[int, EpochView], shown: Sequence[int]) -> float:
        """The mean over all members, of those that have stopped as they were then."""
        loss_M = np.full(len(self.kept), math.nan)
        for m, view in views.items():
            loss_M[m] = self._held_out_M[m] = view.validation_loss
        for group in self._groups:
            if group.stopped:
                continue
            self._judge_group(group, epoch, views, loss_M)
            allowed = min(self._patience, max(self._patience / 2, group.best_epoch / 2))
            group.stopped = epoch - group.best_epoch >= allowed and math.isfinite(allowed)
        self._stop |= all(group.stopped for group in self._groups)
        known_M = self._held_out_M[list(shown)]
        mean = float(np.nanmean(known_M)) if not np.isnan(known_M).all() else math.nan
        self.validation_curve.append(mean)
        self.judged_epochs.append(epoch)
        return mean

    def _judge_group(
        self, group: _Group, epoch: int, views: dict[int, EpochView], loss_M: np.ndarray
    ) -> None:
        """Keep the weights of this epoch if the group is better than at its best epoch.

        Both epochs are compared over the members that are still alive: one that diverged keeps the
        weights of the best epoch before, and has no say any more.
        """
        alive = [m for m in group.members if m in views]
        if not alive or not np.isfinite(loss_M[alive]).all():
            return
        before = math.inf
        if group.best_epoch:
            before = float(np.mean(group.best_losses[alive]))
        if float(np.mean(loss_M[alive])) < before:
            group.best_epoch, group.best_losses = epoch, loss_M
            for m in alive:
                self.kept[m], self.kept_epoch[m] = views[m].parameters(), epoch
