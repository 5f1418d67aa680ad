"""Sums over processes, so that a rule sees the gradients of the global batch and replicas stay equal.

A local loss is a mean over c labels; the global mean is sum_r c_r L_r / C with C = sum_r c_r. Each process therefore
scales its loss by c / C and gradients are summed. A task that one process lacks has c = 0 there and sends zeros, so
nothing waits for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from polytask.core.errors import MissingInput


def active() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@dataclass(frozen=True)
class GlobalLosses:
    """The tasks that any process has, their losses and labels over all processes, this process's share of each."""

    tasks: list[str]
    values: Tensor  # float64 [T]
    local: dict[str, Tensor]  # task -> this process's loss scaled by its share, for backward
    counts: Tensor  # labels behind each, float64 [T]


def reduced_losses(
    losses: Mapping[str, Tensor],
    counts: Mapping[str, float] | None,
    tasks: Sequence[str] | None,
    device: torch.device,
) -> GlobalLosses:
    """Global means of the losses; without counts every process that has a task counts the same."""
    if tasks is None:
        raise MissingInput(
            "under torch.distributed the balancer needs tasks=[...], every task that any process may have"
        )
    count = [float(counts[task]) if counts is not None else 1.0 for task in losses]
    table = torch.zeros(2, len(tasks), dtype=torch.float64, device=device)  # numerators, counts
    for (task, loss), c in zip(losses.items(), count, strict=True):
        if c == 0:  # the mean over no labels may be anything
            continue
        table[0, tasks.index(task)] = loss.detach().double() * c
        table[1, tasks.index(task)] = c
    distributed.all_reduce(table)
    table = table.cpu()
    present = [task for i, task in enumerate(tasks) if table[1, i] > 0]
    index = [tasks.index(task) for task in present]
    total = {task: float(table[1, i]) for task, i in zip(present, index, strict=True)}
    # a task that only other processes have labels for stays, times 0: every process then runs the same backward passes
    local = {
        task: loss * (c / total[task]) for (task, loss), c in zip(losses.items(), count, strict=True) if task in total
    }
    return GlobalLosses(present, table[0, index] / table[1, index], local, table[1, index])


def union(reaches: Tensor) -> Tensor:
    """Element-wise or of a bool table over processes."""
    table = reaches.to(torch.uint8)
    distributed.all_reduce(table, op=distributed.ReduceOp.MAX)
    return table.bool()


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Sums each tensor over processes, in the given order on every process."""
    for tensor in tensors:
        distributed.all_reduce(tensor)
