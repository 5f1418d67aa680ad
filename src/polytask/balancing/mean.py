"""Mean: the plain average of the task gradients.

Source      the average of the task gradients, the reference point of the aggregation literature (g_0 in CAGrad,
            arXiv:2110.14048, section 2).
Departures  none. It differs from `equal` in its scale, 1 / T, and in leaving the heads' gradients as they are.
Cost        nothing beyond the Gram matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


@rule(
    "mean",
    source="the average of the task gradients",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "convex_weights", "linear_under_scaling"),
)
def mean(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """One T-th for each task.

    Args:    gram: inner products of the task vectors; only their number matters.
    Returns: convex weights, dimensionless.
    """
    return torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)
