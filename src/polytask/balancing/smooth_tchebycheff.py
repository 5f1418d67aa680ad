"""Smooth Tchebycheff: a smooth maximum of the losses, so the task that is furthest behind gets most of the weight.

Source      Lin et al. 2024, arXiv:2402.19078, the smooth Tchebycheff scalarization: mu log sum_t exp(lambda_t (f_t -
            z_t) / mu). For networks the authors' experiments take f_t as the logarithm of the loss over its mean in the
            epoch after `warmup_epochs`, z = 0, and minimise the sum of the log losses until then: `on: log_losses`, the
            default. `on: losses` is the formula itself, z an ideal point that is given or the lowest loss seen.
Departures  the preference lambda has mean 1 (the paper's sums to 1: the same as its mu times T), and the result is
            multiplied by T, as in their experiments. A task that was absent from the epoch that sets its unit
            takes its first loss after it. A loss that is exactly 0 counts as 1e-30 in the logarithm.
Cost        O(T); one backward pass.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.rules import require_at_least, rule

SMALLEST = 1e-30


class SmoothTchebycheffState(NamedTuple):
    """Epochs done; sum and number of the losses that set each task's unit; the lowest loss seen."""

    epoch: Float[Tensor, ""]
    total: Float[Tensor, "T"]
    count: Float[Tensor, "T"]
    lowest: Float[Tensor, "T"]


def start(tasks: int) -> SmoothTchebycheffState:
    zeros, none = torch.zeros(tasks, dtype=torch.float64), torch.full((tasks,), torch.inf, dtype=torch.float64)
    return SmoothTchebycheffState(torch.zeros((), dtype=torch.float64), zeros, zeros, none)


def after_epoch(state: SmoothTchebycheffState) -> SmoothTchebycheffState:
    return state._replace(epoch=state.epoch + 1)


@rule(
    "smooth_tchebycheff",
    source="arXiv:2402.19078, smooth Tchebycheff scalarization",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "nonnegative_weights"),
    init=start,
    after_epoch=after_epoch,
    trials=({"warmup_epochs": 1}, {"on": "losses"}),
)
def smooth_tchebycheff(
    losses: Float[Tensor, "T"],
    state: SmoothTchebycheffState,
    *,
    priority: Float[Tensor, "T"],
    mu: Annotated[float, Interval(0, open="left")] = 1.0,
    on: Annotated[str, Choice("log_losses", "losses")] = "log_losses",
    warmup_epochs: Annotated[int, Interval(0)] = 4,
    ideal: Annotated[Float[Tensor, "T"] | float | None, PerTask(Interval())] = None,
) -> tuple[Float[Tensor, "T"], SmoothTchebycheffState]:
    """The gradient of T mu log sum_t exp(priority_t (f_t - z_t) / mu) with respect to the losses.

    Args:    losses: the tasks' losses; at least 0 for their logarithms.
             priority: the preference vector, mean 1 over all tasks.
             mu: smoothing; small is close to the largest term alone.
             on: log_losses, or losses as they are.
             warmup_epochs: of log_losses: epochs on the sum of the log losses; the one after them sets the units.
             ideal: of losses: the ideal point by task; the lowest loss seen where none is given.
    Returns: weights of the losses, and the state with this step's losses in it.
    """
    state = state._replace(lowest=torch.minimum(state.lowest, losses))
    if on == "losses":
        given = torch.full_like(losses, torch.nan if ideal is None else 1.0) * (1.0 if ideal is None else ideal)
        above = losses - torch.where(given.isnan(), state.lowest, given)
        return len(losses) * priority * torch.softmax(priority * above / mu, dim=0), state
    require_at_least(losses, 0.0, "its logarithm is taken")
    positive = losses.clamp(min=SMALLEST)
    setting = (state.epoch == warmup_epochs) | ((state.epoch > warmup_epochs) & (state.count == 0))
    state = state._replace(
        total=torch.where(setting, state.total + positive, state.total),
        count=torch.where(setting, state.count + 1, state.count),
    )
    if float(state.epoch) <= warmup_epochs:
        return 1 / positive, state
    shares = torch.softmax(priority * (positive * state.count / state.total).log() / mu, dim=0)
    return len(losses) * priority * shares / positive, state
