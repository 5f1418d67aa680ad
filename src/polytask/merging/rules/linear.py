"""Linear: the weighted average of the models' own values; no base.

Source      Wortsman et al. 2022, arXiv:2203.05482, "model soups": the uniform soup is the average of the models.
Departures  weights.
Cost        O(T) an element, one pass.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, PerTask
from polytask.core.errors import BadValue
from polytask.core.rules import rule
from polytask.core.task_vectors import weighted_sum


@rule(
    "linear",
    source="arXiv:2203.05482, the uniform soup",
    needs=("stack",),
    scale="mean",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
    of="models",
)
def linear(
    stack: Float[Tensor, "T *shape"],
    *,
    weights: Annotated[Float[Tensor, "T"] | float, PerTask(Interval())] = 1.0,
    normalize: bool = True,
) -> Float[Tensor, "*shape"]:
    """sum_t weights[t] * stack[t], over sum_t weights[t].

    Args:    stack: the models' values of one parameter.
             weights: by task; a task that is not named has weight 1.
             normalize: whether the weights are divided by their sum.
    Returns: the average.
    Raises:  BadValue: weights that sum to 0, where they are normalised.
    """
    factors = torch.ones(len(stack), dtype=torch.float64) * weights
    return weighted_sum(stack, shares(factors, "rule 'linear'") if normalize else factors)


def shares(weights: Float[Tensor, "T"], where: str) -> Float[Tensor, "T"]:
    """The weights over their sum; BadValue where that is 0. `where` they are, for the message."""
    total = float(weights.sum())
    if total == 0:
        raise BadValue("the weights", weights.tolist(), "weights whose sum is not 0, or normalize: false", where)
    return weights / total
