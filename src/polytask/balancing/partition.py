"""Which task reaches which parameter, and so which parameters are shared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.graph import reached
from polytask.core.errors import MissingInput, UnknownName


@dataclass(frozen=True)
class Partition:
    """Which task reaches which parameter.

    Attributes:
        parameters: name -> parameter, in the model's order.
        reaches: bool [parameters, T].
        shared: names of those reached by two or more tasks, or as the caller said.
    """

    parameters: dict[str, Tensor]
    reaches: Tensor
    shared: list[str]

    @property
    def private(self) -> list[str]:
        shared = dict.fromkeys(self.shared)
        used = self.reaches.any(1).tolist()
        return [name for name, anyone in zip(self.parameters, used, strict=True) if anyone and name not in shared]

    def shared_only(self) -> "Partition":
        """The same as if no task reached anything else."""
        shared = dict.fromkeys(self.shared)
        kept = torch.tensor([name in shared for name in self.parameters])
        return Partition(self.parameters, self.reaches & kept[:, None], self.shared)

    def owner(self, name: str, tasks: Sequence[str]) -> str:
        """The first task that reaches a parameter."""
        return tasks[int(self.reaches[list(self.parameters).index(name)].int().argmax())]


def partition(
    losses: Mapping[str, Tensor],
    tasks: Sequence[str],
    named: Mapping[str, Tensor],
    shared: Sequence[str] | None,
    masks: Mapping[Tensor, int] | None = None,
) -> Partition:
    """Sorts the parameters by who reaches them; leaves outside the model are taken in too, named leaf.0, leaf.1, ...

    With a single task everything that it reaches counts as shared: the rule then sees one task and its own gradient.
    `masks` is what `graph.reached` says of the losses, where that is known.
    """
    if masks is None:
        masks = reached(losses) if losses else {}
    parameters = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    others = outside(masks, parameters)
    if distribution.active():
        refuse_outside(masks, parameters)
    parameters |= {f"leaf.{i}": leaf for i, leaf in enumerate(others)}
    column = [tasks.index(task) for task in losses]
    reaches = reached_table([masks.get(parameter, 0) for parameter in parameters.values()], column, len(tasks))
    if distribution.active():
        reaches = distribution.union(reaches)
    return sorted_out(parameters, reaches, tasks, shared)


def sorted_out(
    parameters: dict[str, Tensor],
    reaches: Tensor,
    tasks: Sequence[str],
    shared: Sequence[str] | None,
    *,
    weighs_losses: bool = False,
) -> Partition:
    """The partition by who reaches what; to a rule that weighs losses whatever any task reaches is shared."""
    if shared is not None:
        for name in shared:
            if name not in parameters:
                raise UnknownName("parameter", name, parameters, "shared=")
        return Partition(parameters, reaches, list(shared))
    least = 1 if weighs_losses else min(2, len(tasks))
    found = [name for name, count in zip(parameters, reaches.sum(1).tolist(), strict=True) if count >= least]
    if not found:
        raise MissingInput(
            f"no parameter is reached by two of the tasks {', '.join(tasks)}: there is nothing to balance"
        )
    return Partition(parameters, reaches, found)


def reached_table(masks: Sequence[int], columns: Sequence[int], tasks: int) -> Tensor:
    """Bool [len(masks), tasks] from bitmasks whose bit i stands for column columns[i]."""
    rows = [[False] * tasks for _ in masks]
    for row, mask in zip(rows, masks, strict=True):
        for bit, column in enumerate(columns):
            row[column] = bool(mask >> bit & 1)
    return torch.tensor(rows, dtype=torch.bool).view(len(masks), tasks)


def outside(leaves: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """The leaves that are not among the parameters."""
    known = {id(parameter) for parameter in parameters.values()}
    return [leaf for leaf in leaves if id(leaf) not in known]


def refuse_outside(leaves: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> None:
    """MissingInput if a loss depends on a parameter that is not in the model: other processes would not know of it."""
    others = outside(leaves, parameters)
    if others:
        raise MissingInput(
            "under torch.distributed every trained parameter must be in the model: "
            f"one of shape {tuple(others[0].shape)} is not"
        )
