"""From encoded rows to a fitted ensemble: folds, jobs, one run, and what held-out rows decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sknn_resid.engine.data import TrainingData, ValidationData
from sknn_resid.engine.history import StopReason
from sknn_resid.engine.job import TrainJob, TrainResult
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.residual_fitted import FittedResidual, training_statistics
from sknn_resid.engine.residual_init import InitSpec, initial_parameters
from sknn_resid.engine.residual_spec import ResidualSpec
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.spec import TrainSpec
from sknn_resid.neural_network._calibration import group_weights, temperature
from sknn_resid.neural_network._committee import Committee, EpochReport
from sknn_resid.neural_network._ensemble import Ensemble, member_outputs
from sknn_resid.neural_network._folds import Folds

AfterEpoch = Callable[[EpochReport, Callable[[], Ensemble]], bool]

SEED_LIMIT = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Recipe:
    """What all members share.

    Attributes
    ----------
    spec : ResidualSpec
    init : InitSpec
    train : TrainSpec
    X : ndarray of shape (n, D)
        Encoded rows.
    y : ndarray of shape (n, T)
        Targets as the loss takes them.
    weight : ndarray of shape (n,) or None
        Positive.
    column_gain : ndarray of shape (D,) or None
        Factor of the initial weights of each column.
    head_bias : ndarray of shape (K,) or None
    device : torch.device
    """

    spec: ResidualSpec
    init: InitSpec
    train: TrainSpec
    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None
    column_gain: np.ndarray | None
    head_bias: np.ndarray | None
    device: torch.device


@dataclass(frozen=True, eq=False)
class Judging:
    """How the members are judged.

    Attributes
    ----------
    folds : Folds or None
        Member m leaves out fold ``m // n_groups``, and is judged on it.
    given : ValidationData or None
        Rows that were handed in; all members are judged on them.
    choose : bool
        Whether epochs, weights and temperature are chosen by these rows, or only recorded.
    calibrate : bool
        Whether the temperature is.
    patience : float
    """

    folds: Folds | None
    given: ValidationData | None
    choose: bool
    calibrate: bool
    patience: float

    @property
    def judged(self) -> bool:
        """Whether there are rows to judge by."""
        return self.folds is not None or self.given is not None


@dataclass(frozen=True, eq=False)
class Trained:
    """An ensemble and the story of its training.

    Attributes
    ----------
    ensemble : Ensemble
    reason : StopReason
        Of the member that ran longest.
    n_epochs : int
    chosen_epochs : ndarray of shape (M,)
        Epoch whose weights each member has.
    loss_curve, validation_curve : list of float
    judged_epochs : list of int
    n_diverged : int
        Members that diverged: their weights are of an epoch before, or they count nothing.
    held_out : tuple (outputs, targets, weight) or None
        What the ensemble says to rows that the members asked did not train on.
    flows : list of (ndarray or None)
        `TrainResult.flow` of each member.
    """

    ensemble: Ensemble
    reason: StopReason
    n_epochs: int
    chosen_epochs: np.ndarray
    loss_curve: list[float]
    validation_curve: list[float]
    judged_epochs: list[int]
    n_diverged: int
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray | None] | None
    flows: list[np.ndarray | None]


def train_ensemble(
    recipe: Recipe,
    judging: Judging,
    input_scales: Sequence[np.ndarray | None],
    n_members: int,
    rng: np.random.RandomState,
    after_epoch: AfterEpoch | None,
) -> Trained | None:
    """Train all members in one run.

    Parameters
    ----------
    recipe : Recipe
    judging : Judging
    input_scales : sequence of (ndarray of shape (D,) or None)
        One for each group; member m belongs to group ``m % n_groups``.
    n_members : int
    rng : RandomState
        Gives each member a seed of its own.
    after_epoch : callable or None
        ``after_epoch(report, ensemble)`` once per epoch; ``ensemble()`` gives the members as they
        are after it, equally weighted. True stops.

    Returns
    -------
    trained : Trained or None
        None if not one member ended an epoch with finite numbers.
    """
    group_of = groups_of(n_members, input_scales)
    n_groups = int(group_of.max()) + 1
    jobs: list[TrainJob] = []

    def tell(report: EpochReport) -> bool:
        assert after_epoch is not None
        return after_epoch(report, lambda: _as_they_are(recipe, jobs, report))

    committee = Committee(
        group_of.tolist(),
        patience=judging.patience if judging.choose else np.inf,
        judged=judging.judged,
        judge_every=recipe.train.judge_every,
        after_epoch=None if after_epoch is None else tell,
    )
    rngs = member_generators(rng, n_members)
    for m, group in enumerate(group_of.tolist()):
        fold = m // n_groups
        jobs.append(_job(recipe, judging, input_scales[group], fold, rngs[m], committee, m))
    results = run_jobs(jobs)
    sound = [_is_sound(committee, result, m, judging) for m, result in enumerate(results)]
    if not any(sound):
        return None
    params, epochs = _chosen(committee, results, judging)
    members = _fitted(recipe, jobs, params, sound)
    votes = _Votes(recipe, judging, jobs, members, group_of, np.array(sound))
    ensemble, held_out = votes.decide()
    longest = max(results, key=lambda result: result.n_epochs)
    return Trained(
        ensemble=ensemble,
        reason=_reason(results, longest),
        # A member may have trained one epoch on before it heard that all stop.
        n_epochs=len(committee.loss_curve),
        chosen_epochs=epochs,
        loss_curve=committee.loss_curve,
        validation_curve=committee.validation_curve,
        judged_epochs=committee.judged_epochs,
        n_diverged=sum(result.reason is StopReason.DIVERGED for result in results),
        held_out=held_out,
        flows=[result.flow for result in results],
    )


def groups_of(n_members: int, input_scales: Sequence[np.ndarray | None]) -> np.ndarray:
    """Group of each member, shape (n_members,)."""
    return np.arange(n_members) % min(len(input_scales), n_members)


def member_generators(rng: np.random.RandomState, n_members: int) -> list[np.random.RandomState]:
    """A generator for each member, of a seed of its own."""
    seeds = rng.randint(SEED_LIMIT, size=n_members)
    return [np.random.RandomState(int(seed)) for seed in seeds]


def first_parameters(
    recipe: Recipe, input_scale: np.ndarray | None, rng: np.random.RandomState
) -> np.ndarray:
    """What a member begins with, shape (P,)."""
    return initial_parameters(
        recipe.spec,
        recipe.init,
        rng,
        X=recipe.X,
        weight=recipe.weight,
        input_scale=input_scale,
        column_gain=recipe.column_gain,
        head_bias=recipe.head_bias,
    )


def _job(
    recipe: Recipe,
    judging: Judging,
    input_scale: np.ndarray | None,
    fold: int,
    rng: np.random.RandomState,
    committee: Committee,
    member: int,
) -> TrainJob:
    params = first_parameters(recipe, input_scale, rng)
    rows, validation = None, judging.given
    if judging.folds is not None:
        rows, out = judging.folds.split(fold % judging.folds.n_folds)
        validation = ValidationData(recipe.X[out], recipe.y[out], _at(recipe.weight, out))
    return TrainJob(
        network=recipe.spec,
        train=recipe.train,
        data=TrainingData(recipe.X, recipe.y, rows, _at(recipe.weight, rows)),
        params=params,
        rng=rng,
        dropout_seed=int(rng.randint(SEED_LIMIT)),
        validation=validation,
        on_epoch=committee.hook(member),
        device=recipe.device,
        input_scale=input_scale,
        team=committee,
    )


def _at(weight: np.ndarray | None, rows: np.ndarray | None) -> np.ndarray | None:
    return weight if weight is None or rows is None else weight[rows]


def _is_sound(committee: Committee, result: TrainResult, m: int, judging: Judging) -> bool:
    """Whether a member has finite weights to show."""
    if judging.choose and committee.kept[m] is not None:
        return True
    if result.reason is StopReason.DIVERGED and not result.has_finite_epoch:
        return False
    return bool(np.isfinite(result.params).all())


def _chosen(
    committee: Committee, results: Sequence[TrainResult], judging: Judging
) -> tuple[np.ndarray, np.ndarray]:
    """Weights of each member, and the epoch they are of."""
    params, epochs = [], []
    for kept, epoch, result in zip(committee.kept, committee.kept_epoch, results, strict=True):
        use = judging.choose and kept is not None
        params.append(kept if use else result.params)
        epochs.append(epoch if use else result.n_epochs)
    return np.stack(params), np.array(epochs)  # type: ignore[arg-type]


def _reason(results: Sequence[TrainResult], longest: TrainResult) -> StopReason:
    """Why training ended: an interrupt of one is an interrupt of all."""
    if any(result.reason is StopReason.INTERRUPTED for result in results):
        return StopReason.INTERRUPTED
    return longest.reason


def _fitted(
    recipe: Recipe, jobs: Sequence[TrainJob], params: np.ndarray, sound: Sequence[bool]
) -> FittedResidual:
    """The members with statistics from all rows, those they left out included."""
    everything = TrainingData(recipe.X, recipe.y, None, recipe.weight)
    statistics = [
        training_statistics(replace(job, data=everything), row)
        if ok
        else np.zeros_like(training_statistics(replace(job, data=everything), job.params))
        for job, row, ok in zip(jobs, params, sound, strict=True)
    ]
    scales = [job.input_scale for job in jobs]
    scale = None if scales[0] is None else np.stack(scales)  # type: ignore[arg-type]
    return FittedResidual(recipe.spec, params, np.stack(statistics), scale)


def _as_they_are(recipe: Recipe, jobs: Sequence[TrainJob], report: EpochReport) -> Ensemble:
    """The members that are still training, as they are after an epoch."""
    training = [jobs[m] for m in report.members]
    members = _fitted(recipe, training, report.parameters(), [True] * len(training))
    return Ensemble(members, np.full(len(training), 1.0 / len(training)))


class _Votes:
    """What the groups say to held-out rows, and what that decides."""

    def __init__(
        self,
        recipe: Recipe,
        judging: Judging,
        jobs: Sequence[TrainJob],
        members: FittedResidual,
        group_of: np.ndarray,
        sound: np.ndarray,
    ) -> None:
        self._recipe, self._judging, self._jobs = recipe, judging, jobs
        self._members, self._group_of, self._sound = members, group_of, sound

    @property
    def _loss(self) -> Loss:
        return self._recipe.spec.loss

    def decide(
        self,
    ) -> tuple[Ensemble, tuple[np.ndarray, np.ndarray, np.ndarray | None] | None]:
        """The ensemble with its weights and temperature, and what it says to held-out rows."""
        groups = [g for g in np.unique(self._group_of) if self._sound[self._group_of == g].any()]
        shares = np.full(len(groups), 1.0 / len(groups))
        factor, held_out = 1.0, None
        collected = self._collect(groups) if self._judging.judged else None
        if collected is not None:
            outputs_GNK, targets, weight = collected
            if self._judging.choose and len(groups) > 1:
                shares = group_weights(self._loss, outputs_GNK, targets, weight)
            mix = np.tensordot(shares, outputs_GNK, axes=1)
            if self._judging.choose and self._judging.calibrate:
                factor = temperature(self._loss, mix, targets, weight)
            held_out = (mix, targets, weight)
        weights = np.zeros(len(self._group_of))
        for group, share in zip(groups, shares, strict=True):
            mine = (self._group_of == group) & self._sound
            weights[mine] = share / mine.sum()
        return Ensemble(self._members, weights, factor), held_out

    def _collect(
        self, groups: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None] | None:
        """Outputs (G, n, K) of each group for the rows all groups can be asked about."""
        given, recipe = self._judging.given, self._recipe
        if given is not None:
            X = np.asarray(given.X)
            return np.stack([self._group_outputs(g, X) for g in groups]), given.y, given.weight
        n, n_outputs = len(recipe.y), recipe.spec.n_outputs
        total = np.zeros((len(groups), n, n_outputs))
        count = np.zeros((len(groups), n))
        for at, group in enumerate(groups):
            for m in np.flatnonzero((self._group_of == group) & self._sound).tolist():
                job = self._jobs[m]
                assert job.data.rows is not None
                out = np.setdiff1d(np.arange(n), job.data.rows, assume_unique=True)
                total[at, out] += self._outputs([m], recipe.X[out])[0]
                count[at, out] += 1
        asked = np.flatnonzero((count > 0).all(axis=0))
        if not len(asked):
            return None
        outputs = total[:, asked] / count[:, asked, None]
        return outputs, recipe.y[asked], _at(recipe.weight, asked)

    def _group_outputs(self, group: int, X: np.ndarray) -> np.ndarray:
        mine = np.flatnonzero((self._group_of == group) & self._sound)
        return self._outputs(mine, X).mean(axis=0)

    def _outputs(self, members: Sequence[int] | np.ndarray, X: np.ndarray) -> np.ndarray:
        every = self._members
        chosen = np.asarray(members)
        scale = None if every.input_scale is None else every.input_scale[chosen]
        asked = FittedResidual(every.spec, every.params[chosen], every.statistics[chosen], scale)
        return member_outputs(asked, X, self._recipe.device)
