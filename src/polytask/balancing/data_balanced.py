"""Data-balanced losses: every task counts the same, however many labels or tokens it has.

Source      Liu et al. 2023 (MFTCoder), arXiv:2311.02303, the loss against data imbalance: the mean over tasks of each
            task's sum over its labels (there: effective tokens), divided by how many it has in all the data.
Departures  how many labels a task has in the data, a step, is estimated by those that it has shown so far, in the steps
            in which it was present; a batch with more of them than usual weighs more. A step without any is not made
            up for later.
Cost        O(T); one backward pass.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule
from polytask.core.state import zeros


class DataBalancedState(NamedTuple):
    """Labels that each task has shown, and in how many steps."""

    labels: Float[Tensor, "T"]
    steps: Float[Tensor, "T"]


@rule(
    "data_balanced",
    source="arXiv:2311.02303, data-balanced loss",
    needs=("losses", "counts"),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "linear_under_scaling"),
    init=zeros(DataBalancedState),
)
def data_balanced(
    losses: Float[Tensor, "T"], counts: Float[Tensor, "T"], state: DataBalancedState
) -> tuple[Float[Tensor, "T"], DataBalancedState]:
    """1 / T times the batch's labels over the usual number of them.

    Args:    losses: means over the batch's labels, any units.
             counts: the labels behind each, above 0.
    Returns: weights that sum to 1 where a batch is as usual, and the state with its labels in it.
    """
    seen = DataBalancedState(state.labels + counts, state.steps + 1)
    return counts * seen.steps / seen.labels / len(losses), seen
