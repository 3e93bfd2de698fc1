"""One door from an estimator to its network: forward and backward on given rows, arrays out.

Everything that looks into a network goes through `open_network`. What comes out has been made by
the operations that train (`engine.trace`); no hook is set and nothing of the estimator changes.

With v^(0) = X, z^(l) = v^(l-1) W^(l) + b^(l), delta^(l) = dJ/dz^(l), and J the estimator's
objective without its penalty, J = sum_i r_i l_i, r_i = w_i / sum w:

    dJ/dW^(l) = v^(l-1)' delta^(l),   dJ/db^(l) = sum_rows delta^(l),   dJ/dX = delta^(1) W^(1)'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from sklearn.pipeline import Pipeline

from sknn_resid.engine.data import Features
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec
from sknn_resid.engine.spec import AnySpec
from sknn_resid.engine.trace import trace
from sknn_resid.inspection._passes import LayerParameters, NetworkPass, assembled, layers_of
from sknn_resid.inspection._steps import through_steps
from sknn_resid.neural_network._subject import Looked, look_at

Statistics = Literal["batch", "fitted"]
Seeds = Mapping[tuple[str, str], np.ndarray]


@dataclass(frozen=True, eq=False)
class OpenNetwork:
    """A network and the rows it is looked at with.

    Attributes
    ----------
    looked : Looked
        The engine's network, rows, targets and weights.
    dtype : {"float64", "float32"} or None
        Precision of the pass; None computes as the estimator does.
    statistics : {"batch", "fitted"}
        What batch normalizations work with: the mean and variance of these rows (as a training
        step does), or those that were kept for prediction; then rows do not see one another.
    """

    looked: Looked
    dtype: Literal["float64", "float32"] | None
    statistics: Statistics

    @property
    def spec(self) -> AnySpec:
        """Structure of the network."""
        return self.looked.subject.network

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the network reads: the encoded ones of a residual network."""
        return self.looked.columns

    @property
    def fitted(self) -> bool:
        """Whether it has been trained, or stands where ``fit`` would begin."""
        return self.looked.fitted

    @property
    def batch_normalized(self) -> bool:
        """Whether there are batch normalizations."""
        spec = self.spec
        return isinstance(spec, ResidualSpec) and spec.normalization is Normalization.BATCH

    @property
    def rows_are_independent(self) -> bool:
        """Whether what a row gives depends on this row only."""
        return not self.batch_normalized or self.statistics == "fitted"

    @cached_property
    def layers(self) -> list[LayerParameters]:
        """The layers from the input to the output."""
        return list(layers_of(self.spec))

    def run(
        self,
        seeds: Seeds | None = None,
        *,
        X: Features | None = None,
        weighted: bool = True,
        targets: bool = True,
    ) -> NetworkPass:
        """One pass over all rows.

        Parameters
        ----------
        seeds : dict or None
            (layer, what) -> ndarray of shape (n, units): put in place of what the pass has there,
            before it goes on, under the names of `engine.watch`. ``{("output", "delta"): D}`` is a
            backward pass from D instead of the loss, ``{("block_3", "dv"): D}`` one that begins at
            the stream behind block 3.
        X : ndarray of shape (n, D) or None
            Other rows in place of those at hand, as the network reads them; then without targets.
        weighted : bool
            False counts every row alike, also one of weight 0.
        targets : bool
            False leaves them out: loss and gradients are 0.
        """
        looked, subject = self.looked, self.looked.subject
        if self.dtype is not None:
            own = torch.float64 if self.dtype == "float64" else torch.float32
            subject = subject.in_dtype(own)
        if self.statistics == "batch":
            subject = replace(subject, statistics=None)
        rows, y, weight = looked.X, looked.y, looked.weight if weighted else None
        if not targets:
            y = None
        if X is not None:
            rows, y, weight = X, None, None
        shot = trace(subject, rows, y, weight, seeds)
        return assembled(subject, shot)

    def input_gradients(self) -> np.ndarray:
        """Gradient of each row's own loss by its columns, whatever its weight: (n, D).

        Where rows are not independent it is the gradient of sum_i l_i by the row.
        """
        done = self.run(weighted=False)
        return done.X * len(done.X)


def open_network(
    estimator: Any,
    X: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    member: int = 0,
    statistics: Statistics | None = None,
    dtype: Literal["float64", "float32"] | None = None,
) -> OpenNetwork:
    """The network of an estimator, ready to run on these rows.

    Parameters
    ----------
    estimator : estimator or Pipeline
        One of this package's network estimators, or a Pipeline that ends in one. Fitted: it is
        looked at as it is, and rows go through the fitted steps. Not fitted: as ``fit(X, y,
        sample_weight)`` would begin, from ``random_state``; the steps before it are cloned and
        fitted, as the pipeline's ``fit`` would.
    X : frame, array-like or sparse matrix of shape (n, n_features)
    y : array-like of shape (n,) or (n, n_outputs), default=None
        Needed for gradients, and where the estimator is not fitted.
    sample_weight : array-like of shape (n,), default=None
    member : int, default=0
        Which member of a residual ensemble.
    statistics : {"batch", "fitted"} or None, default=None
        For batch normalization; None is "fitted" where the estimator is, else "batch".
    dtype : {"float64", "float32"} or None, default=None
        Precision; None computes as the estimator does.

    Returns
    -------
    network : OpenNetwork

    Raises
    ------
    TypeError
        If the estimator is no network of this package.
    ValueError
        For bad input; if y is missing; if there is no such member or nothing was kept.
    """
    check_choices(statistics, dtype)
    names = None
    if isinstance(estimator, Pipeline):
        estimator, X, names = through_steps(estimator, X, y)
    looked = look_at(estimator, X, y, sample_weight, member)
    if names is not None and len(names) == len(looked.columns):
        looked = replace(looked, columns=names)
    chosen = statistics or ("fitted" if looked.fitted else "batch")
    network = OpenNetwork(looked, dtype, chosen)
    if chosen == "fitted" and network.batch_normalized and not looked.fitted:
        raise ValueError(
            f"statistics='fitted': this {type(estimator).__name__} is not fitted, so that its "
            "batch normalizations have kept nothing. Use statistics='batch', or fit it first."
        )
    return network


def check_choices(statistics: Any, dtype: Any) -> None:
    """Refuse words that `open_network` does not know.

    Raises
    ------
    ValueError
    """
    if statistics not in (None, "batch", "fitted"):
        raise ValueError(f"statistics={statistics!r}: must be 'batch', 'fitted' or None.")
    if dtype not in (None, "float64", "float32"):
        raise ValueError(f"dtype={dtype!r}: must be 'float64', 'float32' or None.")
