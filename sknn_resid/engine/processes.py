"""Several processes that train one network, each on its share of every batch.

``torchrun`` starts the processes and says by environment variables how many there are; torch's own
``torch.distributed`` carries the sums: gloo between CPUs, NCCL between GPUs. All processes hold the
same weights, draw the same random numbers and take the same decisions, so that nothing but sums has
to travel: of gradients, once a step, and of the batch statistics of each normalization.

With n processes, share r of B rows is rows r B / n to (r + 1) B / n. The loss of a batch is a sum
over its rows with weights of the whole batch, so gradients of the shares add up to that of all
rows, and with sums of the statistics over the processes the result is that of one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes
    ----------
    rank : int
        Number of this process.
    size : int
        How many there are.
    """

    rank: int
    size: int

    def share(self, n_rows: int) -> slice:
        """The part of so many rows that is ours; may be empty."""
        return slice(self.rank * n_rows // self.size, (self.rank + 1) * n_rows // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place, no derivative."""
        dist.all_reduce(tensor)
        return tensor

    def sum_with_derivative(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, through which gradients flow back to each of them."""
        found = _Sum.apply(tensor)
        assert isinstance(found, Tensor)
        return found

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether one of the processes says so."""
        seen = torch.tensor([float(flag)], device=device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen.item() > 0)

    def of_first(self, values: list[float], device: torch.device) -> list[float]:
        """The numbers of process 0, for decisions that rounding must not make differently."""
        seen = torch.tensor(values, dtype=torch.float64, device=device)
        dist.broadcast(seen, src=0)
        return seen.tolist()


class _Sum(torch.autograd.Function):
    """y = sum_p x_p in each process. All losses are added up, so dL/dx_p = sum_q dL_q/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        dx = dy.contiguous().clone()
        dist.all_reduce(dx)
        return dx


def is_first() -> bool:
    """Whether this is process 0, or the only one: the one that prints."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs the one that ``torchrun`` counted out for it."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or those of a group that the caller has made.

    Parameters
    ----------
    device : torch.device
        Where this process computes.

    Raises
    ------
    RuntimeError
        If there are none.
    """
    if not dist.is_available():
        raise RuntimeError("data_parallel: this build of torch has no torch.distributed.")
    if dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if not dist.is_torchelastic_launched():
        raise RuntimeError(
            "data_parallel: the script has to be started by torchrun, such as 'torchrun "
            "--standalone --nproc-per-node=2 script.py', or to make a process group of "
            "torch.distributed itself."
        )
    from torch.distributed.rendezvous import rendezvous  # not there where is_available() is False

    store, rank, size = next(rendezvous("env://"))
    # torchrun's store outlives a group. Groups one after the other would meet the addresses of the
    # one before in it, so each has names of its own: by how often this process has joined before.
    turn = store.add(f"sknn_resid/turn/{rank}", 1)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"sknn_resid/{turn}", store),
        rank=rank,
        world_size=size,
    )
    try:
        yield Processes(rank, size)
    finally:
        dist.destroy_process_group()
