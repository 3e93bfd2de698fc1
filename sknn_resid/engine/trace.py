"""One forward and backward pass of one network over given rows, and everything it makes, as arrays.

The pass is the step that trains: the same bound operations on a slot that holds all rows as one
batch, with a watch that copies what it is shown. Left out are what is random (dropout, drop path)
and the penalty; nothing is updated. The network lives as long as the call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from sknn_resid.engine.data import Features, as_tensor
from sknn_resid.engine.kernels import Op
from sknn_resid.engine.losses import Loss
from sknn_resid.engine.schedules import Schedule
from sknn_resid.engine.slots import SlotBank
from sknn_resid.engine.spec import AnySpec, OptimizerKind, OptimizerSpec, TrainSpec
from sknn_resid.engine.structure import input_dtype, make_network

# Layers whose tensors are class-major in memory and come out as (rows, outputs).
_CLASS_MAJOR = frozenset({"output"})


@dataclass(frozen=True, eq=False)
class Subject:
    """One network, looked at from without: what a pass over rows needs to know of it.

    Attributes
    ----------
    network : NetworkSpec or ResidualSpec
    params : ndarray of shape (P,)
        In the order of the structure's layout.
    label_smoothing : float
        Belongs to the targets of the loss.
    input_scale : ndarray of shape (D,) or None
        As in `job.TrainJob`.
    statistics : ndarray of shape (S,) or None
        Kept means and variances of batch normalizations; None for those of the rows.
    """

    network: AnySpec
    params: np.ndarray
    label_smoothing: float = 0.0
    input_scale: np.ndarray | None = None
    statistics: np.ndarray | None = None

    def in_dtype(self, dtype: torch.dtype) -> Subject:
        """The same network, computed in this precision throughout."""
        network = replace(self.network, dtype=dtype, product_dtype=dtype)
        return replace(self, network=network, params=_as_dtype(self.params, dtype))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What one pass has made.

    Attributes
    ----------
    seen : dict
        (layer, what) -> ndarray of shape (n, units), under the names of `watch`.
    logits : ndarray of shape (n, K)
    loss : float
        J without the penalty, sum_i r_i l_i.
    gradient : ndarray of shape (P,)
        dJ/dparams, in the order of the layout.
    row_weights : ndarray of shape (n,)
        r_i = w_i / sum w.
    """

    seen: dict[tuple[str, str], np.ndarray]
    logits: np.ndarray
    loss: float
    gradient: np.ndarray
    row_weights: np.ndarray


@dataclass(frozen=True)
class _NoLoss(Loss):
    """Of a pass that has no targets: 0 everywhere."""

    def bind_delta(self, z_MKB: Tensor, t_MKB: Tensor, r_M1B: Tensor, d_MKB: Tensor) -> list[Op]:
        return [d_MKB.zero_]

    def value(self, z_MGKB: Tensor, t_MGKB: Tensor, r_MG1B: Tensor) -> np.ndarray:
        return np.zeros(z_MGKB.shape[:2])


@dataclass(frozen=True, eq=False)
class _Keeper:
    """The watch: copies what it is shown, and puts in place what a caller seeds."""

    seeds: Mapping[tuple[str, str], np.ndarray]
    seen: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def __call__(self, layer: str, what: str, tensor: Tensor) -> None:
        class_major = layer in _CLASS_MAJOR and what in ("z", "delta")
        if (layer, what) in self.seeds:
            seed = as_tensor(np.ascontiguousarray(self.seeds[layer, what]))
            tensor[0].copy_(seed.T if class_major else seed)
        shown = tensor[0].T if class_major else tensor[0]
        if shown.dtype == torch.bfloat16:
            shown = shown.float()
        self.seen[layer, what] = shown.clone(memory_format=torch.contiguous_format).numpy()


def trace(
    subject: Subject,
    X: Features,
    y: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    seeds: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> Snapshot:
    """One pass over all rows as one batch, on the CPU.

    Parameters
    ----------
    subject : Subject
    X : ndarray or CSR matrix of shape (n, D)
    y : ndarray of shape (n, T) or None
        Targets in the engine's form; None for a pass without a loss (0, and so is its gradient).
    weight : ndarray of shape (n,) or None
    seeds : dict or None
        (layer, what) -> ndarray: what is put in place of what the pass would have there, before it
        goes on. ``{("output", "delta"): D}`` is a backward pass from D instead of the loss.
    """
    spec, n = subject.network, int(X.shape[0])
    if y is None:
        spec = replace(spec, loss=_NoLoss())
    keeper = _Keeper(seeds or {})
    statistics_MS = None
    if subject.statistics is not None and subject.statistics.size:
        statistics_MS = as_tensor(_as_dtype(subject.statistics, spec.dtype))[None]
    network = make_network(
        spec,
        as_tensor(_as_dtype(subject.params, spec.dtype).copy())[None],
        n,
        [_NO_TRAINING],
        [torch.Generator()],
        [subject.input_scale],
        statistics_MS,
        keeper,
    )
    bank = SlotBank(
        1,
        1,
        n,
        int(X.shape[1]),
        spec.n_outputs,
        spec.n_outputs if y is None else int(y.shape[1]),
        codes=spec.loss.codes,
        dtype=spec.dtype,
        product_dtype=input_dtype(spec),
        device=torch.device("cpu"),
        sparse=scipy.sparse.issparse(X),
    )
    w = np.ones(n) if weight is None else np.asarray(weight, dtype=np.float64)
    r = w / w.sum()
    views = bank.used(1)
    views.r_MG1B[0, 0, 0].copy_(torch.from_numpy(r))
    if y is not None:
        views.y_MGBT[0, 0].copy_(as_tensor(np.ascontiguousarray(y)))
    smoothing = None
    if subject.label_smoothing:
        smoothing = torch.tensor([subject.label_smoothing], dtype=spec.dtype)
    spec.loss.load_targets(views.T_MGKB, views.y_MGBT, views.r_MG1B, smoothing)
    bank.bind_gather(0, X)(np.arange(n))
    with np.errstate(all="ignore"):  # what overflows is there to be seen, as inf and nan
        for op in network.bind(bank.slots[0], penalised=False):
            op()
        loss = float(spec.loss.value(views.Z_MGKB, views.T_MGKB, views.r_MG1B)[0, 0])
    logits = views.Z_MGKB[0, 0].T.clone(memory_format=torch.contiguous_format).numpy()
    return Snapshot(keeper.seen, logits, loss, network.grads_MP[0].numpy(), r)


def linked(subject: Subject, logits: np.ndarray) -> np.ndarray:
    """Predictions on the scale of the target, from raw outputs (n, K)."""
    z_KN = torch.from_numpy(logits.copy()).T.contiguous()
    return subject.network.loss.link_(z_KN).T.contiguous().numpy()


def _as_dtype(array: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return np.asarray(array, dtype=np.float32 if dtype == torch.float32 else np.float64)


# What a network is told about training that never takes place.
_NO_TRAINING = TrainSpec(
    optimizer=OptimizerSpec(OptimizerKind.SGD, 0.0),
    schedule=Schedule(0.0),
    penalty=0.0,
    batch_size=1,
    max_epochs=0,
    tolerance=0.0,
    patience=0.0,
)
