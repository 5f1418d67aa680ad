"""Several batches of one step: the losses over all of them, and each batch's part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.step_losses import StepLosses
from polytask.core.errors import BadValue, MissingInput


@dataclass(frozen=True)
class Batches:
    """The independent batches of a step.

    Attributes:
        losses: of each batch: task -> this process's part of its loss, times the batch's share.
        shares: of each batch and task: its part of the labels of all batches, float64 [batches, T].
    """

    losses: list[dict[str, Tensor]]
    shares: Float[Tensor, "batches T"]


def independent(found: Sequence[StepLosses]) -> tuple[StepLosses, Batches]:
    """(the losses over all batches, in which each label counts the same, the batches), of the tasks that are in each.

    A task that one of the batches lacks is absent from the step.
    """
    tasks = [task for task in found[0].tasks if all(task in each.tasks for each in found)]
    rows = [[each.tasks.index(task) for task in tasks] for each in found]
    counts = torch.stack([each.counts[row] for each, row in zip(found, rows, strict=True)])
    shares = counts / counts.sum(0)
    values = torch.stack([each.values[row] for each, row in zip(found, rows, strict=True)])
    losses = [
        {task: each.local[task] * share for task, share in zip(tasks, part.tolist(), strict=True) if task in each.local}
        for each, part in zip(found, shares, strict=True)
    ]
    mean: dict[str, Tensor] = {}
    for task in tasks:  # a process may lack some
        parts = [each[task] for each in losses if task in each]
        mean |= {task: sum(parts[1:], start=parts[0])} if parts else {}
    over_all = StepLosses(tasks, (shares * values).sum(0), mean, counts.sum(0))
    return over_all, Batches(losses, shares)


def one_batch(losses: Any, where: str) -> Mapping[str, Tensor]:
    """The losses; BadValue if they have no names."""
    if not isinstance(losses, Mapping):
        raise BadValue("losses", type(losses).__name__, "a mapping {task: loss}", where)
    return losses


def in_batches(losses: Any, counts: Any, where: str) -> list[tuple[Mapping[str, Tensor], Mapping[str, float] | None]]:
    """Losses and counts of each batch; MissingInput or BadValue where there are not two or three of each."""
    many = list(losses) if isinstance(losses, Sequence) else []
    if len(many) not in (2, 3) or not all(isinstance(each, Mapping) for each in many):
        call = "backward([losses_a, losses_b, losses_c], model)"
        raise MissingInput(f"{where} reads two or three independent batches: {call}")
    numbers = [None] * len(many) if counts is None else list(counts)
    if isinstance(counts, Mapping) or len(numbers) != len(many):
        raise BadValue("counts", counts, f"{len(many)} mappings, as losses", where)
    return list(zip(many, numbers, strict=True))
