"""GradNorm: learned weights that give every task's gradient a common size, larger for tasks that train slowly.

Source      Chen, Badrinarayanan, Lee and Rabinovich 2018, arXiv:1711.02257, Algorithm 1.
Departures  norms are those over all shared parameters (the paper: the last shared layer); private parameters keep
            their own task's gradient unweighted. The norms' derivative is divided by their mean, so no scale
            of the losses matters, and followed by Adam. A weight that would fall below 1e-6 stays there. L_t(0)
            is the first loss that a task shows.
Cost        T backward passes for the norms; O(T) besides.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.adam import AdamState, adam_start, adam_step
from polytask.core.constraints import Interval
from polytask.core.rules import require_at_least, rule

SMALLEST_WEIGHT = 1e-6
SMALLEST_LOSS = 1e-30


class GradNormState(NamedTuple):
    """Learned weights, 1 at the start; their optimiser; each task's first loss (NaN: none yet)."""

    weight: Float[Tensor, "T"]
    adam: AdamState
    first_loss: Float[Tensor, "T"]


def start(tasks: int) -> GradNormState:
    return GradNormState(
        torch.ones(tasks, dtype=torch.float64),
        adam_start(tasks),
        torch.full((tasks,), torch.nan, dtype=torch.float64),
    )


@rule(
    "gradnorm",
    source="arXiv:1711.02257, Algorithm 1",
    needs=("losses", "gram"),
    scale="sum",
    claims=("permutation", "homogeneous", "nonnegative_weights"),
    init=start,
)
def gradnorm(
    losses: Float[Tensor, "T"],
    gram: Float[Tensor, "T T"],
    state: GradNormState,
    *,
    alpha: Annotated[float, Interval(0)] = 1.5,
    learning_rate: Annotated[float, Interval(0, open="left")] = 0.025,
) -> tuple[Float[Tensor, "T"], GradNormState]:
    """One step on sum_t |w_t |g_t| - mean norm * r_t^alpha|, the target held fixed, then sum w = T.

    Args:    losses: the tasks' losses, at least 0, any units: only ratios to a task's first loss are used.
             gram: inner products of the task vectors.
             alpha: how strongly slow tasks are pulled up; 0 gives all gradients the same norm.
             learning_rate: of the weights, for each step.
    Returns: the weights before this step, which sum to T, and the state after it.
    """
    require_at_least(losses, 0.0, "its ratio to the first loss is raised to a power")
    positive = losses.clamp(min=SMALLEST_LOSS)
    first = torch.where(state.first_loss.isnan(), positive, state.first_loss)
    weight = state.weight * (len(losses) / state.weight.sum())  # over the present tasks
    norms = gram.diagonal().clamp(min=0).sqrt()
    mean = (weight * norms).mean()
    if float(mean) == 0.0:  # nothing to balance
        return weight, GradNormState(weight, state.adam, first)
    rate = positive / first
    relative = norms / mean
    target = (rate / rate.mean()) ** alpha
    change, adam = adam_step((weight * relative - target).sign() * relative, state.adam, learning_rate)
    changed = (weight + change).clamp(min=SMALLEST_WEIGHT)
    return weight, GradNormState(changed * (len(losses) / changed.sum()), adam, first)
