"""A run of operations on an accelerator as one launch: captured once, replayed from then on.

A step of a small network is some 40 operations of a microsecond or two each; launching them one by
one takes longer than the work (10 microseconds and more a call). A CUDA graph is the list of what
was launched, with the memory it works on, and is launched as one. So it serves where a run is the
same sequence of operations on the same memory every time: whatever changes from step to step has
to lie in memory (`accelerated`), and nothing may be read back in between.

A run is called a few times first, which are steps like any other, then captured, and replayed from
then on. Capturing carries out nothing: it leaves every number as it was. So where it fails, the run
is simply called, from the state before, and nothing is captured any more in this training.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from sknn_resid.engine.kernels import Op

# Calls before a run is captured. The first loads kernels and lets libraries make their handles and
# workspaces, which must not happen while capturing; a training of a few epochs is never captured.
WARM_UPS = 3


class Graphs(ABC):
    """How runs of one training are carried out; one for all stacks that it goes through.

    Attributes
    ----------
    captures : bool
        Whether runs can be captured at all.
    failed : bool
        Whether a capture has failed: then there are no more.
    """

    captures: ClassVar[bool] = True

    def __init__(self) -> None:
        self.failed = False

    def epoch(self) -> AbstractContextManager[None]:
        """What surrounds all work of an epoch."""
        return nullcontext()

    def pool(self) -> Any:
        """Memory for what is made within captured runs; one for all runs of a stack."""
        return None

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory that is sent to the device again and again."""
        return torch.zeros(shape, dtype=dtype)

    @abstractmethod
    def capture(self, run: Op, pool: Any) -> Op:
        """Record what ``run`` would do, without doing it; the result does it.

        Raises
        ------
        RuntimeError
            Where that can't be done.
        """


class NoGraphs(Graphs):
    """For accelerators of other kinds: every operation is launched by itself."""

    captures = False

    def capture(self, run: Op, pool: Any) -> Op:
        """There is nothing to record with."""
        raise NotImplementedError("This kind of accelerator has no graphs.")


class CudaGraphs(Graphs):
    """CUDA graphs of torch.

    An epoch has a stream of its own, because the default one can't be captured; what is called
    before a capture runs there as well, so that workspaces of libraries, which belong to a stream,
    are there already. The caller's stream waits for it and the other way round.
    """

    # torch allows one capture at a time in a process; two threads may train at the same time.
    _one_at_a_time: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """Work of an epoch on the stream of this training."""
        outside = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outside.wait_stream(self._stream)

    def pool(self) -> Any:
        """A private part of torch's memory; it goes when its last graph goes."""
        return torch.cuda.graph_pool_handle()

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Pinned: sent without a copy in between and without waiting."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def capture(self, run: Op, pool: Any) -> Op:
        """Capture ``run`` on the stream of this training."""
        graph = torch.cuda.CUDAGraph()
        # "thread_local": what other threads of the process do meanwhile, such as taking memory,
        # does not make this capture invalid.
        with (
            self._one_at_a_time,
            torch.cuda.graph(
                graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            run()
        return graph.replay


def graphs_for(device: torch.device) -> Graphs | None:
    """How steps are carried out on this device; None on a CPU, which launches nothing."""
    if device.type == "cpu":
        return None
    return CudaGraphs(device) if device.type == "cuda" else NoGraphs()


MakeGraphs = Callable[[torch.device], "Graphs | None"]


class Replayed:
    """A run of operations that is captured once it has been called a few times.

    Parameters
    ----------
    run : callable
        The same operations on the same memory at every call; reads nothing back.
    graphs : Graphs
    pool : object
        That of the stack (`Graphs.pool`).
    """

    def __init__(self, run: Op, graphs: Graphs, pool: Any) -> None:
        self._run, self._graphs, self._pool = run, graphs, pool
        self._calls = 0
        self._replay: Op | None = None

    @property
    def captured(self) -> bool:
        """Whether the next call is a replay."""
        return self._replay is not None

    def __call__(self) -> None:
        if self._replay is None and self._calls >= WARM_UPS and not self._graphs.failed:
            self._replay = self._capture()
        self._calls += 1
        (self._replay or self._run)()

    def _capture(self) -> Op | None:
        try:
            return self._graphs.capture(self._run, self._pool)
        except RuntimeError as error:  # torch's errors of a device are RuntimeErrors
            self._graphs.failed = True
            warnings.warn(
                "The steps of this training could not be captured as a graph; they are launched "
                f"one operation at a time, which is slower and gives the same result: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
