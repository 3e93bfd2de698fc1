"""How gradients flow through a network, layer by layer: `gradient_flow`, and several compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sknn_resid.engine.gradient_flow import ACTIVATIONS, activation_numbers
from sknn_resid.inspection._drawing import network_names
from sknn_resid.inspection._images import is_image_network, look_at_images
from sknn_resid.inspection._layers import Look, image_layers, needs_targets, network_layers
from sknn_resid.inspection._network import open_network

COLUMNS = ("gradient_norm", "gradient_rms", "weight_norm", "ratio", *ACTIVATIONS)


def gradient_flow(
    estimator: Any, X: Any, y: Any, sample_weight: Any = None, *, member: int = 0
) -> pd.DataFrame:
    """Gradients, weights and activations of each layer of a network, on rows at hand.

    Works on a fitted network and on one that is not: that one is looked at as ``fit`` would begin,
    which is where vanishing and exploding gradients show first. All rows are one batch of a
    training step, with batch statistics in batch normalizations, without dropout and penalty, in
    float64 whatever the network computes in. The estimator is left as it is. A few hundred rows are
    enough; of large images a few dozen, because all of it is held in memory.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A network of this package, or a Pipeline that ends in one; fitted or not.
    X : {array-like, frame, sparse matrix} of shape (n_samples, n_features)
        Rows.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Their targets.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.
    member : int, default=0
        Which member of a residual ensemble.

    Returns
    -------
    flow : DataFrame
        One row per weight matrix, from the input to the output; blocks that share theirs have one.
        Of a `ResNetClassifier` one per convolution and for the head, by torchvision's names, with
        channels for units and pixels for rows.

        ``layer``
            Its name.
        ``gradient_norm``, ``gradient_rms``
            ``|g|`` and ``|g| / sqrt(number of entries)``, g = dL/dW.
        ``weight_norm``, ``ratio``
            ``|W|`` and ``|g| / |W|``; infinite for a matrix of zeros.
        ``activation_mean``, ``activation_std``
            Of h = f(z), the activations that follow, over rows and units.
        ``saturated_fraction``
            Part of h where ``|f'(z)|`` is below 5 % of its largest value. For functions that are
            flat on one side by intention (all but the logistic function and tanh) part of the units
            that are so on every row.
        ``dead_fraction``
            Part of the units with ``f'(z) = 0`` on every row.

        What follows a layer is not-a-number behind the output, and behind a matrix that no
        activation function follows.

    Raises
    ------
    TypeError
        If the estimator is no network of this package.
    ValueError
        For bad input, or if there is no such member.

    See Also
    --------
    diagnose : What these and other numbers say, in words.
    compare_gradient_flow : Several networks in one table.
    GradientFlowDisplay : As a picture.

    References
    ----------
    Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural
    networks.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import gradient_flow
    >>> X, y = load_digits(return_X_y=True)
    >>> deep = MLPClassifier((64,) * 20, activation="logistic", random_state=0)
    >>> flow = gradient_flow(deep, X[:256] / 16, y[:256])
    >>> norms = flow.set_index("layer")["gradient_norm"]
    >>> bool(norms["hidden_1"] < 1e-9 * norms["output"])  # it has vanished on the way
    True
    """
    needs_targets(y)
    if is_image_network(estimator):
        return flow_of(image_layers(look_at_images(estimator, X, y, sample_weight)))
    network = open_network(
        estimator, X, y, sample_weight, member=member, statistics="batch", dtype="float64"
    )
    return flow_of(network_layers(network))


def compare_gradient_flow(
    estimators: Sequence[Any] | Mapping[str, Any],
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """`gradient_flow` of several networks on the same rows, in one long table.

    Parameters
    ----------
    estimators : sequence of estimators, or dict of them by name
        Networks of this package, fitted or not.
    X, y, sample_weight
        As in `gradient_flow`.
    names : sequence of str, default=None
        One for each; None takes the keys, or the names of the classes (numbered where they repeat).

    Returns
    -------
    flow : DataFrame
        The columns of `gradient_flow` behind ``network``, the name, and ``depth``: 0 for the first
        layer of a network, 1 for its last, so that networks of other depths compare.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import compare_gradient_flow
    >>> X, y = load_digits(return_X_y=True)
    >>> nets = {name: MLPClassifier((64,) * 8, name, random_state=0) for name in ("tanh", "relu")}
    >>> flow = compare_gradient_flow(nets, X[:256] / 16, y[:256])
    >>> flow.groupby("network", sort=False)["layer"].count().to_dict()
    {'tanh': 9, 'relu': 9}
    """
    if isinstance(estimators, Mapping):
        names = list(estimators) if names is None else names
        estimators = list(estimators.values())
    names = network_names(estimators, names)
    tables = []
    for name, estimator in zip(names, estimators, strict=True):
        flow = gradient_flow(estimator, X, y, sample_weight)
        flow.insert(0, "network", name)
        flow.insert(2, "depth", np.linspace(0, 1, len(flow)))
        tables.append(flow)
    return pd.concat(tables, ignore_index=True)


def flow_of(look: Look) -> pd.DataFrame:
    """The table of `gradient_flow`."""
    records = []
    for layer in look.layers:
        numbers = [math.nan] * len(ACTIVATIONS)
        if layer.behind:
            numbers = activation_numbers(layer.behind, look.rows_of(layer))[0].tolist()
        size, length = norm(layer.gradient), norm(layer.weight)
        rms, ratio = size / math.sqrt(layer.gradient.size), relative(size, length)
        records.append((layer.name, size, rms, length, ratio, *numbers))
    return pd.DataFrame(records, columns=["layer", *COLUMNS])


def activation_table(estimator: Any, X: Any, y: Any, *, member: int) -> pd.DataFrame:
    """Quantiles, saturated and dead parts of what follows each layer: see `ActivationDisplay`."""
    if is_image_network(estimator):
        needs_targets(y)
        look = image_layers(look_at_images(estimator, X, y, None))
    else:
        look = network_layers(
            open_network(estimator, X, y, member=member, statistics="batch", dtype="float64")
        )
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    records = []
    for layer in look.layers:
        if layer.behind:
            values = np.stack([part.h[0].numpy() for part in layer.behind])
            numbers = activation_numbers(layer.behind, look.rows_of(layer))[0].tolist()
            records.append((layer.name, *np.quantile(values, levels), *numbers[2:]))
    names = [f"q{100 * level:02.0f}" for level in levels]
    return pd.DataFrame(records, columns=["layer", *names, *ACTIVATIONS[2:]])


def norm(array: np.ndarray) -> float:
    """Frobenius norm; scaled, so that no square leaves the range of float64."""
    largest = float(np.abs(array).max(initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * float(np.linalg.norm(array / largest))


def relative(part: float, whole: float) -> float:
    """part / whole; 0 for nothing of nothing, infinite for something of nothing."""
    if whole == 0:
        return 0.0 if part == 0 else math.inf
    return part / whole
