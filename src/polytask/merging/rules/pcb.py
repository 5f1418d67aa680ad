"""PCB: every element weighted by how much it matters in its own task and how well the other tasks agree with it.

Source      Du et al. 2024, arXiv:2410.02396, parameter competition balancing: score_t = softmax(T N(x_t x_t)) times
            sum_j softmax(N(x_t x_j)), products by element, softmax over the elements; each task keeps the `density`
            of its elements that score highest; the result is sum score_t x_t / sum score_t over those kept.
Departures  within each tensor (the paper: over the whole vector), ties by lowest index; N maps the smallest value to
            0 and the largest to 1. An element that no task keeps is 0. The paper's text was not at hand: N and the
            default of `density` are as we know them from others' descriptions.
Cost        O(T^2) an element, and the whole tensor in float64.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.merging.selection import largest


@rule(
    "pcb",
    source="arXiv:2410.02396",
    needs=("stack",),
    granularity="tensor",
    scale="part",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
)
def pcb(
    stack: Float[Tensor, "T *shape"], *, density: Annotated[float, Interval(0, 1, open="left")] = 0.2
) -> Float[Tensor, "*shape"]:
    """The mean weighted by the scores.

    Args:    stack: the task vectors of one parameter.
             density: share of its elements that each task keeps.
    Returns: the combined vector.
    """
    X = stack.reshape(len(stack), -1).double()
    if X.numel() == 0:
        return stack[0].clone()
    scores = torch.empty_like(X)
    for row, x in enumerate(X):
        others = torch.zeros_like(x)
        for other in X:
            others += _unit_range(x * other).softmax(0)
        scores[row] = (len(X) * _unit_range(x * x)).softmax(0) * others
    scores = largest(scores, density).double()
    total = scores.sum(0)
    return ((scores * X).sum(0) / torch.where(total > 0, total, 1.0)).to(stack.dtype).view(stack.shape[1:])


def _unit_range(values: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
    """The smallest value to 0, the largest to 1; all to 0 if they are equal."""
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
