"""How gradients flow through a network, layer by layer: `gradient_flow`, and several compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from sknn_resid.engine.activations import Activated, Logistic
from sknn_resid.engine.gradient_flow import ACTIVATIONS, Rows, Scratch, activation_numbers
from sknn_resid.engine.residual_spec import ResidualSpec, Skip
from sknn_resid.engine.spec import AnySpec
from sknn_resid.engine.structure import layout_of
from sknn_resid.inspection._drawing import network_names
from sknn_resid.inspection._network import open_network
from sknn_resid.inspection._passes import NetworkPass

COLUMNS = ("gradient_norm", "gradient_rms", "weight_norm", "ratio", *ACTIVATIONS)


def gradient_flow(
    estimator: Any, X: Any, y: Any, sample_weight: Any = None, *, member: int = 0
) -> pd.DataFrame:
    """Gradients, weights and activations of each layer of a network, on rows at hand.

    Works on a fitted network and on one that is not: that one is looked at as ``fit`` would begin,
    which is where vanishing and exploding gradients show first. All rows are one batch of a
    training step, with batch statistics in batch normalizations, without dropout and penalty, in
    float64 whatever the network computes in. The estimator is left as it is. A few hundred rows are
    enough.

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
    network = open_network(
        estimator, X, y, sample_weight, member=member, statistics="batch", dtype="float64"
    )
    if y is None:
        raise ValueError("y is missing: gradients are those of a loss. Pass the targets of X.")
    return flow_of(network.spec, network.run())


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


def flow_of(spec: AnySpec, done: NetworkPass) -> pd.DataFrame:
    """The table of `gradient_flow` from one pass."""
    rows, activations = _in_memory(done)
    records = []
    for layer, behind in activations_behind(spec).items():
        W, g = done.parameters[f"{layer}.W"], done.parameter_gradients[f"{layer}.W"]
        numbers = [math.nan] * len(ACTIVATIONS)
        if behind:
            numbers = activation_numbers([activations[name] for name in behind], rows)[0].tolist()
        size, length = norm(g), norm(W)
        rms, ratio = size / math.sqrt(g.size), relative(size, length)
        records.append((layer, size, rms, length, ratio, *numbers))
    return pd.DataFrame(records, columns=["layer", *COLUMNS])


def _in_memory(done: NetworkPass) -> tuple[Rows, dict[str, Activated]]:
    """Weights of the rows, and activations by name, as the engine measures them."""
    rows = Rows(torch.from_numpy(done.row_weights)[None, None], Scratch())
    activations = {
        seen.name: Activated(
            seen.function, torch.from_numpy(seen.z)[None], torch.from_numpy(seen.v)[None]
        )
        for seen in done.activations
    }
    for layer in done.layers:
        if layer.name.endswith(".gate"):
            z, v = (torch.from_numpy(part)[None] for part in (layer.z, layer.v))
            activations[layer.name] = Activated(Logistic(), z, v)
    return rows, activations


def activation_table(estimator: Any, X: Any, y: Any, *, member: int) -> pd.DataFrame:
    """Quantiles, saturated and dead parts of what follows each layer: see `ActivationDisplay`."""
    network = open_network(estimator, X, y, member=member, statistics="batch", dtype="float64")
    done = network.run()
    rows, activations = _in_memory(done)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    records = []
    for layer, behind in activations_behind(network.spec).items():
        if behind:
            values = np.stack([activations[name].h[0].numpy() for name in behind])
            numbers = activation_numbers([activations[name] for name in behind], rows)[0].tolist()
            records.append((layer, *np.quantile(values, levels), *numbers[2:]))
    names = [f"q{100 * level:02.0f}" for level in levels]
    return pd.DataFrame(records, columns=["layer", *names, *ACTIVATIONS[2:]])


def activations_behind(spec: AnySpec) -> dict[str, list[str]]:
    """For each layer the names of the activations that its result goes through first.

    In a residual network these stand before the next matrix of its block, behind the block before
    the first matrix of the next one, or before the output. Layers that blocks share have several.
    """
    names = layout_of(spec).layers()
    found: dict[str, list[str]] = {name: [] for name in names}
    if not isinstance(spec, ResidualSpec):
        return {name: [] if name == "output" else [name] for name in names}
    before = [
        [f"block_{b}.activation_{l}"] if activated else []
        for b in range(1, spec.n_blocks + 1)
        for l, activated in enumerate(spec.activated, 1)
    ]
    following = iter([*before, ["output.activation"]])
    found["input"] += next(following)
    for b in range(1, spec.n_blocks + 1):
        block = "blocks" if spec.tie_blocks else f"block_{b}"
        if spec.skip is Skip.GATED:
            found[f"{block}.gate"].append(f"block_{b}.gate")
        for l in range(1, spec.n_layers_per_block + 1):
            found[f"{block}.linear_{l}"] += next(following)
    return found


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
