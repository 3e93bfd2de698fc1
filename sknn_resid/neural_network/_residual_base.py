"""What both residual estimators share: validate, encode, describe, run, adopt. No formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length

from sknn_resid._sklearn_compat import CallbackSupportMixin, check_y, validate_data
from sknn_resid._validation import check_validation_arguments, check_weights
from sknn_resid.engine.data import ValidationData
from sknn_resid.engine.history import StopReason
from sknn_resid.engine.losses import Loss
from sknn_resid.neural_network._base import checked_targets
from sknn_resid.neural_network._committee import EpochReport
from sknn_resid.neural_network._ensemble import Ensemble
from sknn_resid.neural_network._ensemble_training import (
    AfterEpoch,
    Judging,
    Recipe,
    Trained,
    train_ensemble,
)
from sknn_resid.neural_network._folds import assign_folds, distinct_rows, n_folds_for
from sknn_resid.neural_network._interrupt import inside_many_fits
from sknn_resid.neural_network._monitor import CallbackBridge
from sknn_resid.neural_network._params import random_generator
from sknn_resid.neural_network._residual_adopt import (
    adopt,
    non_finite,
    print_report,
    warn_of,
)
from sknn_resid.neural_network._residual_constraints import SHARED_CONSTRAINTS
from sknn_resid.neural_network._residual_params import (
    Budget,
    budget,
    check_parameters,
    column_gain,
    embedding_scales,
    init_spec,
    piecewise_runs,
    placement,
    residual_spec,
    train_spec,
)
from sknn_resid.neural_network._residual_persistence import ResidualPersistent
from sknn_resid.neural_network._residual_prediction import validated_rows
from sknn_resid.neural_network._residual_task import Task
from sknn_resid.neural_network._tables import TableEncoder


@dataclass(frozen=True, eq=False)
class _Start:
    """Where a fit starts from."""

    task: Task
    plan: Budget
    judging: Judging
    recipe: Recipe
    scales: list[np.ndarray | None]
    rng: np.random.RandomState


class BaseResidual(ResidualPersistent, CallbackSupportMixin, BaseEstimator, ABC):
    """Parameters and training of an ensemble of residual networks."""

    _y_numeric: ClassVar[bool]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = SHARED_CONSTRAINTS

    # -- what the two estimators say differently ---------------------------------------------

    @abstractmethod
    def _fit_codec(self, y: np.ndarray, weight: np.ndarray | None) -> Any:
        """What translates targets: classes, or the scale of real numbers."""

    @abstractmethod
    def _encode_targets(self, codec: Any, y: np.ndarray, name: str) -> np.ndarray:
        """Targets (n, T) as the loss takes them."""

    @abstractmethod
    def _loss(self, codec: Any) -> Loss:
        """The engine's loss on these targets."""

    @abstractmethod
    def _head_bias(
        self, codec: Any, targets: np.ndarray, weight: np.ndarray | None, n_distinct: int
    ) -> np.ndarray | None:
        """What the output layer begins with, shape (K,); None for zero."""

    @abstractmethod
    def _adopt_targets(self, task: Task, trained: Trained) -> None:
        """Fitted attributes that only one of the two estimators has."""

    def _class_weights(
        self, codec: Any, y: np.ndarray, weight: np.ndarray | None
    ) -> np.ndarray | None:
        """Weight of each row from its class."""
        return None

    def _label_smoothing(self) -> float:
        return 0.0

    def _calibrated(self) -> bool:
        return False

    # -- training ----------------------------------------------------------------------------

    def _units_of_folds(self, task: Task) -> tuple[np.ndarray, int]:
        """What is dealt out to folds, and how many there are: distinct rows, or rows.

        Where all rows are one batch, a weight of two is a row twice, and folds follow content to
        keep it so. Larger tables deal out rows: new rows repeat old ones as often as rows of the
        table do (wine_white, a fifth of whose rows are copies: 1 - R2 is 7 to 9 % lower so).
        """
        n_rows = len(task.y)
        if budget(self, n_rows, task.n_distinct).n_batches == 1:
            return task.distinct, task.n_distinct
        return np.arange(n_rows), n_rows

    def _begin(
        self, X: Any, y: Any, sample_weight: Any, validation: tuple[Any, Any, Any]
    ) -> _Start:
        """Validate, encode and describe; nothing is trained."""
        check_parameters(self)
        check_validation_arguments(*validation)
        rng = random_generator(self.random_state)
        task = self._task(X, y, sample_weight)
        given = self._given(task, *validation)
        folds, n_trained = None, len(task.y)
        if self.early_stopping and given is None:
            n_folds = n_folds_for(float(self.validation_fraction))
            folds = assign_folds(*self._units_of_folds(task), n_folds, _branch(rng))
            if folds is not None:
                n_trained = int(n_trained - np.bincount(folds.of_row).min())
        plan = budget(self, n_trained, task.n_distinct)
        judging = Judging(
            folds,
            given,
            choose=bool(self.early_stopping) and (given is not None or folds is not None),
            calibrate=self._calibrated(),
            patience=plan.patience,
        )
        recipe = self._recipe(task, plan, judging)
        scales = embedding_scales(self, task.encoder.kinds_)
        return _Start(task, plan, judging, recipe, scales, rng)

    def _fit(self, X: Any, y: Any, sample_weight: Any, validation: tuple[Any, Any, Any]) -> Any:
        start = self._begin(X, y, sample_weight, validation)
        task = start.task
        bridge = CallbackBridge(self, X, y, sample_weight, start.plan.max_epochs)
        bridge.begin()
        trained = train_ensemble(
            start.recipe,
            start.judging,
            start.scales,
            int(self.n_estimators),
            start.rng,
            self._epoch_hook(task, bridge),
        )
        if trained is None:
            raise ValueError(non_finite(self))
        adopt(self, task, trained)
        self._adopt_targets(task, trained)
        bridge.end()
        if trained.reason is StopReason.INTERRUPTED and inside_many_fits():
            raise KeyboardInterrupt
        warn_of(self, trained)
        return self

    def _task(self, X: Any, y: Any, sample_weight: Any) -> Task:
        """Validate and encode the training rows; rows of weight zero are dropped."""
        validate_data(self, X, y, skip_check_array=True)
        y_ok = check_y(y, multi_output=True, y_numeric=self._y_numeric, estimator=self)
        weight = check_weights(sample_weight, X)
        encoder = TableEncoder(
            categorical_features=self.categorical_features,
            numeric_embedding="piecewise" if self.numeric_embedding == "piecewise" else None,
            n_bins=self.n_bins,
        ).fit(X, sample_weight=weight)
        check_consistent_length(X, y_ok)
        encoded = encoder.encoded(X)
        codec = self._fit_codec(y_ok, weight)
        by_class = self._class_weights(codec, y_ok, weight)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        targets = self._encode_targets(codec, y_ok, "y")
        if weight is not None:
            kept = np.flatnonzero(weight)
            encoded, targets, weight = encoded[kept], targets[kept], weight[kept]
        number, n_distinct = distinct_rows(encoded)
        place = placement(self, encoded, n_distinct)
        own = np.float32 if place.dtypes[0] == torch.float32 else np.float64
        return Task(
            X=np.ascontiguousarray(encoded, dtype=own),
            y=targets,
            weight=weight,
            encoder=encoder,
            codec=codec,
            loss=self._loss(codec),
            device=place.device,
            dtypes=place.dtypes,
            distinct=number,
            n_distinct=n_distinct,
        )

    def _given(
        self, task: Task, X_val: Any, y_val: Any, sample_weight_val: Any
    ) -> ValidationData | None:
        if X_val is None:
            return None
        try:
            X = validated_rows(self, task.encoder, X_val, task.X.dtype)
        except (TypeError, ValueError) as error:
            raise type(error)(f"X_val: {error}") from error
        targets = self._encode_targets(task.codec, checked_targets(self, X, y_val), "y_val")
        weight = check_weights(sample_weight_val, X, "sample_weight_val")
        return ValidationData(X, targets, weight)

    def _recipe(self, task: Task, plan: Budget, judging: Judging) -> Recipe:
        kinds = task.encoder.kinds_
        spec = residual_spec(
            self,
            n_features=task.X.shape[1],
            n_numeric=int((kinds == "numeric").sum()),
            piecewise=piecewise_runs(kinds, task.encoder.source_),
            n_outputs=self._width_of_outputs(task),
            loss=task.loss,
            dtypes=task.dtypes,
        )
        total = float(len(task.y) if task.weight is None else task.weight.sum())
        train = train_spec(
            self,
            plan,
            judged=judging.judged,
            label_smoothing=self._label_smoothing(),
            batch_weight=total / plan.n_batches,
        )
        return Recipe(
            spec=spec,
            init=init_spec(self),
            train=train,
            X=task.X,
            y=task.y,
            weight=task.weight,
            column_gain=column_gain(kinds),
            head_bias=self._head_bias(task.codec, task.y, task.weight, task.n_distinct),
            device=task.device,
        )

    def _width_of_outputs(self, task: Task) -> int:
        return int(task.codec.n_outputs)

    def _epoch_hook(self, task: Task, bridge: CallbackBridge) -> AfterEpoch | None:
        if not self.verbose and not bridge.active:
            return None

        def hook(report: EpochReport, ensemble: Callable[[], Ensemble]) -> bool:
            if self.verbose:
                print_report(report)

            def attributes() -> dict[str, Any]:
                return task.attributes() | {
                    "_ensemble": ensemble(),
                    "n_iter_": report.epoch,
                }

            return bridge.end_epoch(attributes, last=report.last)

        return hook

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # As HistGradientBoosting's: text and categories are welcome, but these two tags promise
        # more than that (any object as text, whole numbers as categories).
        tags.input_tags.allow_nan = True
        tags.input_tags.string = False
        tags.input_tags.categorical = False
        tags.input_tags.sparse = True
        return tags


def _branch(rng: np.random.RandomState) -> np.random.RandomState:
    """A generator of its own, so that the number of rows does not shift what follows."""
    return np.random.RandomState(int(rng.randint(np.iinfo(np.int32).max)))
