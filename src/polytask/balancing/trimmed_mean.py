"""Trimmed mean: element by element the mean without the largest and smallest values, so no single task can drag it far.

Source      Yin, Chen, Ramchandran and Bartlett 2018, arXiv:1803.01498, definition 2 (coordinate-wise trimmed mean).
Departures  the number of values cut at each end is `trim` times T rounded down: none for fewer than 1 / trim tasks.
Cost        O(T log T) a parameter element.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule


@rule(
    "trimmed_mean",
    source="arXiv:1803.01498, definition 2",
    needs=("stack",),
    scale="mean",
    claims=("permutation", "homogeneous"),
)
def trimmed_mean(
    stack: Float[Tensor, "T *shape"], *, trim: Annotated[float, Interval(0, 0.5, open="right")] = 0.25
) -> Float[Tensor, "*shape"]:
    """The mean of the middle values of each element.

    Args:    stack: the task vectors of one parameter.
             trim: share of the tasks that is left out at each end; the paper's beta.
    Returns: the combined vector.
    """
    cut = int(trim * len(stack) + 1e-9)  # 0.1 * 30 is a little less than 3 in floating point
    rows = stack.to(torch.promote_types(stack.dtype, torch.float32))
    middle = rows.sort(dim=0).values[cut : len(rows) - cut] if cut else rows
    return middle.mean(0).to(stack.dtype)
