"""Static weights: a fixed weight for each task, chosen beforehand.

Source      the weighted sum of the task losses (linear scalarization), sum_t w_t L_t.
Departures  none. In a recipe: rule: {kind: static, weights: {left: 1, right: 0.5}}.
Cost        nothing beyond one backward pass.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, PerTask
from polytask.core.rules import rule


@rule(
    "static",
    source="the weighted sum of the task losses",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "homogeneous", "nonnegative_weights", "linear_under_scaling"),
)
def static(
    losses: Float[Tensor, "T"], *, weights: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0))] = 1.0
) -> Float[Tensor, "T"]:
    """The weights as given.

    Args:    losses: the tasks' losses; only their number matters.
             weights: by task; a task that is not named has weight 1.
    Returns: weights of the losses, dimensionless.
    """
    return weights * torch.ones_like(losses)
