"""What ``record_gradients=True`` leaves behind: numbers by epoch and layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sknn_resid.engine.gradient_flow import COLUMNS
from sknn_resid.engine.structure import layout_of


class GradientHistory:
    """How gradients flowed through a network while it was trained: numbers by epoch and layer.

    Once an epoch, at its last full batch, each layer is measured: after the gradient of the data
    term is there (the penalty left out, before clipping) and around the update that follows.
    Where a step is computed in parts (``accumulate_steps``), it is the whole step that is measured.
    ``history["gradient_norm"]`` is an array; :meth:`to_frame` gives a long table.

    Attributes
    ----------
    layers : tuple of str
        Names of the layers from the input to the output: "hidden_1", ..., "output", or "input",
        "block_1.linear_1", ..., "output" in a residual network; of an image network convolutions
        and head by torchvision's names, "conv1", "layer1.0.conv1", ..., "fc".
    epochs : ndarray of shape (n_records,)
        Epoch of each record, counted from 1 over all calls as `loss_curve_` is.
    members : ndarray of shape (n_records,)
        Member of an ensemble that each record is of; 0 for a single network.
    values : ndarray of shape (n_records, n_layers, 8)
        The numbers themselves.

    See Also
    --------
    sknn_resid.inspection.gradient_flow : The same numbers, of a model and rows at hand.
    sknn_resid.inspection.GradientFlowDisplay : Both as a picture.

    Notes
    -----
    With W the weight matrix of a layer, g = dL/dW, D the change of W by the step, f the activation
    function that follows, h = f(z), and Frobenius norms:

    ======================  ====================================================================
    ``gradient_norm``       ``|g|``
    ``gradient_rms``        ``|g| / sqrt(number of entries)``: layers of any width compare
    ``weight_norm``         ``|W|`` before the step
    ``update_ratio``        ``|D| / |W|``; infinite for a matrix of zeros that begins to move
    ``activation_mean``     mean of h over the rows of the batch (by weight) and the units
    ``activation_std``      standard deviation of h, likewise
    ``saturated_fraction``  part of h where ``|f'(z)|`` is below 5 % of its largest value, for the
                            logistic function and tanh; for the others, which are flat on one side
                            by intention, part of the units that are so on every row of the batch
    ``dead_fraction``       part of the units with ``f'(z) = 0`` on every row of the batch
    ======================  ====================================================================

    A number that does not exist is not-a-number: activations behind the output layer or a matrix
    that no function follows, and those of a batch without weight. Dropout is not part of h.

    In an image network a unit is a channel, and each of its pixels is a row: a channel is dead if
    it is so at every pixel of every image of the batch. h is that of the step: behind augmentation
    and mixup, with the branches that ``drop_path`` left. Gradients of frozen layers are 0.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknn_resid import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MLPClassifier((16, 8), record_gradients=True, max_iter=1000, random_state=0)
    >>> history = net.fit(X, y).gradient_history_
    >>> history.layers
    ('hidden_1', 'hidden_2', 'output')
    >>> history["update_ratio"].shape == (net.n_iter_, 3)
    True
    >>> bool((history["gradient_norm"] > 0).all())
    True
    """

    def __init__(
        self,
        layers: Sequence[str],
        values: np.ndarray,
        *,
        epochs: np.ndarray | None = None,
        members: np.ndarray | None = None,
    ) -> None:
        n = len(values)
        self.layers = tuple(layers)
        self.values = values
        self.epochs = np.arange(1, n + 1) if epochs is None else epochs
        self.members = np.zeros(n, dtype=int) if members is None else members

    def __getitem__(self, name: str) -> np.ndarray:
        """One of the numbers, by its name: an array of shape (n_records, n_layers)."""
        if name not in COLUMNS:
            raise KeyError(f"{name!r} is not recorded. Recorded are: {', '.join(COLUMNS)}.")
        return self.values[:, :, COLUMNS.index(name)]

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        n_members = len(np.unique(self.members))
        of = f" of {n_members} members" if n_members > 1 else ""
        return (
            f"GradientHistory({len(np.unique(self.epochs))} epochs{of}, {len(self.layers)} layers: "
            f"{', '.join(COLUMNS)})"
        )

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a table.

        Returns
        -------
        table : DataFrame
            One row per member, epoch and layer, with the columns ``member``, ``epoch``, ``layer``
            and the eight numbers.
        """
        n, n_layers = len(self), len(self.layers)
        table = pd.DataFrame(
            {
                "member": np.repeat(self.members, n_layers),
                "epoch": np.repeat(self.epochs, n_layers),
                "layer": np.tile(np.array(self.layers, dtype=object), n),
            }
        )
        for c, name in enumerate(COLUMNS):
            table[name] = self.values[:, :, c].ravel()
        return table


def record(
    names: Iterable[str],
    flow: np.ndarray | None,
    before: GradientHistory | None,
    n_epochs_before: int,
) -> GradientHistory | None:
    """The history after a call: what it recorded, behind what earlier calls have.

    Parameters
    ----------
    names : iterable of str
        Of the layers.
    flow : ndarray of shape (n_epochs, n_layers, 8) or None
    before : GradientHistory or None
    n_epochs_before : int
        Epochs of earlier calls, recorded or not.
    """
    if flow is None:
        return before
    layers = tuple(names)
    epochs = n_epochs_before + np.arange(1, len(flow) + 1)
    if before is None:
        return GradientHistory(layers, flow, epochs=epochs)
    return GradientHistory(
        layers,
        np.concatenate([before.values, flow]),
        epochs=np.concatenate([before.epochs, epochs]),
    )


def record_members(
    network: Any, flows: Sequence[np.ndarray | None], n_epochs: int
) -> GradientHistory | None:
    """The history of an ensemble: member by member, up to its last epoch.

    Parameters
    ----------
    network : ResidualSpec
    flows : sequence of (ndarray of shape (n_epochs, n_layers, 8) or None)
        Of each member. One that diverged has fewer epochs than the others; one may have trained an
        epoch on before it heard that all stop.
    n_epochs : int
    """
    kept = [(m, flow[:n_epochs]) for m, flow in enumerate(flows) if flow is not None]
    if not kept:
        return None
    return GradientHistory(
        tuple(layout_of(network).layers()),
        np.concatenate([flow for _, flow in kept]),
        epochs=np.concatenate([np.arange(1, len(flow) + 1) for _, flow in kept]),
        members=np.concatenate([np.full(len(flow), m) for m, flow in kept]),
    )


def pack_history(history: GradientHistory | None, arrays: dict[str, np.ndarray]) -> Any:
    """Arrays for a file; gives what else its JSON part has to hold."""
    if history is None:
        return None
    for name in ("values", "epochs", "members"):
        arrays[f"gradient_{name}"] = getattr(history, name)
    return list(history.layers)


def unpack_history(layers: Any, arrays: dict[str, np.ndarray]) -> GradientHistory | None:
    """What `pack_history` wrote; files of earlier versions have none."""
    if layers is None:
        return None
    values, epochs, members = (arrays[f"gradient_{n}"] for n in ("values", "epochs", "members"))
    return GradientHistory(layers, values, epochs=epochs, members=members)
