"""How jobs are cut into stacks: what can be trained together, and how many at a time.

Results do not depend on it beyond rounding; speed and memory do. Within one structure
(`spec.stack_key`) the models that read the same rows in the same order come first: they share each
batch. The others are ordered by their optimizer's numbers, so that neighbours are updated by one
call. Then both are cut into stacks of a size that suits the device.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import scipy.sparse
import torch

from sknn_resid.engine.alike import Likeness
from sknn_resid.engine.compiled import compiles
from sknn_resid.engine.job import TrainJob
from sknn_resid.engine.losses import CallableLoss
from sknn_resid.engine.spec import OptimizerKind, stack_key
from sknn_resid.engine.structure import layout_of, numbers_per_row

# Bytes that a step of a stack goes through on a CPU: activations and deltas of a batch, parameters,
# gradients, moments. See docs/architecture.md for the measurement.
CPU_STACK_BYTES = 4 << 20
MOST_ON_CPU = 32
# Fewer models than this do not make a stack of their own for the sake of a shared batch: three
# calls on stacks of 2 cost more than one call on 6 saves.
FEWEST_SHARED = 4
GPU_SHARE = 0.5  # of the memory that is free


@dataclass(frozen=True, eq=False)
class StackPlan:
    """One stack.

    Attributes
    ----------
    paths : list of list of int
        For each model the jobs that follow it, by their place in the list of jobs.
    shared_rows : bool
        Whether all its models read the same rows in the same order.
    flops : float
        Work of one step.
    """

    paths: list[list[int]]
    shared_rows: bool
    flops: float

    @property
    def flops_of_a_model(self) -> float:
        """Work of one model in a step: a product of BLAS is of one model."""
        return self.flops / len(self.paths)

    @property
    def jobs(self) -> list[int]:
        """All jobs of the stack."""
        return [i for path in self.paths for i in path]


def plan_stacks(likes: Sequence[Likeness], n_workers: int) -> list[StackPlan]:
    """Cut jobs into stacks, those with most work first.

    Parameters
    ----------
    likes : sequence of Likeness
        One a job.
    n_workers : int
        How many stacks are trained at the same time.
    """
    stacks = []
    for group in _by_structure(likes):
        size = models_per_stack(likes[group[0][0]].job)
        for shared, part in _by_rows(likes, group):
            for paths in _cut(likes, part, size, n_workers):
                flops = step_flops(likes[paths[0][0]].job) * len(paths)
                stacks.append(StackPlan(paths, shared and len(paths) > 1, flops))
    return sorted(stacks, key=lambda stack: -_work(likes, stack))


def step_flops(job: TrainJob) -> float:
    """Work of a step of one model: forward, gradient and delta are a product each."""
    return 6.0 * layout_of(job.network).n_params * _batch_rows(job)


def models_per_stack(job: TrainJob) -> int:
    """How many models like this one are trained in one stack."""
    if job.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(job.device)
        return max(1, int(GPU_SHARE * free / _bytes(job)))
    return min(MOST_ON_CPU, max(1, round(CPU_STACK_BYTES / _bytes(job))))


def _bytes(job: TrainJob) -> int:
    """Memory of one model: activations and deltas; parameters, gradients and two moments."""
    network = job.network
    # Compiled steps go through one model after another, all of them in the same scratch memory.
    per_row = 0 if compiles([job]) else numbers_per_row(network)
    if job.device.type != "cpu":
        per_row += job.data.n_features
    return network.dtype.itemsize * (_batch_rows(job) * per_row + 4 * layout_of(network).n_params)


def _batch_rows(job: TrainJob) -> int:
    if job.train.optimizer.kind is OptimizerKind.LBFGS:
        return job.data.n_rows
    return min(job.train.batch_size, job.data.n_rows)


def _by_structure(likes: Sequence[Likeness]) -> list[list[list[int]]]:
    """Groups of models that fit into one stack; a model is the list of jobs that follow it."""
    groups: dict[Hashable, dict[Hashable, list[int]]] = {}
    for i, like in enumerate(likes):
        job = like.job
        key: tuple[Hashable, ...] = (
            stack_key(job.network, job.train),
            job.device,
            scipy.sparse.issparse(job.data.X),
        )
        path = like.path
        if job.train.optimizer.kind is OptimizerKind.LBFGS or isinstance(
            job.network.loss, CallableLoss
        ):
            # scipy minimises one network at a time; a user's function may raise within the step,
            # and that must end its own job only.
            key, path = (*key, i), None
        groups.setdefault(key, {}).setdefault(("alone", i) if path is None else path, []).append(i)
    return [list(models.values()) for models in groups.values()]


def _by_rows(
    likes: Sequence[Likeness], group: Sequence[list[int]]
) -> list[tuple[bool, list[list[int]]]]:
    """Models that share their rows, and at the end all that do not."""
    by_rows: dict[Hashable, list[list[int]]] = {}
    for path in group:
        rows = likes[path[0]].rows
        by_rows.setdefault(("alone", path[0]) if rows is None else rows, []).append(path)
    if likes[group[0][0]].job.device.type != "cpu":
        # A launch takes as long for all models as for some of them, and one call gathers the rows
        # of all, whether they are the same or not.
        return [(len(by_rows) == 1, list(group))]
    shared = [part for part in by_rows.values() if len(part) >= FEWEST_SHARED]
    rest = [path for part in by_rows.values() if len(part) < FEWEST_SHARED for path in part]
    return [*((True, part) for part in shared), *([(len(by_rows) == 1, rest)] if rest else [])]


def _cut(
    likes: Sequence[Likeness], part: Sequence[list[int]], size: int, n_workers: int
) -> list[list[list[int]]]:
    """Stacks of at most ``size`` models; a team is never divided."""
    teams: dict[Hashable, list[list[int]]] = {}
    for path in sorted(part, key=lambda path: _numbers(likes[path[0]].job)):
        team = likes[path[0]].job.team
        key = ("alone", path[0]) if team is None else ("team", id(team))
        teams.setdefault(key, []).append(path)
    total = len(part)
    n_stacks = -(-total // size)
    if n_stacks < n_workers:
        n_stacks = min(n_workers, len(teams))
    stacks: list[list[list[int]]] = [[] for _ in range(n_stacks)]
    done = 0
    for team in teams.values():
        # equal shares: the stack in which the middle of the team falls
        stacks[min(n_stacks - 1, int((done + len(team) / 2) * n_stacks / total))] += team
        done += len(team)
    return [stack for stack in stacks if stack]


def _numbers(job: TrainJob) -> tuple[float, ...]:
    """What the optimizer's update depends on."""
    o, train = job.train.optimizer, job.train
    return (o.learning_rate, o.beta_1, o.beta_2, o.epsilon, o.momentum, train.penalty)


def _work(likes: Sequence[Likeness], stack: StackPlan) -> float:
    """Work of the whole training."""
    train = likes[stack.paths[0][0]].job.train
    steps = likes[stack.paths[0][0]].job.data.n_rows / max(1, train.batch_size)
    epochs = max(likes[i].job.train.max_epochs for i in stack.jobs)
    return stack.flops * steps * epochs
