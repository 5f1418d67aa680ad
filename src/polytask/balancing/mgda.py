"""MGDA: the shortest vector in the convex hull of the task gradients, a common descent direction.

Source      Desideri 2012, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization";
            for deep networks Sener and Koltun 2018, arXiv:1810.04650.
Departures  the minimum is found exactly by an active-set method, where Sener and Koltun stop a Frank-Wolfe iteration
            early; gradients are not normalised, as in both papers' formulas. LibMTL 1.1.5, whose iteration is that one
            in float32, ends up to 5.4e-5 of its length away on random Jacobians.
Cost        about T solves of size T; see core.geometry.min_norm_point.
"""

from jaxtyping import Float
from torch import Tensor

from polytask.core.geometry import min_norm_point
from polytask.core.rules import rule


@rule(
    "mgda",
    source="arXiv:1810.04650",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "non_conflicting", "nonnegative_weights", "convex_weights", "stationary"),
)
def mgda(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """min w^T G w over convex weights w.

    Args:    gram: inner products of the task vectors (units of g squared).
    Returns: convex weights, dimensionless; the combination is zero exactly at Pareto-stationary points.
    """
    return min_norm_point(gram)
