"""Stand-ins for CUDA graphs on the CPU: what a capture sees, and a graph made of it.

torch tells a dispatch mode every operation that reaches a device, with its arguments; that is what
a capture records on CUDA. Like a capture, these leave every number as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from engine.builders import leave_out_compiled
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from sknn_resid.engine import bound, kernels
from sknn_resid.engine.graphs import Graphs


def torch_only(monkeypatch) -> None:
    """From here on, bind what an accelerator would run: torch throughout."""
    leave_out_compiled(monkeypatch)
    monkeypatch.setattr(bound, "compiled", lambda name: None)
    monkeypatch.setattr(kernels, "numpy_speaks", lambda tensor: False)


@dataclass
class Operation:
    """One call of an operation of torch."""

    function: Any
    args: tuple
    kwargs: dict
    result: Any

    def _returns(self) -> list:
        return self.function._schema.returns

    @property
    def is_view(self) -> bool:
        """Whether the result is a view: nothing happens in memory."""
        infos = [r.alias_info for r in self._returns()]
        return any(info is not None and not info.is_write for info in infos)

    @property
    def writes(self) -> list[torch.Tensor]:
        """Tensors among the arguments that are written to."""
        found: list[torch.Tensor] = []
        for i, argument in enumerate(self.function._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = self.args[i] if i < len(self.args) else self.kwargs.get(argument.name)
            found += [t for t in tree_flatten(given)[0] if isinstance(t, torch.Tensor)]
        return found

    def __call__(self) -> None:
        if self.is_view:
            return
        result = self.function(*self.args, **self.kwargs)
        if not self.writes:  # what was made while recording is where the next operation looks
            for old, new in zip(tree_flatten(self.result)[0], tree_flatten(result)[0], strict=True):
                old.copy_(new)


class Log(TorchDispatchMode):
    """Keeps every operation, and the memory it writes to as it was before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operation = Operation(func, args, kwargs or {}, None)
        for tensor in operation.writes:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = (storage, storage.clone())
        operation.result = func(*args, **(kwargs or {}))
        self.operations.append(operation)
        return operation.result

    def undo(self) -> None:
        """Everything as it was before."""
        for storage, before in self._before.values():
            storage.copy_(before)


class RecordedGraphs(Graphs):
    """Graphs that are lists of operations, called again in the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.captures_made = self.replays = self.pools = 0

    def pool(self):
        self.pools += 1
        return self.pools

    def capture(self, run, pool):
        with Log() as log:
            run()
        log.undo()
        self.captures_made += 1

        def replay() -> None:
            self.replays += 1
            for operation in log.operations:
                operation()

        return replay


class CallByCall(Graphs):
    """The steps of an accelerator, never captured."""

    captures = False

    def capture(self, run, pool):
        raise AssertionError


class FailingGraphs(Graphs):
    """Captures that break off in the middle, as torch's do: nothing was carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def capture(self, run, pool):
        self.tried += 1
        with Log() as log:
            run()
        log.undo()
        raise RuntimeError("operation not permitted when stream is capturing")


class LoggedGraphs(Graphs):
    """Runs that are called each time; ``logs`` keeps what every one of them did, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.logs: dict[int, list[list[Operation]]] = {}

    def capture(self, run, pool):
        logs = self.logs.setdefault(len(self.logs), [])

        def logged() -> None:
            with Log() as log:
                run()
            logs.append(log.operations)

        return logged


def described(operations: list[Operation]) -> list[tuple]:
    """The operations as plain values: two runs are the same sequence if these are equal.

    A tensor that was there before is its address, shape and strides; one that an operation of the
    run has made is a number, for where it lies may change.
    """
    names: dict[int, str] = {}

    def describe(tensor: torch.Tensor) -> tuple:
        storage = tensor.untyped_storage().data_ptr()
        where = names.get(storage) or str(tensor.data_ptr())
        return (where, tuple(tensor.shape), tensor.stride(), str(tensor.dtype))

    found = []
    for operation in operations:
        arguments = tree_map_only(torch.Tensor, describe, (operation.args, operation.kwargs))
        found.append((str(operation.function), repr(arguments)))
        if not operation.is_view and not operation.writes:
            for tensor in tree_flatten(operation.result)[0]:
                if isinstance(tensor, torch.Tensor):
                    names[tensor.untyped_storage().data_ptr()] = f"made {len(names)}"
    return found
