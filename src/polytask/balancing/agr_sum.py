"""Agr-Sum: the sum of the gradients where all tasks agree on the sign, nothing where two of them do not.

Source      Mansilla, Echeveste, Milone and Ferrante 2021, "Domain generalization via gradient surgery",
            arXiv:2108.01621, Agr-Sum.
Departures  none. An element that is 0 for one task and not for another counts as disagreement. The AND-mask at its
            default threshold is the same divided by the number of tasks.
Cost        O(T) a parameter element.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polytask.core.rules import rule


def agreed(rows: Float[Tensor, "T *shape"]) -> Bool[Tensor, "*shape"]:
    """The elements on whose sign all tasks agree."""
    signs = rows.sign()
    return (signs == signs[0]).all(0)


@rule(
    "agr_sum",
    source="arXiv:2108.01621, Agr-Sum",
    needs=("stack",),
    scale="sum",
    claims=("permutation", "homogeneous", "non_conflicting", "linear_under_scaling"),
)
def agr_sum(stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """The sum where the signs agree, 0 elsewhere.

    Args:    stack: the task vectors of one parameter.
    Returns: the combined vector.
    """
    rows = stack.to(torch.promote_types(stack.dtype, torch.float32))
    return torch.where(agreed(rows), rows.sum(0), 0.0).to(stack.dtype)
