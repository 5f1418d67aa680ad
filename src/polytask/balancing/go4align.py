"""GO4Align: tasks with a similar history of risk form groups that share a weight, so that their training stays aligned.

Source      Shen, Wang, Xiao, van Noord and Worring 2024, arXiv:2404.06486: risk-guided group indicators (each task's
            share of exp(-step_size * accumulated loss), times sum of losses / loss) grouped by K-means, each task
            weighted by its group's mean indicator.
Departures  the indicators are numbers on a line, so the K-means problem is solved exactly by dynamic programming (the
            authors: by a semidefinite relaxation or spectral clustering). With fewer tasks than groups every task is
            its own. A loss that is exactly 0 counts as 1e-30; one below 0 is refused.
Cost        O(groups * T^2) for T numbers; one backward pass.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import require_at_least, rule

SMALLEST = 1e-30


class Go4alignState(NamedTuple):
    """Sum of each task's losses so far."""

    risk: Float[Tensor, "T"]


def start(tasks: int) -> Go4alignState:
    return Go4alignState(torch.zeros(tasks, dtype=torch.float64))


@rule(
    "go4align",
    source="arXiv:2404.06486, adaptive group risk minimization",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "nonnegative_weights"),
    init=start,
)
def go4align(
    losses: Float[Tensor, "T"],
    state: Go4alignState,
    *,
    number_of_groups: Annotated[int, Interval(1)] = 2,
    step_size: Annotated[float, Interval(0)] = 1e-4,
) -> tuple[Float[Tensor, "T"], Go4alignState]:
    """The mean indicator of each task's group.

    Args:    losses: the tasks' losses, at least 0.
             number_of_groups: K of the K-means.
             step_size: how fast the history of a task's losses lowers its weight.
    Returns: weights of the losses, dimensionless, and the state with these losses in it.
    """
    require_at_least(losses, 0.0, "the indicator divides by it")
    positive = losses.clamp(min=SMALLEST)
    risk = state.risk + losses
    indicators = torch.softmax(-step_size * risk, dim=0) * positive.sum() / positive
    return group_means(indicators, number_of_groups), Go4alignState(risk)


def group_means(numbers: Float[Tensor, "T"], groups: int) -> Float[Tensor, "T"]:
    """Each number's group mean in the partition into at most `groups` with the least squared distances to the means.

    An optimal partition cuts the sorted numbers into runs: cost[j] is the least for the first j, one more group a
    round.
    """
    order = numbers.argsort(stable=True)
    sums, squares = (torch.cat([part.new_zeros(1), part.cumsum(0)]) for part in (numbers[order], numbers[order] ** 2))
    length = torch.arange(len(numbers) + 1, dtype=torch.float64)
    size = length - length[:, None]  # [i, j]: of the run from i to j
    within = (squares - squares[:, None]) - (sums - sums[:, None]) ** 2 / size.clamp(min=1)
    within = within.clamp(min=0).masked_fill(size <= 0, torch.inf)
    cost = torch.full_like(length, torch.inf)
    cost[0] = 0.0
    begins = []
    for _ in range(min(groups, len(numbers))):
        cost, begin = (cost[:, None] + within).min(0)
        begins.append(begin)
    means = torch.empty_like(numbers)
    end = len(numbers)
    for begin in reversed(begins):
        run = order[int(begin[end]) : end]
        means[run] = numbers[run].mean()
        end = int(begin[end])
    return means
