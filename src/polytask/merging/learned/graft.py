"""Grafting: for each task the few elements of its fine-tune that carry its skill, put onto the base.

Source      Panigrahi et al. 2023, arXiv:2302.06600: the graft of a fine-tune has its values where a sparse mask is one
            and the base's elsewhere; the mask is learned by descent on the task's loss, from the elements that
            fine-tuning moved most, through a sigmoid of a number an element.
Departures  the relaxed mask is m (1 - s) + (1 - m) s with s = sigmoid(x) and m the mask it starts from, as we remember
            the paper, whose text was to be had only in part. The mask that is kept has exactly `density` of the
            elements, those with the largest relaxed values (equal ones by how far fine-tuning moved them). All tasks'
            grafts are put onto one base, where the paper grafts one task; start and rate are ours.
Cost        a forward and a backward pass of one batch of every task a step; held are two numbers an element and task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.merging.composing import Composition
from polytask.merging.descending import LearningRate, Steps, descend, facts_of
from polytask.merging.learning import Learned, learned
from polytask.merging.masking import logits_for
from polytask.merging.session import MergeSession
from polytask.merging.vectors import Vectors


@dataclass(frozen=True)
class Graft(Composition):
    """One task's graft: base + mask * (model - base), with the relaxed mask of logits."""

    vectors: Vectors
    task: str
    first: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]

    def leaves(self, name: str) -> tuple[Tensor, ...]:
        return (self.logits[name],) if name in self.logits else ()

    def weight(self, name: str, leaves: Sequence[Tensor]) -> Tensor:
        if not leaves:
            return self.vectors.base(name)
        return self.vectors.base(name) + relaxed(self.first[name], leaves[0]) * self.vectors.row(self.task, name)


def relaxed(first: Tensor, logits: Tensor) -> Tensor:
    """The mask it starts from, turned over where the sigmoid is near one."""
    turned = logits.sigmoid()
    return first * (1 - turned) + (~first) * turned


@learned("graft", source="arXiv:2302.06600", labels=True)
def graft(
    session: MergeSession,
    *,
    density: Annotated[float, Interval(0, 1, open="left")] = 1e-4,
    start: Annotated[float, Interval()] = -4.0,
    steps: Steps = 100,
    learning_rate: LearningRate = 1e4,
) -> Learned:
    """A sparse mask for each task by least loss.

    Args:    density: share of the elements of a task's fine-tune that are kept, over all tensors.
             start: of the numbers whose sigmoid turns an element over.
             steps: of descent, each on one batch of every task.
             learning_rate: of the descent, without momentum.
    """
    vectors, names = session.vectors, session.trainable()
    first = {task: _of_largest({n: vectors.row(task, n).abs() for n in names}, density) for task in session.tasks}
    logits = {task: logits_for(vectors, names, start) for task in session.tasks}
    weights = {task: session.composed(Graft(vectors, task, first[task], logits[task])) for task in session.tasks}

    def loss(task: str, batch: Any, step: int) -> Tensor | None:
        return session.loss(task, session.forward(weights[task], task, batch), batch)

    leaves = [own for task in session.tasks for own in logits[task].values()]
    optimizer = torch.optim.SGD(leaves, lr=learning_rate)
    history = descend(session, leaves, loss, steps=steps, optimizer=optimizer)
    masks = {task: _final(vectors, task, first[task], logits[task], density) for task in session.tasks}
    turned = {task: sum(int((own & ~first[task][n]).sum()) for n, own in masks[task].items()) for task in masks}
    rest = {name: 0.0 for name in vectors.names if name not in names}  # statistics stay the base's
    coefficients = {task: dict.fromkeys(names, 1.0) | rest for task in session.tasks}
    return Learned(coefficients, masks=masks, facts={**facts_of(history), "turned_over": turned})


def _final(
    vectors: Vectors, task: str, first: Mapping[str, Tensor], logits: Mapping[str, Tensor], density: float
) -> dict[str, Tensor]:
    """Of exactly the density: by the relaxed mask, then by how far fine-tuning moved an element."""
    farthest = max(
        (float(vectors.row(task, name).abs().max()) for name in logits if vectors.elements(name)), default=0.0
    )
    order = {
        name: relaxed(first[name], own.detach()).double()
        + 1e-7 * vectors.row(task, name).abs().double() / (farthest or 1.0)
        for name, own in logits.items()
    }
    return _of_largest(order, density)


def _of_largest(values: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Masks of the largest over all tensors; at least one element, ties by the lowest index."""
    flat = torch.cat([own.reshape(-1) for own in values.values()])
    count = max(round(density * len(flat)), 1)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[torch.argsort(flat, descending=True, stable=True)[:count]] = True
    parts = chosen.split([own.numel() for own in values.values()])
    return {name: part.view(own.shape) for (name, own), part in zip(values.items(), parts, strict=True)}
