"""Convergence-balanced losses: all validation losses fall at the same relative rate.

Source      Liu et al. 2023 (MFTCoder), arXiv:2311.02303, the loss against inconsistent convergence: FAMO (Liu, Feng,
            Stone and Liu 2023, arXiv:2306.03792) with the fall of the validation losses in place of the training
            losses'. Whose validation loss falls most slowly gains weight.
Departures  the two losses that are compared are of consecutive validation batches, which differ, as the whole split in
            every step would cost more than the training. The paper's formula was not at hand: the logits and their
            optimiser are FAMO's, and z weighs the logarithms of the training losses as there.
Cost        O(T); one backward pass, and one forward pass on the validation batch.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.famo import FamoState, after_step, log_above, start
from polytask.core.constraints import Interval
from polytask.core.rules import require_at_least, rule


@rule(
    "convergence_balanced",
    source="arXiv:2311.02303, convergence-balanced loss",
    needs=("losses", "validation"),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "convex_weights"),
    init=start,
)
def convergence_balanced(
    losses: Float[Tensor, "T"],
    validation: Float[Tensor, "T"],
    state: FamoState,
    *,
    learning_rate: Annotated[float, Interval(0, open="left")] = 0.025,
    decay: Annotated[float, Interval(0)] = 0.001,
) -> tuple[Float[Tensor, "T"], FamoState]:
    """z_t / L_t, normalised to sum 1, with z the softmax of logits that follow the validation losses.

    Args:    losses: the tasks' training losses, above 0, any units.
             validation: their validation losses, above 0; NaN where the batch has no label.
             learning_rate: of the logits, for each step.
             decay: pulls the logits to 0.
    Returns: convex weights, dimensionless, and the state with the validation losses in it.
    """
    require_at_least(validation, 0.0, "the logarithm of the validation loss is taken")
    known = ~validation.isnan()
    compared = state._replace(before=torch.where(known, state.before, torch.nan))
    now = torch.where(known, validation, 1.0)
    logits, adam, _ = after_step(compared, now, learning_rate=learning_rate, decay=decay, min_losses=0.0)
    before = torch.where(known, log_above(now, 0.0), state.before)
    return torch.softmax(logits - log_above(losses, 0.0), dim=0), FamoState(logits, adam, before)
