"""SDMGrad: MGDA drawn towards the mean direction, its weights found on independent batches.

Source      Xiao, Ban and Ji 2023, "Direction-oriented multi-objective learning: simple and provable stochastic
            algorithms", arXiv:2305.18409, Algorithm SDMGrad: with gradients X_1, X_2, X_3 of three batches and g_0 = p
            X the direction to keep to, p the preferences (equal by default), the weights w take some projected steps
            along -X_1 (X_2^T w + lambda X_2^T p), and the update is that of X_3: (w X_3 + lambda p X_3) / (1 + lambda).
Departures  as in the authors' code: one pair of batches serves all inner steps (the algorithm draws a pair for each),
            X_1 X_2^T is divided by the square of the mean length of the gradients, inner steps have momentum, and the
            update is divided by 1 + lambda. Not as there: the inner learning rate is 0.5 (there 5, at which rounding
            errors grow from step to step until the order of the tasks matters), and gradients of length 0 leave the
            weights as they are (there 1e-8 is added to the divisor). Lengths come from the diagonal of X_1 X_2^T, which
            may be negative: 0 then. With two batches, X_3 is X_2. The paper was not to be had: no number of it is
            claimed.
Cost        T backward passes for each batch; `iterations` products with a T x T matrix.
"""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.modo import SimplexState, among_present, start
from polytask.core.constraints import Interval
from polytask.core.geometry import nearest_in_simplex
from polytask.core.rules import rule


@rule(
    "sdmgrad",
    source="arXiv:2305.18409, SDMGrad",
    needs=("cross_gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "convex_weights"),
    init=start,
    trials=({"lam": 0.0}, {"momentum": 0.0, "learning_rate": 5.0}),
)
def sdmgrad(
    cross_gram: Float[Tensor, "T T"],
    state: SimplexState,
    *,
    priority: Float[Tensor, "T"],
    lam: Annotated[float, Interval(0)] = 0.3,
    iterations: Annotated[int, Interval(1)] = 20,
    learning_rate: Annotated[float, Interval(0, open="left")] = 0.5,
    momentum: Annotated[float, Interval(0, 1, open="right")] = 0.5,
) -> tuple[Float[Tensor, "T"], SimplexState]:
    """The weights w after the inner steps, mixed with the preferences: (w + lam p) / (1 + lam).

    Args:    cross_gram: X_1 X_2^T (units of g squared).
             priority: the preference vector, up to its length.
             lam: how strongly the direction is drawn to that of the preferences; the paper's lambda. 0 is MGDA's.
             iterations: inner steps.
             learning_rate: of the inner steps, gradients having a mean length of 1.
             momentum: of the inner steps.
    Returns: convex weights, and the state with w in it.
    """
    weights, part = among_present(state)
    w, G, preference = weights.numpy(), cross_gram.numpy(), (priority / priority.sum()).numpy()
    length = np.sqrt(np.maximum(G.diagonal(), 0.0)).mean()
    if length > 0:
        unit = G / length**2
        velocity, pull = np.zeros_like(w), lam * (unit @ preference)
        for _ in range(iterations):
            velocity = momentum * velocity + unit @ w + pull
            w = nearest_in_simplex(w - learning_rate * velocity)
    mixed = (w + lam * preference) / (1 + lam)
    return torch.from_numpy(mixed), SimplexState(torch.from_numpy(w) * part)
