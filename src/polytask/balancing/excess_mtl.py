"""ExcessMTL: weights grow with how far each task is from convergence, not with its loss, which label noise keeps high.

Source      He, Zhou, Zhang, Yun, Xu, Zeng, Chilimbi and Zhao 2024, "Robust multi-task learning with excess risks",
            arXiv:2402.02009: a task's excess risk is estimated as sum g^2 / sqrt(sum of all g^2 so far), element by
            element; its ratio to the first estimate goes through a multiplicative weight update on the simplex.
Departures  private parameters keep their own task's gradient, unweighted (the paper weighs the losses). The authors'
            code adds 1e-7 under the root and lets the weights sum to T; here an element whose gradients were all 0
            counts as 0. A first estimate of 0 waits for one that is not. Among present tasks alone the weights sum to
            1; the share of the whole that absent tasks hold waits. The learning rate is that code's.
Cost        T backward passes; O(T) a parameter element. Memory: T copies of the shared gradients, kept from step to
            step (in checkpoints too), and 2 T more while a step is computed, beside those of the step.
"""

import math
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.core.tracking import Tracker


class ExcessMtlState(NamedTuple):
    """Logarithms of the weights, whose sum over all tasks is 1; each task's first excess risk (NaN: none yet)."""

    log_share: Float[Tensor, "T"]
    first: Float[Tensor, "T"]


def start(tasks: int) -> ExcessMtlState:
    unknown = torch.full((tasks,), torch.nan, dtype=torch.float64)
    return ExcessMtlState(torch.full_like(unknown, -math.log(tasks)), unknown)


def preconditioned(
    stack: Float[Tensor, "T *shape"], memory: Float[Tensor, "T *shape"]
) -> tuple[Float[Tensor, "T *shape"], Float[Tensor, "T *shape"]]:
    """Vectors whose squared length is the excess risk, and the root of the sum of squares, which fits any precision."""
    memory = torch.hypot(memory, stack.to(memory.dtype))
    return stack / torch.where(memory > 0, memory, 1.0).sqrt(), memory


@rule(
    "excess_mtl",
    source="arXiv:2402.02009",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "convex_weights", "linear_under_scaling"),
    init=start,
    tracker=Tracker(preconditioned, replaces=False),
    trials=({"learning_rate": 1.0},),
)
def excess_mtl(
    gram: Float[Tensor, "T T"],
    state: ExcessMtlState,
    *,
    learning_rate: Annotated[float, Interval(0, open="left")] = 1e-4,
) -> tuple[Float[Tensor, "T"], ExcessMtlState]:
    """Weights times exp(learning_rate * excess risk / first excess risk), normalised.

    Args:    gram: inner products of the preconditioned gradients; its diagonal holds the excess risks.
             learning_rate: of the logarithms of the weights, for each step.
    Returns: convex weights after the update, and the state with them in it.
    """
    risk = gram.diagonal().clamp(min=0)
    growth = torch.where(state.first.isnan(), 0.0, learning_rate * risk / state.first)
    part = state.log_share.logsumexp(0)
    log_weights = torch.log_softmax(state.log_share + growth, dim=0)
    first = torch.where(state.first.isnan() & (risk > 0), risk, state.first)
    return log_weights.exp(), ExcessMtlState(log_weights + part, first)
