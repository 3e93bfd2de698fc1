"""Hidden-layer activations: h = f(z) and delta_z = delta_h * f'(z).

Each class documents its formula, its derivative and its source. ``forward_`` works in place
(``z`` becomes ``h``); ``bind_backward`` binds the in-place product of ``delta`` with the
derivative. Where f' can be written with h alone, z is not kept (``needs_input = False``) and the
layer saves one buffer and one pass over memory; the others keep z.

The backward kernels are torch's fused elementwise ones (one pass over memory); the tests hold
each of them against finite differences and against autograd.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sknn_resid.engine import native
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.native import ActivationCode

_aten = torch.ops.aten

# Constants of the self-normalising unit, Klambauer et al. 2017, equation 14.
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


@dataclass(frozen=True)
class Activation(ABC):
    """An elementwise function of a hidden layer. Immutable, without state."""

    # Where the function is compiled: what `native` calls it.
    code: ClassVar[ActivationCode | None] = None

    @property
    def needs_input(self) -> bool:
        """Whether the derivative is computed from z (then z is kept beside h)."""
        return False

    @abstractmethod
    def forward_(self, z: Tensor) -> Tensor:
        """Overwrite ``z`` with f(z) and return it."""

    @abstractmethod
    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        """`bind_backward` in torch's operations."""

    def bind_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        """Operations that overwrite ``delta`` = dL/dh with dL/dz = delta * f'(z)."""
        if self.code is not None:
            op = native.activate_back(self.code, delta, h)
            if op is not None:
                return [op]
        return self.torch_backward(z, h, delta)

    def bind_forward(self, z: Tensor, h: Tensor) -> list[Op]:
        """Operations that write f(z) into ``h`` (``h`` is ``z`` unless ``needs_input``)."""
        if self.code is not None:
            op = native.activate(self.code, z)
            if op is not None:
                return [op]
        if h is z:
            return [partial(self.forward_, z)]
        return [partial(h.copy_, z), partial(self.forward_, h)]


@dataclass(frozen=True, eq=False)
class Activated:
    """Activations in memory: h = f(z) of M models.

    Attributes
    ----------
    function : Activation
    z, h : Tensor of shape (M, B, H)
        One and the same where the function does not need z.
    """

    function: Activation
    z: Tensor
    h: Tensor


@dataclass(frozen=True)
class Identity(Activation):
    """f(z) = z, f'(z) = 1."""

    code = ActivationCode.IDENTITY

    def forward_(self, z: Tensor) -> Tensor:
        return z

    def bind_forward(self, z: Tensor, h: Tensor) -> list[Op]:
        return []

    def bind_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        return []

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        return []


@dataclass(frozen=True)
class Logistic(Activation):
    """f(z) = 1 / (1 + exp(-z)), f'(z) = h (1 - h) (Rumelhart, Hinton and Williams 1986)."""

    code = ActivationCode.LOGISTIC

    def forward_(self, z: Tensor) -> Tensor:
        return z.sigmoid_()

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        return [partial(_aten.sigmoid_backward.grad_input, delta, h, grad_input=delta)]


@dataclass(frozen=True)
class Tanh(Activation):
    """f(z) = tanh z, f'(z) = 1 - h^2 (LeCun et al. 1998, Efficient BackProp)."""

    code = ActivationCode.TANH

    def forward_(self, z: Tensor) -> Tensor:
        return z.tanh_()

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        return [partial(_aten.tanh_backward.grad_input, delta, h, grad_input=delta)]


@dataclass(frozen=True)
class Relu(Activation):
    """f(z) = max(0, z), f'(z) = 1 where h > 0, else 0, also at 0 (Nair and Hinton 2010)."""

    code = ActivationCode.RELU

    def forward_(self, z: Tensor) -> Tensor:
        return z.relu_()

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        return [partial(_aten.threshold_backward.grad_input, delta, h, 0, grad_input=delta)]


@dataclass(frozen=True)
class LeakyRelu(Activation):
    """f(z) = z where z > 0, else s z; f' = 1 or s (Maas, Hannun and Ng 2013), s = 0.01."""

    slope: float = 0.01

    def forward_(self, z: Tensor) -> Tensor:
        return torch.nn.functional.leaky_relu_(z, self.slope)

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        # h has the sign of z (s > 0), so the result serves in place of the input.
        kernel = _aten.leaky_relu_backward.grad_input
        return [partial(kernel, delta, h, self.slope, False, grad_input=delta)]


@dataclass(frozen=True)
class Elu(Activation):
    """f(z) = z where z > 0, else a (e^z - 1); f' = 1 or h + a (Clevert et al. 2016), a = 1.

    With ``alpha`` and ``scale`` it is also the scaled form: scale * elu(z).
    """

    alpha: float = 1.0
    scale: float = 1.0

    def forward_(self, z: Tensor) -> Tensor:
        return _aten.elu_(z, self.alpha, self.scale, 1)

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        kernel = _aten.elu_backward.grad_input
        return [partial(kernel, delta, self.alpha, self.scale, 1, True, h, grad_input=delta)]


@dataclass(frozen=True)
class Softplus(Activation):
    """f(z) = log(1 + e^z), f'(z) = 1 / (1 + e^-z) = 1 - e^-h (Dugas et al. 2001)."""

    def forward_(self, z: Tensor) -> Tensor:
        # threshold 50: beyond it log(1 + e^z) = z to the last bit in float64 (torch's own default
        # of 20 is off by 2e-9, which a derivative test in float64 sees).
        return _aten.softplus.out(z, 1, 50, out=z)

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        scratch = torch.empty_like(h)

        def backward() -> None:
            torch.neg(h, out=scratch)
            scratch.expm1_()
            delta.mul_(scratch.neg_())

        return [backward]


@dataclass(frozen=True)
class Gelu(Activation):
    """f(z) = z Phi(z), f'(z) = Phi(z) + z phi(z) (Hendrycks and Gimpel 2016), exact form."""

    @property
    def needs_input(self) -> bool:
        return True

    def forward_(self, z: Tensor) -> Tensor:
        return _aten.gelu.out(z, out=z)

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        return [partial(_aten.gelu_backward.grad_input, delta, z, grad_input=delta)]


@dataclass(frozen=True)
class Silu(Activation):
    """f(z) = z s(z), f'(z) = s(z) (1 + z (1 - s(z))), s the logistic (Elfwing et al. 2018)."""

    @property
    def needs_input(self) -> bool:
        return True

    def forward_(self, z: Tensor) -> Tensor:
        return _aten.silu_(z)

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        return [partial(_aten.silu_backward.grad_input, delta, z, grad_input=delta)]


@dataclass(frozen=True)
class Mish(Activation):
    """f(z) = z tanh(sp(z)), f'(z) = t + z s(z) (1 - t^2), t = tanh(sp(z)) (Misra 2020).

    sp is the softplus, s the logistic function.
    """

    @property
    def needs_input(self) -> bool:
        return True

    def forward_(self, z: Tensor) -> Tensor:
        return _aten.mish_(z)

    def torch_backward(self, z: Tensor, h: Tensor, delta: Tensor) -> list[Op]:
        slope, inner, square = (torch.empty_like(z) for _ in range(3))

        def backward() -> None:
            _aten.softplus.out(z, 1, 50, out=inner)
            inner.tanh_()  # t
            torch.sigmoid(z, out=slope)
            slope.mul_(z)  # u = z s(z)
            torch.mul(inner, inner, out=square)
            square.neg_().add_(1)  # 1 - t^2 first: t + u - u t^2 would cancel where u is large
            inner.add_(slope.mul_(square))
            delta.mul_(inner)

        return [backward]
