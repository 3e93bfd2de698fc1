"""From an estimator and rows to the engine's own network, targets and weights, to be looked at.

A fitted estimator is looked at as it is. One that is not fitted is looked at as ``fit`` would start
on the same arguments: the same validation, the same draws, the same first weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import clone

from sknn_resid._validation import check_weights
from sknn_resid.engine.data import Features
from sknn_resid.engine.layout import dense_layout
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.spec import NetworkSpec
from sknn_resid.engine.trace import Subject
from sknn_resid.neural_network._arrays import home_of
from sknn_resid.neural_network._base import BaseMLP, checked_targets
from sknn_resid.neural_network._class_weight import row_weights
from sknn_resid.neural_network._ensemble_training import (
    first_parameters,
    groups_of,
    member_generators,
)
from sknn_resid.neural_network._params import working_dtypes
from sknn_resid.neural_network._residual_base import BaseResidual
from sknn_resid.neural_network._residual_prediction import validated_rows
from sknn_resid.neural_network._tied_weights import check_tied


@dataclass(frozen=True, eq=False)
class Looked:
    """A network and the rows it is looked at with.

    Attributes
    ----------
    subject : Subject
    X : ndarray or CSR matrix of shape (n, D)
        Rows as the network reads them: encoded, for a residual network.
    y : ndarray of shape (n, T) or None
        Targets as the loss takes them.
    weight : ndarray of shape (n,) or None
        Of the rows, the weights of their classes included.
    columns : list of str
        Names of the D columns.
    fitted : bool
    """

    subject: Subject
    X: Features
    y: np.ndarray | None
    weight: np.ndarray | None
    columns: list[str]
    fitted: bool


def look_at(est: Any, X: Any, y: Any, sample_weight: Any, member: int) -> Looked:
    """The network of an MLP or of one member of a residual ensemble. ``est`` is left as it is.

    Raises
    ------
    TypeError
        If ``est`` is no network of this package.
    ValueError
        If there is no such member, ``y`` is missing where it is needed, or input is bad.
    """
    if isinstance(est, BaseMLP):
        if member != 0:
            raise ValueError(
                f"member={member}: {type(est).__name__} is one network. Leave member at 0; only "
                "the residual estimators are ensembles."
            )
        look_mlp = _fitted_mlp if hasattr(est, "coefs_") else _new_mlp
        return look_mlp(est, X, y, sample_weight)
    if isinstance(est, BaseResidual):
        fitted = hasattr(est, "_ensemble")
        n_members = len(est._ensemble.members.params) if fitted else int(est.n_estimators)
        if not 0 <= member < n_members:
            raise ValueError(
                f"member={member}: the ensemble has {n_members} members, counted from 0."
            )
        look = _fitted_residual if fitted else _new_residual
        return look(est, X, y, sample_weight, member)
    hint = " Pass its best_estimator_." if hasattr(est, "best_estimator_") else ""
    raise TypeError(
        f"{type(est).__module__}.{type(est).__name__} is not a network of sknn_resid that can be "
        "looked into. Pass an MLPClassifier, MLPRegressor, MLPResidualClassifier, "
        "MLPResidualRegressor or ResNetClassifier of sknn_resid, or a Pipeline that ends in one."
        f"{hint}"
    )


def _as_it_would_begin(est: Any, y: Any) -> Any:
    """A clone whose parameters have been checked."""
    if y is None:
        raise ValueError(
            f"y is missing: this {type(est).__name__} is not fitted, and how it would begin "
            "depends on y (the number of outputs). Pass y, or fit it first."
        )
    fresh = clone(est)
    fresh._validate_params()
    return fresh


# -- the MLPs ----------------------------------------------------------------------------------


def _new_mlp(est: Any, X: Any, y: Any, sample_weight: Any) -> Looked:
    fresh = _as_it_would_begin(est, y)
    start = fresh._begin(
        X, y, sample_weight, (None, None, None), first_call=True, incremental=False
    )
    layout = dense_layout(start.network.layer_sizes, start.network.ties)
    params = layout.pack(*start.weights)
    subject = Subject(start.network, params, fresh._label_smoothing())
    task = start.task
    return Looked(subject, _on_host(task.X), task.y, task.weight, _names(fresh), False)


def _fitted_mlp(est: Any, X: Any, y: Any, sample_weight: Any) -> Looked:
    features, _ = est._checked(X, "forward_trace")
    features = _on_host(features)
    home = home_of(X)
    y_np, weight_np = home.to_numpy(y, sample_weight)
    weight = check_weights(weight_np, features)
    targets = None
    if y is not None:
        targets = est._validation_targets(y_np, features, "y")
        weight = _class_weighted(est, checked_targets(est, features, y_np, "y"), weight)
    sizes = (est.coefs_[0].shape[0], *(W.shape[1] for W in est.coefs_))
    bfloat16 = "bfloat16" if est.dtype_ == "bfloat16" else None
    own, products = working_dtypes(bfloat16, est.coefs_[0].dtype)
    network = NetworkSpec(
        sizes, est._fitted_activations, est._fitted_loss, own, products, est._fitted_ties
    )
    layout = dense_layout(sizes, est._fitted_ties)
    check_tied(est.coefs_, layout)
    params = layout.pack(est.coefs_, est.intercepts_)
    subject = Subject(network, params, est._label_smoothing())
    return Looked(subject, features, targets, weight, _names(est), True)


# -- the residual ensembles --------------------------------------------------------------------


def _new_residual(est: Any, X: Any, y: Any, sample_weight: Any, member: int) -> Looked:
    fresh = _as_it_would_begin(est, y)
    start = fresh._begin(X, y, sample_weight, (None, None, None))
    n_members = int(fresh.n_estimators)
    scale = start.scales[groups_of(n_members, start.scales)[member]]
    rng = member_generators(start.rng, n_members)[member]
    params = first_parameters(start.recipe, scale, rng)
    subject = Subject(start.recipe.spec, params, fresh._label_smoothing(), scale)
    fresh.encoder_, fresh._codec = start.task.encoder, start.task.codec
    return _encoded(fresh, subject, X, y, sample_weight, fitted=False)


def _fitted_residual(est: Any, X: Any, y: Any, sample_weight: Any, member: int) -> Looked:
    members = est._ensemble.members
    scale = None if members.input_scale is None else members.input_scale[member]
    statistics = members.statistics[member] if ResidualLayout(members.spec).n_statistics else None
    subject = Subject(
        members.spec, members.params[member], est._label_smoothing(), scale, statistics
    )
    return _encoded(est, subject, X, y, sample_weight, fitted=True)


def _encoded(
    est: Any, subject: Subject, X: Any, y: Any, sample_weight: Any, *, fitted: bool
) -> Looked:
    """Rows through the encoder; those of weight zero, which a fit drops, stay in their place."""
    rows = validated_rows(est, est.encoder_, X, subject.params.dtype)
    weight = check_weights(sample_weight, rows)
    targets = None
    if y is not None:
        y_ok = checked_targets(est, rows, y, "y")
        weight = _class_weighted(est, y_ok, weight)
        targets = est._encode_targets(est._codec, y_ok, "y")
    columns = list(est.encoder_.get_feature_names_out())
    return Looked(subject, rows, targets, weight, columns, fitted)


# -- both --------------------------------------------------------------------------------------


def _class_weighted(est: Any, y: np.ndarray, weight: np.ndarray | None) -> np.ndarray | None:
    """Weights of rows with those of their classes, counted in these rows as ``fit`` would."""
    class_weight = getattr(est, "class_weight", None)
    if class_weight is None:
        return weight
    by_class = row_weights(class_weight, est._codec, y, weight)
    return by_class if weight is None else weight * by_class


def _names(est: Any) -> list[str]:
    names = getattr(est, "feature_names_in_", None)
    return [f"x{j}" for j in range(est.n_features_in_)] if names is None else list(names)


def _on_host(X: Features) -> Features:
    if isinstance(X, torch.Tensor):
        return X.detach().cpu().numpy()
    return scipy.sparse.csr_array(X) if scipy.sparse.issparse(X) else X
