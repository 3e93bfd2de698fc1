"""Seconds of a training step of a deep residual network: ours, skorch's and a plain torch loop.

Expected before measuring (8 blocks, width 128, batches of 256, one CPU thread)
------------------------------------------------------------------------------
* float32: at least 1.7 times skorch's speed and 1.25 times the plain torch loop's, with batch and
  with layer normalization;
* bfloat16 products: at least 2 times skorch's speed (in float32).

Two threads have no goal: they are measured and reported.

What is equal among the contestants
-----------------------------------
The network (x + W_2 relu(W_1 n(x) + b_1) + b_2, as in Gorishniy et al. 2021), rows, initial
weights, batches, AdamW (rate 0.001, decay 0.01 on matrices), one logit with the logistic loss,
thread count. The final loss is computed here, by one function, from the weights that each
contestant ends with. Ours is the engine's own job, without the estimator's table encoding,
validation and committee.

Usage: ``python benchmarks/residual_fit.py [--threads 1 2] [--norms batch layer] [--repeats 5]``.
About a minute a thread count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import _harness as harness

SEED = 0
LEARNING_RATE, DECAY = 0.001, 0.01
NORMS = ("batch", "layer")
CONTESTANTS = ("ours", "skorch", "torch", "torch autocast")
GOALS = {("ours", "skorch"): 1.7, ("ours", "torch"): 1.25, ("ours bfloat16", "skorch"): 2.0}


@dataclass(frozen=True)
class Shape:
    """One workload."""

    rows: int = 10_240
    columns: int = 32
    width: int = 128
    n_blocks: int = 8
    batch: int = 256
    epochs: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps of one fit."""
        return self.epochs * -(-self.rows // self.batch)


@dataclass(frozen=True, eq=False)
class Problem:
    """What all contestants are given."""

    shape: Shape
    norm: str
    X: Any
    y: Any  # 0 or 1
    params: Any  # flat, in the engine's order


Fit = Callable[[], Any]  # trains once, returns flat parameters in the engine's order


def make_problem(shape: Shape, norm: str) -> Problem:
    """Rows drawn at random, a tenth of the labels wrong, and the initial weights."""
    import numpy as np
    from sklearn.datasets import make_classification
    from sklearn.preprocessing import StandardScaler

    from sknn_resid.engine.residual_init import InitSpec, initial_parameters

    X, y = make_classification(
        shape.rows,
        shape.columns,
        n_informative=shape.columns // 2,
        flip_y=0.1,
        random_state=SEED,
    )
    X = StandardScaler().fit_transform(X).astype(np.float32)
    params = initial_parameters(
        spec(shape, norm), InitSpec(branch_gain=0.5), np.random.RandomState(SEED)
    )
    return Problem(shape, norm, X, y.astype("int64"), params)


def spec(shape: Shape, norm: str, *, bfloat16: bool = False) -> Any:
    """The structure, in the engine's terms."""
    import torch

    from sknn_resid.engine.activations import Relu
    from sknn_resid.engine.losses import BinaryCrossEntropy
    from sknn_resid.engine.residual_spec import Normalization, ResidualSpec

    return ResidualSpec(
        n_features=shape.columns,
        width=shape.width,
        hidden=shape.width,
        n_blocks=shape.n_blocks,
        n_outputs=1,
        activation=Relu(),
        loss=BinaryCrossEntropy(),
        dtype=torch.float32,
        product_dtype=torch.bfloat16 if bfloat16 else torch.float32,
        normalization=Normalization(norm),
    )


def job(problem: Problem, *, bfloat16: bool = False) -> Any:
    """The engine's job."""
    import numpy as np

    from sknn_resid.engine.data import TrainingData
    from sknn_resid.engine.job import TrainJob
    from sknn_resid.engine.schedules import Schedule
    from sknn_resid.engine.spec import OptimizerKind, OptimizerSpec, TrainSpec

    shape = problem.shape
    return TrainJob(
        network=spec(shape, problem.norm, bfloat16=bfloat16),
        train=TrainSpec(
            optimizer=OptimizerSpec(OptimizerKind.ADAMW, LEARNING_RATE),
            schedule=Schedule(),
            penalty=DECAY,
            batch_size=shape.batch,
            max_epochs=shape.epochs,
            tolerance=0.0,
            patience=np.inf,
        ),
        data=TrainingData(problem.X, problem.y[:, None].astype(np.float32)),
        params=problem.params.copy(),
        rng=np.random.RandomState(SEED),
    )


def training_loss(problem: Problem, params: Any) -> float:
    """Cross-entropy on the training rows of the network with these weights."""
    from sknn_resid.engine.residual_fitted import FittedResidual, training_statistics

    own = job(problem)
    statistics_ = training_statistics(own, params)
    fitted = FittedResidual(own.network, params[None], statistics_[None])
    return harness.cross_entropy(problem.y, fitted.outputs(problem.X)[0, :, 0])


# ---- the contestants -----------------------------------------------------------------------------


def ours(problem: Problem, *, bfloat16: bool = False) -> Fit:
    """The engine."""
    from sknn_resid.engine.runner import run_jobs

    def fit() -> Any:
        (result,) = run_jobs([job(problem, bfloat16=bfloat16)])
        return result.params

    return fit


def module(shape: Shape, norm: str, params: Any) -> Any:
    """The network as a torch module, with the given weights."""
    import torch
    from torch import nn

    make = nn.BatchNorm1d if norm == "batch" else nn.LayerNorm

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = make(shape.width)
            self.first = nn.Linear(shape.width, shape.width)
            self.second = nn.Linear(shape.width, shape.width)

        def forward(self, x: Any) -> Any:
            return x + self.second(torch.relu(self.first(self.norm(x))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Linear(shape.columns, shape.width)
            self.blocks = nn.Sequential(*(Block() for _ in range(shape.n_blocks)))
            self.norm = make(shape.width)
            self.head = nn.Linear(shape.width, 1)

        def forward(self, x: Any) -> Any:
            return self.head(torch.relu(self.norm(self.blocks(self.input(x)))))

    net = Network()
    with torch.no_grad():
        for own, (array, transposed) in pairs(net, shape, norm, params):
            own.copy_(torch.from_numpy((array.T if transposed else array).copy()))
    return net


def pairs(net: Any, shape: Shape, norm: str, params: Any) -> list[tuple[Any, tuple[Any, bool]]]:
    """The module's tensors beside the engine's arrays, and whether one is the other's transpose."""
    from sknn_resid.engine.residual_layout import ResidualLayout

    p = ResidualLayout(spec(shape, norm)).unpack(params)
    found = [
        (net.input.weight, (p["input.W"], True)),
        (net.input.bias, (p["input.b"], False)),
        (net.head.weight, (p["head.W"], False)),
        (net.head.bias, (p["head.b"], False)),
        (net.norm.weight, (p["final.gamma"], False)),
        (net.norm.bias, (p["final.beta"], False)),
    ]
    for s, block in enumerate(net.blocks):
        for l, linear in enumerate((block.first, block.second), 1):
            found.append((linear.weight, (p[f"block{s}.W{l}"], True)))
            found.append((linear.bias, (p[f"block{s}.b{l}"], False)))
        found.append((block.norm.weight, (p[f"block{s}.norm1.gamma"], False)))
        found.append((block.norm.bias, (p[f"block{s}.norm1.beta"], False)))
    return found


def flat_of(net: Any, problem: Problem) -> Any:
    """The module's weights in the engine's order."""
    flat = problem.params.copy()
    for own, (array, transposed) in pairs(net, problem.shape, problem.norm, flat):
        values = own.detach().numpy()
        array[:] = values.T if transposed else values
    return flat


def groups(net: Any) -> list[dict[str, Any]]:
    """Decay on matrices only."""
    tensors = list(net.parameters())
    return [
        {"params": [t for t in tensors if t.dim() == 2], "weight_decay": DECAY},
        {"params": [t for t in tensors if t.dim() != 2], "weight_decay": 0.0},
    ]


def plain_torch(problem: Problem, *, autocast: bool = False) -> Fit:
    """The loop a good user writes: the rows of an epoch gathered at once, torch's AdamW."""
    import numpy as np
    import torch

    shape = problem.shape

    def fit() -> Any:
        net = module(shape, problem.norm, problem.params)
        optimizer = torch.optim.AdamW(groups(net), lr=LEARNING_RATE)
        data = torch.from_numpy(problem.X)
        target = torch.from_numpy(problem.y.astype(np.float32))[:, None]
        criterion = torch.nn.BCEWithLogitsLoss()
        state, order = np.random.RandomState(SEED), np.arange(shape.rows)
        for _ in range(shape.epochs):
            order = order[state.permutation(shape.rows)]
            rows = torch.from_numpy(order)
            X_epoch, y_epoch = data[rows], target[rows]
            for start in range(0, shape.rows, shape.batch):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    output = net(X_epoch[start : start + shape.batch])
                loss = criterion(output.float(), y_epoch[start : start + shape.batch])
                loss.backward()
                optimizer.step()
        return flat_of(net, problem)

    return fit


def skorch(problem: Problem) -> Fit:
    """skorch's classifier as its documentation shows it, with the batches of the others."""
    import numpy as np
    import torch
    from skorch import NeuralNetBinaryClassifier
    from torch.utils.data import Sampler

    shape = problem.shape

    class SameBatches(Sampler):
        """Rows in the order of the others; stands where RandomSampler would."""

        def __init__(self) -> None:
            self.order, self.state = np.arange(shape.rows), np.random.RandomState(SEED)

        def __len__(self) -> int:
            return shape.rows

        def __iter__(self) -> Any:
            self.order = self.order[self.state.permutation(shape.rows)]
            return iter(self.order.tolist())

    class AdamW(torch.optim.AdamW):
        """Decay on matrices only, from the parameters as skorch hands them over."""

        def __init__(self, parameters: Any, lr: float) -> None:
            tensors = [t for group in parameters for t in group["params"]]
            decayed = [t for t in tensors if t.dim() == 2]
            free = [t for t in tensors if t.dim() != 2]
            super().__init__(
                [{"params": decayed, "weight_decay": DECAY}, {"params": free, "weight_decay": 0.0}],
                lr=lr,
            )

    def fit() -> Any:
        net = NeuralNetBinaryClassifier(
            module(shape, problem.norm, problem.params),
            criterion=torch.nn.BCEWithLogitsLoss,
            optimizer=AdamW,
            lr=LEARNING_RATE,
            max_epochs=shape.epochs,
            batch_size=shape.batch,
            iterator_train__sampler=SameBatches(),
            train_split=None,
            verbose=0,
        )
        net.fit(problem.X, problem.y.astype(np.float32))
        return flat_of(net.module_, problem)

    return fit


# ---- a worker ------------------------------------------------------------------------------------


def build(problem: Problem, names: list[str]) -> dict[str, Fit]:
    """The contestants of one problem."""
    makers: dict[str, Callable[[], Fit]] = {
        "ours": lambda: ours(problem),
        "ours bfloat16": lambda: ours(problem, bfloat16=True),
        "skorch": lambda: skorch(problem),
        "torch": lambda: plain_torch(problem),
        "torch autocast": lambda: plain_torch(problem, autocast=True),
    }
    return {name: makers[name]() for name in names}


def measure(shape: Shape, norm: str, names: list[str], threads: int, repeats: int) -> list[Any]:
    """Time one normalization; return one row for each contestant."""
    # A fit of two batches each: lazy imports and thread pools are set up before the clock starts.
    for fit in build(make_problem(replace(shape, rows=2 * shape.batch), norm), names).values():
        fit()
    problem = make_problem(shape, norm)
    clock_name, clock = harness.clock_for(threads)
    seconds, params = harness.time_interleaved(build(problem, names), repeats=repeats, clock=clock)
    losses = {name: training_loss(problem, flat) for name, flat in params.items()}
    rows = []
    for name in names:
        median = statistics.median(seconds[name])
        rows.append(
            {
                "norm": norm,
                "contestant": name,
                "threads": threads,
                "clock": clock_name,
                "seconds": seconds[name],
                "median": median,
                "per_step": median / shape.steps,
                "versus_skorch": harness.ratio(seconds, name, "skorch"),
                "versus_torch": harness.ratio(seconds, name, "torch"),
                "loss": losses[name],
                "loss_agrees": harness.agrees(losses[name], losses["ours"]),
            }
        )
    return rows


def work(options: argparse.Namespace) -> None:
    """Measure everything asked of this worker and write the rows to ``--worker-output``."""
    threads, notes, rows = options.threads[0], [], []
    names = ["ours", "ours bfloat16", *CONTESTANTS[1:]]
    if importlib.util.find_spec("skorch") is None:
        names.remove("skorch")
        notes.append("skorch is not installed: its rows are missing")
    if not harness.has_bfloat16_products():
        names = [name for name in names if name not in ("ours bfloat16", "torch autocast")]
        notes.append("no bfloat16: this processor does not multiply it in hardware")
    shape = replace(Shape(), rows=600, n_blocks=2) if options.smoke else Shape()
    with harness.pinned_threads(threads):
        for norm in options.norms:
            print(f"  {norm} ...", file=sys.stderr, flush=True)
            rows += measure(shape, norm, names, threads, options.repeats)
    options.worker_output.write_text(json.dumps({"rows": rows, "notes": notes}))


# ---- the parent ----------------------------------------------------------------------------------


def goal(row: dict[str, Any]) -> str:
    """Say what was expected of a row and whether it was reached; empty where nothing was."""
    if row["threads"] != 1:
        return ""
    parts = []
    for peer in ("skorch", "torch"):
        wanted, found = GOALS.get((row["contestant"], peer)), row[f"versus_{peer}"]
        if wanted is not None and found is not None:
            parts.append(f"{peer} {wanted:g}x {'met' if found['median'] >= wanted else 'MISSED'}")
    return ", ".join(parts)


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the rows of one worker."""
    headers = ["norm", "contestant", "one step", "x skorch (rounds)", "x torch (rounds)"]
    headers += ["loss", "within 1 %", "goal"]
    table = [
        [
            row["norm"],
            row["contestant"],
            harness.format_seconds(row["per_step"]),
            harness.format_ratio(row["versus_skorch"]),
            harness.format_ratio(row["versus_torch"]),
            f"{row['loss']:.5f}",
            "yes" if row["loss_agrees"] else "NO",
            goal(row),
        ]
        for row in rows
    ]
    return harness.format_table(headers, table)


def main() -> None:
    """Run the workers one after another, print a table for each, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    harness.add_common_options(parser, "residual_fit")
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    options = parser.parse_args()
    if options.worker_output is not None:
        work(options)
        return
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for threads in options.threads:
        arguments = ["--threads", str(threads), "--norms", *options.norms]
        arguments += ["--repeats", str(options.repeats), *(["--smoke"] * options.smoke)]
        found = harness.run_worker(__file__, arguments, threads)
        rows += found["rows"]
        notes += [note for note in found["notes"] if note not in notes]
        clock = "CPU seconds" if threads == 1 else "wall seconds"
        print(f"\n{threads} thread{'s' * (threads > 1)}, {clock}, median of rounds\n")
        print(report(found["rows"]), flush=True)
    print("\n".join(["", *notes]))
    harness.write_results(options.output, "residual_fit", rows, notes)
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
