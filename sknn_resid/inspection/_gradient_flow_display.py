"""How gradients flow through a network, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sknn_resid.inspection._drawing import axes_or_new, legend_beside, log_scale, name_ticks
from sknn_resid.inspection._gradient_flow import compare_gradient_flow

_LABELS = {
    "gradient_norm": "length of the gradient, |dL/dW|",
    "gradient_rms": "root mean square of the gradient dL/dW",
    "weight_norm": "length of the weights, |W|",
    "ratio": "gradient over weights, |dL/dW| / |W|",
    "update_ratio": "step over weights, |change of W| / |W|",
    "activation_mean": "mean of the activations",
    "activation_std": "standard deviation of the activations",
    "saturated_fraction": "saturated part of the activations",
    "dead_fraction": "dead part of the units",
}
_LOGARITHMIC = ("gradient_norm", "gradient_rms", "weight_norm", "ratio", "update_ratio")
MOST_LINES = 8  # more layers over epochs make a heat map


class GradientFlowDisplay:
    """Gradients, updates or activations by layer: of networks at hand, or over a fit.

    It is recommended to use :meth:`from_estimator`, :meth:`from_estimators` (networks side by side)
    or :meth:`from_history` (what ``record_gradients=True`` has kept). All parameters are kept as
    attributes.

    Parameters
    ----------
    table : DataFrame
        With the columns ``network`` and ``layer``, or ``epoch`` and ``layer``, and the quantity.
    quantity : str, default='gradient_norm'
        Which column is drawn.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure around it.
    lines_ : list of matplotlib Line2D
        One a network, or one a layer over epochs; empty for a heat map.
    image_ : matplotlib QuadMesh or None
        The heat map.

    See Also
    --------
    gradient_flow, compare_gradient_flow : The numbers.
    diagnose : What they say, in words.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import GradientFlowDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = MLPClassifier((32, 16), random_state=0)
    >>> display = GradientFlowDisplay.from_estimator(net, X[:256] / 16, y[:256])
    >>> display.lines_[0].get_ydata().shape
    (3,)
    """

    def __init__(self, table: pd.DataFrame, *, quantity: str = "gradient_norm") -> None:
        self.table = table
        self.quantity = quantity

    def plot(
        self, ax: Any = None, *, kind: str | None = None, line_kw: dict[str, Any] | None = None
    ) -> GradientFlowDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        kind : {'lines', 'heatmap'} or None, default=None
            Over epochs: a line for each layer, or colours by layer and epoch. None takes lines up
            to 8 layers. Networks at hand are always lines.
        line_kw : dict, default=None
            Keywords for the lines.

        Returns
        -------
        GradientFlowDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such quantity or kind.
        """
        if self.quantity not in self.table.columns or self.quantity not in _LABELS:
            known = [name for name in _LABELS if name in self.table.columns]
            raise ValueError(
                f"quantity: must be one of {', '.join(known)} here, got {self.quantity!r}."
            )
        over_epochs = "epoch" in self.table.columns
        if kind not in (None, "lines", "heatmap") or (kind == "heatmap" and not over_epochs):
            raise ValueError(
                f"kind: must be 'lines' or None, or 'heatmap' for a history, got {kind!r}."
            )
        self.ax_ = axes_or_new(ax, type(self).__name__, figsize=(7.2, 4.2))
        self.figure_ = self.ax_.figure
        self.lines_: list[Any] = []
        self.image_: Any = None
        if not over_epochs:
            self._plot_networks(line_kw or {})
        elif kind == "heatmap" or (kind is None and self.table["layer"].nunique() > MOST_LINES):
            self._plot_heatmap()
        else:
            self._plot_epochs(line_kw or {})
        return self

    def _plot_networks(self, line_kw: dict[str, Any]) -> None:
        groups = list(self.table.groupby("network", sort=False))
        layers = [group["layer"].tolist() for _, group in groups]
        alike = all(names == layers[0] for names in layers)
        for name, group in groups:
            values = self._shown(group[self.quantity].to_numpy())
            x = np.arange(len(values)) if alike else np.linspace(0, 1, len(values))
            style = {"marker": "o", "markersize": 3.5} | line_kw
            self.lines_ += self.ax_.plot(x, values, label=name, **style)
        if alike:
            name_ticks(self.ax_.xaxis, layers[0])
            self.ax_.set_xlabel("layer, from the input to the output")
        else:
            self.ax_.set_xlabel("depth: 0 is the first layer, 1 the output")
        self._finish_lines(len(groups) > 1, len(groups))

    def _plot_epochs(self, line_kw: dict[str, Any]) -> None:
        import matplotlib

        names = list(dict.fromkeys(self.table["layer"]))
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
        for name, color in zip(names, colors, strict=True):
            group = self.table[self.table["layer"] == name]
            values = self._shown(group[self.quantity].to_numpy())
            if np.isnan(values).all():
                continue  # no activations behind this layer
            style = {"color": color, "linewidth": 1.5} | line_kw
            if len(values) == 1:
                style = {"marker": "o"} | style
            self.lines_ += self.ax_.plot(group["epoch"], values, label=name, **style)
        self.ax_.set_xlabel("epoch")
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        self._finish_lines(True, len(self.lines_))

    def _finish_lines(self, legend: bool, n_entries: int) -> None:
        self.ax_.set_ylabel(_LABELS[self.quantity])
        if self.quantity in _LOGARITHMIC and self._has_positive():
            log_scale(self.ax_.yaxis)
        elif self.quantity.endswith("fraction"):
            self.ax_.set_ylim(-0.03, 1.03)
        self.ax_.grid(alpha=0.3)
        if legend and n_entries:
            legend_beside(self.ax_, n_entries)

    def _plot_heatmap(self) -> None:
        from matplotlib.colors import LogNorm

        wide = self.table.pivot_table(
            index="layer", columns="epoch", values=self.quantity, sort=False, dropna=False
        )
        wide = wide.loc[list(dict.fromkeys(self.table["layer"]))].dropna(how="all")
        logarithmic = self.quantity in _LOGARITHMIC and self._has_positive()
        values = self._shown(wide.to_numpy())
        epochs = wide.columns.to_numpy(dtype=float)
        edges = np.append(epochs, epochs[-1] + 1) - 0.5
        rows = np.arange(len(wide) + 1) - 0.5
        self.image_ = self.ax_.pcolormesh(
            edges, rows, np.ma.masked_invalid(values), norm=LogNorm() if logarithmic else None
        )
        self.ax_.invert_yaxis()
        name_ticks(self.ax_.yaxis, wide.index.tolist())
        self.ax_.set(xlabel="epoch", ylabel="layer, from the input down")
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        self.figure_.colorbar(self.image_, ax=self.ax_, label=_LABELS[self.quantity])

    def _has_positive(self) -> bool:
        values = self.table[self.quantity].to_numpy()
        return bool(((values > 0) & np.isfinite(values)).any())

    def _shown(self, values: np.ndarray) -> np.ndarray:
        """What can be drawn: neither infinite, nor 0 on a logarithmic axis."""
        hidden = ~np.isfinite(values)
        if self.quantity in _LOGARITHMIC and self._has_positive():
            hidden |= values <= 0
        return np.where(hidden, np.nan, values)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        quantity: str = "gradient_norm",
        name: str | None = None,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> GradientFlowDisplay:
        """Draw `gradient_flow` of one network.

        Parameters
        ----------
        estimator : estimator or Pipeline
            A network of this package, fitted or not.
        X, y, sample_weight
            As in `gradient_flow`.
        quantity : str, default='gradient_norm'
            One of its columns.
        name : str, default=None
            What it is called.
        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        GradientFlowDisplay
            Drawn.
        """
        names = None if name is None else [name]
        return cls.from_estimators(
            [estimator],
            X,
            y,
            sample_weight,
            quantity=quantity,
            names=names,
            ax=ax,
            line_kw=line_kw,
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Sequence[Any] | Mapping[str, Any],
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        quantity: str = "gradient_norm",
        names: Sequence[str] | None = None,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> GradientFlowDisplay:
        """Draw `compare_gradient_flow`: several networks, a line each.

        Parameters
        ----------
        estimators : sequence of estimators, or dict of them by name
            Networks of this package, fitted or not.
        X, y, sample_weight
            As in `gradient_flow`.
        quantity : str, default='gradient_norm'
            One of its columns.
        names : sequence of str, default=None
            As in `compare_gradient_flow`.
        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        GradientFlowDisplay
            Drawn.
        """
        table = compare_gradient_flow(estimators, X, y, sample_weight, names=names)
        return cls(table, quantity=quantity).plot(ax, line_kw=line_kw)

    @classmethod
    def from_history(
        cls,
        estimator: Any,
        *,
        quantity: str = "gradient_norm",
        member: int = 0,
        kind: str | None = None,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> GradientFlowDisplay:
        """Draw what ``record_gradients=True`` has kept, over the epochs.

        Parameters
        ----------
        estimator : fitted estimator, Pipeline, or GradientHistory
            Fitted with ``record_gradients=True``, or its `gradient_history_`.
        quantity : str, default='gradient_norm'
            One of the numbers of the history.
        member : int, default=0
            Which member of a residual ensemble.
        kind, ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        GradientFlowDisplay
            Drawn.

        Raises
        ------
        ValueError
            If nothing was recorded, or not of this member.
        """
        last = estimator[-1] if hasattr(estimator, "steps") else estimator
        history = last if hasattr(last, "to_frame") else getattr(last, "gradient_history_", None)
        if history is None:
            raise ValueError(
                f"estimator: this {type(last).__name__} has recorded nothing. Fit it with "
                "record_gradients=True, or use from_estimator, which looks at it as it is."
            )
        table = history.to_frame()
        table = table[table["member"] == member].drop(columns="member")
        if table.empty:
            raise ValueError(
                f"member: must be one of {sorted(set(history.members.tolist()))}, got {member}."
            )
        display = cls(table.reset_index(drop=True), quantity=quantity)
        return display.plot(ax, kind=kind, line_kw=line_kw)
