"""Uncertainty weighting: each task has a learned log variance s, and its loss the weight exp(-s) / 2.

Source      Kendall, Gal and Cipolla 2018, arXiv:1705.07115, equation 7 with s = log sigma^2 (their section 3.3).
Departures  the factor 1/2 stands before every loss: the paper drops it for classification, which is the same as halving
            that task's loss. s is learned by Adam steps inside the rule (the paper: by the network's optimiser), with
            their own rate.
Cost        O(T); one backward pass.
"""

from typing import Annotated, NamedTuple

from jaxtyping import Float
from torch import Tensor

from polytask.balancing.adam import AdamState, adam_step
from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.core.state import zeros


class UncertaintyState(NamedTuple):
    """Learned log variances, 0 at the start, and their optimiser."""

    log_variance: Float[Tensor, "T"]
    adam: AdamState


@rule(
    "uncertainty",
    source="arXiv:1705.07115, equation 7",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "nonnegative_weights"),
    init=zeros(UncertaintyState),
)
def uncertainty(
    losses: Float[Tensor, "T"],
    state: UncertaintyState,
    *,
    learning_rate: Annotated[float, Interval(0, open="left")] = 0.01,
) -> tuple[Float[Tensor, "T"], UncertaintyState]:
    """Minimises sum_t exp(-s_t) / 2 * L_t + s_t / 2 over the network and s together.

    Args:    losses: the tasks' losses, in their own units squared (regression) or in nats (classification).
             learning_rate: of the log variances, for each step.
    Returns: weights exp(-s) / 2 with the s before this step, and the state after it.
    """
    precision = (-state.log_variance).exp()
    change, adam = adam_step((1 - precision * losses) / 2, state.adam, learning_rate)
    return precision / 2, UncertaintyState(state.log_variance + change, adam)
