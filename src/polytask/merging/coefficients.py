"""A coefficient a task, or one for each layer, tensor: how they are grouped, and what they become in a plan."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Choice
from polytask.merging.composing import Composed, Scaled, group_columns
from polytask.merging.descending import descend, facts_of
from polytask.merging.layers import layer_of
from polytask.merging.learning import Learned
from polytask.merging.session import MergeSession
from polytask.merging.vectors import Vectors

EACH = ("task", "layer", "tensor")
"""What one coefficient of a task is for: everything, a numbered layer (outside of them a module), or a tensor."""

Each = Annotated[str, Choice(*EACH)]


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


def learn_coefficients(
    session: MergeSession,
    objective: Callable[[Composed, str, Any], Tensor | None],
    *,
    each: str,
    start: float,
    steps: int,
    learning_rate: float,
) -> Learned:
    """The coefficients that steps of Adam lead to, which is all that is learned.

    Args:
        session: gives every task's batches.
        objective: (merged weights, task, batch) -> what is minimised, 0-d; None where the batch says nothing.
        each, start: see `scaled`.
        steps, learning_rate: of Adam, each step on one batch of every task.
    """
    composition = scaled(session.vectors, each, start)
    leaf, weights = composition.coefficients, session.composed(composition)
    history = descend(
        session,
        [leaf],
        lambda task, batch, step: objective(weights, task, batch),
        steps=steps,
        optimizer=torch.optim.Adam([leaf], lr=learning_rate),
    )
    return Learned(by_task(leaf, session.tasks, composition.groups), facts=facts_of(history))
