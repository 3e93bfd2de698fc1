"""Operations that are carried out by compiled code, many in one call and without the interpreter.

A native operation is a line of a table: which operation, where its operands lie, how far from one
model to the next, and from one batch to the next. It can be called like any other bound operation;
a run of neighbours is joined (`join`) and then carried out model by model, so that what a model
writes is still in the processor's caches when its next operation reads it. On a small network a
call of numpy or torch costs as much as the work it does, which is what this saves.

Every native operation has another form in numpy and torch beside the place where it is bound;
where the compiled module is missing (`_native`), or memory is of another kind, `bind` gives None
and that form is taken. Both compute the same up to rounding.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sknn_resid._native import compiled

Operand: TypeAlias = "Tensor | np.ndarray"

N_SIZES, N_CONSTANTS, N_OPERANDS = 10, 4, 8
# The same layout as ``struct instruction`` in _native/src/instruction.h.
_LINE = struct.Struct(f"=2i{N_SIZES}q{N_CONSTANTS}d{N_OPERANDS}Q{N_OPERANDS}q{N_OPERANDS}q")
_TYPES = {torch.float32: 0, torch.float64: 1}
_MOST = 2**31 - 1  # BLAS's sizes have 32 bits


class Code(IntEnum):
    """Operations, in the order of ``enum op``."""

    MATMUL = 0
    ADD_ROW = 1
    ADD_COLUMN = 2
    ACTIVATE = 3
    ADD_ROW_ACTIVATE = 4
    ACTIVATE_BACK = 5
    SUM_ROWS = 6
    SUM_COLUMNS = 7
    SUM_SQUARES = 8
    ADD_DECAY = 9
    CLIP = 10
    GATHER = 11
    TARGET_CODES = 12
    TARGET_REALS = 13
    SOFTMAX = 14
    LOSS = 15
    SGD = 16
    ADAM = 17


class ActivationCode(IntEnum):
    """Activations that are compiled, in the order of ``enum activation``."""

    IDENTITY = 0
    RELU = 1
    LOGISTIC = 2
    TANH = 3


class Bias(IntEnum):
    """What is added to a product, in the order of ``enum bias``."""

    NONE = 0
    ROW = 1
    COLUMN = 2


_BIAS_OF = {Code.ADD_ROW: Bias.ROW, Code.ADD_COLUMN: Bias.COLUMN}


class LossCode(IntEnum):
    """Losses that are compiled, in the order of ``enum loss``; the softmax is one of its own."""

    SQUARED = 0
    ABSOLUTE = 1
    HUBER = 2
    PINBALL = 3
    POISSON = 4
    BINARY = 5
    SOFTMAX = 6


def _module() -> Any:
    module = compiled("steps")
    if module is not None and _LINE.size != module.INSTRUCTION_BYTES:
        return None  # built from other sources than these
    return module


@dataclass(slots=True)
class _Line:
    """One operation, in plain numbers: see ``struct instruction``."""

    code: Code
    type: int
    n: list[int]
    x: list[float]
    at: list[int]
    step: list[int]
    slot: list[int]

    def pack(self) -> bytes:
        return _LINE.pack(
            self.code,
            self.type,
            *_filled(self.n, N_SIZES),
            *_filled(self.x, N_CONSTANTS),
            *_filled(self.at, N_OPERANDS),
            *_filled(self.step, N_OPERANDS),
            *_filled(self.slot, N_OPERANDS),
        )


def _filled(numbers: Sequence[Any], size: int) -> list[Any]:
    return [*numbers, *[0] * (size - len(numbers))]


class NativeRun:
    """Native operations of a stack of models, carried out in one call.

    Parameters
    ----------
    lines : list of _Line
    n_models : int
    kept : list
        Whose memory the lines point to.
    """

    __slots__ = ("_run", "_table", "_threads", "kept", "lines", "n_models")

    def __init__(self, lines: list[_Line], n_models: int, kept: list[object]) -> None:
        self._run: Callable[..., None] = _module().run
        self.lines, self.n_models, self.kept = lines, n_models, kept
        self._threads = torch.get_num_threads() > 1
        self._table = b"".join([line.pack() for line in lines])

    def __call__(self) -> None:
        self._run(self._table, 0, self.n_models, 0, 1, self._threads)

    def slots(self, ranges: Sequence[tuple[int, int]], first: int, stop: int) -> None:
        """All operations for batches ``first`` to ``stop - 1``, for ranges of models in turn."""
        for begin, end in ranges:
            self._run(self._table, begin, end, first, stop, self._threads)

    def advancing(self, operands: Sequence[tuple[Operand, int]]) -> NativeRun:
        """The same, with operands that move by so many bytes from one batch to the next."""
        moves = {_address(operand): n_bytes for operand, n_bytes in operands}
        lines = [replace(line, slot=[moves.get(at, 0) for at in line.at]) for line in self.lines]
        return NativeRun(lines, self.n_models, self.kept)


def available(*operands: Tensor) -> bool:
    """Whether native operations can work on this memory: CPU, all float32 or all float64."""
    dtype = operands[0].dtype
    return (
        dtype in _TYPES
        and all(o.dtype == dtype and o.device.type == "cpu" for o in operands)
        and _module() is not None
    )


def bind(
    code: Code,
    operands: Sequence[Tensor],
    sizes: Sequence[int],
    constants: Sequence[float] = (),
    controls: Sequence[Operand] = (),
) -> NativeRun | None:
    """One native operation; None where it can't be had.

    Parameters
    ----------
    code : Code
    operands : sequence of Tensor of shape (M, ...)
        What it works on; each model's part row-major and without gaps (products say their own
        strides). M = 1 or a stride of 0 on the first axis: shared by all models.
    sizes : sequence of int
    constants : sequence of float
    controls : sequence of Tensor or ndarray of shape (M, ...)
        Operands of other types, after the others.
    """
    if not available(*operands) or not all(o[0].is_contiguous() for o in operands):
        return None
    return bind_mixed(code, [*operands, *controls], sizes, constants)


def bind_mixed(
    code: Code,
    places: Sequence[Operand],
    sizes: Sequence[int],
    constants: Sequence[float] = (),
    kept: Sequence[object] = (),
) -> NativeRun:
    """One native operation on operands of several types, the first of them a float tensor.

    For callers that know that they can be had. ``kept`` is what the operands point to in turn.
    """
    first = places[0]
    assert isinstance(first, Tensor)
    line = _Line(
        code,
        _TYPES[first.dtype],
        list(sizes),
        list(constants),
        [_address(place) for place in places],
        [_step(place) for place in places],
        [],
    )
    return NativeRun([line], max(len(place) for place in places), [*places, *kept])


def join(ops: Sequence[Callable[[], object]]) -> list[Callable[[], object]]:
    """The same operations, neighbours that are native joined into one call."""
    joined: list[Callable[[], object]] = []
    waiting: list[NativeRun] = []
    for op in ops:
        if isinstance(op, NativeRun) and (not waiting or waiting[0].n_models == op.n_models):
            waiting.append(op)
            continue
        joined += _together(waiting)
        waiting = []
        if isinstance(op, NativeRun):
            waiting.append(op)
        else:
            joined.append(op)
    return [*joined, *_together(waiting)]


def _together(runs: Sequence[NativeRun]) -> list[NativeRun]:
    if len(runs) < 2:
        return list(runs)
    lines = _fused([line for run in runs for line in run.lines])
    return [NativeRun(lines, runs[0].n_models, [place for run in runs for place in run.kept])]


def _fused(lines: Sequence[_Line]) -> list[_Line]:
    """A product, the bias added to it and the activation of both in one pass over memory."""
    fused: list[_Line] = []
    for line in lines:
        together = _pair(fused[-1], line) if fused else None
        if together is None:
            fused.append(line)
        else:
            fused[-1] = together
    return fused


def _pair(first: _Line, then: _Line) -> _Line | None:
    """Both in one operation, if ``then`` goes on where ``first`` has written."""
    if first.code is Code.MATMUL and first.at[2] == then.at[0] and not first.n[9]:
        bare = first.n[8] == Bias.NONE
        if then.code in _BIAS_OF and bare and first.n[5] == first.n[2]:
            n = [*first.n[:8], _BIAS_OF[then.code], 0]
            at, step = [*first.at, then.at[1]], [*first.step, then.step[1]]
            return replace(first, n=n, at=at, step=step)
        if then.code is Code.ACTIVATE and then.n[0] == first.n[0] * first.n[2]:
            return replace(first, n=[*first.n[:9], then.n[1]])
    if (first.code, then.code) == (Code.ADD_ROW, Code.ACTIVATE) and first.at[0] == then.at[0]:
        return replace(first, code=Code.ADD_ROW_ACTIVATE, n=[*first.n, then.n[1]])
    return None


def matmul(a_Mij: Tensor, b_Mjk: Tensor, out_Mik: Tensor) -> NativeRun | None:
    """``out = a @ b``; None also where a factor is neither row- nor column-major."""
    if not available(a_Mij, b_Mjk, out_Mik) or out_Mik.stride(2) != 1 or 0 in out_Mik.shape:
        return None
    i, j, k = *a_Mij.shape[1:], b_Mjk.shape[2]
    a, b = _leading(a_Mij), _leading(b_Mjk)
    if a is None or b is None or max(a[0], b[0], i * j, j * k, i * k) > _MOST:
        return None
    ldc = max(1, k, out_Mik.stride(1) if i > 1 else 1)
    sizes = (i, j, k, a[0], b[0], ldc, a[1], b[1], Bias.NONE, ActivationCode.IDENTITY)
    return bind_mixed(Code.MATMUL, (a_Mij, b_Mjk, out_Mik), sizes)


def activate(code: ActivationCode, z_MBH: Tensor) -> NativeRun | None:
    """``z = f(z)``."""
    return bind(Code.ACTIVATE, (z_MBH,), (z_MBH[0].numel(), code))


def activate_back(code: ActivationCode, delta_MBH: Tensor, h_MBH: Tensor) -> NativeRun | None:
    """``delta *= f'(z)``, from h = f(z)."""
    return bind(Code.ACTIVATE_BACK, (delta_MBH, h_MBH), (h_MBH[0].numel(), code))


def loss(
    code: LossCode,
    constant: float,
    z_MKB: Tensor,
    t_MKB: Tensor,
    r_M1B: Tensor,
    d_MKB: Tensor,
    value_M: Tensor,
) -> NativeRun:
    """``d = dJ/dz`` and the data term of the objective (float64)."""
    K, B = z_MKB.shape[1:]
    places = [z_MKB, t_MKB, r_M1B, d_MKB, value_M]
    if code is LossCode.SOFTMAX:
        return bind_mixed(Code.SOFTMAX, places, (K, B))
    return bind_mixed(Code.LOSS, places, (K, B, code), (constant,))


def _leading(x_Mij: Tensor) -> tuple[int, int] | None:
    """Leading dimension of each matrix and whether it is transposed."""
    _, i, j = x_Mij.shape
    _, row, column = x_Mij.stride()
    if (column == 1 or j == 1) and (row >= j or i == 1):
        return (max(row, j, 1) if i > 1 else max(1, j), 0)
    if (row == 1 or i == 1) and (column >= i or j == 1):
        return (max(column, i, 1) if j > 1 else max(1, i), 1)
    return None


def _address(place: Operand) -> int:
    if isinstance(place, Tensor):
        return place.data_ptr()
    return place.__array_interface__["data"][0]  # a tenth of what ``place.ctypes.data`` costs


def _step(place: Operand) -> int:
    if len(place) == 1:
        return 0
    if isinstance(place, Tensor):
        return place.stride(0) * place.itemsize
    return place.strides[0]
