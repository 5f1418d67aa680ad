"""IMTL-L: learned scales that bring every task's loss to the same size.

Source      Liu et al. 2021, "Towards impartial multi-task learning" (ICLR), section 3.2: minimise e^s_t L_t - s_t over
            the network and the s_t together.
Departures  s is learned by Adam steps inside the rule (the paper: by the network's optimiser), with their own rate.
            The weight of a task is bounded below by 1e-30 and above by 1e30.
Cost        O(T); one backward pass.
"""

import math
from typing import Annotated, NamedTuple

from jaxtyping import Float
from torch import Tensor

from polytask.balancing.adam import AdamState, adam_step
from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.core.state import zeros

LARGEST = math.log(1e30)


class ImtlLState(NamedTuple):
    """Learned logarithms of the scales, 0 at the start, and their optimiser."""

    log_scale: Float[Tensor, "T"]
    adam: AdamState


@rule(
    "imtl_l",
    source="Liu et al. 2021 (ICLR), section 3.2",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "nonnegative_weights"),
    init=zeros(ImtlLState),
)
def imtl_l(
    losses: Float[Tensor, "T"],
    state: ImtlLState,
    *,
    learning_rate: Annotated[float, Interval(0, open="left")] = 0.01,
) -> tuple[Float[Tensor, "T"], ImtlLState]:
    """Minimises sum_t e^s_t L_t - s_t; where it ends, e^s_t L_t is 1 for every task.

    Args:    losses: the tasks' losses, any units.
             learning_rate: of s, for each step.
    Returns: weights e^s with the s before this step, and the state after it.
    """
    scale = state.log_scale.exp()
    change, adam = adam_step(scale * losses - 1, state.adam, learning_rate)
    return scale, ImtlLState((state.log_scale + change).clamp(-LARGEST, LARGEST), adam)
