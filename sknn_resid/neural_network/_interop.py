"""To scikit-learn's own MLP and back: the weights, the counters, the optimizer's moments."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import sklearn.neural_network
from sklearn.utils.validation import check_is_fitted

from sknn_resid._sklearn_compat import AdamOptimizer, SGDOptimizer
from sknn_resid.engine.layout import DenseLayout, Layout, dense_layout
from sknn_resid.engine.optimizers import OptimizerState
from sknn_resid.engine.spec import OptimizerKind
from sknn_resid.neural_network._params import (
    activation_layers,
    activation_name,
    regression_loss,
)
from sknn_resid.neural_network._targets import LabelCodec

_THEIR_ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
_SHARED = (
    "n_iter_",
    "n_layers_",
    "n_outputs_",
    "out_activation_",
    "loss_",
    "t_",
    "n_features_in_",
    "feature_names_in_",
    "classes_",
    "_no_improvement_count",
    "best_loss_",
    "best_validation_score_",
)
_CURVES = ("loss_curve_", "validation_scores_")


class SklearnBridge:
    """``to_sklearn`` and ``from_sklearn``."""

    def to_sklearn(self) -> Any:
        """The same fitted network as a scikit-learn estimator.

        Returns
        -------
        estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
            Predicts the same and can be trained on by scikit-learn.

        Raises
        ------
        ValueError
            If scikit-learn's class cannot make the same predictions (another activation, several
            multi-class targets).

        Warns
        -----
        UserWarning
            If training on in scikit-learn would go another way (dropout, another loss or solver).
        """
        return _export(self, getattr(sklearn.neural_network, type(self).__name__))

    @classmethod
    def from_sklearn(cls, estimator: Any) -> Any:
        """Our estimator with the parameters and the fitted state of scikit-learn's.

        Parameters
        ----------
        estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
            Fitted or not.

        Returns
        -------
        estimator : MLPClassifier or MLPRegressor
            Predicts the same and trains on where the other one stood.
        """
        return _import(cls, estimator)


def _export(est: Any, target: type) -> Any:
    """A fitted scikit-learn estimator of class ``target`` that predicts as ``est`` does.

    Raises
    ------
    ValueError
        If scikit-learn's class cannot make the same predictions.
    """
    check_is_fitted(est, "coefs_")
    params, lost = _their_parameters(est, target)
    if lost:
        warnings.warn(
            "scikit-learn has no counterpart of "
            + ", ".join(f"{name}={value!r}" for name, value in lost.items())
            + ". Predictions are the same; training on would go another way.",
            UserWarning,
            stacklevel=3,
        )
    theirs = target(**params)
    _copy_state(est, theirs)
    theirs._best_coefs = [w.copy() for w in est.coefs_]
    theirs._best_intercepts = [b.copy() for b in est.intercepts_]
    theirs._random_state = np.random.RandomState()
    if hasattr(est, "_codec"):
        theirs._label_binarizer = est._label_binarizer
    state = getattr(est, "_optimizer", None)
    if state is not None:
        layout = dense_layout(_sizes(est), est._fitted_ties)
        theirs._optimizer = _their_optimizer(theirs, state, layout)
    return theirs


def _their_parameters(est: Any, target: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constructor parameters for scikit-learn, and those that it has no counterpart of."""
    ours = est.get_params(deep=False)
    theirs = target().get_params(deep=False)
    params = {name: ours[name] for name in theirs}
    defaults = type(est)().get_params(deep=False)
    lost = {
        name: ours[name]
        for name in ours
        if name not in theirs
        and name not in ("n_layers", "width", "device", "dtype", "quantile", "huber_delta")
        and ours[name] != defaults[name]
    }
    names = {activation_name(a) for a in est._fitted_activations} or {"identity"}
    if len(names) > 1 or not names <= set(_THEIR_ACTIVATIONS):
        raise ValueError(
            f"to_sklearn: scikit-learn's MLP has one activation out of {_THEIR_ACTIVATIONS} for "
            f"all hidden layers, this network has {sorted(names)}."
        )
    if getattr(est, "_codec", None) is not None and est._codec.kind == "multioutput":
        raise ValueError(
            "to_sklearn: scikit-learn's MLPClassifier has no multiclass-multioutput targets. "
            "Fit one estimator per target."
        )
    params["activation"] = names.pop()
    params["hidden_layer_sizes"] = tuple(w.shape[1] for w in est.coefs_[:-1])
    for name, known, instead in (
        ("solver", ("lbfgs", "sgd", "adam"), "adam"),
        ("learning_rate", ("constant", "invscaling", "adaptive"), "constant"),
        ("loss", ("squared_error", "poisson"), "squared_error"),
    ):
        if name in params and params[name] not in known:
            lost[name], params[name] = params[name], instead
    return params, lost


def _import(cls: type, theirs: Any) -> Any:
    """Our estimator of class ``cls`` with the parameters and the fitted state of scikit-learn's."""
    if type(theirs).__name__ != cls.__name__:
        raise ValueError(
            f"from_sklearn: {cls.__name__} takes a scikit-learn {cls.__name__}, "
            f"got {type(theirs).__name__}."
        )
    est = cls(**theirs.get_params(deep=False))
    if not hasattr(theirs, "coefs_"):
        return est
    _copy_state(theirs, est)
    est.device_, est.dtype_ = "cpu", est.coefs_[0].dtype.name
    est.validation_loss_curve_, est._fitted_ties = None, None
    est.n_parameters_ = Layout(_sizes(est)).n_params
    est._namespace_probe = np.empty(0, dtype=est.coefs_[0].dtype)
    est._fitted_activations = activation_layers(est.activation, len(est.coefs_) - 1)
    if hasattr(theirs, "_label_binarizer"):
        kinds = {"multilabel-indicator": "multilabel", "multiclass": "multiclass"}
        kind = kinds.get(theirs._label_binarizer.y_type_, "binary")
        est._codec = LabelCodec(kind, theirs.classes_)
        est._fitted_loss = est._codec.loss
    else:
        est._fitted_loss = regression_loss(est)
    if hasattr(theirs, "_optimizer"):
        est._optimizer = _our_state(est, theirs._optimizer)
    return est


def _copy_state(source: Any, target: Any) -> None:
    """Fitted attributes that both libraries have under one name; arrays and curves are copied."""
    for name in _SHARED:
        if hasattr(source, name):
            setattr(target, name, getattr(source, name))
    for name in _CURVES:
        if hasattr(source, name):
            curve = getattr(source, name)
            setattr(target, name, None if curve is None else list(curve))
    target.coefs_ = [w.copy() for w in source.coefs_]
    target.intercepts_ = [b.copy() for b in source.intercepts_]


def _sizes(est: Any) -> tuple[int, ...]:
    return (est.coefs_[0].shape[0], *(w.shape[1] for w in est.coefs_))


def _our_state(est: Any, optimizer: Any) -> OptimizerState:
    """Their moments, one array per weight matrix and bias, as ours, one flat array."""
    layout = Layout(_sizes(est))
    n = layout.n_layers

    def flat(moments: list[np.ndarray]) -> np.ndarray:
        return layout.pack(moments[:n], moments[n:]).astype(est.coefs_[0].dtype, copy=False)

    if isinstance(optimizer, SGDOptimizer):
        velocity = flat(optimizer.velocities)
        return OptimizerState(OptimizerKind.SGD, float(optimizer.learning_rate), 0, (velocity,))
    moments = (flat(optimizer.ms), flat(optimizer.vs))
    return OptimizerState(
        OptimizerKind.ADAM, float(optimizer.learning_rate_init), int(optimizer.t), moments
    )


def _their_optimizer(theirs: Any, state: OptimizerState, layout: DenseLayout) -> Any:
    parameters = theirs.coefs_ + theirs.intercepts_
    moments = []
    for flat in state.moments:
        coefs, intercepts = layout.unpack(flat.copy())
        moments.append([np.ascontiguousarray(a) for a in coefs + intercepts])
    if state.kind is OptimizerKind.SGD:
        optimizer = SGDOptimizer(
            parameters,
            theirs.learning_rate_init,
            theirs.learning_rate,
            theirs.momentum,
            theirs.nesterovs_momentum,
            theirs.power_t,
        )
        optimizer.velocities = moments[0]
        optimizer.learning_rate = state.learning_rate
        return optimizer
    optimizer = AdamOptimizer(
        parameters, theirs.learning_rate_init, theirs.beta_1, theirs.beta_2, theirs.epsilon
    )
    optimizer.t = state.steps
    optimizer.ms, optimizer.vs = moments
    return optimizer
