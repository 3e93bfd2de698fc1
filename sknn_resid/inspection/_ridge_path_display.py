"""Coefficients of ridge regression along the penalty, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sknn_resid.inspection._drawing import (
    axes_or_new,
    largest,
    legend_beside,
    log_scale,
    names_or_numbers,
)
from sknn_resid.linear_model import RidgePath


class RidgePathDisplay:
    """Coefficients against the penalty: one line a feature.

    It is recommended to use :meth:`from_estimator` or :meth:`from_path`. All parameters are kept as
    attributes.

    Parameters
    ----------
    alphas : ndarray of shape (n_alphas,)
        Penalties. 0 has no place on a logarithmic axis; it is drawn as dots at the left edge.
    coefs : ndarray of shape (n_alphas, n_features)
        Coefficients at each penalty.
    feature_names : sequence of str, default=None
        Names for the legend; None numbers the features.
    alpha_chosen : float, default=None
        A penalty to mark by a vertical line.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure around it.
    lines_ : list of matplotlib Line2D
        One a feature.
    chosen_line_ : matplotlib Line2D or None
        The mark at `alpha_chosen`.

    See Also
    --------
    sknn_resid.linear_model.ridge_path : The numbers.
    ShrinkageDisplay : By how much each direction is shrunk.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknn_resid import RidgeCV
    >>> from sknn_resid.inspection import RidgePathDisplay
    >>> model = RidgeCV().fit(*load_diabetes(return_X_y=True))
    >>> display = RidgePathDisplay.from_estimator(model)
    >>> len(display.lines_)
    10
    """

    def __init__(
        self,
        alphas: np.ndarray,
        coefs: np.ndarray,
        *,
        feature_names: Sequence[str] | None = None,
        alpha_chosen: float | None = None,
    ) -> None:
        self.alphas = alphas
        self.coefs = coefs
        self.feature_names = feature_names
        self.alpha_chosen = alpha_chosen

    def plot(self, ax: Any = None, *, line_kw: dict[str, Any] | None = None) -> RidgePathDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        line_kw : dict, default=None
            Keywords for every line of a coefficient.

        Returns
        -------
        RidgePathDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If shapes or the number of names do not fit, or no penalty is positive.
        """
        alphas, coefs = np.asarray(self.alphas, dtype=float), np.asarray(self.coefs, dtype=float)
        if coefs.shape[:1] != alphas.shape or coefs.ndim != 2:
            raise ValueError(
                f"coefs: must have the shape (n_alphas, n_features) = ({alphas.size}, ...), got "
                f"{coefs.shape}. For several targets pass those of one."
            )
        if not (alphas > 0).any():
            raise ValueError("alphas: at least one must be positive, the axis is logarithmic.")
        names = names_or_numbers(self.feature_names, coefs.shape[1])
        self.ax_ = axes_or_new(ax, type(self).__name__, figsize=(7.5, 4.2))
        self.figure_ = self.ax_.figure
        order = np.argsort(alphas)
        alphas, coefs = alphas[order], coefs[order]
        positive = alphas > 0
        named = set(largest(np.abs(coefs).max(0)))
        self.lines_ = []
        for j, name in enumerate(names):
            style = {"label": name if j in named else "_nolegend_", **(line_kw or {})}
            (line,) = self.ax_.plot(alphas[positive], coefs[positive, j], **style)
            self.lines_.append(line)
        if not positive.all():
            edge = np.full(coefs.shape[1], alphas[positive][0])
            colors = [line.get_color() for line in self.lines_]
            self.ax_.scatter(edge, coefs[0], c=colors, s=18, zorder=3, clip_on=False)
        self.ax_.axhline(0.0, color="0.6", linewidth=0.8, zorder=0)
        self._mark()
        self.ax_.set(
            xlabel="penalty alpha (shrinks more to the right)",
            ylabel="coefficient",
        )
        log_scale(self.ax_.xaxis)
        shown = len(named) + (self.chosen_line_ is not None)
        title = None if len(named) == len(names) else f"{len(named)} largest of {len(names)}"
        legend_beside(self.ax_, shown, title)
        return self

    def _mark(self) -> None:
        self.chosen_line_ = None
        if self.alpha_chosen is not None and self.alpha_chosen > 0:
            self.chosen_line_ = self.ax_.axvline(
                self.alpha_chosen,
                color="black",
                linestyle="--",
                linewidth=1.0,
                label=f"alpha = {self.alpha_chosen:.3g}",
            )

    @classmethod
    def from_path(
        cls,
        path: RidgePath,
        *,
        target: int = 0,
        alpha_chosen: float | None = None,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> RidgePathDisplay:
        """Draw what :func:`sknn_resid.linear_model.ridge_path` has computed.

        Parameters
        ----------
        path : RidgePath
            Path of one target or of several.
        target : int, default=0
            Which target, of several.
        alpha_chosen : float, default=None
            A penalty to mark.
        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        RidgePathDisplay
            Drawn.
        """
        several = path.coefs.ndim == 3
        n_targets = path.coefs.shape[1] if several else 1
        if not 0 <= target < n_targets:
            raise ValueError(
                f"target: must be from 0 to {n_targets - 1}, got {target!r}: the path has "
                f"{n_targets} target{'s' * several}."
            )
        coefs = path.coefs[:, target] if several else path.coefs
        display = cls(
            path.alphas, coefs, feature_names=path.feature_names, alpha_chosen=alpha_chosen
        )
        return display.plot(ax, line_kw=line_kw)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        alphas: Any = "auto",
        target: int = 0,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> RidgePathDisplay:
        """Draw the path on the rows of a fitted estimator and mark its own penalty.

        Parameters
        ----------
        estimator : OLS, Ridge or RidgeCV
            Fitted; the rows are not needed again.
        alphas : 'auto' or array-like of shape (n_alphas,), default='auto'
            Penalties; 'auto' spans the singular values.
        target : int, default=0
            Which target, of several.
        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        RidgePathDisplay
            Drawn.
        """
        path = RidgePath.from_estimator(estimator, alphas)
        # RidgeCV has chosen a penalty, Ridge was given one, OLS has none.
        chosen = getattr(estimator, "alpha_", getattr(estimator, "alpha", None))
        if chosen is not None:
            per_target = np.atleast_1d(np.asarray(chosen, dtype=float))
            chosen = float(per_target[target if per_target.size > 1 else 0])
        return cls.from_path(path, target=target, alpha_chosen=chosen, ax=ax, line_kw=line_kw)
