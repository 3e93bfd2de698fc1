"""The one path of `ResNetClassifier.fit`: validate, describe, run, adopt. No formula."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.metrics import check_scoring
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sknn_resid._device import resolve_device
from sknn_resid._sklearn_compat import CallbackSupportMixin, check_y, safe_indexing
from sknn_resid._validation import check_validation_arguments, check_weights
from sknn_resid.engine.history import EpochView, StopReason, ValidationView
from sknn_resid.engine.image_data import ImageSet, Scaling
from sknn_resid.engine.image_loop import ImageJob, train_images
from sknn_resid.engine.meeting import current_meeting, preferred_device
from sknn_resid.engine.processes import is_first, own_device
from sknn_resid.engine.resnet_spec import ResNetSpec
from sknn_resid.neural_network._class_weight import class_weights
from sknn_resid.neural_network._holdout import split_rows
from sknn_resid.neural_network._images import ImageRows, images_for_fit, images_for_predict
from sknn_resid.neural_network._interrupt import inside_many_fits
from sknn_resid.neural_network._monitor import (
    CallbackBridge,
    Score,
    accuracy,
    negative_loss,
    print_epoch,
)
from sknn_resid.neural_network._params import random_generator
from sknn_resid.neural_network._resnet_adopt import (
    adopt,
    forget,
    network_attributes,
    resume_from,
    warn_of,
)
from sknn_resid.neural_network._resnet_params import (
    check_parameters,
    check_stages,
    network_spec,
    train_spec,
    working_dtypes,
)
from sknn_resid.neural_network._resnet_persistence import ImagePersistent
from sknn_resid.neural_network._resnet_prediction import placed
from sknn_resid.neural_network._resnet_pretrained import starting_arrays, starting_scaling
from sknn_resid.neural_network._targets import (
    LabelCodec,
    check_known,
    encode_validation,
    first_codec,
    fit_codec,
)

_MOST_SEED = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class _Task:
    """A validated training call: in the engine's form, and as the user gave it."""

    images: ImageRows
    codes: np.ndarray
    weight: np.ndarray | None
    rows: np.ndarray | None  # those of weight above zero; None for all
    X_user: Any
    y_user: np.ndarray


@dataclass(frozen=True, eq=False)
class _Judged:
    """Validation rows in the engine's form, and as a scorer gets them."""

    data: ImageSet
    X_user: Any
    y_user: Any


class BaseResNet(ImagePersistent, CallbackSupportMixin, BaseEstimator):
    """Training of an image network."""

    # -- the path ----------------------------------------------------------------------------

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation: tuple[Any, Any, Any] = (None, None, None),
        *,
        incremental: bool = False,
    ) -> Any:
        first_call = not hasattr(self, "state_dict_") or not (self.warm_start or incremental)
        check_parameters(self)
        check_validation_arguments(*validation)
        rng = random_generator(self.random_state)
        task = self._task(X, y, sample_weight, first_call=first_call, incremental=incremental)
        seed = int(rng.randint(_MOST_SEED)) if first_call else self._seed
        spec = self._structure(task, first_call=first_call)
        device = self._device(task, spec)
        data, judged = self._sets(task, validation, device, rng, incremental=incremental)
        train = train_spec(
            self,
            task.images,
            self._dtypes(task, device),
            incremental=incremental,
            watch_validation=bool(self.early_stopping) and judged is not None,
        )
        job = ImageJob(
            network=spec,
            train=train,
            data=data,
            scaling=Scaling(np.empty(0), np.empty(0)),
            device=device,
            seed=seed,
            validation=None if judged is None else judged.data,
            checkpoint_dir=None if self.checkpoint_dir is None else str(self.checkpoint_dir),
            data_parallel=bool(self.data_parallel),
        )
        job = self._started(job, first_call=first_call, incremental=incremental)
        bridge = None if incremental else CallbackBridge(self, X, y, sample_weight, self.max_iter)
        job = replace(job, score=self._score(job, judged), on_epoch=self._hook(job, bridge))
        if bridge is not None:
            bridge.begin()
        result = train_images(job, self._poll())
        adopt(self, job, result, resumed=not first_call, incremental=incremental)
        if bridge is not None:
            bridge.end()
        if result.reason is StopReason.INTERRUPTED and inside_many_fits():
            raise KeyboardInterrupt
        warn_of(self, result)
        return self

    def _structure(self, task: _Task, *, first_call: bool) -> ResNetSpec:
        """The network that the parameters ask for; that at hand where training goes on."""
        spec = network_spec(self, task.images.shape, len(self.classes_))
        check_stages(self, spec)
        if not first_call and spec != self._spec:
            raise ValueError(
                f"warm_start and partial_fit go on with the network at hand, {self._spec}, but the "
                f"parameters now ask for {spec}. Set warm_start=False and call fit, or restore "
                "them."
            )
        return spec

    def _device(self, task: _Task, spec: ResNetSpec) -> torch.device:
        work = min(int(self.batch_size), task.images.n_rows)
        work *= spec.multiplications(*task.images.shape[:2])
        device = resolve_device(preferred_device() or self.device, float(work))
        return own_device(device) if self.data_parallel else device

    def _dtypes(self, task: _Task, device: torch.device) -> tuple[torch.dtype, Any]:
        dtypes = working_dtypes(self, task.images, device)
        if device.type == "mps" and dtypes[0] == torch.float64:
            raise ValueError("dtype: device='mps' has no float64. Use dtype='float32'.")
        return dtypes

    def _started(self, job: ImageJob, *, first_call: bool, incremental: bool) -> ImageJob:
        """The job with where it begins: anew, from a file, or from the weights at hand."""
        if first_call:
            forget(self)
            scaling = starting_scaling(self, job.data)
            return replace(job, scaling=scaling, start=starting_arrays(self, job.network, job.seed))
        return replace(
            job,
            scaling=Scaling(self.pixel_mean_, self.pixel_std_),
            start=self.state_dict_,
            first_epoch=self._n_epochs,
            resume=resume_from(self, incremental=incremental),
        )

    def _poll(self) -> Callable[[], None] | None:
        """Ends this fit where it is one of a call under ``stacked()`` that has been ended."""
        meeting = current_meeting()
        if meeting is None:
            return None

        def poll() -> None:
            if meeting.cancelled:
                raise KeyboardInterrupt

        return poll

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        # The velocity is as large as the weights, and worth keeping only in the midst of a stream
        # of partial_fit calls.
        if not state.get("_streaming", False):
            state.pop("_optimizer", None)
        return state

    # -- validation of the input -------------------------------------------------------------

    def _task(
        self, X: Any, y: Any, sample_weight: Any, *, first_call: bool, incremental: bool
    ) -> _Task:
        if y is None:
            raise ValueError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        images = images_for_fit(self, X, reset=first_call)
        y_ok = self._labels(y, "y")
        check_consistent_length(range(images.n_rows), y_ok)
        if first_call and not incremental:
            self._codec = single_label(self, fit_codec(y_ok))
            self.classes_ = self._codec.classes
        else:
            check_known(self._codec, y_ok, warm_start=bool(self.warm_start) and not incremental)
        weight = check_weights(sample_weight, y_ok)
        by_class = class_weights(self, self._codec, y_ok, weight, incremental=incremental)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        rows = None
        if weight is not None and not weight.all():
            rows = np.flatnonzero(weight)
            if not len(rows):
                raise ValueError("class_weight: the weights of all rows are zero.")
        codes = self._codec.encode(y_ok)[:, 0]
        return _Task(images, codes, weight, rows, X, y_ok)

    def _labels(self, y: Any, name: str) -> np.ndarray:
        y_ok = check_y(y, multi_output=True, y_numeric=False, estimator=self)
        if y_ok.ndim == 2 and y_ok.shape[1] > 1:
            raise ValueError(
                f"{name}: {type(self).__name__} learns one label for each row, got "
                f"{y_ok.shape[1]} columns. Use sklearn.multioutput.MultiOutputClassifier."
            )
        return column_or_1d(y_ok, warn=True)

    def _first_classes(self, y: Any, classes: Any) -> None:
        """In the first ``partial_fit``: all classes there will be."""
        codec = first_codec(self, y, classes)
        if codec is not None:
            self._codec = single_label(self, codec)
            self.classes_ = self._codec.classes

    def _sets(
        self,
        task: _Task,
        validation: tuple[Any, Any, Any],
        device: torch.device,
        rng: np.random.RandomState,
        *,
        incremental: bool,
    ) -> tuple[ImageSet, _Judged | None]:
        """What is trained on, and what is judged by."""
        every = ImageSet(placed(task.images, device), task.codes, task.weight, task.rows)
        if validation[0] is not None:
            return every, self._given(*validation, device)
        if not self.early_stopping or incremental:
            return every, None
        rows = every.all_rows()
        weight = None if task.weight is None else task.weight[rows]
        part = split_rows(
            rows,
            task.codes[rows][:, None],
            weight,
            fraction=float(self.validation_fraction),
            rng=rng,
            stratify=len(self.classes_) == 2,
        )
        assert isinstance(part.X, np.ndarray)
        data = every if part.train_rows is None else replace(every, rows=rows[part.train_rows])
        X_val, y_val = task.X_user, task.y_user
        if part.validation_rows is not None or task.rows is not None:
            X_val, y_val = safe_indexing(X_val, part.X), y_val[part.X]
        return data, _Judged(replace(every, rows=part.X), X_val, y_val)

    def _given(self, X_val: Any, y_val: Any, weight_val: Any, device: torch.device) -> _Judged:
        try:
            images = images_for_predict(self, X_val)
        except ValueError as error:
            raise ValueError(f"X_val: {error}") from error
        y_ok = self._labels(y_val, "y_val")
        try:
            check_consistent_length(range(images.n_rows), y_ok)
        except ValueError as error:
            raise ValueError(f"y_val: {error}") from error
        codes = encode_validation(self._codec, y_ok)[:, 0]
        weight = check_weights(weight_val, y_ok, "sample_weight_val")
        return _Judged(ImageSet(placed(images, device), codes, weight), X_val, y_ok)

    # -- after each epoch --------------------------------------------------------------------

    def _score(self, job: ImageJob, judged: _Judged | None) -> Score | None:
        metric = self.early_stopping_metric
        if judged is None:
            return None
        if metric == "loss":
            return negative_loss
        data = judged.data
        rows = data.all_rows()
        weight = None if data.weight is None else data.weight[rows]
        if metric == "score":
            return accuracy(self._codec, data.codes[rows][:, None], weight)
        scorer = check_scoring(self, metric)
        state = network_attributes(job)

        def score(view: ValidationView) -> float:
            now = copy.copy(self)
            now.__dict__ |= state | {"state_dict_": view.weights()}
            given = {} if weight is None else {"sample_weight": weight}
            return float(scorer(now, judged.X_user, judged.y_user, **given))

        return score

    def _hook(self, job: ImageJob, bridge: CallbackBridge | None) -> Any:
        if bridge is not None and not bridge.active:
            bridge = None
        if not self.verbose and bridge is None:
            return None
        state = network_attributes(job)

        def hook(view: EpochView) -> bool:
            if self.verbose and (not self.data_parallel or is_first()):
                print_epoch(view, self, validated=job.train.train.watch_validation)
            if bridge is None:
                return False
            attributes = partial(_epoch_attributes, view, state)
            return bridge.end_epoch(attributes, last=view.reason is not None)

        return hook


def _epoch_attributes(view: EpochView, state: dict[str, Any]) -> dict[str, Any]:
    return state | {"state_dict_": view.weights(), "n_iter_": view.epoch}


def single_label(est: Any, codec: LabelCodec) -> LabelCodec:
    """The codec with one output for each class, also for two of them.

    Raises
    ------
    ValueError
        If there are several labels a row.
    """
    if codec.kind not in ("binary", "multiclass"):
        raise ValueError(
            f"y: {type(est).__name__} learns one label for each row, got {codec.kind} targets. Use "
            "sklearn.multioutput.MultiOutputClassifier."
        )
    return LabelCodec("multiclass", codec.classes)
