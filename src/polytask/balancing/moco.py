"""MoCo: weights that follow MGDA's on gradients that are averaged over steps, so that a batch's noise biases them less.

Source      Fernando, Shen, Liu, Chaudhury, Murugesan and Chen 2023, "Mitigating gradient bias in multi-objective
            learning: a provably convergent approach", ICLR 2023, the MoCo algorithm: y_t <- y_t - beta_k (y_t - g_t),
            weights <- P(weights - gamma_k (Y Y^T + rho I) weights), P the projection onto the simplex; the update is
            the weighted sum of the y_t.
Departures  the y_t are kept in no ball, and beta_k = beta / k^beta_decay, gamma_k likewise with k a task's own steps,
            as in the authors' code. `lengths: loss` gives each gradient the length of its task's loss first, as that
            code does; it uses a softmax in place of P. Among present tasks alone the weights sum to 1; the share of the
            whole that absent tasks hold waits. The paper was not to be had: no number of it is claimed.
Cost        T backward passes; O(T) a parameter element. Memory: T copies of the shared gradients, kept from step to
            step (in checkpoints too), and 2 T more while a step is computed, beside those of the step.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.modo import SimplexState, among_present
from polytask.balancing.modo import start as uniform
from polytask.core.constraints import Choice, Interval
from polytask.core.geometry import nearest_in_simplex
from polytask.core.rules import rule
from polytask.core.tracking import Tracker, moved, times


class MocoState(NamedTuple):
    """The weights, and each task's steps so far."""

    weights: SimplexState
    steps: Float[Tensor, "T"]


def start(tasks: int) -> MocoState:
    return MocoState(uniform(tasks), torch.zeros(tasks, dtype=torch.float64))


def averaged(
    stack: Float[Tensor, "T *shape"],
    memory: Float[Tensor, "T *shape"],
    *,
    losses: Float[Tensor, "T"],
    norms: Float[Tensor, "T"],
    state: MocoState,
    beta: float,
    beta_decay: float,
    lengths: str,
) -> tuple[Float[Tensor, "T *shape"], Float[Tensor, "T *shape"]]:
    if lengths == "loss":
        stack = times(losses / torch.where(norms > 0, norms, 1.0), stack)
    return moved(memory, stack, beta / (state.steps + 1) ** beta_decay)


@rule(
    "moco",
    source="ICLR 2023, Fernando et al., MoCo",
    needs=("gram",),
    scale="own",
    claims=("permutation", "nonnegative_weights", "convex_weights"),
    init=start,
    tracker=Tracker(averaged),
    trials=({"lengths": "loss"},),
)
def moco(
    gram: Float[Tensor, "T T"],
    state: MocoState,
    *,
    beta: Annotated[float, Interval(0, 1, open="left")] = 0.5,
    beta_decay: Annotated[float, Interval(0)] = 0.5,
    gamma: Annotated[float, Interval(0, open="left")] = 0.1,
    gamma_decay: Annotated[float, Interval(0)] = 0.5,
    rho: Annotated[float, Interval(0)] = 0.0,
    lengths: Annotated[str, Choice("given", "loss")] = "given",
) -> tuple[Float[Tensor, "T"], MocoState]:
    """One projected step of the weights against the averaged gradients, which are then combined.

    Args:    gram: inner products of the averaged gradients (units of g squared).
             beta: step of the averages in a task's first step; beta_decay: how fast it falls with a task's steps.
             gamma: step of the weights, in 1 / (units of g squared); gamma_decay: how fast it falls.
             rho: pulls the weights to equal ones, in units of g squared.
             lengths: of the gradients that are averaged: as given, or of their task's loss.
    Returns: convex weights of the averaged gradients, and the state with them in it.
    """
    weights, part = among_present(state.weights)
    steps = state.steps + 1
    moved = weights - gamma / steps**gamma_decay * (gram @ weights + rho * weights)
    weights = torch.from_numpy(nearest_in_simplex(moved.numpy()))
    return weights, MocoState(SimplexState(weights * part), steps)
