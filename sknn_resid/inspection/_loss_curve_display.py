"""Losses over the epochs of one fit or of several, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sknn_resid.inspection._drawing import axes_or_new, legend_beside, log_scale, network_names

# A curve over more than this factor is drawn on a logarithmic axis.
WIDE_RANGE = 10.0


@dataclass(frozen=True, eq=False)
class LossCurve:
    """The losses of one fit.

    Attributes
    ----------
    name : str
        What the fit is called.
    training : ndarray of shape (n_epochs,)
        Training loss of each epoch, as reported (a penalty included).
    validation : ndarray of shape (n_looks,) or None
        Loss on held-out rows, without a penalty.
    looks : ndarray of shape (n_looks,) or None
        The epochs, from 1, at which they were looked at; None for the first ``n_looks``.
    """

    name: str
    training: np.ndarray
    validation: np.ndarray | None = None
    looks: np.ndarray | None = None


class LossCurveDisplay:
    """Training loss (thin) and validation loss (bold) over the epochs.

    It is recommended to use :meth:`from_estimator`, :meth:`from_estimators` or
    :meth:`from_cv_results`. All parameters are kept as attributes.

    Parameters
    ----------
    curves : sequence of LossCurve
        One a fit.
    folds : bool, default=False
        Whether they are fits of one model on parts of the data: then the fits are pale, training
        in one colour and validation in another, and their means are drawn over them.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it was drawn.
    figure_ : matplotlib Figure
        The figure around it.
    training_, validation_ : list of matplotlib Line2D
        The curves; a fit without held-out rows has none of the second kind.
    means_ : list of matplotlib Line2D
        Of ``folds=True``: means over the fits, up to the epoch where the first of them ends.

    See Also
    --------
    GradientFlowDisplay : What happened to the gradients meanwhile.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknn_resid import MLPClassifier
    >>> from sknn_resid.inspection import LossCurveDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MLPClassifier(early_stopping=True, max_iter=1000, random_state=0).fit(X, y)
    >>> display = LossCurveDisplay.from_estimator(net)
    >>> len(display.validation_[0].get_ydata()) == net.n_iter_
    True
    """

    def __init__(self, curves: Sequence[LossCurve], *, folds: bool = False) -> None:
        self.curves = curves
        self.folds = folds

    def plot(self, ax: Any = None, *, line_kw: dict[str, Any] | None = None) -> LossCurveDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        line_kw : dict, default=None
            Keywords for the lines.

        Returns
        -------
        LossCurveDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no curve.
        """
        if not len(self.curves):
            raise ValueError("curves: needs at least one, got none.")
        self.ax_ = axes_or_new(ax, type(self).__name__, figsize=(6.4, 4.2))
        self.figure_ = self.ax_.figure
        self.training_: list[Any] = []
        self.validation_: list[Any] = []
        self.means_: list[Any] = []
        if self.folds:
            self._plot_folds(line_kw or {})
        else:
            self._plot_each(line_kw or {})
        self._finish()
        return self

    def _plot_each(self, line_kw: dict[str, Any]) -> None:
        several = len(self.curves) > 1
        for k, curve in enumerate(self.curves):
            thin = {"color": f"C{k % 10}", "linewidth": 1.2} | line_kw
            bold = {"color": f"C{k % 10}", "linewidth": 2.6} | line_kw
            label = curve.name if several else "training"
            held_out = curve.validation is not None
            # where there are two lines of a colour, the bold one carries the name
            self._add(curve, thin, label=None if several and held_out else label)
            if held_out:
                self._add_validation(curve, bold, label=curve.name if several else "validation")

    def _plot_folds(self, line_kw: dict[str, Any]) -> None:
        for curve in self.curves:
            pale = {"linewidth": 1.0, "alpha": 0.35}
            self._add(curve, {"color": "C0"} | pale | line_kw, label=None)
            if curve.validation is not None:
                self._add_validation(curve, {"color": "C1"} | pale | line_kw, label=None)
        n = len(self.curves)
        shortest = min(len(curve.training) for curve in self.curves)
        mean = np.mean([curve.training[:shortest] for curve in self.curves], axis=0)
        epochs = np.arange(1, shortest + 1)
        label = f"training, mean of {n} folds"
        self.means_ += self.ax_.plot(epochs, mean, color="C0", linewidth=2.6, label=label)
        looked = [c.validation for c in self.curves if c.validation is not None]
        if len(looked) == n:
            fewest = min(map(len, looked))
            mean = np.mean([v[:fewest] for v in looked], axis=0)
            label = f"validation, mean of {n} folds"
            self.means_ += self.ax_.plot(
                _looks(self.curves[0])[:fewest], mean, color="C1", linewidth=2.6, label=label
            )

    def _add(self, curve: LossCurve, style: dict[str, Any], label: str | None) -> None:
        epochs = np.arange(1, len(curve.training) + 1)
        if len(epochs) == 1:
            style = {"marker": "o"} | style
        self.training_ += self.ax_.plot(epochs, curve.training, label=label, **style)

    def _add_validation(self, curve: LossCurve, style: dict[str, Any], label: str | None) -> None:
        looks = _looks(curve)
        if len(looks) == 1:
            style = {"marker": "o"} | style
        self.validation_ += self.ax_.plot(looks, curve.validation, label=label, **style)

    def _finish(self) -> None:
        parts = [curve.training for curve in self.curves]
        parts += [curve.validation for curve in self.curves if curve.validation is not None]
        values = np.concatenate(parts)
        values = values[np.isfinite(values)]
        if values.size and values.min() > 0 and values.max() > WIDE_RANGE * values.min():
            log_scale(self.ax_.yaxis)
        self.ax_.set(xlabel="epoch", ylabel="loss")
        self.ax_.xaxis.get_major_locator().set_params(integer=True)
        self.ax_.grid(alpha=0.3)
        title = None
        if not self.folds and len(self.curves) > 1 and self.validation_:
            title = "thin: training, bold: validation"
        legend_beside(self.ax_, 2 if self.folds else len(self.curves), title)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> LossCurveDisplay:
        """Draw the losses of one fitted network.

        Parameters
        ----------
        estimator : fitted estimator or Pipeline
            With `loss_curve_`, and `validation_loss_curve_` where rows were held out.
        name : str, default=None
            What it is called.
        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        LossCurveDisplay
            Drawn.

        Raises
        ------
        ValueError
            If it has no loss curve: it is not fitted, or was fitted by 'lbfgs'.
        """
        names = None if name is None else [name]
        return cls.from_estimators([estimator], names=names, ax=ax, line_kw=line_kw)

    @classmethod
    def from_estimators(
        cls,
        estimators: Sequence[Any] | Mapping[str, Any],
        *,
        names: Sequence[str] | None = None,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> LossCurveDisplay:
        """Draw the losses of several fitted networks, a colour each.

        Parameters
        ----------
        estimators : sequence of estimators, or dict of them by name
            Fitted.
        names : sequence of str, default=None
            One for each; None takes the keys, or the names of the classes.
        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        LossCurveDisplay
            Drawn.
        """
        if isinstance(estimators, Mapping):
            names = list(estimators) if names is None else names
            estimators = list(estimators.values())
        names = network_names(estimators, names)
        curves = [curve_of(est, name) for est, name in zip(estimators, names, strict=True)]
        return cls(curves).plot(ax, line_kw=line_kw)

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        ax: Any = None,
        line_kw: dict[str, Any] | None = None,
    ) -> LossCurveDisplay:
        """Draw the fits of a cross-validation.

        Parameters
        ----------
        cv_results : dict
            What ``cross_validate(..., return_estimator=True)`` returned.
        ax, line_kw
            As in :meth:`plot`.

        Returns
        -------
        LossCurveDisplay
            Drawn.

        Raises
        ------
        ValueError
            If it holds no estimators.
        """
        if "estimator" not in cv_results:
            raise ValueError(
                "cv_results: holds no estimators. Call cross_validate with return_estimator=True."
            )
        estimators = list(cv_results["estimator"])
        curves = [curve_of(est, f"fold {k}") for k, est in enumerate(estimators, 1)]
        return cls(curves, folds=True).plot(ax, line_kw=line_kw)


def _looks(curve: LossCurve) -> np.ndarray:
    if curve.validation is None or curve.looks is not None:
        return np.empty(0) if curve.looks is None else curve.looks
    return np.arange(1, len(curve.validation) + 1)


def curve_of(estimator: Any, name: str) -> LossCurve:
    """The losses of one fitted network."""
    last = estimator[-1] if hasattr(estimator, "steps") else estimator
    training = getattr(last, "loss_curve_", None)
    if not training:
        raise ValueError(
            f"estimator: this {type(last).__name__} has no loss_curve_. Fit it first, with a "
            "solver other than 'lbfgs', which keeps none."
        )
    validation = getattr(last, "validation_loss_curve_", None)
    if not validation:
        return LossCurve(name, np.asarray(training, dtype=float))
    looks = getattr(last, "validation_iterations_", None)
    if looks is None:
        # a curve that began in a later call of a warm start belongs to the last epochs
        first = len(training) - len(validation) + 1
        looks = range(first, len(training) + 1)
    return LossCurve(
        name,
        np.asarray(training, dtype=float),
        np.asarray(validation, dtype=float),
        np.asarray(looks, dtype=int),
    )
