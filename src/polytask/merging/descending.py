"""Descent on leaves of composed weights: one batch of every task a step, one task's graph at a time."""

from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.merging.composing import Composed
from polytask.merging.session import MergeSession, require_finite

Steps = Annotated[int, Interval(1)]
LearningRate = Annotated[float, Interval(0, open="left")]

Objective = Callable[[str, Any, int], Tensor | None]
"""(task, batch, step) -> what is minimised, 0-d; None where the batch says nothing (no label exists)."""


def descend(
    session: MergeSession,
    leaves: Sequence[Tensor],
    objective: Objective,
    *,
    steps: int,
    optimizer: torch.optim.Optimizer,
    after: Callable[[], None] | None = None,
    first: int = 0,
    total: int | None = None,
    through: Collection[Composed] | None = None,
) -> list[float]:
    """Minimises the sum of the tasks' objectives; the leaves change in place.

    Args:
        session: gives batch `step` of every task.
        leaves: what is learned; the optimizer has them.
        objective: of one task.
        steps: how many.
        optimizer: steps from the leaves' `.grad`.
        after: called after each step, as to keep leaves in their range.
        first: number of the first step, of a descent that goes on.
        total: how many steps there are in all, for whoever is told.
        through: composed weights that depend on the leaves; all of the session's by default.

    Returns: the objective, summed over tasks, of every step.
    Raises: NotFinite, naming the task and the step.
    """
    history = []
    for step in range(first, first + steps):
        value = 0.0
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf)
        with session.step(through) as held:
            for task in session.tasks:
                loss = objective(task, session.batch(task, step), step)
                if loss is None:
                    continue
                require_finite(loss, task, step)
                value += float(loss.detach())
                if loss.requires_grad:
                    loss.backward(inputs=[*leaves, *(weight for weights in held for weight in weights.held())])
            for weights in held:
                weights.pull(leaves)
        optimizer.step()
        if after is not None:
            after()
        history.append(value)
        session.say(step + 1, steps if total is None else total)
    for leaf in leaves:
        leaf.grad = None
    return history


def facts_of(history: Sequence[float]) -> dict[str, float]:
    """The objective's first and last value, for the card."""
    return {"objective_first": history[0], "objective_last": history[-1], "steps": len(history)} if history else {}
