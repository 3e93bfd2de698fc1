"""Variance of OLS beside that of ridge, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sknn_resid.inspection._drawing import axes_or_new, largest, log_scale, names_or_numbers
from sknn_resid.linear_model import VarianceComparison, compare_variance_of

MOST_ROWS = 30


class VarianceComparisonDisplay:
    """Standard errors of the coefficients before and after ridge, or the eigenvalues of Delta.

    ``Delta = Var[w_ols] - Var[w_ridge]`` is positive semi-definite: no linear combination of the
    coefficients varies more with ridge. It is recommended to use :meth:`from_comparison` or
    :meth:`from_estimator`. All parameters are kept as attributes.

    Parameters
    ----------
    standard_errors_ols, standard_errors_ridge : ndarray of shape (n_features,)
        Of each coefficient.
    eigenvalues : ndarray of shape (n_features,)
        Of Delta.
    alpha : float
        The penalty.
    feature_names : sequence of str, default=None
        Names of the coefficients; None numbers them.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure around it.
    ols_, ridge_ : matplotlib PathCollection
        The standard errors (``kind="standard_error"``).
    eigenvalues_ : matplotlib PathCollection
        The eigenvalues (``kind="eigenvalue"``).

    See Also
    --------
    sknn_resid.linear_model.compare_variance : The numbers.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sknn_resid import Ridge
    >>> from sknn_resid.inspection import VarianceComparisonDisplay
    >>> model = Ridge(alpha=0.01).fit(*load_diabetes(return_X_y=True))
    >>> display = VarianceComparisonDisplay.from_estimator(model)
    >>> bool((display.standard_errors_ridge <= display.standard_errors_ols).all())
    True
    """

    def __init__(
        self,
        standard_errors_ols: np.ndarray,
        standard_errors_ridge: np.ndarray,
        eigenvalues: np.ndarray,
        alpha: float,
        *,
        feature_names: Sequence[str] | None = None,
    ) -> None:
        self.standard_errors_ols = standard_errors_ols
        self.standard_errors_ridge = standard_errors_ridge
        self.eigenvalues = eigenvalues
        self.alpha = alpha
        self.feature_names = feature_names

    def plot(self, ax: Any = None, *, kind: str = "standard_error") -> VarianceComparisonDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        kind : {'standard_error', 'eigenvalue'}, default='standard_error'
            The standard error of each coefficient with OLS and with ridge (of more than 30
            coefficients the 30 that vary most), or the eigenvalues of Delta.

        Returns
        -------
        VarianceComparisonDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `kind` is none of the two, or the number of names does not fit.
        """
        if kind not in ("standard_error", "eigenvalue"):
            raise ValueError(f"kind: must be 'standard_error' or 'eigenvalue', got {kind!r}.")
        if kind == "eigenvalue":
            return self._plot_eigenvalues(ax)
        return self._plot_standard_errors(ax)

    def _plot_standard_errors(self, ax: Any) -> VarianceComparisonDisplay:
        before = np.asarray(self.standard_errors_ols, dtype=float)
        after = np.asarray(self.standard_errors_ridge, dtype=float)
        names = names_or_numbers(self.feature_names, before.size)
        shown = largest(before, MOST_ROWS)
        height = 1.2 + 0.28 * len(shown)
        self.ax_ = axes_or_new(ax, type(self).__name__, figsize=(6.4, max(3.0, height)))
        self.figure_ = self.ax_.figure
        rows = np.arange(len(shown))
        before, after = before[shown], after[shown]
        self.ax_.hlines(rows, after, before, color="0.75", linewidth=2.5, zorder=1)
        self.ols_ = self.ax_.scatter(before, rows, label="OLS", zorder=2)
        label = f"ridge, alpha = {self.alpha:.3g}"
        self.ridge_ = self.ax_.scatter(after, rows, label=label, zorder=3)
        positive = np.concatenate([before, after])
        positive = positive[positive > 0]
        if positive.size and positive.max() > 20 * positive.min():
            log_scale(self.ax_.xaxis)
        self.ax_.set_yticks(rows, [names[j] for j in shown])
        self.ax_.invert_yaxis()
        of = "" if len(shown) == len(names) else f" ({len(shown)} of {len(names)} coefficients)"
        self.ax_.set_xlabel(f"standard error of the coefficient{of}")
        self.ax_.grid(axis="x", alpha=0.3)
        self.ax_.legend()
        return self

    def _plot_eigenvalues(self, ax: Any) -> VarianceComparisonDisplay:
        values = np.asarray(self.eigenvalues, dtype=float)
        self.ax_ = axes_or_new(ax, type(self).__name__, figsize=(6.4, 4.2))
        self.figure_ = self.ax_.figure
        order = np.arange(1, values.size + 1)
        self.eigenvalues_ = self.ax_.scatter(order, values, zorder=2)
        if values.size and (values > 0).all():
            log_scale(self.ax_.yaxis)
        self.ax_.set(
            xlabel="number of the eigenvalue",
            ylabel="eigenvalue of Var[OLS] - Var[ridge]",
            title=f"alpha = {self.alpha:.3g}: none is negative, ridge never varies more",
        )
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        self.ax_.grid(alpha=0.3)
        return self

    @classmethod
    def from_comparison(
        cls, comparison: VarianceComparison, *, ax: Any = None, kind: str = "standard_error"
    ) -> VarianceComparisonDisplay:
        """Draw what :func:`sknn_resid.linear_model.compare_variance` has computed.

        Parameters
        ----------
        comparison : VarianceComparison
            The numbers.
        ax, kind
            As in :meth:`plot`.

        Returns
        -------
        VarianceComparisonDisplay
            Drawn.
        """
        display = cls(
            comparison.standard_errors_ols,
            comparison.standard_errors_ridge,
            comparison.eigenvalues,
            comparison.alpha,
            feature_names=comparison.feature_names or None,
        )
        return display.plot(ax, kind=kind)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        alpha: float | None = None,
        target: int = 0,
        ax: Any = None,
        kind: str = "standard_error",
    ) -> VarianceComparisonDisplay:
        """Compare the variances on the rows of a fitted estimator and draw them.

        Parameters
        ----------
        estimator : OLS, Ridge or RidgeCV
            Fitted.
        alpha : float, default=None
            Penalty; None takes the estimator's, for `OLS` it has to be given.
        target : int, default=0
            Which target, of several.
        ax, kind
            As in :meth:`plot`.

        Returns
        -------
        VarianceComparisonDisplay
            Drawn.
        """
        comparison = compare_variance_of(estimator, alpha=alpha, target=target)
        return cls.from_comparison(comparison, ax=ax, kind=kind)
