"""From every task's gradients to one gradient a parameter, by the rule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polytask.balancing.accumulation import as_sparse, infinite
from polytask.balancing.engine import Combined, Step, summed_gram
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.partition import Partition
from polytask.core.task_vectors import TaskVectors
from polytask.core.tracking import times


@dataclass(frozen=True)
class TaskGradients:
    """What one backward pass a task gives.

    Attributes:
        shared: the tasks' gradients of the shared parameters; its stacks are overwritten by the next step.
        private: name -> the gradient of a parameter that one task reaches, owned by the caller.
        rows: name -> the rows that any task touched, for shared parameters whose gradients are all sparse.
    """

    shared: TaskVectors
    private: dict[str, Tensor]
    rows: dict[str, Tensor] = field(default_factory=dict)


def combined_gradients(step: Step, rules: GroupRules, part: Partition, found: TaskGradients) -> Combined:
    """What the rules make of them; NotFinite names the task whose gradient is not."""
    groups = rules.grouped(part.shared)
    if rules.spec.tracker is not None:
        return _tracked(step, rules, part, found)
    grams = {group: found.shared.gram(names) / (step.factor or 1.0) ** 2 for group, names in groups.items()}
    total = summed_gram(grams)
    overflow = step.overflows(step.infinite_tasks(total) + infinite_owners(step, part, found.private))
    if overflow:
        combined, weights = found.shared.combined(torch.ones(len(step.tasks))), {}
    else:
        combined, weights = rules.combined(groups, grams, found.shared, step.values, step.priority)
    sparse = {name: as_sparse(combined[name], rows) for name, rows in found.rows.items()}
    return collected(part, combined | sparse | found.private, weights, list(groups), total, overflow)


def _tracked(step: Step, rules: GroupRules, part: Partition, found: TaskGradients) -> Combined:
    """For rules that remember gradients: their trackers see finite ones without the GradScaler's factor, which changes
    from step to step, and with the priorities that every later step will have too."""
    spec, vectors, groups = rules.spec, found.shared, rules.grouped(part.shared)
    assert spec.tracker is not None
    if step.overflows(infinite_tasks(step, vectors) + infinite_owners(step, part, found.private)):
        combined = vectors.combined(torch.ones(len(step.tasks)))
        return collected(part, combined | found.private, {}, list(groups), None, overflow=True)
    factor, ones = step.factor or 1.0, torch.ones_like(step.priority)
    multiplied, left = (ones, step.priority) if spec.prefers else (step.priority, ones)
    for stack in vectors.stacks.values():
        stack.copy_(times(multiplied / factor, stack))
    values = step.values * multiplied
    seen = rules.tracked(groups, vectors, values)
    grams = {group: seen.gram(names) for group, names in groups.items()}
    combined, weights = rules.combined(groups, grams, seen if spec.tracker.replaces else vectors, values, left)
    if factor != 1.0:
        combined = {name: grad * factor for name, grad in combined.items()}
    return collected(part, combined | found.private, weights, list(groups), summed_gram(grams))


def infinite_tasks(step: Step, vectors: TaskVectors) -> list[str]:
    """The tasks whose vectors are not finite."""
    lengths = vectors.norms().tolist()
    return [f"task {task!r}" for task, length in zip(step.tasks, lengths, strict=True) if not math.isfinite(length)]


def infinite_owners(step: Step, part: Partition, private: Mapping[str, Tensor]) -> list[str]:
    """The tasks whose private parameters have a gradient that is not finite."""
    return [f"task {part.owner(name, step.tasks)!r}" for name in infinite(private)]


def collected(
    part: Partition,
    grads: Mapping[str, Tensor],
    weights: dict[str, Tensor],
    groups: list[str],
    gram: Tensor | None,
    overflow: bool = False,
) -> Combined:
    """An exact step's result. After an overflow the infinities are left where the scaler looks: it will skip."""
    pairs = [(part.parameters[name], grad) for name, grad in grads.items()]
    return Combined(pairs, weights, dict.fromkeys(groups, "exact"), part.shared, gram, overflow)
