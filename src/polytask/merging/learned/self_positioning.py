"""Self Positioning: a place among the task vectors, a convex combination and its length, found by descent on the loss.

Source      Li et al. 2024, arXiv:2410.15035: the merge is searched in the space between the task vectors by stochastic
            gradient descent on a small probe set that has the same share of every task.
Departures  only the abstract and summaries of the paper were to be had. Here the task vectors' weights are a softmax,
            so they are positive and sum to one, and their sum is scaled by a number that is learned too; the probe set
            is a batch of every task a step, and the loss that of the task's kind.
Cost        a forward and a backward pass of one batch of every task a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.merging.coefficients import by_task, columns
from polytask.merging.composing import Composition, Scaled
from polytask.merging.descending import LearningRate, Steps, descend, facts_of
from polytask.merging.learning import Learned, learned
from polytask.merging.session import MergeSession
from polytask.merging.vectors import Vectors


@dataclass(frozen=True)
class Placed(Composition):
    """base + length * sum_t softmax(logits)[t] * (model_t - base).

    Attributes:
        vectors: of the models.
        logits: [T, 1].
        length: 0-d.
    """

    vectors: Vectors
    logits: Tensor
    length: Tensor

    @property
    def coefficients(self) -> Tensor:
        return self.length * self.logits.softmax(0)

    def leaves(self, name: str) -> tuple[Tensor]:
        return (self.coefficients[:, 0],)

    def weight(self, name: str, leaves: Sequence[Tensor]) -> Tensor:
        scaled = Scaled(self.vectors, self.coefficients, {name: 0})
        return scaled.weight(name, leaves)


@learned("self_positioning", source="arXiv:2410.15035", labels=True)
def self_positioning(
    session: MergeSession,
    *,
    scale: Annotated[float, Interval(0, open="left")] = 1.0,
    steps: Steps = 300,
    learning_rate: LearningRate = 0.1,
) -> Learned:
    """One coefficient a task, by least loss.

    Args:    scale: at which the length of the combination starts.
             steps: of descent, each on one batch of every task.
             learning_rate: of the descent.
    """
    logits = torch.zeros(len(session.tasks), 1, requires_grad=True)
    length = torch.tensor(scale, requires_grad=True)

    placed = Placed(session.vectors, logits, length)
    weights = session.composed(placed)

    def value(task: str, batch: Any, step: int) -> Tensor | None:
        return session.loss(task, session.forward(weights, task, batch), batch)

    leaves = [logits, length]
    history = descend(session, leaves, value, steps=steps, optimizer=torch.optim.SGD(leaves, lr=learning_rate))
    groups = columns(session.vectors, "task")
    return Learned(by_task(placed.coefficients, session.tasks, groups), facts=facts_of(history))
