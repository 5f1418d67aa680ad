"""IMTL-G: the combination of the task gradients that has equal projections onto all of them.

Source      Liu, Li, Kuang et al. 2021, "Towards impartial multi-task learning", ICLR 2021, gradient balance. Their
            closed form is G a = c |g| with sum a = 1, written with differences of the gradients.
Departures  it is solved through the Gram matrix of the unit gradients, so that lengths which differ by many orders of
            magnitude do no harm. Where that is singular: if only the zero vector has equal projections (more tasks
            than dimensions, or opposite gradients), the update is that zero vector; if the combination is not unique
            (parallel gradients), the one with the shortest vector of a_t |g_t|. A zero gradient gets weight 0. Where
            the weights cannot sum to 1 because they sum to 0, they are all 0. As published, nothing keeps them
            positive: where the unscaled weights sum to less than 0, the update opposes every gradient.
Cost        one eigendecomposition of size T.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.geometry import pseudo_solve, unit_gram
from polytask.core.rules import rule


@rule(
    "imtl_g",
    source="ICLR 2021, Liu et al., IMTL-G",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous"),
)
def imtl_g(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """Weights a with g_t . d / |g_t| the same for all tasks t, d = sum a_t g_t.

    Args:    gram: inner products of the task vectors (units of g squared).
    Returns: dimensionless weights that sum to 1 (or are all 0), some of which may be negative.
    """
    unit, norms = unit_gram(gram.numpy())
    present = unit.diagonal()
    solution, reached = pseudo_solve(unit, present)
    missed = present - reached  # in the kernel of C: its combination is the zero vector
    if np.abs(missed).max() > 1e-6:
        solution = missed
    weights = solution * (norms.min(where=present > 0, initial=np.inf) / norms) if present.any() else solution
    total = float(weights.sum())
    if abs(total) <= 1e-12 * float(np.abs(weights).sum()):
        return torch.zeros_like(gram[0])
    return torch.from_numpy(weights / total)
