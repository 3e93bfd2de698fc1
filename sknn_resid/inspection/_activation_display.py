"""What the units of each layer give, as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sknn_resid.inspection._drawing import axes_or_new, name_ticks
from sknn_resid.inspection._gradient_flow import activation_table

# Layers whose spreads differ by more than this are drawn on a logarithmic axis (linear around 0).
WIDE_RANGE = 30.0
MOST_DECADES = 12


class ActivationDisplay:
    """Spread of the activations of each layer, and which part of them is saturated or dead.

    Bands hold the middle half and the middle 90 % of all activations of a layer; a healthy network
    has bands of about one width at all depths, and no layer near 100 % on the right axis. It is
    recommended to use :meth:`from_estimator`. All parameters are kept as attributes.

    Parameters
    ----------
    table : DataFrame
        One row an activation function, with the columns ``layer``, ``q05``, ``q25``, ``q50``,
        ``q75``, ``q95`` (quantiles), ``saturated_fraction`` and ``dead_fraction``.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    fraction_ax_ : matplotlib Axes
        The axis of the two parts, on the right.
    figure_ : matplotlib Figure
        The figure around it.
    bands_ : list of matplotlib PolyCollection
        Middle 90 % and middle half.
    median_, saturated_, dead_ : matplotlib Line2D
        Median, saturated part of the activations, dead part of the units.

    See Also
    --------
    gradient_flow : Means, standard deviations and the same two parts as numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import ActivationDisplay
    >>> X, y = load_digits(return_X_y=True)
    >>> net = MLPClassifier((32, 16, 8), random_state=0)
    >>> ActivationDisplay.from_estimator(net, X[:256] / 16, y[:256]).table["layer"].tolist()
    ['hidden_1', 'hidden_2', 'hidden_3']
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table

    def plot(self, ax: Any = None) -> ActivationDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.

        Returns
        -------
        ActivationDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        table = self.table
        self.ax_ = axes_or_new(ax, type(self).__name__, figsize=(7.2, 4.4))
        self.figure_ = self.ax_.figure
        x = np.arange(len(table))
        if len(table) == 1:  # a band needs a width
            x, table = np.array([-0.2, 0.2]), table.iloc[[0, 0]]
        q = {name: table[name].to_numpy() for name in ("q05", "q25", "q50", "q75", "q95")}
        self.bands_ = [
            self.ax_.fill_between(
                x, q["q05"], q["q95"], color="C0", alpha=0.2, label="middle 90 %"
            ),
            self.ax_.fill_between(
                x, q["q25"], q["q75"], color="C0", alpha=0.4, label="middle half"
            ),
        ]
        (self.median_,) = self.ax_.plot(x, q["q50"], color="C0", linewidth=1.8, label="median")
        self.fraction_ax_ = self.ax_.twinx()
        # marks without lines: neighbours may be of two kinds (inside a block, and between blocks)
        middle = x if len(self.table) > 1 else x.mean(keepdims=True)
        saturated, dead = (
            100 * self.table[f"{name}_fraction"].to_numpy() for name in ("saturated", "dead")
        )
        (self.saturated_,) = self.fraction_ax_.plot(
            middle, saturated, "s", color="C3", mfc="none", ms=6, label="saturated, right axis"
        )
        (self.dead_,) = self.fraction_ax_.plot(
            middle, dead, "x", color="black", ms=4, label="dead units, right axis"
        )
        self._finish(q)
        return self

    def _finish(self, q: dict[str, np.ndarray]) -> None:
        names = self.table["layer"].tolist()
        if len(names) == 1:
            self.ax_.set_xlim(-0.8, 0.8)
        spreads = np.concatenate([np.abs(part) for part in q.values()])
        spreads = spreads[np.isfinite(spreads) & (spreads > 0)]
        widths = (q["q95"] - q["q05"])[np.isfinite(q["q95"] - q["q05"])]
        widths = widths[widths > 0]
        if widths.size and widths.max() > WIDE_RANGE * widths.min():
            least = max(spreads.max() * 10.0**-MOST_DECADES, widths.min() / 2)
            self.ax_.set_yscale("symlog", linthresh=least)
        if min(part.min() for part in q.values()) >= 0:
            self.ax_.set_ylim(bottom=0)
        name_ticks(self.ax_.xaxis, names)
        self.ax_.set(xlabel="activations behind the layer", ylabel="activation")
        self.fraction_ax_.set(ylim=(-3, 103), ylabel="saturated, dead (%)")
        self.ax_.grid(alpha=0.3)
        left, left_names = self.ax_.get_legend_handles_labels()
        right, right_names = self.fraction_ax_.get_legend_handles_labels()
        self.ax_.legend(
            [*left, *right],
            [*left_names, *right_names],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=5,
            fontsize="small",
            frameon=False,
        )

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any = None, *, member: int = 0, ax: Any = None
    ) -> ActivationDisplay:
        """Draw the activations of a network on some rows.

        All rows are one batch of a training step, as in `gradient_flow`.

        Parameters
        ----------
        estimator : estimator or Pipeline
            A network of this package, fitted or not.
        X : {array-like, frame, sparse matrix} of shape (n_samples, n_features)
            Rows.
        y : array-like, default=None
            Their targets; needed where the estimator is not fitted.
        member : int, default=0
            Which member of a residual ensemble.
        ax
            As in :meth:`plot`.

        Returns
        -------
        ActivationDisplay
            Drawn.
        """
        return cls(activation_table(estimator, X, y, member=member)).plot(ax)
