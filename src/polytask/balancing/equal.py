"""Equal weights: the plain sum of the losses, the baseline of every comparison.

Source      the sum of the task losses (the "EW" or "LS" rows of the literature).
Departures  none.
Cost        nothing beyond one backward pass.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


@rule(
    "equal",
    source="the sum of the task losses",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "homogeneous", "nonnegative_weights", "linear_under_scaling"),
)
def equal(losses: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """One for each task.

    Args:    losses: the tasks' losses; only their number matters.
    Returns: weights of the losses, dimensionless.
    """
    return torch.ones_like(losses)
