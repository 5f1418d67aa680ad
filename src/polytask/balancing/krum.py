"""Krum: the gradient that lies closest to its nearest neighbours, so that a few wild ones are ignored.

Source      Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine learning with adversaries: Byzantine tolerant
            gradient descent", section 4 (the score, and Krum); `selected` above 1 is their Multi-Krum, the mean of the
            gradients with the lowest scores.
Departures  distances come from the Gram matrix. At least one neighbour is counted (if there is one), so that one or two
            tasks are served when `byzantine` is 0. Among equal scores the first task is chosen, as in the paper; with
            three tasks and `byzantine` 0 two scores are always equal. torchjd 0.18 sums distances and not, as the
            paper, their squares, so that it can choose another task.
Cost        O(T^2 log T).
"""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.errors import BadValue
from polytask.core.rules import rule


@rule(
    "krum",
    source="NeurIPS 2017, Blanchard et al., section 4",
    needs=("gram",),
    scale="mean",
    claims=("homogeneous", "nonnegative_weights", "convex_weights"),
)
def krum(
    gram: Float[Tensor, "T T"],
    *,
    byzantine: Annotated[int, Interval(0)] = 0,
    selected: Annotated[int, Interval(1)] = 1,
) -> Float[Tensor, "T"]:
    """The mean of the `selected` tasks whose T - byzantine - 2 nearest other tasks are nearest (sum of squares).

    Args:    gram: inner products of the task vectors (units of g squared).
             byzantine: number of tasks that may be arbitrarily wrong; above 0 it needs at least 2 byzantine + 3 tasks.
             selected: number of tasks to average.
    Returns: convex weights: 1 / selected for the chosen tasks, 0 for the others.
    """
    G = gram.numpy()
    tasks = len(G)
    if byzantine and tasks < 2 * byzantine + 3:
        raise BadValue("byzantine", byzantine, f"at most {max(0, (tasks - 3) // 2)} for {tasks} tasks", "rule 'krum'")
    if selected > tasks:
        raise BadValue("selected", selected, f"at most {tasks}, the number of tasks present", "rule 'krum'")
    squares = G.diagonal()
    distances = np.maximum(squares[:, None] + squares - (G + G.T), 0.0)
    np.fill_diagonal(distances, np.inf)
    neighbours = min(max(tasks - byzantine - 2, 1), tasks - 1)
    scores = np.sort(distances, axis=1)[:, :neighbours].sum(1)
    weights = np.zeros(tasks)
    weights[np.argsort(scores, kind="stable")[:selected]] = 1 / selected
    return torch.from_numpy(weights)
