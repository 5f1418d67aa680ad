"""Focal weighting of tasks: a task that the model already does well fades out, a hard one keeps its weight.

Source      Liu et al. 2023 (MFTCoder), arXiv:2311.02303, the task-level focal loss of their section on difficulty: a
            task's loss L times (1 - P)^gamma, with P the probability that the model gives to the right answer.
Departures  P is exp(-L), the geometric mean of that probability where L is a cross-entropy in nats (the paper: the
            arithmetic one, which no loss shows); their constant alpha is `weights` of the rule static.
Cost        O(T); one backward pass.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import require_at_least, rule


@rule(
    "focal",
    source="arXiv:2311.02303, task-level focal loss",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "nonnegative_weights"),
)
def focal(losses: Float[Tensor, "T"], *, gamma: Annotated[float, Interval(0)] = 2.0) -> Float[Tensor, "T"]:
    """The derivative of (1 - exp(-L))^gamma L: hardness^gamma (1 + gamma L / (exp(L) - 1)), hardness = 1 - exp(-L).

    Args:    losses: the tasks' losses in nats, at least 0.
             gamma: 0 gives equal weights; larger fades easy tasks out more.
    Returns: weights of the losses, dimensionless; near 1 for a large loss.
    """
    require_at_least(losses, 0.0, "exp(-loss) is taken as a probability")
    hardness = -torch.expm1(-losses)
    ratio = torch.where(losses > 0, losses / torch.expm1(losses), 1.0)  # L / (e^L - 1) is 1 at 0
    return hardness**gamma * (1 + gamma * ratio)
