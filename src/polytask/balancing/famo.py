"""FAMO: all losses fall at the same relative rate, learned from the losses alone, before and after each step.

Source      Liu, Feng, Stone and Liu 2023, arXiv:2306.03792, Algorithm 1 with the practical form of its appendix:
            Adam with weight decay on the logits.
Departures  `lookahead: next_batch` compares a step's losses with those of the next batch, not with the same batch's
            after the step: it saves the second forward pass, and sees the batches' noise. The logarithm takes no
            epsilon, so the unit of the losses does not matter; a loss at its minimum counts as 1e-30 above it. A
            loss below its minimum is refused.
Cost        O(T); one backward pass, and as published one forward pass more after the step.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polytask.balancing.adam import AdamState, adam_start, adam_step
from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.rules import require_at_least, rule

SMALLEST = 1e-30


class FamoState(NamedTuple):
    """Logits, 0 at the start; their optimiser; log losses of each task's last step (NaN: none yet)."""

    logits: Float[Tensor, "T"]
    adam: AdamState
    before: Float[Tensor, "T"]


def start(tasks: int) -> FamoState:
    zeros, unknown = torch.zeros(tasks, dtype=torch.float64), torch.full((tasks,), torch.nan, dtype=torch.float64)
    return FamoState(zeros, adam_start(tasks), unknown)


def log_above(losses: Float[Tensor, "T"], min_losses: Float[Tensor, "T"] | float) -> Float[Tensor, "T"]:
    require_at_least(losses, min_losses, "the logarithm of what is above min_losses is taken")
    return (losses - min_losses).clamp(min=SMALLEST).log()


def after_step(
    state: FamoState,
    losses: Float[Tensor, "T"],
    *,
    learning_rate: float,
    decay: float,
    min_losses: Float[Tensor, "T"] | float,
) -> FamoState:
    """Lowers the logits of the tasks whose losses fell most: a step along the derivative of z(w) . (before - now)."""
    known = ~state.before.isnan()
    if not bool(known.any()):
        return state
    z = torch.softmax(state.logits.masked_fill(~known, -torch.inf), dim=0)
    fall = torch.where(known, state.before - log_above(losses, min_losses), 0.0)
    gradient = z * (fall - z @ fall) + decay * state.logits
    change, adam = adam_step(gradient, state.adam, learning_rate)
    logits = torch.where(known, state.logits + change, state.logits)
    return state._replace(logits=logits, adam=_where(known, adam, state.adam))


@rule(
    "famo",
    source="arXiv:2306.03792, Algorithm 1",
    needs=("losses",),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "convex_weights"),
    init=start,
    after_step=after_step,
    trials=({"lookahead": "next_batch"},),
)
def famo(
    losses: Float[Tensor, "T"],
    state: FamoState,
    *,
    learning_rate: Annotated[float, Interval(0, open="left")] = 0.025,
    decay: Annotated[float, Interval(0)] = 0.001,
    min_losses: Annotated[Float[Tensor, "T"] | float, PerTask(Interval())] = 0.0,
    lookahead: Annotated[str, Choice("same_batch", "next_batch")] = "same_batch",
) -> tuple[Float[Tensor, "T"], FamoState]:
    """z_t / (L_t - min_t), normalised to sum 1, with z the softmax of the logits.

    Args:    losses: the tasks' losses, above min_losses, any units.
             learning_rate: of the logits, for each step.
             decay: pulls the logits to 0; the paper's gamma.
             min_losses: the lowest value that each loss can take (times the task's priority, if it has one).
             lookahead: which losses count as those after the step: the same batch's, or the next batch's.
    Returns: convex weights, dimensionless, and the state with this step's losses in it.
    """
    if lookahead == "next_batch":
        state = after_step(state, losses, learning_rate=learning_rate, decay=decay, min_losses=min_losses)
    logarithms = log_above(losses, min_losses)
    return torch.softmax(state.logits - logarithms, dim=0), state._replace(before=logarithms)


def _where(chosen: Bool[Tensor, "T"], new: AdamState, old: AdamState) -> AdamState:
    return AdamState(*(torch.where(chosen, a, b) for a, b in zip(new, old, strict=True)))
