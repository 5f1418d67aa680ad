"""Iso-C: the sum of the task matrices with every singular value replaced by their mean, so no direction dominates.

Source      Marczak et al. 2025, arXiv:2502.04959, isotropic merging in the common subspace: mean(S) U Vh for the
            singular value decomposition U S Vh of the sum of the task matrices.
Departures  singular values below 1e-6 of the largest neither count in the mean nor get a direction, which would be an
            arbitrary one (a sum of adapters of low rank has many). Tensors that are not matrices take the tasks' mean;
            the paper's text was not at hand.
Cost        one decomposition a matrix (decompositions.polar).
"""

from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule
from polytask.merging.decompositions import polar


@rule(
    "iso_c",
    source="arXiv:2502.04959",
    needs=("matrix",),
    scale="own",
    claims=("permutation", "homogeneous"),
    otherwise="linear",
)
def iso_c(matrix: Float[Tensor, "T m n"]) -> Float[Tensor, "m n"]:
    """The isotropic sum.

    Args:    matrix: the tasks' deltas of one matrix.
    Returns: a matrix with equal singular values; zero where the deltas cancel.
    """
    direction, S = polar(matrix)
    return direction.mul_(S.sum() / max(len(S), 1))
