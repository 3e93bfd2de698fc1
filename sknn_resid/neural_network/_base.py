"""What both MLP estimators share in training: validate, describe, run, adopt. No formula."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sknn_resid._device import resolve_device
from sknn_resid._sklearn_compat import (
    CallbackSupportMixin,
    check_y,
    safe_indexing,
    validate_data,
)
from sknn_resid._validation import check_validation_arguments, check_weights, hidden_widths
from sknn_resid.engine.data import Features, TrainingData, ValidationData, row_major
from sknn_resid.engine.history import EpochView, Resume, StopReason
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.layout import dense_layout
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.meeting import preferred_device
from sknn_resid.engine.runner import run_jobs
from sknn_resid.engine.spec import NetworkSpec
from sknn_resid.neural_network._adopt import (
    adopt,
    check_same_shape,
    forget,
    network_attributes,
    resume_from,
    warn_of,
    warn_of_batch_size,
)
from sknn_resid.neural_network._arrays import Home, home_of
from sknn_resid.neural_network._constraints import SHARED_CONSTRAINTS
from sknn_resid.neural_network._holdout import Holdout, split_rows
from sknn_resid.neural_network._interrupt import inside_many_fits
from sknn_resid.neural_network._monitor import (
    CallbackBridge,
    Score,
    epoch_attributes,
    negative_loss,
    print_epoch,
    user_scorer,
)
from sknn_resid.neural_network._params import (
    activation_layers,
    initial_weights,
    random_generator,
    train_spec,
    working_dtypes,
)
from sknn_resid.neural_network._persistence import Persistent
from sknn_resid.neural_network._tied_weights import check_tied, resolve_ties


@dataclass(frozen=True, eq=False)
class _Task:
    """A validated training call: first in the engine's form, then as the user gave it."""

    X: Features
    y: np.ndarray
    weight: np.ndarray | None
    holdout: Holdout | None
    X_user: Any
    y_user: Any
    X_val_user: Any
    y_val_user: Any
    probe: Any


@dataclass(frozen=True, eq=False)
class _Start:
    """Where a training call starts from."""

    task: _Task
    network: NetworkSpec
    weights: tuple[list[np.ndarray], list[np.ndarray]]
    rng: np.random.RandomState


class BaseMLP(Persistent, CallbackSupportMixin, BaseEstimator, ABC):
    """Parameters and training of a multi-layer perceptron."""

    _y_numeric: ClassVar[bool]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = SHARED_CONSTRAINTS

    # -- what the two estimators say differently ---------------------------------------------

    @abstractmethod
    def _training_targets(self, y: np.ndarray, *, incremental: bool) -> tuple[np.ndarray, Any]:
        """Engine targets of y (learning its classes if need be), and y without a needless axis."""

    @abstractmethod
    def _n_logits(self, y: np.ndarray) -> int:
        """Width of the output layer for these engine targets."""

    @abstractmethod
    def _out_activation(self) -> str:
        """scikit-learn's name of the output activation."""

    @abstractmethod
    def _validation_targets(self, y: Any, X: Any, name: str = "y_val") -> np.ndarray:
        """Engine targets of rows beside the training rows."""

    @abstractmethod
    def _loss(self) -> Loss:
        """The engine's loss."""

    @abstractmethod
    def _score_function(self, y: np.ndarray, weight: np.ndarray | None) -> Score:
        """scikit-learn's score of this kind of estimator, from raw outputs."""

    def _class_weights(
        self, y: Any, weight: np.ndarray | None, incremental: bool
    ) -> np.ndarray | None:
        """Weight of each row from its class."""
        return None

    def _label_smoothing(self) -> float:
        return 0.0

    def _stratified(self) -> bool:
        """Whether the validation part is split off by class, as scikit-learn does for two."""
        return False

    def _break_ties_by_loss(self) -> bool:
        return False

    # -- training ----------------------------------------------------------------------------

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        validation: tuple[Any, Any, Any] = (None, None, None),
        *,
        incremental: bool = False,
    ) -> Any:
        first_call = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)
        start = self._begin(
            X, y, sample_weight, validation, first_call=first_call, incremental=incremental
        )
        task, network, weights, rng = start.task, start.network, start.weights, start.rng
        if self.early_stopping and not incremental and task.holdout is None:
            task = self._with_split(task, rng)
        bridge = None
        if not incremental:
            # scipy's minimiser may count its iterations differently from max_iter
            max_epochs = None if self.solver == "lbfgs" else self.max_iter
            bridge = CallbackBridge(self, X, y, sample_weight, max_epochs)
        resume = Resume()
        if not first_call:
            resume = resume_from(self, network, incremental=incremental)
        job = self._job(task, network, weights, rng, resume, bridge, incremental)
        if bridge is not None:
            bridge.begin()
        (result,) = run_jobs([job])
        adopt(self, job, result, task.probe, resumed=not first_call, incremental=incremental)
        if bridge is not None:
            bridge.end()
        if result.reason is StopReason.INTERRUPTED and inside_many_fits():
            raise KeyboardInterrupt
        warn_of(self, result, incremental=incremental)
        return self

    def _begin(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation: tuple[Any, Any, Any],
        *,
        first_call: bool,
        incremental: bool,
    ) -> _Start:
        """Validate, describe, and draw or take up the weights; nothing is trained."""
        widths = self._check_parameters()
        check_validation_arguments(*validation)
        home = home_of(X)
        rng = random_generator(self.random_state)
        task = self._validated(
            X, y, sample_weight, validation, home, first_call=first_call, incremental=incremental
        )
        network = self._network_spec(task, widths, home)
        if first_call:
            forget(self)
            dtype = np.float32 if network.dtype == torch.float32 else np.float64
            weights = initial_weights(rng, network.layer_sizes, self.activation, dtype)
        else:
            weights = (list(self.coefs_), list(self.intercepts_))
            check_same_shape(weights[0], network.layer_sizes)
            check_tied(weights[0], dense_layout(network.layer_sizes, network.ties))
        return _Start(task, network, weights, rng)

    def _check_parameters(self) -> tuple[int, ...]:
        """Rules between parameters; gives the widths of the hidden layers."""
        widths = hidden_widths(self.hidden_layer_sizes, self.n_layers, self.width)
        activation_layers(self.activation, len(widths))
        if self.solver == "lbfgs":
            if self.record_gradients:
                raise ValueError(
                    "record_gradients=True needs a stochastic solver, got solver='lbfgs', which "
                    "has no steps of its own: scipy looks for the next point along a line. Use "
                    "solver='adam', or record_gradients=False and "
                    "sknn_resid.inspection.gradient_flow(estimator, X, y) after the fit."
                )
            for name, off in (("dropout", 0), ("clip_norm", None)):
                if getattr(self, name) != off:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} needs a stochastic solver, got "
                        f"solver='lbfgs', whose objective must not change between evaluations. "
                        f"Use solver='adam', or {name}={off!r}."
                    )
        return widths

    def _validated(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation: tuple[Any, Any, Any],
        home: Home,
        *,
        first_call: bool,
        incremental: bool,
    ) -> _Task:
        y_np, weight_np = home.to_numpy(y, sample_weight)
        X_ok, y_ok = validate_data(
            self,
            X,
            y_np,
            accept_sparse=["csr"],
            multi_output=True,
            y_numeric=self._y_numeric,
            dtype=home.float_dtypes,
            reset=first_call,
        )
        targets, y_ok = self._training_targets(y_ok, incremental=incremental)
        features = row_major(home.engine_features(X_ok))
        weight = check_weights(weight_np, features)
        by_class = self._class_weights(y_ok, weight, incremental)
        if by_class is not None:
            weight = by_class if weight is None else weight * by_class
        holdout = None
        X_val, y_val, weight_val = validation
        if X_val is not None:
            holdout = self._given_holdout(X_val, y_val, weight_val, home)
        return _Task(
            X=features,
            y=targets,
            weight=weight,
            holdout=holdout,
            # A scorer gets frames with their names and tensors as they are, the rest validated.
            X_user=X if home.xp is not None or hasattr(X, "iloc") else X_ok,
            y_user=y_ok if home.xp is None else y,
            X_val_user=X_val,
            y_val_user=y_val,
            probe=home.probe(X_ok),
        )

    def _given_holdout(self, X_val: Any, y_val: Any, weight_val: Any, home: Home) -> Holdout:
        try:
            X_ok = validate_data(
                self, X_val, accept_sparse=["csr"], dtype=home.float_dtypes, reset=False
            )
        except ValueError as error:
            raise ValueError(f"X_val: {error}") from error
        y_np, weight_np = home.to_numpy(y_val, weight_val)
        features = home_of(X_val).engine_features(X_ok)
        targets = self._validation_targets(y_np, features)
        weight = check_weights(weight_np, features, "sample_weight_val")
        return Holdout(None, None, features, targets, weight)

    def _with_split(self, task: _Task, rng: np.random.RandomState) -> _Task:
        """Split off the validation part; not for L-BFGS, which has no epochs to stop."""
        if self.solver == "lbfgs":
            return task
        holdout = split_rows(
            task.X,
            task.y,
            task.weight,
            fraction=float(self.validation_fraction),
            rng=rng,
            stratify=self._stratified(),
        )
        return replace(task, holdout=holdout)

    def _network_spec(self, task: _Task, widths: tuple[int, ...], home: Home) -> NetworkSpec:
        n_outputs = self._n_logits(task.y)
        sizes = (int(task.X.shape[1]), *widths, n_outputs)
        device = self._training_device(task, sizes)
        data_dtype = _numpy_dtype(task.X)
        if device.type != "cpu" and home.xp is None:
            data_dtype = np.dtype(np.float32)
        own, products = working_dtypes(self.dtype, data_dtype)
        if device.type == "mps" and (own == torch.float64 or self.solver == "lbfgs"):
            raise ValueError(
                f"device='mps' has no float64, which dtype={self.dtype!r} with "
                f"solver={self.solver!r} needs. Use dtype='float32' and a minibatch solver, or "
                "device='cpu'."
            )
        self.device_, self.dtype_ = str(device), self.dtype or str(own).removeprefix("torch.")
        activations = activation_layers(self.activation, len(widths))
        ties = resolve_ties(self.tied_weights, sizes)
        return NetworkSpec(sizes, activations, self._loss(), own, products, ties)

    def _training_device(self, task: _Task, sizes: tuple[int, ...]) -> torch.device:
        if isinstance(task.X, torch.Tensor):
            return task.X.device  # everything follows X
        batch = 200 if self.batch_size == "auto" else self.batch_size
        work = min(int(batch), int(task.X.shape[0])) * dense_layout(sizes, None).n_weights
        return resolve_device(preferred_device() or self.device, float(work))

    def _job(
        self,
        task: _Task,
        network: NetworkSpec,
        weights: tuple[list[np.ndarray], list[np.ndarray]],
        rng: np.random.RandomState,
        resume: Resume,
        bridge: CallbackBridge | None,
        incremental: bool,
    ) -> TrainJob:
        holdout = task.holdout
        watch = bool(self.early_stopping) and not incremental and self.solver != "lbfgs"
        spec = train_spec(
            self,
            one_epoch=incremental,
            watch_validation=watch and holdout is not None,
            label_smoothing=self._label_smoothing(),
            break_ties_by_loss=self._break_ties_by_loss(),
        )
        rows = None if holdout is None else holdout.train_rows
        weight = task.weight if task.weight is None or rows is None else task.weight[rows]
        validation = None
        if holdout is not None:
            validation = ValidationData(holdout.X, holdout.y, holdout.weight)
        n_train = int(task.X.shape[0]) if rows is None else len(rows)
        warn_of_batch_size(self, n_train)
        return TrainJob(
            network=network,
            train=spec,
            data=TrainingData(task.X, task.y, rows, weight),
            params=dense_layout(network.layer_sizes, network.ties).pack(*weights),
            rng=rng,
            rng_is_shared=isinstance(self.random_state, np.random.RandomState),
            dropout_seed=int(rng.randint(np.iinfo(np.int32).max)) if self.dropout > 0 else None,
            validation=validation,
            score=None if holdout is None else self._validation_score(task, holdout, network),
            on_epoch=self._epoch_hook(
                bridge,
                network_attributes(network, self, task.probe),
                validated=spec.watch_validation,
            ),
            resume=resume,
            device=torch.device(self.device_),
        )

    def _validation_score(self, task: _Task, holdout: Holdout, network: NetworkSpec) -> Score:
        metric = self.early_stopping_metric
        if metric == "score":
            return self._score_function(holdout.y, holdout.weight)
        if metric == "loss":
            return negative_loss
        X, y = task.X_val_user, task.y_val_user
        if X is None:  # split off from the training rows, or all of them
            X, y = task.X_user, task.y_user
            if holdout.validation_rows is not None:
                X = safe_indexing(X, holdout.validation_rows)
                y = safe_indexing(y, holdout.validation_rows)
        now = copy.copy(self)
        for name, value in network_attributes(network, self, task.probe).items():
            setattr(now, name, value)
        return user_scorer(now, metric, X, y, holdout.weight)

    def _epoch_hook(
        self, bridge: CallbackBridge | None, state: dict[str, Any], *, validated: bool
    ) -> Any:
        if bridge is not None and not bridge.active:
            bridge = None
        if not self.verbose and bridge is None:
            return None

        def hook(view: EpochView) -> bool:
            if self.verbose:
                print_epoch(view, self, validated=validated)
            if bridge is None:
                return False
            attributes = partial(epoch_attributes, view, state)
            return bridge.end_epoch(attributes, last=view.reason is not None)

        return hook

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        # Adam's moments are twice the weights. They are worth keeping only in the midst of a
        # stream of partial_fit calls; after fit, a loaded model starts with fresh ones.
        if not state.get("_streaming", False):
            state.pop("_optimizer", None)
        probe = state.get("_namespace_probe")
        if isinstance(probe, torch.Tensor):
            state["_namespace_probe"] = probe.cpu()  # loads where there is no such device
        return state


def solver_is_stochastic(est: BaseMLP) -> bool:
    """Condition of ``partial_fit``, in scikit-learn's words."""
    if est.solver == "lbfgs":
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. lbfgs is not stochastic."
        )
    return True


def checked_targets(est: BaseMLP, X: Features, y: Any, name: str = "y_val") -> np.ndarray:
    """Targets as scikit-learn would validate y beside these rows."""
    try:
        y_ok = check_y(y, multi_output=True, y_numeric=est._y_numeric, estimator=est)
        check_consistent_length(X, y_ok)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if y_ok.ndim == 2 and y_ok.shape[1] == 1:
        y_ok = column_or_1d(y_ok, warn=True)
    return y_ok


def _numpy_dtype(X: Features) -> np.dtype:
    if isinstance(X, torch.Tensor):
        return np.dtype(np.float32 if X.dtype == torch.float32 else np.float64)
    return X.dtype
