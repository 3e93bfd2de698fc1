"""What every Display shares: matplotlib on demand, axes of the user's or new ones, names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sknn_resid._sklearn_compat import check_matplotlib_support

# More entries than this make a legend longer than the picture; the largest are named.
MOST_NAMES = 12
MOST_TICKS = 14


def axes_or_new(ax: Any, caller: str, *, figsize: tuple[float, float] | None = None) -> Any:
    """The axes given, or those of a new figure.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    check_matplotlib_support(f"{caller}.plot")
    import matplotlib.pyplot as plt

    if ax is not None:
        return ax
    _, new = plt.subplots(figsize=figsize, layout="constrained")
    return new


def names_or_numbers(feature_names: Sequence[str] | None, n_features: int) -> list[str]:
    """Names of the features: those given, or x0, x1, ..."""
    if feature_names is None:
        return [f"x{j}" for j in range(n_features)]
    names = [str(name) for name in feature_names]
    if len(names) != n_features:
        raise ValueError(
            f"feature_names: needs one name for each of the {n_features} features, got "
            f"{len(names)}. Pass None to number them."
        )
    return names


def largest(values: np.ndarray, count: int = MOST_NAMES) -> list[int]:
    """Indices of the entries of largest size, in their own order."""
    return sorted(np.argsort(-np.abs(values), kind="stable")[:count].tolist())


def legend_beside(ax: Any, n_entries: int, title: str | None = None) -> None:
    """A legend inside the axes if it is short, to their right if it is long."""
    if n_entries <= 5:
        ax.legend(title=title)
    else:
        ax.legend(title=title, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")


def log_scale(axis: Any) -> None:
    """Logarithmic, with plain numbers at 1, 2 and 5 of a decade where there are few decades.

    matplotlib labels every minor tick of a short axis in powers, one over the other.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    set_scale("log")
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high < 1000 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def network_names(estimators: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    """One name for each estimator: those given, or their classes'.

    Raises
    ------
    ValueError
        If there are none, too many or too few, or two alike.
    """
    if not len(estimators):
        raise ValueError("estimators: needs at least one network, got none.")
    if names is None:
        kinds = [type(est[-1] if hasattr(est, "steps") else est).__name__ for est in estimators]
        if len(set(kinds)) == len(kinds):
            return kinds
        return [f"{kind} {i}" for i, kind in enumerate(kinds, 1)]
    names = [str(name) for name in names]
    if len(names) != len(estimators) or len(set(names)) != len(names):
        raise ValueError(
            f"names: needs {len(estimators)} different names, one for each estimator, got {names}."
        )
    return names


def name_ticks(axis: Any, names: Sequence[str]) -> None:
    """Names at an axis of layers: all, or every k-th and the last."""
    n = len(names)
    step = -(-n // MOST_TICKS)
    shown = np.arange(0, n, step)
    if shown[-1] != n - 1:
        shown = np.append(shown[: len(shown) - (n - 1 - shown[-1] <= step // 2)], n - 1)
    axis.set_ticks(shown, [names[k] for k in shown.tolist()], fontsize="small")
    if axis.axis_name == "x" and max(map(len, names)) * len(shown) > 60:
        for label in axis.get_ticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
