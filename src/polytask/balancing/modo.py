"""MoDo: weights that follow MGDA's, corrected for the noise of the gradients by reading independent batches.

Source      Chen, Fernando, Ying and Chen 2023, "Three-way trade-off in multi-objective learning: optimization,
            generalization and conflict-avoidance", arXiv:2305.20057, the MoDo algorithm: with gradients X_1, X_2, X_3
            of three batches, weights <- P(weights - gamma (X_1 X_2^T + rho I) weights), P the projection onto the
            simplex, and the step is that of X_3 with the new weights.
Departures  none for three batches; with two, the step is that of X_2. Among present tasks alone the weights sum to 1,
            and the share of the whole that absent tasks hold waits. gamma and rho are those of the authors' code. The
            paper was not to be had: the algorithm is as that code has it, and no number of it is claimed.
Cost        T backward passes for each batch; O(T^2) besides. Memory: two copies of the tasks' shared gradients.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.geometry import nearest_in_simplex
from polytask.core.rules import rule


class SimplexState(NamedTuple):
    """Each task's share of the weights, which sum to 1 over all tasks."""

    share: Float[Tensor, "T"]


def start(tasks: int) -> SimplexState:
    return SimplexState(torch.full((tasks,), 1 / tasks, dtype=torch.float64))


def among_present(state: SimplexState) -> tuple[Float[Tensor, "T"], Tensor]:
    """(the present tasks' convex weights, their part of the whole); uniform where they hold none of it."""
    part = state.share.sum()
    if float(part) == 0:
        return torch.full_like(state.share, 1 / len(state.share)), part
    return state.share / part, part


@rule(
    "modo",
    source="arXiv:2305.20057, MoDo",
    needs=("cross_gram",),
    scale="mean",
    claims=("permutation", "nonnegative_weights", "convex_weights"),
    init=start,
    trials=({"gamma": 1.0},),
)
def modo(
    cross_gram: Float[Tensor, "T T"],
    state: SimplexState,
    *,
    gamma: Annotated[float, Interval(0, open="left")] = 0.001,
    rho: Annotated[float, Interval(0)] = 0.1,
) -> tuple[Float[Tensor, "T"], SimplexState]:
    """One projected step of the weights against the product of two batches' gradients.

    Args:    cross_gram: X_1 X_2^T (units of g squared).
             gamma: step of the weights, in 1 / (units of g squared).
             rho: pulls the weights to equal ones, in units of g squared.
    Returns: the convex weights after the step, which the third batch is combined with, and the state with them in it.
    """
    weights, part = among_present(state)
    moved = weights - gamma * (cross_gram @ weights + rho * weights)
    weights = torch.from_numpy(nearest_in_simplex(moved.numpy()))
    return weights, SimplexState(weights * part)
