"""MagMax: each element is the one of largest magnitude among the tasks.

Source      Marczak et al. 2024, arXiv:2407.06322, maximum magnitude selection. The paper scales the result by a factor
            found on held-out data: `scale`.
Departures  none known. Of equal magnitudes the first task's is taken.
Cost        O(T) an element.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


@rule("magnitude_max", source="arXiv:2407.06322", needs=("stack",), scale="own", claims=("homogeneous",))
def magnitude_max(stack: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """The largest of each element.

    Args:    stack: the task vectors of one parameter.
    Returns: the combined vector.
    """
    largest = stack[0].clone()
    for row in stack[1:]:
        largest = torch.where(row.abs() > largest.abs(), row, largest)
    return largest
