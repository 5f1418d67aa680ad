"""DB-MTL: gradients of the logarithms of the losses, averaged over steps, all brought to the length of the longest.

Source      Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Tsang and Kwok 2023, "Dual-balancing for multi-task learning",
            arXiv:2308.12029: y_t <- beta_k y_t + (1 - beta_k) grad log L_t, and the update is the sum over tasks of
            y_t max_s |y_s| / |y_t|.
Departures  private parameters keep their own task's gradient of the loss itself (the paper: of its logarithm). beta_k =
            beta / k^beta_decay with k a task's own steps, as in the authors' code, which adds 1e-8 to losses and
            lengths; here a loss that is exactly 0 counts as 1e-30, and a zero gradient gets weight 0. A priority would
            cancel in the logarithm; it multiplies the length that a task's gradient is brought to.
Cost        T backward passes; O(T) a parameter element. Memory: T copies of the shared gradients, kept from step to
            step (in checkpoints too), and 2 T more while a step is computed, beside those of the step.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import require_at_least, rule
from polytask.core.state import zeros
from polytask.core.tracking import Tracker, moved, times

SMALLEST = 1e-30


class DbMtlState(NamedTuple):
    """Each task's steps so far."""

    steps: Float[Tensor, "T"]


def averaged(
    stack: Float[Tensor, "T *shape"],
    memory: Float[Tensor, "T *shape"],
    *,
    losses: Float[Tensor, "T"],
    state: DbMtlState,
    beta: float,
    beta_decay: float,
) -> tuple[Float[Tensor, "T *shape"], Float[Tensor, "T *shape"]]:
    require_at_least(losses, 0.0, "its logarithm is taken")
    of_logarithm = times(1 / losses.clamp(min=SMALLEST), stack)
    return moved(memory, of_logarithm, 1 - beta / (state.steps + 1) ** beta_decay)


@rule(
    "db_mtl",
    source="arXiv:2308.12029",
    needs=("gram",),
    scale="own",
    claims=("permutation", "nonnegative_weights"),
    init=zeros(DbMtlState),
    tracker=Tracker(averaged),
    trials=({"beta_decay": 0.5},),
)
def db_mtl(
    gram: Float[Tensor, "T T"],
    state: DbMtlState,
    *,
    priority: Float[Tensor, "T"],
    beta: Annotated[float, Interval(0, 1, open="right")] = 0.9,
    beta_decay: Annotated[float, Interval(0)] = 0.0,
) -> tuple[Float[Tensor, "T"], DbMtlState]:
    """The factors that give every averaged gradient the length of the longest.

    Args:    gram: inner products of the averaged gradients of the losses' logarithms.
             priority: mean 1 over all tasks; multiplies the lengths.
             beta: how much of the average stays in each step; the first average is (1 - beta) times the gradient.
             beta_decay: how fast beta falls with a task's steps.
    Returns: weights of the averaged gradients, dimensionless, and the state after the step.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    weights = torch.where(norms > 0, priority * norms.max() / torch.where(norms > 0, norms, 1.0), 0.0)
    return weights, DbMtlState(state.steps + 1)
