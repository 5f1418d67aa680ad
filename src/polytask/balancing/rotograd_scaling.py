"""RotoGrad's scaling: all task gradients get one norm, between theirs and nearest to those of slow tasks.

Source      Javaloy and Valera, "RotoGrad: gradient homogenization in multitask learning", arXiv:2103.02631, section
            3.1, equations 1 and 2 and Algorithm 1: the update C sum_t g_t / |g_t| with C = sum_t alpha_t |g_t|, where
            alpha_t is |g_t| over task t's first gradient's norm, divided by the sum of these over the tasks.
Departures  acts on the gradients that it is given; the paper's are those at the shared representation, which is engine
            `representation`. A zero gradient gets weight 0. A task's first norm that is not 0 counts as its first.
Cost        O(T).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


class RotoGradScalingState(NamedTuple):
    """Each task's first norm (NaN: none yet)."""

    first_norm: Float[Tensor, "T"]


def start(tasks: int) -> RotoGradScalingState:
    return RotoGradScalingState(torch.full((tasks,), torch.nan, dtype=torch.float64))


@rule(
    "rotograd_scaling",
    source="arXiv:2103.02631, equations 1 and 2 and Algorithm 1",
    needs=("gram",),
    scale="sum",
    claims=("permutation", "homogeneous", "nonnegative_weights", "linear_under_scaling"),
    init=start,
)
def rotograd_scaling(
    gram: Float[Tensor, "T T"], state: RotoGradScalingState
) -> tuple[Float[Tensor, "T"], RotoGradScalingState]:
    """Weights C / |g_t|.

    Args:    gram: inner products of the task vectors (units of g squared).
    Returns: dimensionless weights, and the state with the norms of tasks that show a gradient for the first time.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    there = norms > 0
    first = torch.where(state.first_norm.isnan() & there, norms, state.first_norm)
    speed = torch.where(there, norms / first, 0.0)
    target = (speed @ norms) / torch.where(speed.sum() > 0, speed.sum(), 1.0)
    return torch.where(there, target / torch.where(there, norms, 1.0), 0.0), RotoGradScalingState(first)
