"""Compiled operations of residual networks: several passes over memory in one.

`bind` gives a callable that is bound to its arrays like the others of a step (`kernels.Op`), or
None where the compiled module is missing (`_native`) or the memory is not the CPU's; whoever asks
has the same operation in numpy and torch. `joined` puts neighbours into one call, which carries
them out model by model: what a model writes is still in the cache when its next operation reads
it. The operations and the axes of their arrays are listed in ``_native/src/residual.c``.

A table of instructions, as the dense networks have (`native`), would need an address and a size
for everything by hand; here an operation holds its arrays and has checked their shapes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sknn_resid._native import compiled

GEMM_ADD = 1  # the product is added to what is there
GEMM_RELU = 2  # negative results become 0
_DTYPES = (torch.float32, torch.float64)


def bind(
    name: str, arrays: Sequence[Tensor | None], numbers: Sequence[float] = ()
) -> Callable[..., object] | None:
    """A compiled operation on these arrays, or None."""
    module = compiled("residual")
    if module is None or not all(a is None or _suits(a) for a in arrays):
        return None
    views = tuple(None if a is None else a.numpy() for a in arrays)
    found: Callable[..., object] = module.bind(name, views, tuple(map(float, numbers)))
    return found


def _suits(array: Tensor) -> bool:
    return array.device.type == "cpu" and array.dtype in _DTYPES and array.numel() > 0


def available(array: Tensor) -> bool:
    """Whether operations on memory of this kind are compiled."""
    return compiled("residual") is not None and _suits(array)


def joined(ops: Sequence[Callable[[], object]]) -> list[Callable[[], object]]:
    """The same operations in the same order, runs of compiled ones in one call each."""
    module = compiled("residual")
    if module is None:
        return list(ops)
    found: list[Callable[[], object]] = []
    run: list[Any] = []
    for op in ops:
        if isinstance(op, module.Operation):
            run.append(op)
            continue
        found += _one(module, run)
        found.append(op)
        run = []
    return found + _one(module, run)


def _one(module: ModuleType, run: Sequence[Any]) -> list[Any]:
    return [module.join(tuple(run))] if run else []
