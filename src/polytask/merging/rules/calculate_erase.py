"""Calculate and erase: tasks weighted by their share of the squared change, without what opposes the majority's sign.

Source      Wan et al. 2024, arXiv:2408.07990 (FuseChat), the steps "Calculate" and "Erase" of SCE: each matrix's
            coefficient of a task is its share of the sum of squares; elements whose sign is not that of the sum over
            tasks are erased; the rest, times the coefficients, is added up.
Departures  `divide` = "weights" divides by the coefficients of the tasks that agree, as other tools do; `vote` =
            "weighted" lets the weighted values elect the sign. Where the values cancel exactly the result is 0. The
            paper's text was not at hand.
Cost        one pass for the squares, then O(T) an element.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice
from polytask.core.rules import rule
from polytask.merging.moments import SquaredLengths
from polytask.merging.rules.elect import elect


@rule(
    "calculate_erase",
    source="arXiv:2408.07990, Calculate and Erase",
    needs=("stack",),
    scale="mean",
    claims=("permutation", "homogeneous"),
    statistic=lambda: SquaredLengths("tensor"),
    trials=({"divide": "weights"}, {"vote": "weighted"}),
)
def calculate_erase(
    stack: Float[Tensor, "T *shape"],
    measured: Float[Tensor, "T"],
    *,
    vote: Annotated[str, Choice("plain", "weighted")] = "plain",
    divide: Annotated[str, Choice("none", "weights")] = "none",
) -> Float[Tensor, "*shape"]:
    """The weighted sum of the values that agree.

    Args:    stack: the task vectors of one parameter.
             measured: their squared lengths.
             vote: which values elect the sign.
             divide: by the coefficients of the values that agree, or not.
    Returns: the combined vector.
    """
    total = measured.sum()
    coefficients = measured / torch.where(total > 0, total, 1.0)
    return elect(stack, weights=coefficients, elect=vote, divide=divide)
