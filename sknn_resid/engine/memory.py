"""Scratch memory of a stack by name, and where gradients of shared parameters are added up."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor

from sknn_resid.engine.kernels import Op


class Memory:
    """Named buffers of M models, made once and shared by all batches of a stack.

    Parameters
    ----------
    n_models, batch : int
        M, and the most rows of any batch.
    device : torch.device
    """

    def __init__(self, n_models: int, batch: int, device: torch.device) -> None:
        self._n_models, self._batch, self._device = n_models, batch, device
        self._buffers: dict[str, Tensor] = {}

    def rows(self, name: str, n: int, width: int, dtype: torch.dtype) -> Tensor:
        """Buffer (M, n, width); batches of other lengths share its memory."""
        M = self._n_models
        whole = self.fixed(name, (M * self._batch * width,), dtype)
        return whole[: M * n * width].view(M, n, width)

    def fixed(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Buffer of this shape, the same whatever the length of the batch."""
        if name not in self._buffers:
            # Zeros, not empty: padding rows are read, with weight 0, before they are ever written,
            # and what lies in fresh memory may be not-a-number.
            self._buffers[name] = torch.zeros(prod(shape), dtype=dtype, device=self._device)
        found = self._buffers[name]
        assert found.dtype == dtype, name
        return found.view(shape)


class Sink:
    """Where a backward pass writes gradients: the first into place, the others added to it.

    Blocks that share their parameters name the same gradient; it is the sum over the blocks.

    Parameters
    ----------
    grads : dict
        Views of the gradient buffer by name.
    memory : Memory
    """

    def __init__(self, grads: dict[str, Tensor], memory: Memory) -> None:
        self._grads, self._memory = grads, memory
        self._begun: set[str] = set()

    def target(self, name: str) -> tuple[Tensor, list[Op]]:
        """Memory to write this part into, and what has to follow once it is no longer read."""
        grad = self._grads[name]
        if name not in self._begun:
            self._begun.add(name)
            return grad, []
        part = self._memory.fixed(f"part.{name}", tuple(grad.shape), grad.dtype)
        return part, [partial(grad.add_, part)]
