"""A coefficient a task, or one for each layer, tensor: how they are grouped, and what they become in a plan."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.merging.composing import Scaled, group_columns
from polytask.merging.layers import layer_of
from polytask.merging.vectors import Vectors

EACH = ("task", "layer", "tensor")
"""What one coefficient of a task is for: everything, a numbered layer (outside of them a module), or a tensor."""


def columns(vectors: Vectors, each: str) -> dict[str, int]:
    """tensor -> the column of its coefficient."""
    keys = {"task": lambda name: "", "layer": layer_of, "tensor": lambda name: name}
    return group_columns(vectors.names, keys[each])


def scaled(vectors: Vectors, each: str, start: float | Sequence[float]) -> Scaled:
    """A composition with a leaf [T, G] of coefficients.

    Args:    start: of all, or a number a task.
    """
    groups = columns(vectors, each)
    first = torch.as_tensor(start, dtype=torch.float32).expand(len(vectors.tasks))
    leaf = first[:, None].repeat(1, max(groups.values(), default=-1) + 1)
    return Scaled(vectors, leaf.requires_grad_(), groups)


def by_task(
    coefficients: Tensor, tasks: Sequence[str], groups: Mapping[str, int]
) -> dict[str, float | dict[str, float]]:
    """task -> its number, or where it has several tensor -> number."""
    rows = coefficients.detach().tolist()
    alone = len(set(groups.values())) <= 1
    return {
        task: row[0] if alone else {name: row[column] for name, column in groups.items()}
        for task, row in zip(tasks, rows, strict=True)
    }
