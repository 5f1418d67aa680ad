"""TSV-M: the leading singular directions of each task, made orthogonal between tasks so that they do not interfere.

Source      Gargiulo et al. 2024, arXiv:2412.00081, task singular vectors, merging: each task matrix keeps the first
            min(m, n) / T of its singular directions; the left vectors of all tasks side by side are replaced by the
            nearest orthonormal set, so are the right ones, and the matrix is rebuilt with the singular values.
Departures  vanishing singular values are left out: their vectors are arbitrary, yet would turn the others. At least
            one direction a task is kept. Tensors that are not matrices take the tasks' mean.
Cost        T decompositions a matrix and two of the collected directions (decompositions.thin_svd).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule
from polytask.merging.decompositions import nearest_orthonormal, thin_svd


@rule(
    "tsv_m",
    source="arXiv:2412.00081",
    needs=("matrix",),
    scale="own",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
    otherwise="linear",
)
def tsv_m(matrix: Float[Tensor, "T m n"]) -> Float[Tensor, "m n"]:
    """The sum of the tasks' leading parts after decorrelation.

    Args:    matrix: the tasks' deltas of one matrix.
    Returns: the combined matrix; of one task alone the delta itself.
    """
    each = max(1, min(matrix.shape[1:]) // len(matrix))
    parts = [thin_svd(delta, each) for delta in matrix]
    U = nearest_orthonormal(torch.cat([part[0] for part in parts], dim=1))
    V = nearest_orthonormal(torch.cat([part[2] for part in parts]).T)
    return ((U * torch.cat([part[1] for part in parts])) @ V.T).to(matrix.dtype)
