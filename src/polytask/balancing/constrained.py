"""Constrained: the tasks without a threshold are minimised while the others' losses are kept below theirs.

Source      dual ascent on the Lagrangian: Arrow, Hurwicz and Uzawa 1958, "Studies in linear and non-linear
            programming"; for networks Platt and Barr 1988, "Constrained differential optimization". The model descends
            on the objectives plus sum_t m_t (L_t - threshold_t), while m_t <- max(0, m_t + rate (L_t - threshold_t)).
Departures  the multipliers climb by a batch's losses, not by those of the whole split. In a recipe:
            rule: {kind: constrained, thresholds: {fairness: 0.05}}.
Cost        O(T); one backward pass.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, PerTask
from polytask.core.rules import rule
from polytask.core.state import zeros


class ConstrainedState(NamedTuple):
    """Lagrange multipliers, 0 at the start."""

    multiplier: Float[Tensor, "T"]


@rule(
    "constrained",
    source="Arrow, Hurwicz and Uzawa 1958; Platt and Barr 1988",
    needs=("losses",),
    scale="sum",
    claims=("permutation", "nonnegative_weights"),
    init=zeros(ConstrainedState),
    trials=({"thresholds": 0.5},),
)
def constrained(
    losses: Float[Tensor, "T"],
    state: ConstrainedState,
    *,
    priority: Float[Tensor, "T"],
    thresholds: Annotated[Float[Tensor, "T"] | float | None, PerTask(Interval())] = None,
    learning_rate: Annotated[float, Interval(0, open="left")] = 0.01,
) -> tuple[Float[Tensor, "T"], ConstrainedState]:
    """Its priority for an objective, its multiplier for a constraint.

    Args:    losses: the tasks' losses, in the thresholds' units.
             priority: how much each objective counts, mean 1 over all tasks.
             thresholds: the largest loss allowed, by task; a task without one is an objective.
             learning_rate: of the multipliers, for each step and unit of violation.
    Returns: weights of the losses with the multipliers before this step, and the state after it.
    """
    limits = torch.full_like(losses, torch.nan) if thresholds is None else torch.ones_like(losses) * thresholds
    objective = limits.isnan()
    violation = torch.where(objective, 0.0, losses - limits)
    multiplier = (state.multiplier + learning_rate * violation).clamp(min=0)
    return torch.where(objective, priority, state.multiplier), ConstrainedState(multiplier)
