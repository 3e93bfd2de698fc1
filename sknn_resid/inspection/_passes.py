"""What a pass through a network has made, layer by layer, under names that a user reads.

The engine keeps parameters in flat rows and shows tensors under names of its own; here they become
arrays of layers, activations and streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sknn_resid.engine.activations import Activation
from sknn_resid.engine.layout import dense_layout
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import ResidualSpec, Skip
from sknn_resid.engine.spec import AnySpec
from sknn_resid.engine.trace import Snapshot, Subject, linked


@dataclass(frozen=True)
class LayerParameters:
    """Where the matrix and the bias of a layer are found.

    Attributes
    ----------
    layer : str
        Name of the layer.
    coef, intercept : str
        Names of its parameters; with ``tie_blocks=True`` those of several layers are the same.
    """

    layer: str
    coef: str
    intercept: str


@dataclass(frozen=True, eq=False)
class LayerPass:
    """A layer z = v_in W + b in one pass over n rows.

    Attributes
    ----------
    name : str
        "hidden_1", ..., "output"; in a residual network "input", "block_1.linear_1", ...,
        "block_1.gate" (``skip="gated"``), "output".
    z : ndarray of shape (n, units)
    v : ndarray of shape (n, units)
        What goes on from here: f(z); for the output the prediction. In a residual network what
        the next matrix of the block reads; after the last one the stream x_l behind the block;
        for the input x_0 = z; for a gate the logistic function of z.
    delta : ndarray of shape (n, units)
        dJ/dz.
    coef, coef_gradient : ndarray of shape (in, units)
        W and dJ/dW. A weight that stands in several places has one gradient, the sum over them.
    intercept, intercept_gradient : ndarray of shape (units,)
        b and dJ/db.
    """

    name: str
    z: np.ndarray
    v: np.ndarray
    delta: np.ndarray
    coef: np.ndarray
    coef_gradient: np.ndarray
    intercept: np.ndarray
    intercept_gradient: np.ndarray


@dataclass(frozen=True, eq=False)
class ActivationPass:
    """An activation function v = f(z) in one pass.

    In a dense network its z is that of its layer; in a residual one it stands before a matrix and
    reads what the normalization made: "block_1.activation_2", "output.activation".

    Attributes
    ----------
    name : str
    function : Activation
    z, v : ndarray of shape (n, units)
    """

    name: str
    function: Activation
    z: np.ndarray
    v: np.ndarray


@dataclass(frozen=True, eq=False)
class StreamPass:
    """The stream x_l of a residual network behind the input ("input") or a block ("block_l").

    Attributes
    ----------
    name : str
    x, gradient : ndarray of shape (n, width)
        x_l and dJ/dx_l.
    """

    name: str
    x: np.ndarray
    gradient: np.ndarray


@dataclass(frozen=True, eq=False)
class NetworkPass:
    """One forward and backward pass.

    Attributes
    ----------
    layers : list of LayerPass
        From the input to the output.
    activations : list of ActivationPass
    streams : list of StreamPass
        Empty for a dense network.
    loss : float
        J without the penalty; 0 without targets.
    logits, outputs : ndarray of shape (n, K)
        Raw outputs, and predictions on the scale that the network learns.
    row_weights : ndarray of shape (n,)
        r_i.
    parameters, parameter_gradients : dict
        All parameters by name, each once, and dJ of them: "hidden_1.W", "block_1.linear_1.b",
        "block_1.norm_1.gamma", "output.norm.beta", "block_2.rezero", "periodic.w"; with
        ``tie_blocks=True`` those of all blocks are "blocks.linear_1.W" and so on.
    """

    layers: list[LayerPass]
    activations: list[ActivationPass]
    streams: list[StreamPass]
    loss: float
    logits: np.ndarray
    outputs: np.ndarray
    row_weights: np.ndarray
    parameters: dict[str, np.ndarray]
    parameter_gradients: dict[str, np.ndarray]
    _dX: np.ndarray | None

    @property
    def X(self) -> np.ndarray:
        """dJ/dX of shape (n, D); row i holds r_i times the gradient of row i's own loss."""
        if self._dX is None:  # sparse rows: dense numbers of this shape are made on demand only
            return self.layers[0].delta @ self.layers[0].coef.T
        return self._dX


def layers_of(spec: AnySpec) -> Iterator[LayerParameters]:
    """The layers of a network from the input to the output."""
    names = [f"hidden_{l + 1}" for l in range(len(_activations_of(spec)))]
    own = list(names)
    if isinstance(spec, ResidualSpec):
        names, own = ["input"], ["input"]
        parts = ["gate"] if spec.skip is Skip.GATED else []
        parts += [f"linear_{l}" for l in range(1, spec.n_layers_per_block + 1)]
        for b in range(spec.n_blocks):
            names += [f"block_{b + 1}.{part}" for part in parts]
            own += [f"{_set_name(spec, b)}.{part}" for part in parts]
    for layer, parameter in zip([*names, "output"], [*own, "output"], strict=True):
        yield LayerParameters(layer, f"{parameter}.W", f"{parameter}.b")


def _activations_of(spec: AnySpec) -> tuple[Activation, ...]:
    """One per hidden layer of a dense network."""
    return () if isinstance(spec, ResidualSpec) else spec.activations


def _set_name(spec: ResidualSpec, block: int) -> str:
    """What the parameters of a block are named after: all blocks, where they are tied."""
    return "blocks" if spec.tie_blocks else f"block_{block + 1}"


def _named(spec: AnySpec, flat: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters, or gradients, of one network by name; every matrix (in, out)."""
    if isinstance(spec, ResidualSpec):
        found = ResidualLayout(spec).unpack(flat)
        found["head.W"] = found["head.W"].T
        return {_shown_name(spec, name): array for name, array in found.items()}
    coefs, intercepts = dense_layout(spec.layer_sizes, spec.ties).unpack(flat)
    named: dict[str, np.ndarray] = {}
    for layer, W, b in zip(layers_of(spec), coefs, intercepts, strict=True):
        named |= {layer.coef: W, layer.intercept: b}
    return named


def _shown_name(spec: ResidualSpec, name: str) -> str:
    """A parameter's name in the engine's layout -> its name here, where blocks count from 1."""
    owner, _, rest = name.partition(".")
    if not owner.startswith("block"):
        return {"head": "output", "final": "output.norm"}.get(owner, owner) + f".{rest}"
    owner = _set_name(spec, int(owner.removeprefix("block")))
    if rest[0] in "Wb":  # W1, b1
        return f"{owner}.linear_{rest[1:]}.{rest[0]}"
    return f"{owner}.{rest.replace('norm', 'norm_')}"


def assembled(subject: Subject, shot: Snapshot) -> NetworkPass:
    """The pass that a snapshot shows."""
    spec, seen = subject.network, shot.seen
    values = _named(spec, subject.params.copy())
    gradients = _named(spec, shot.gradient)
    outputs = linked(subject, shot.logits)
    passes = [
        LayerPass(
            name=layer.layer,
            z=seen[layer.layer, "z"],
            v=outputs if layer.layer == "output" else _goes_on(spec, layer.layer, seen),
            delta=seen[layer.layer, "delta"],
            coef=values[layer.coef],
            coef_gradient=gradients[layer.coef],
            intercept=values[layer.intercept],
            intercept_gradient=gradients[layer.intercept],
        )
        for layer in layers_of(spec)
    ]
    streams = []
    if isinstance(spec, ResidualSpec):
        names = ["input", *(f"block_{b + 1}" for b in range(spec.n_blocks))]
        streams = [StreamPass(name, seen[name, "v"], seen[name, "dv"]) for name in names]
    return NetworkPass(
        layers=passes,
        activations=list(_activations(spec, seen)),
        streams=streams,
        loss=shot.loss,
        logits=shot.logits,
        outputs=outputs,
        row_weights=shot.row_weights,
        parameters=values,
        parameter_gradients=gradients,
        _dX=seen.get(("X", "dv")),
    )


def _goes_on(spec: AnySpec, layer: str, seen: Mapping[tuple[str, str], np.ndarray]) -> np.ndarray:
    """v of a layer that is not the output."""
    if (layer, "v") in seen:
        return seen[layer, "v"]
    assert isinstance(spec, ResidualSpec)
    block, _, part = layer.partition(".")
    if part == "gate":
        z = torch.from_numpy(seen[layer, "z"])
        return torch.sigmoid(z).numpy()
    l = int(part.removeprefix("linear_"))
    if l == spec.n_layers_per_block:
        return seen[block, "v"]
    return seen[f"{block}.linear_{l + 1}", "in"]


def _activations(
    spec: AnySpec, seen: Mapping[tuple[str, str], np.ndarray]
) -> Iterator[ActivationPass]:
    if not isinstance(spec, ResidualSpec):
        for l, function in enumerate(spec.activations, 1):
            name = f"hidden_{l}"
            yield ActivationPass(name, function, seen[name, "z"], seen[name, "v"])
        return
    names = [
        f"block_{b + 1}.activation_{l}"
        for b in range(spec.n_blocks)
        for l, activated in enumerate(spec.activated, 1)
        if activated
    ]
    for name in [*names, "output.activation"]:
        yield ActivationPass(name, spec.activation, seen[name, "z"], seen[name, "v"])
