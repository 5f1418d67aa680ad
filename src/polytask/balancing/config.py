"""ConFIG: the direction that has the same positive cosine with every task gradient.

Source      Liu, Chu and Thuerey 2024, "ConFIG: towards conflict-free training of physics informed neural networks",
            arXiv:2408.11104: g_v = U^+ 1 with the unit gradients as rows of U, and the update
            (sum_t g_t . g_u) g_u with g_u = g_v / |g_v|.
Departures  the pseudo-inverse goes through the Gram matrix C = U U^T of the unit gradients (U^+ = U^T C^+), with
            singular values of U below 1e-6 counted as 0. Where U^+ 1 = 0, as for two opposite gradients, there is no
            such direction and the update is 0. A zero gradient has no direction and gets weight 0.
Cost        one eigendecomposition of size T; no copy of the gradients.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.geometry import pseudo_solve, unit_gram
from polytask.core.rules import rule


@rule(
    "config",
    source="arXiv:2408.11104",
    needs=("gram",),
    scale="sum",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
)
def config(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """Weights of the update; where the gradients are independent it conflicts with none of them.

    Args:    gram: inner products of the task vectors (units of g squared).
    Returns: dimensionless weights, some of which may be negative.
    """
    unit, norms = unit_gram(gram.numpy())
    lengths = np.where(unit.diagonal() > 0, norms, 0.0)
    solution, reached = pseudo_solve(unit, unit.diagonal())
    square = float(solution @ reached)  # of |g_v|
    if square <= 1e-20 * len(unit):
        return torch.zeros_like(gram[0])
    return torch.from_numpy(solution / norms * (lengths @ reached / square))
