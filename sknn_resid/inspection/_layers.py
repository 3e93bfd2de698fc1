"""Weights, gradients and activations of each layer of any network, in one form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sknn_resid.engine.activations import Activated, Logistic, Relu
from sknn_resid.engine.gradient_flow import Rows, Scratch
from sknn_resid.engine.image_trace import ImageSubject, Way, run_images
from sknn_resid.engine.residual_spec import ResidualSpec, Skip
from sknn_resid.engine.spec import AnySpec
from sknn_resid.engine.structure import layout_of
from sknn_resid.inspection._network import OpenNetwork


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer after a pass.

    Attributes
    ----------
    name : str
    weight, gradient : ndarray
        W and dJ/dW.
    behind : list of Activated
        What follows, as if of one model.
    """

    name: str
    weight: np.ndarray
    gradient: np.ndarray
    behind: list[Activated]


@dataclass(frozen=True, eq=False)
class Look:
    """All layers after a pass, from the input to the output.

    Attributes
    ----------
    layers : list of Layer
    row_weights : ndarray of shape (n,)
        Of sum 1.
    """

    layers: list[Layer]
    row_weights: np.ndarray

    def rows_of(self, layer: Layer) -> Rows:
        """Weights of the rows of a layer's activations: each pixel is a row of its own."""
        repeats = layer.behind[0].h.shape[1] // len(self.row_weights)
        r = np.repeat(self.row_weights / repeats, repeats)
        return Rows(torch.from_numpy(r)[None, None], Scratch())


def needs_targets(y: Any) -> None:
    """Refuse a call without targets.

    Raises
    ------
    ValueError
    """
    if y is None:
        raise ValueError("y is missing: gradients are those of a loss. Pass the targets of X.")


def network_layers(network: OpenNetwork) -> Look:
    """The layers of a dense or residual network after one pass."""
    done = network.run()
    activations = {
        seen.name: Activated(
            seen.function, torch.from_numpy(seen.z)[None], torch.from_numpy(seen.v)[None]
        )
        for seen in done.activations
    }
    for passed in done.layers:
        if passed.name.endswith(".gate"):
            z, v = (torch.from_numpy(part)[None] for part in (passed.z, passed.v))
            activations[passed.name] = Activated(Logistic(), z, v)
    layers = [
        Layer(
            name,
            done.parameters[f"{name}.W"],
            done.parameter_gradients[f"{name}.W"],
            [activations[behind] for behind in following],
        )
        for name, following in activations_behind(network.spec).items()
    ]
    return Look(layers, done.row_weights)


def image_layers(subject: ImageSubject) -> Look:
    """The convolutions and the head of an image network after one pass; a unit is a channel."""
    done, back = run_images(subject, Way(), everything=False)
    layers = []
    for name, W in done.weights.items():
        behind = []
        if name in done.v:
            h = done.v[name].detach().permute(0, 2, 3, 1).flatten(0, 2)[None]
            behind = [Activated(Relu(), h, h)]
        layers.append(Layer(name, W, back.parameters[f"{name}.weight"], behind))
    return Look(layers, subject.row_weights)


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
