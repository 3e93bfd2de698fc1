"""By how much ridge shrinks each direction of the data, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sknn_resid.inspection._drawing import axes_or_new, legend_beside, log_scale
from sknn_resid.linear_model import RidgePath


class ShrinkageDisplay:
    """Shrinkage factors ``d^2 / (d^2 + alpha)`` against the singular values d.

    Directions of large variance keep their part of the fit, those of small variance lose it: a
    point at 1 is left alone, a point at 0 is gone. It is recommended to use :meth:`from_estimator`
    or :meth:`from_path`. All parameters are kept as attributes.

    Parameters
    ----------
    singular_values : ndarray of shape (rank,)
        ``d_j`` of the centred columns, all positive; infinite for directions without a penalty.
    shrinkage : ndarray of shape (rank,) or (n_curves, rank)
        Factor of each direction.
    alphas : sequence of float, default=None
        The penalty of each curve, for the legend and the curve between the points.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure around it.
    points_ : list of matplotlib PathCollection
        The directions, one collection a curve.
    curves_ : list of matplotlib Line2D
        ``d^2 / (d^2 + alpha)``; empty without `alphas`.

    See Also
    --------
    RidgePathDisplay : What becomes of the coefficients.

    References
    ----------
    Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed., equation 3.47.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknn_resid import Ridge
    >>> from sknn_resid.inspection import ShrinkageDisplay
    >>> model = Ridge(alpha=0.1).fit(*load_diabetes(return_X_y=True))
    >>> ShrinkageDisplay.from_estimator(model).shrinkage.shape
    (10,)
    """

    def __init__(
        self,
        singular_values: np.ndarray,
        shrinkage: np.ndarray,
        *,
        alphas: Sequence[float] | None = None,
    ) -> None:
        self.singular_values = singular_values
        self.shrinkage = shrinkage
        self.alphas = alphas

    def plot(self, ax: Any = None, *, scatter_kw: dict[str, Any] | None = None) -> ShrinkageDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        scatter_kw : dict, default=None
            Keywords for the points.

        Returns
        -------
        ShrinkageDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If shapes do not fit, or nothing is penalised.
        """
        d = np.asarray(self.singular_values, dtype=float)
        factors = np.atleast_2d(np.asarray(self.shrinkage, dtype=float))
        if factors.shape[1:] != d.shape:
            raise ValueError(
                f"shrinkage: must have one factor for each of the {d.size} singular values, got "
                f"the shape {np.shape(self.shrinkage)}."
            )
        alphas = None if self.alphas is None else np.atleast_1d(np.asarray(self.alphas, float))
        if alphas is not None and len(alphas) != len(factors):
            raise ValueError(
                f"alphas: needs one for each of the {len(factors)} curves, got {len(alphas)}."
            )
        drawn = np.isfinite(d)
        if not drawn.any():
            raise ValueError("singular_values: no direction is penalised, nothing is shrunk.")
        self.ax_ = axes_or_new(ax, type(self).__name__, figsize=(6.4, 4.2))
        self.figure_ = self.ax_.figure
        self.points_, self.curves_ = [], []
        grid = np.geomspace(d[drawn].min() / 1.5, d[drawn].max() * 1.5, 200)
        for k, row in enumerate(factors):
            label = None if alphas is None else f"alpha = {alphas[k]:.3g}"
            points = self.ax_.scatter(
                d[drawn], row[drawn], label=label, zorder=3, **(scatter_kw or {})
            )
            self.points_.append(points)
            if alphas is not None:
                values = 1.0 / (1.0 + alphas[k] / grid**2)
                color = points.get_facecolor()[0]
                (curve,) = self.ax_.plot(grid, values, color=color, alpha=0.5, linewidth=1.0)
                self.curves_.append(curve)
        self.ax_.set(
            ylim=(-0.04, 1.06),
            xlabel="singular value of the direction (its spread in the data)",
            ylabel="part of the OLS fit that is kept",
        )
        log_scale(self.ax_.xaxis)
        self.ax_.grid(alpha=0.3)
        if alphas is not None:
            legend_beside(self.ax_, len(alphas))
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        target: int = 0,
        ax: Any = None,
        scatter_kw: dict[str, Any] | None = None,
    ) -> ShrinkageDisplay:
        """Draw the factors of a fitted `Ridge` or `RidgeCV` at its own penalty.

        Parameters
        ----------
        estimator : Ridge or RidgeCV
            Fitted.
        target : int, default=0
            Which target, of several.
        ax, scatter_kw
            As in :meth:`plot`.

        Returns
        -------
        ShrinkageDisplay
            Drawn.

        Raises
        ------
        TypeError
            If the estimator has no shrinkage.
        """
        if not hasattr(estimator, "alpha_") and not hasattr(estimator, "alpha"):
            raise TypeError(
                f"estimator: must be a Ridge or RidgeCV, got {type(estimator).__name__}, which "
                "shrinks nothing. Draw ridge_path(X, y, alphas) by from_path instead."
            )
        factors = np.atleast_2d(estimator.shrinkage_)
        alphas = np.atleast_1d(np.asarray(getattr(estimator, "alpha_", estimator.alpha), float))
        if not 0 <= target < len(factors):
            raise ValueError(
                f"target: must be from 0 to {len(factors) - 1}, got {target!r}: the estimator has "
                f"{len(factors)} target(s)."
            )
        alpha = float(alphas[target if alphas.size > 1 else 0])
        display = cls(estimator.singular_values_, factors[target], alphas=[alpha])
        return display.plot(ax, scatter_kw=scatter_kw)

    @classmethod
    def from_path(
        cls,
        path: RidgePath,
        *,
        n_curves: int = 4,
        ax: Any = None,
        scatter_kw: dict[str, Any] | None = None,
    ) -> ShrinkageDisplay:
        """Draw the factors at some penalties of a path.

        Parameters
        ----------
        path : RidgePath
            What :func:`sknn_resid.linear_model.ridge_path` has computed.
        n_curves : int, default=4
            How many penalties, spread evenly over the grid.
        ax, scatter_kw
            As in :meth:`plot`.

        Returns
        -------
        ShrinkageDisplay
            Drawn.
        """
        if n_curves < 1:
            raise ValueError(f"n_curves: must be at least 1, got {n_curves}.")
        last = len(path.alphas) - 1
        some = np.unique(np.linspace(0, last, min(n_curves, last + 1)).round().astype(int))
        display = cls(path.singular_values, path.shrinkage[some], alphas=path.alphas[some].tolist())
        return display.plot(ax, scatter_kw=scatter_kw)
