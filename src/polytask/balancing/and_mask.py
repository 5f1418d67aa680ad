"""AND-mask: an element moves only if enough tasks agree on its direction.

Source      Parascandolo, Neitz, Orvieto, Gresele and Schoelkopf 2020, arXiv:2009.00329, the AND-mask: the mean gradient
            times the mask [threshold * T <= |sum_t sign(g_t)|].
Departures  none. The promise that no task's loss rises to first order holds at the default threshold of 1 only.
Cost        O(T) a parameter element.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule


@rule(
    "and_mask",
    source="arXiv:2009.00329, AND-mask",
    needs=("stack",),
    scale="mean",
    claims=("permutation", "homogeneous", "non_conflicting", "linear_under_scaling"),
)
def and_mask(
    stack: Float[Tensor, "T *shape"], *, threshold: Annotated[float, Interval(0, 1)] = 1.0
) -> Float[Tensor, "*shape"]:
    """The mean where the tasks agree, 0 elsewhere.

    Args:    stack: the task vectors of one parameter.
             threshold: tasks with the majority's sign minus tasks with the other, over T, that counts as agreement; 0
                 keeps every element, 1 those on which all agree.
    Returns: the combined vector.
    """
    rows = stack.to(torch.promote_types(stack.dtype, torch.float32))
    agreement = rows.sign().sum(0).abs()
    return torch.where(agreement >= threshold * len(rows) - 1e-6, rows.mean(0), 0.0).to(stack.dtype)
