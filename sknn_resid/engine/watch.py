"""Seeing a step from within: which tensor is shown, where in the program, and under which name.

A network that is made with a watch binds one more operation at each place worth seeing. It calls
``watch(layer, what, tensor)`` when the program gets there; the tensor is the engine's own memory,
as it is at this moment: whoever wants to keep it copies it, and what is written into it is what the
step goes on with. A network that is made without one binds nothing, so that looking costs nothing
where nobody looks, and there is no hook that could be left behind.

Layers are named by what they are: "hidden_1" ... "output" in a dense network, "input",
"block_1.linear_1" ... "output" in a residual one. What is shown of them:

==========  ====================================================================
``in``      v^(l-1), what the product reads (residual networks)
``z``       z^(l) = v^(l-1) W^(l) + b^(l)
``v``       v^(l): what goes on from here
``dv``      dJ/dv^(l)
``delta``   delta^(l) = dJ/dz^(l)
==========  ====================================================================

The rows themselves are the layer "X", with ``dv`` = dJ/dX. In a residual network the stream after
block l is shown as "block_l" (``v``, ``dv``), the argument and the value of an activation function
as "block_l.activation_k" or "output.activation" (``z``, ``v``). Logits and their delta are
class-major, (M, K, B); all else is (M, B, units).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from sknn_resid.engine.kernels import Op

Watch = Callable[[str, str, Tensor], None]


def seen(watch: Watch | None, layer: str, what: str, tensor: Tensor) -> list[Op]:
    """The operation that shows ``tensor`` at this place of a program; none without a watch."""
    return [] if watch is None else [partial(watch, layer, what, tensor)]
