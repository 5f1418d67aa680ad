"""LiNeS: task vectors scaled by depth, the first layers less than the last, which keeps what pre-training gave.

Source      Wang et al. 2024, arXiv:2410.17146: layer l of L is scaled by alpha + beta (l - 1) / (L - 1).
Departures  the paper scales what a merge gives; scaling every task vector is the same for all rules that scale with
            their input tensor by tensor. The paper takes 1 / T for alpha with task arithmetic and chooses beta on
            held-out data; the defaults here, 0.1 and 0.9, lead to 1. The plan says the depth of tensors outside of the
            layers.
Cost        O(1) an element.
"""

from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.errors import MissingInput
from polytask.merging.contract import transform


@transform("lines", source="arXiv:2410.17146")
def lines(
    stack: Float[Tensor, "T n"],
    *,
    depth: float | None,
    first: Annotated[float, Interval()] = 0.1,
    slope: Annotated[float, Interval()] = 0.9,
) -> Float[Tensor, "T n"]:
    """The scaled task vectors.

    Args:    stack: a block of the task vectors; overwritten.
             depth: of the tensor, 0 the first layer and 1 the last.
             first: the factor of the first layer; the paper's alpha.
             slope: by how much the last layer's factor is larger; the paper's beta.
    Returns: the same block.
    """
    if depth is None:
        raise MissingInput("transform 'lines' needs the depth of every tensor: the plan's `depth` says it by name")
    return stack.mul_(first + slope * depth)
