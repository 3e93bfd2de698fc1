"""Losses, each from the raw outputs z of the network (logits), with its derivative.

A loss has two faces, which the engine calls at different times:

* ``bind_delta``: the derivative, once per step: delta = dJ/dz = r * dl/dz, where r_i = w_i / sum w
  is the weight of row i in its batch, so that no later product needs a scale;
* ``value``: the figure itself, once per segment of many batches, for all of them in one call. It
  needs nothing but z, the targets and r, so that the step loop never waits for a number.

The objective of a batch is J = sum_i r_i l(z_i, y_i), summed over outputs. scikit-learn reports
some losses divided by the number of outputs; ``reported_scale`` says which.

Outputs are class-major, ``[M, G, K, B]``: on a CPU a softmax over 10 classes is 9 times faster
along the first axis than along a last axis of length 10, and the same holds for the product that
makes the logits.

References
----------
Bishop, Pattern Recognition and Machine Learning (2006), sections 4.3.6 and 5.2: with the
canonical link, dl/dz = f - y for squared error, cross-entropy and Poisson alike.
Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.2.2: losses from logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from sknn_resid.engine import native
from sknn_resid.engine.kernels import Op, batch_dots
from sknn_resid.engine.native import LossCode

_SOFTPLUS_EXACT = 50.0  # beyond this z, log(1 + e^z) = z to the last bit of a float64


@dataclass(frozen=True)
class Loss(ABC):
    """A loss l(z, y). Immutable; constants of the loss are its fields."""

    @property
    def codes(self) -> bool:
        """Whether targets are class codes (int64) rather than real numbers."""
        return False

    @property
    def code(self) -> LossCode | None:
        """What `native` calls this loss; None where it is not compiled."""
        return None

    @property
    def constant(self) -> float:
        """The number that the formula depends on, for compiled code."""
        return 0.0

    @property
    def smooths(self) -> bool:
        """Whether label smoothing changes its targets."""
        return False

    def reported_scale(self, n_outputs: int) -> float:
        """Factor from the objective's data term to the figure that is reported."""
        return 1.0

    def load_targets(
        self, T_MGKB: Tensor, y_MGBT: Tensor, r_MG1B: Tensor, s_M: Tensor | None
    ) -> None:
        """Write the targets of a segment into ``T_MGKB`` in the form this loss works with.

        Parameters
        ----------
        T_MGKB : Tensor of shape (M, G, K, B)
            Where to write. M may be 1 here for a stack whose models all have the same targets.
        y_MGBT : Tensor of shape (M, G, B, T)
            Targets row by row: T = K real numbers, or T class codes.
        r_MG1B : Tensor of shape (M, G, 1, B)
            Weight of each row in its batch (0 for padding).
        s_M : Tensor of shape (M,) or None
            Label smoothing of each model, None for none (losses over real numbers ignore it).
        """
        del r_MG1B, s_M
        T_MGKB.copy_(y_MGBT.transpose(-1, -2))

    @abstractmethod
    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        """Operations that write delta = dJ/dz into ``d_MKB``; ``z_MKB`` is left as it is."""

    def bind_compiled(
        self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor, value_M: Tensor
    ) -> Op:
        """One native operation for both: delta, and the data term of the objective (float64)."""
        assert self.code is not None
        return native.loss(self.code, self.constant, z_MKB, t_MKB, r_M1B, d_MKB, value_M)

    @abstractmethod
    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        """Data term of the objective for each model and batch, shape (M, G), on the host.

        The two leading axes mean nothing to a loss: given as [G, M, K, B], which is how they lie
        in memory, they give (G, M). Targets and r may have 1 where all models share them.
        """

    def link_(self, z_KN: Tensor) -> Tensor:
        """Predictions (probabilities, means) from raw outputs, class-major; may overwrite them."""
        return z_KN


@dataclass(frozen=True)
class SquaredError(Loss):
    """l = 1/2 |z - y|^2, dl/dz = z - y. Reported per output, as scikit-learn does."""

    @property
    def code(self) -> LossCode | None:
        return LossCode.SQUARED

    def reported_scale(self, n_outputs: int) -> float:
        return 1.0 / n_outputs

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        return [partial(torch.sub, z_MKB, t_MKB, out=d_MKB), partial(d_MKB.mul_, r_M1B)]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        return 0.5 * batch_dots((z_MGKB - t_MGKB).square_(), r_MG1B)


@dataclass(frozen=True)
class AbsoluteError(Loss):
    """l = |z - y|, dl/dz = sign(z - y), 0 at 0. Reported per output."""

    @property
    def code(self) -> LossCode | None:
        return LossCode.ABSOLUTE

    def reported_scale(self, n_outputs: int) -> float:
        return 1.0 / n_outputs

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        return [
            partial(torch.sub, z_MKB, t_MKB, out=d_MKB),
            d_MKB.sign_,
            partial(d_MKB.mul_, r_M1B),
        ]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        return batch_dots((z_MGKB - t_MGKB).abs_(), r_MG1B)


@dataclass(frozen=True)
class Huber(Loss):
    """l = u^2/2 where |u| <= d, else d (|u| - d/2), u = z - y; dl/dz = clip(u, -d, d).

    Huber (1964), Robust estimation of a location parameter. Reported per output.
    """

    threshold: float = 1.0

    @property
    def code(self) -> LossCode | None:
        return LossCode.HUBER

    @property
    def constant(self) -> float:
        return self.threshold

    def reported_scale(self, n_outputs: int) -> float:
        return 1.0 / n_outputs

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        return [
            partial(torch.sub, z_MKB, t_MKB, out=d_MKB),
            partial(d_MKB.clamp_, -self.threshold, self.threshold),
            partial(d_MKB.mul_, r_M1B),
        ]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        # With c = clip(u, -d, d): c (u - c/2) is both branches at once.
        u = z_MGKB - t_MGKB
        c = u.clamp(-self.threshold, self.threshold)
        return batch_dots(u.sub_(c, alpha=0.5).mul_(c), r_MG1B)


@dataclass(frozen=True)
class Pinball(Loss):
    """l = q max(y - z, 0) + (1 - q) max(z - y, 0); dl/dz = 1[z > y] - q, 0 at z = y.

    Koenker and Bassett (1978), Regression quantiles. Reported per output.
    """

    quantile: float = 0.5

    @property
    def code(self) -> LossCode | None:
        return LossCode.PINBALL

    @property
    def constant(self) -> float:
        return self.quantile

    def reported_scale(self, n_outputs: int) -> float:
        return 1.0 / n_outputs

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        shift = 0.5 - self.quantile

        def delta() -> None:
            # 1[u > 0] - q = sign(u) / 2 + (1/2 - q) where u != 0, and 0 where u = 0.
            torch.sub(z_MKB, t_MKB, out=d_MKB)
            d_MKB.sign_()
            away = d_MKB.abs()
            d_MKB.mul_(0.5).add_(away, alpha=shift).mul_(r_M1B)

        return [delta]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        u = z_MGKB - t_MGKB
        return batch_dots(torch.maximum(u * (1 - self.quantile), u * -self.quantile), r_MG1B)


@dataclass(frozen=True)
class Poisson(Loss):
    """Half the Poisson deviance with a log link, f = e^z: l = y log(y / f) - y + f, dl/dz = f - y.

    McCullagh and Nelder (1989), section 6.2; y log y is 0 at y = 0. Summed over outputs.
    """

    @property
    def code(self) -> LossCode | None:
        return LossCode.POISSON

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        return [
            partial(torch.exp, z_MKB, out=d_MKB),
            partial(d_MKB.sub_, t_MKB),
            partial(d_MKB.mul_, r_M1B),
            # e^z may be infinite in a row of weight 0, which must not count: inf * 0 is no number.
            lambda: d_MKB.masked_fill_(r_M1B == 0, 0.0),
        ]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        terms = torch.xlogy(t_MGKB, t_MGKB) - t_MGKB * z_MGKB - t_MGKB + z_MGKB.exp()
        return batch_dots(terms.masked_fill_(r_MG1B == 0, 0.0), r_MG1B)

    def link_(self, z_KN: Tensor) -> Tensor:
        return z_KN.exp_()


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """K independent Bernoulli outputs with a logistic link, s = 1 / (1 + e^-z), y in [0, 1].

    l = log(1 + e^z) - y z, stable for every z; dl/dz = s - y. Summed over outputs. One output is
    binary classification, several are multi-label classification. Label smoothing e replaces y
    by y (1 - e) + e / 2.
    """

    @property
    def code(self) -> LossCode | None:
        return LossCode.BINARY

    @property
    def smooths(self) -> bool:
        return True

    def load_targets(
        self, T_MGKB: Tensor, y_MGBT: Tensor, r_MG1B: Tensor, s_M: Tensor | None
    ) -> None:
        super().load_targets(T_MGKB, y_MGBT, r_MG1B, s_M)
        if s_M is not None:
            s = s_M[:, None, None, None]
            T_MGKB.mul_(1 - s).add_(s / 2)

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        return [
            partial(torch.sigmoid, z_MKB, out=d_MKB),
            partial(d_MKB.sub_, t_MKB),
            partial(d_MKB.mul_, r_M1B),
        ]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        terms = softplus(z_MGKB, threshold=_SOFTPLUS_EXACT).addcmul_(z_MGKB, t_MGKB, value=-1)
        return batch_dots(terms, r_MG1B)

    def link_(self, z_KN: Tensor) -> Tensor:
        # Strictly inside (0, 1): a saturated logit is certain only to the precision of its dtype.
        info = torch.finfo(z_KN.dtype)
        return z_KN.sigmoid_().clamp_(info.tiny, 1 - info.eps / 2)


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """One categorical output per head with a softmax link, p = softmax(z).

    l = log sum_k e^z_k - sum_k y_k z_k, from ``log_softmax`` (shifted by the maximum: no overflow);
    dl/dz_k = p_k - y_k because sum_k y_k = 1. Label smoothing e replaces the one-hot y by
    (1 - e) y + e / K (Szegedy et al. 2016). Several heads (multiclass-multioutput) stand side by
    side in z; their losses are summed.

    The targets are kept as -r y, so that delta is one fused operation, r p + (-r y), and the
    value one product with ``log_softmax``.
    """

    heads: tuple[int, ...] = ()

    @property
    def codes(self) -> bool:
        return True

    @property
    def code(self) -> LossCode | None:
        return LossCode.SOFTMAX if len(self.heads) == 1 else None

    @property
    def smooths(self) -> bool:
        return True

    def _slices(self) -> list[slice]:
        ends = [sum(self.heads[: i + 1]) for i in range(len(self.heads))]
        return [slice(end - size, end) for end, size in zip(ends, self.heads, strict=True)]

    def load_targets(
        self, T_MGKB: Tensor, y_MGBT: Tensor, r_MG1B: Tensor, s_M: Tensor | None
    ) -> None:
        minus_r = -r_MG1B
        if s_M is None and len(self.heads) == 1:
            T_MGKB.zero_().scatter_(2, y_MGBT.mT, minus_r)
            return
        s = 0.0 if s_M is None else s_M[:, None, None, None]
        for t, rows in enumerate(self._slices()):
            part = T_MGKB[:, :, rows]
            part.copy_((minus_r * (s / self.heads[t])).expand_as(part))
            part.scatter_add_(2, y_MGBT[..., t].unsqueeze(2), minus_r * (1 - s))

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        if len(self.heads) == 1:
            softmax: list[Op] = [partial(torch.softmax, z_MKB, 1, out=d_MKB)]
        else:
            heads = [(z_MKB[:, rows], d_MKB[:, rows]) for rows in self._slices()]
            softmax = [partial(d.copy_, z) for z, d in heads]
            softmax += [partial(_softmax_, d, 1) for _, d in heads]
        return [*softmax, partial(torch.addcmul, t_MKB, d_MKB, r_M1B, out=d_MKB)]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        del r_MG1B  # already in the targets
        if len(self.heads) == 1:
            return batch_dots(torch.log_softmax(z_MGKB, 2), t_MGKB)
        parts = [
            batch_dots(torch.log_softmax(z_MGKB[:, :, rows], 2), t_MGKB[:, :, rows])
            for rows in self._slices()
        ]
        return np.sum(parts, axis=0)

    def link_(self, z_KN: Tensor) -> Tensor:
        if len(self.heads) == 1:
            return torch.softmax(z_KN, 0)
        return torch.cat([torch.softmax(z_KN[rows], 0) for rows in self._slices()])


def _softmax_(z: Tensor, dim: int) -> Tensor:
    """Softmax in place (works on a strided view, where ``out=`` would allocate)."""
    z.sub_(z.amax(dim, keepdim=True)).exp_()
    return z.div_(z.sum(dim, keepdim=True))


RowLoss = Callable[[Tensor, Tensor], Tensor]

_NOT_DIFFERENTIABLE = (
    "loss: a callable loss(y_true, y_pred) must be written in torch operations on y_pred, so that "
    "it can be differentiated; the tensor it returned does not depend on y_pred (detached, or made "
    "with numpy?)."
)


@dataclass(frozen=True)
class CallableLoss(Loss):
    """A user's loss: ``function(y_true, y_pred)`` gives the loss of each row, in torch operations.

    Both arguments have shape (n, K), the result (n,) or (n, K) (then summed over outputs). The
    derivative with respect to the raw outputs comes from autograd: the network's own backward
    pass carries on from there. Reported per output, as the squared error.
    """

    function: RowLoss

    def reported_scale(self, n_outputs: int) -> float:
        return 1.0 / n_outputs

    def rows(self, y_NK: Tensor, z_NK: Tensor) -> Tensor:
        """Loss of each row, shape (n,); refuses a result of another shape."""
        try:
            losses = self.function(y_NK, z_NK)
        except RuntimeError as error:
            raise ValueError(
                "loss: the callable loss(y_true, y_pred) failed on two tensors of shape "
                f"{tuple(z_NK.shape)}: {error}"
            ) from error
        n = z_NK.shape[0]
        if not isinstance(losses, Tensor) or losses.shape not in ((n,), tuple(z_NK.shape)):
            seen = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                "loss: a callable loss(y_true, y_pred) must return one loss per row, a tensor of "
                f"shape ({n},) or {tuple(z_NK.shape)}, got {seen}. Do not average over the rows: "
                "sample weights are applied to the losses of the rows."
            )
        return losses if losses.dim() == 1 else losses.sum(1)

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        def delta() -> None:
            for z_KB, t_KB, r_1B, d_KB in zip(z_MKB, t_MKB, r_M1B, d_MKB, strict=True):
                # Rows of weight 0 are not shown to the function: they may have no loss at all.
                counted = r_1B[0] > 0
                with torch.enable_grad():
                    z_nK = z_KB.T[counted].requires_grad_()
                    losses = self.rows(t_KB.T[counted], z_nK)
                    if not losses.requires_grad:
                        raise ValueError(_NOT_DIFFERENTIABLE)
                    r_n = r_1B[0, counted].to(losses.dtype)
                    (gradient_nK,) = torch.autograd.grad(losses, z_nK, r_n)
                d_KB.zero_()
                d_KB.T[counted] = gradient_nK.to(d_KB.dtype)

        return [delta]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        r_MGB = r_MG1B[:, :, 0].expand(*z_MGKB.shape[:2], -1)
        t_MGKB = t_MGKB.expand_as(z_MGKB)
        counted = r_MGB > 0
        with torch.no_grad():
            losses = self.rows(t_MGKB.transpose(2, 3)[counted], z_MGKB.transpose(2, 3)[counted])
        weighted = torch.zeros_like(r_MGB)
        weighted[counted] = losses.to(r_MGB.dtype) * r_MGB[counted]
        return weighted.sum(2).cpu().numpy()
