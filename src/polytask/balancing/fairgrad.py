"""FairGrad: the direction with an alpha-fair division of the improvement among the tasks.

Source      Ban and Ji 2024, "Fair resource allocation in multi-task learning", arXiv:2402.15638, Algorithm 1: the
            w > 0 with G w = w^(-1 / alpha) maximises sum_t (g_t . d)^(1 - alpha) / (1 - alpha) over a ball.
Departures  the equation is solved exactly, as a convex problem, where the authors' code calls a nonlinear least-squares
            solver. A zero gradient cannot gain and is left out, weight 0. Where there is no solution (a convex
            combination of the other gradients vanishes, as far as G tells) the weights are 0. alpha is at most 10 and
            at least 0.5: beyond, the weights of gradients whose lengths differ by 1e6 leave float64's digits.
Cost        about six solves of size T.
"""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.proportional import proportional_weights
from polytask.core.constraints import Interval
from polytask.core.geometry import unit_gram
from polytask.core.rules import rule


@rule(
    "fairgrad",
    source="arXiv:2402.15638, Algorithm 1",
    needs=("gram",),
    scale="own",
    claims=("permutation", "non_conflicting", "nonnegative_weights"),
    trials=({"alpha": 0.5}, {"alpha": 2.0}, {"alpha": 10.0}),
)
def fairgrad(
    gram: Float[Tensor, "T T"],
    *,
    alpha: Annotated[float, Interval(0.5, 10)] = 1.0,
) -> Float[Tensor, "T"]:
    """The positive solution w of G w = w^(-1 / alpha).

    Args:    gram: inner products of the task vectors (units of g squared).
             alpha: 1 is proportional fairness (Nash-MTL's equation); smaller is nearer to the sum of the gradients,
                 larger nearer to the best improvement of the worst-off task.
    Returns: weights in units of g^(-2 alpha / (1 + alpha)).
    """
    unit, norms = unit_gram(gram.numpy())
    present = np.flatnonzero(unit.diagonal() > 0)
    weights = np.zeros(len(unit))
    if len(present):
        found = proportional_weights(unit[np.ix_(present, present)], norms[present], 1 / alpha)
        weights[present] = 0.0 if found is None else found
    return torch.from_numpy(weights)
