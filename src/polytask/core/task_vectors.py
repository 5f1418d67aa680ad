"""Per-task vectors over named parameters: gradients while training, fine-tuned minus base afterwards."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core import geometry
from polytask.core.errors import BadValue, UnknownName


class TaskVectors(Mapping[str, Mapping[str, Tensor]]):
    """task -> {parameter name -> tensor}, stored as one stack [T, *shape] a parameter.

    Args:
        tasks: the tasks, in the order of the rows.
        stacks: parameter name -> [T, *shape]; not copied.
    """

    def __init__(self, tasks: Sequence[str], stacks: Mapping[str, Tensor]) -> None:
        self.tasks = list(tasks)
        self.stacks = dict(stacks)
        for name, stack in self.stacks.items():
            if stack.dim() == 0 or len(stack) != len(self.tasks):
                raise BadValue(
                    f"the stack of {name!r}", tuple(stack.shape), f"({len(self.tasks)}, ...), a row for each task"
                )

    @classmethod
    def from_mapping(cls, vectors: Mapping[str, Mapping[str, Tensor]]) -> "TaskVectors":
        """From {task: {name: tensor}}; every task must have the same names and shapes."""
        tasks = list(vectors)
        if not tasks:
            raise BadValue("the number of tasks", 0, "at least 1")
        names = list(vectors[tasks[0]])
        for task in tasks:
            for name in [*vectors[task], *names]:
                if name not in names or name not in vectors[task]:
                    raise UnknownName("parameter", name, vectors[task] if name in names else names, f"task {task!r}")
                found, wanted = tuple(vectors[task][name].shape), tuple(vectors[tasks[0]][name].shape)
                if found != wanted:
                    raise BadValue(
                        f"the shape of {name!r}", found, f"{wanted}, as in task {tasks[0]!r}", f"task {task!r}"
                    )
        return cls(tasks, {name: torch.stack([vectors[task][name] for task in tasks]) for name in names})

    def __getitem__(self, task: str) -> dict[str, Tensor]:
        if task not in self.tasks:
            raise UnknownName("task", task, self.tasks)
        row = self.tasks.index(task)
        return {name: stack[row] for name, stack in self.stacks.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def names(self) -> list[str]:
        return list(self.stacks)

    def gram(self, names: Sequence[str] | None = None) -> Float[Tensor, "T T"]:
        """Inner products over all parameters, or over `names`: G is the sum over parameters."""
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for name in self.names if names is None else names:
            total += geometry.gram(self.stacks[name])
        return total

    def cross_gram(self, other: "TaskVectors", names: Sequence[str] | None = None) -> Float[Tensor, "T T"]:
        """Inner products of these vectors (rows) with another batch's (columns), as `gram`."""
        total = torch.zeros(len(self), len(self), dtype=torch.float64)
        for name in self.names if names is None else names:
            total += geometry.cross_gram(self.stacks[name], other.stacks[name])
        return total

    def norms(self, names: Sequence[str] | None = None) -> Float[Tensor, "T"]:
        """Lengths of the task vectors over all parameters, or over `names`, float64 on the CPU."""
        lengths = [
            torch.linalg.vector_norm(geometry.as_rows(self.stacks[name]), dim=1, dtype=torch.float64).cpu()
            for name in (self.names if names is None else names)
        ]
        if not lengths:
            return torch.zeros(len(self), dtype=torch.float64)
        return torch.linalg.vector_norm(torch.stack(lengths), dim=0)

    def sign_agreement(self) -> Float[Tensor, "T T"]:
        """Share of coordinates with the same sign, over all parameters (see geometry.sign_agreement)."""
        return geometry.sign_agreement(torch.cat([geometry.as_rows(stack) for stack in self.stacks.values()], dim=1))

    def combined(self, weights: Float[Tensor, "T"], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The weighted sum of the task vectors, in the vectors' precision."""
        chosen = self.names if names is None else names
        return {name: weighted_sum(self.stacks[name], weights) for name in chosen}


def weighted_sum(stack: Float[Tensor, "T ..."], weights: Float[Tensor, "T"]) -> Float[Tensor, "..."]:
    """sum_t weights[t] * stack[t] in the stack's type; half precision is summed in single."""
    working = torch.promote_types(stack.dtype, torch.float32)
    weights = weights.to(device=stack.device, dtype=working)
    return (weights @ geometry.as_rows(stack).to(working)).to(stack.dtype).view(stack.shape[1:])
