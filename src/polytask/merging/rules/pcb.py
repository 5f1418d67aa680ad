"""PCB: every element weighted by how much it matters in its own task and how well the other tasks agree with it.

Source      Du et al. 2024, arXiv:2410.02396, parameter competition balancing: score_t = softmax(T N(x_t x_t)) times
            sum_j softmax(N(x_t x_j)), products by element, softmax over the elements; each task keeps the `density`
            of its elements that score highest; the result is sum score_t x_t / sum score_t over those kept.
Departures  within each tensor (the paper: over the whole vector), ties by lowest index; N maps the smallest value to
            0 and the largest to 1. An element that no task keeps is 0. The paper's text was not at hand: N and the
            default of `density` are as we know them from others' descriptions.
Cost        O(T^2) an element, in each of four or five passes.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.merging.competition import Competition, Scores
from polytask.merging.selection import keep_largest


@rule(
    "pcb",
    source="arXiv:2410.02396",
    needs=("stack",),
    scale="part",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
    statistic=lambda density: Scores(density),
)
def pcb(
    stack: Float[Tensor, "T *shape"],
    measured: Competition,
    *,
    density: Annotated[float, Interval(0, 1, open="left")] = 0.2,
) -> Float[Tensor, "*shape"]:
    """The mean weighted by the scores.

    Args:    stack: a block of the task vectors of one parameter.
             measured: how elements are scored, and which scores are the largest.
             density: share of its elements that each task keeps.
    Returns: the combined block.
    """
    X = stack.flatten(1)
    scores = measured.scores(X)
    if measured.ranks is not None:
        for row, score in enumerate(scores):
            keep_largest(score, measured.ranks, row, out=score)
    total = scores.sum(0)
    return ((scores * X).sum(0) / torch.where(total > 0, total, 1.0)).to(stack.dtype).view(stack.shape[1:])
