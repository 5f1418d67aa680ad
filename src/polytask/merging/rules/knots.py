"""KnOTS: the tasks' matrices in one common basis, where a merge by elements compares like with like.

Source      Stoica et al. 2024, arXiv:2410.19735: the decomposition U S [V_1 ... V_T] of the task matrices side by
            side; the V_t are merged by another method, TIES in the variant that leads, and the result is U S V.
Departures  trimming is within each matrix. Vanishing singular values are left out. Tensors that are not matrices take
            the tasks' mean. The paper's text was not at hand.
Cost        one decomposition of a matrix m x T n (decompositions.thin_svd).
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.core.rules import rule
from polytask.merging.decompositions import thin_svd
from polytask.merging.rules.elect import elect
from polytask.merging.selection import largest


@rule(
    "knots",
    source="arXiv:2410.19735",
    needs=("matrix",),
    scale="own",
    claims=("permutation", "homogeneous"),
    otherwise="linear",
)
def knots(
    matrix: Float[Tensor, "T m n"],
    *,
    density: Annotated[float, Interval(0, 1, open="left")] = 0.2,
    divide: Annotated[str, Choice("count", "none")] = "count",
) -> Float[Tensor, "m n"]:
    """The merge in the common basis.

    Args:    matrix: the tasks' deltas of one matrix.
             density: share of each V_t that trimming keeps; 1 is no trimming.
             divide: see `elect`.
    Returns: the combined matrix.
    """
    tasks, _, n = matrix.shape
    U, S, Vh = thin_svd(torch.cat(list(matrix), dim=1))
    aligned = Vh.reshape(len(S), tasks, n).transpose(0, 1)
    trimmed = torch.stack([largest(own, density) for own in aligned.flatten(1)]).view_as(aligned)
    return ((U * S) @ elect(trimmed, divide=divide).to(U)).to(matrix.dtype)
