"""What a residual network says to held-out rows at the statistics of its training rows: one pass.

Batch normalization counts each row by its weight. So the held-out rows stand behind the training
rows with weight 0: they do not change a statistic, and go through the same compiled operations as
in a step (`fused`). Members of an ensemble that leave out different rows of one table are as many
rows each, and use one program in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sknn_resid.engine import fused
from sknn_resid.engine.bound import joined
from sknn_resid.engine.branches import Bound
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.memory import Memory, Sink
from sknn_resid.engine.residual_fitted import MAX_CHUNK
from sknn_resid.engine.residual_layout import ResidualLayout
from sknn_resid.engine.residual_spec import Normalization, ResidualSpec
from sknn_resid.engine.slots import bind_gather


@dataclass(frozen=True, eq=False)
class _Program:
    """A forward pass bound to memory of its own; one model."""

    params_1P: Tensor
    scale_1D: Tensor
    X_1ND: Tensor
    r_11N: Tensor
    Z_1KN: Tensor
    ops: list[Callable[[], object]]


class FusedJudge:
    """Passes over training and held-out rows; keeps one program for each number of rows."""

    def __init__(self) -> None:
        self._programs: dict[tuple[ResidualSpec, int], _Program] = {}

    def logits(self, job: TrainJob, params_P: Tensor) -> np.ndarray | None:
        """Raw outputs (n, K) for the held-out rows, or None where the operations do not suit.

        Rows beyond what is one chunk of the statistics in `residual_fitted` do not.
        """
        spec, data, held_out = job.network, job.data, job.validation
        assert held_out is not None
        if not isinstance(spec, ResidualSpec) or not _suits(spec, params_P):
            return None
        if not isinstance(data.X, np.ndarray) or not isinstance(held_out.X, np.ndarray):
            return None
        n = data.n_rows
        if n + len(held_out.X) > MAX_CHUNK:
            return None
        key = (spec, n + len(held_out.X))
        if key not in self._programs:
            self._programs[key] = _bind(*key)
        program = self._programs[key]
        program.params_1P[0].copy_(params_P)
        program.scale_1D.fill_(1.0)
        if job.input_scale is not None:
            program.scale_1D[0].copy_(torch.from_numpy(np.asarray(job.input_scale)))
        X_ND, r_N = program.X_1ND[0].numpy(), program.r_11N[0, 0].numpy()
        if data.rows is None:
            X_ND[:n] = data.X
        else:
            bind_gather(data.X, program.X_1ND[0, :n])(data.rows)
        X_ND[n:] = held_out.X
        weight = np.ones(n) if data.weight is None else np.asarray(data.weight, dtype=np.float64)
        r_N[:n], r_N[n:] = weight / weight.sum(), 0.0
        for op in program.ops:
            op()
        return program.Z_1KN[0, :, n:].mT.numpy().copy()


def _suits(spec: ResidualSpec, params_P: Tensor) -> bool:
    return (
        fused.spec_suits(spec)
        and spec.normalization is Normalization.BATCH
        and spec.periodic is None
        and fused.available(params_P)
    )


def _bind(spec: ResidualSpec, n: int) -> _Program:
    layout = ResidualLayout(spec)
    memory = Memory(1, n, torch.device("cpu"))
    params_1P = torch.zeros((1, layout.n_params), dtype=spec.dtype)
    values = layout.views(params_1P)
    X_1ND, x = (
        memory.rows(name, n, width, spec.dtype)
        for name, width in (("X", spec.n_features), ("x", spec.width))
    )
    r_11N = memory.fixed("r", (1, 1, n), spec.dtype)
    Z_1KN = memory.fixed("z", (1, spec.n_outputs, n), spec.dtype)
    scale_1D = torch.ones((1, spec.n_features), dtype=spec.dtype)
    # Nothing goes backward: the gradient of the stream is never touched.
    bound = Bound(
        spec, memory, n, values, Sink({}, memory), r_11N, r_11N, x, x, {}, None, None, None
    )
    W = memory.fixed("W", tuple(values["input.W"].shape), spec.dtype)
    ops = [
        fused.scale_rows(values["input.W"], scale_1D, W),
        fused.product(X_1ND, W, x, row_Mk=values["input.b"]),
    ]
    for block in range(spec.n_blocks):
        ops += fused.FusedBlock(bound, block).forward()
    last = fused.FusedNorm(bound, "final", spec.width, "final", relu=True)
    head = fused.product(values["head.W"], last.y.mT, Z_1KN, column_Mi=values["head.b"])
    return _Program(params_1P, scale_1D, X_1ND, r_11N, Z_1KN, joined([*ops, last.forward(x), head]))
