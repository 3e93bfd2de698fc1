"""Targets in the units that a network learns easily, and back.

Without this, a regression network spends its training on reaching the mean and the scale of y: on
the tables of the benchmark it is the largest single effect there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sknn_resid.engine.losses import CallableLoss, Huber, Loss, Poisson, RowLoss


@dataclass(frozen=True, eq=False)
class TargetScale:
    """Affine map of each target column: learned = (y - shift) / scale.

    Attributes
    ----------
    shift, scale : ndarray of shape (K,)
    low, high : ndarray of shape (K,) or None
        Smallest and largest y seen, for clamping; None where predictions are not clamped.
    """

    shift: np.ndarray
    scale: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    @property
    def n_outputs(self) -> int:
        """Number of targets."""
        return len(self.scale)

    def to_learned(self, y: np.ndarray) -> np.ndarray:
        """Targets (n, K) as the network learns them."""
        return (y - self.shift) / self.scale

    def to_user(self, outputs: np.ndarray) -> np.ndarray:
        """Predictions (..., K) in the units of y, clamped if that was asked for."""
        y = outputs * self.scale + self.shift
        if self.low is not None:
            np.clip(y, self.low, self.high, out=y)
        return y


def fit_target_scale(
    y: np.ndarray, weight: np.ndarray | None, loss: Loss, *, clamp: bool
) -> TargetScale:
    """Learn the map from the training targets.

    Weighted mean and standard deviation; for Poisson, whose mean is the exponential of the output,
    only a factor: the deviance of y / c is that of y over c. For Huber's loss, whose threshold is
    in the units of y, one standard deviation (the root of the mean variance) for all targets.

    Parameters
    ----------
    y : ndarray of shape (n, K)
    weight : ndarray of shape (n,) or None
    loss : Loss
    clamp : bool
        Whether predictions are kept within the range of y.
    """
    shift = np.average(y, axis=0, weights=weight)
    if isinstance(loss, Poisson):
        scale, shift = shift, np.zeros_like(shift)
    else:
        centred = y - shift
        # Scaled by the largest value first: the square of 1e200 is no number.
        largest = np.abs(centred).max(axis=0)
        unit = np.where(largest > 0, largest, 1.0)
        scale = unit * np.sqrt(np.average((centred / unit) ** 2, axis=0, weights=weight))
    if isinstance(loss, Huber):
        largest_scale = scale.max() if scale.max() > 0 else 1.0
        scale[:] = largest_scale * np.sqrt(np.mean((scale / largest_scale) ** 2))
    # A constant target: of values that are equal up to rounding, only the mean is left to learn.
    flat = scale <= 8 * np.finfo(float).eps * np.abs(shift)
    scale = np.where(flat | (scale == 0), 1.0, scale)
    low, high = (y.min(axis=0), y.max(axis=0)) if clamp else (None, None)
    return TargetScale(shift, scale, low, high)


@dataclass(frozen=True, eq=False)
class InUserUnits:
    """A user's loss, which speaks of y as it was given, for a network that learns scaled targets.

    Attributes
    ----------
    function : callable
        ``function(y_true, y_pred)`` in the units of y.
    shift, scale : tuple of float
    """

    function: RowLoss
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __call__(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        shift, scale = y_pred.new_tensor(self.shift), y_pred.new_tensor(self.scale)
        return self.function(y_true * scale + shift, y_pred * scale + shift)


def loss_of_scaled(loss: Loss, scale: TargetScale) -> Loss:
    """The loss on scaled targets that has the minimiser of ``loss`` on y.

    Squared, absolute and quantile loss are homogeneous, and Poisson's deviance too: they stay as
    they are. Where Huber's loss turns linear is a length in the units of y, which is why
    `fit_target_scale` gives all its targets one scale.
    """
    if isinstance(loss, Huber):
        return Huber(loss.threshold / float(scale.scale[0]))
    if isinstance(loss, CallableLoss):
        inner = InUserUnits(loss.function, tuple(scale.shift.tolist()), tuple(scale.scale.tolist()))
        return CallableLoss(inner)
    return loss


def unscaled(n_outputs: int) -> TargetScale:
    """The map that changes nothing."""
    return TargetScale(np.zeros(n_outputs), np.ones(n_outputs))
