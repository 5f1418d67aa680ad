"""Dynamic weight average: a task whose loss falls more slowly than the others' gets more weight.

Source      Liu, Johns and Davison 2019, arXiv:1803.10704, dynamic weight average.
Departures  none. As there, losses are averaged over an epoch and the weights are 1 in the first two epochs; a task that
            was absent from one of the last two epochs counts as unchanged (ratio 1), a case that the paper does not
            have.
Cost        O(T); one backward pass.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule


class DwaState(NamedTuple):
    """Mean losses of the last two epochs (NaN: none yet) and the running sum of this one."""

    total: Float[Tensor, "T"]
    count: Float[Tensor, "T"]
    last: Float[Tensor, "T"]
    before_last: Float[Tensor, "T"]


def start(tasks: int) -> DwaState:
    zeros, unknown = torch.zeros(tasks, dtype=torch.float64), torch.full((tasks,), torch.nan, dtype=torch.float64)
    return DwaState(zeros, zeros, unknown, unknown)


def after_epoch(state: DwaState) -> DwaState:
    """Closes an epoch: its mean losses become the last ones."""
    zeros = torch.zeros_like(state.total)
    return DwaState(zeros, zeros, state.total / state.count, state.last)


@rule(
    "dwa",
    source="arXiv:1803.10704, dynamic weight average",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "homogeneous", "nonnegative_weights", "linear_under_scaling"),
    init=start,
    after_epoch=after_epoch,
)
def dwa(
    losses: Float[Tensor, "T"],
    state: DwaState,
    *,
    temperature: Annotated[float, Interval(0, open="left")] = 2.0,
) -> tuple[Float[Tensor, "T"], DwaState]:
    """T * softmax(ratio / temperature), ratio = last epoch's loss over that of the epoch before.

    Args:    losses: the tasks' losses, any unit: only ratios of one task's losses are used.
             temperature: larger means more equal weights.
    Returns: weights that sum to T, and the state with this step's losses added.
    """
    ratio = (state.last / state.before_last).nan_to_num(nan=1.0, posinf=1.0)
    weights = len(losses) * torch.softmax(ratio / temperature, dim=0)
    return weights, state._replace(total=state.total + losses, count=state.count + 1)
