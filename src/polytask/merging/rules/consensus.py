"""Consensus: the sum without the elements that matter to one task only, or to none.

Source      Wang et al. 2024, arXiv:2405.07813: an element matters to task t where |x_t| >= mask_scale |m - x_t| for
            the merged vector m (its TALL-mask); m is kept where at least `agree` tasks' masks do, and is 0 elsewhere.
Departures  The paper chooses mask_scale between 0.2 and 0.6 on held-out data for each task; here it is a number a
            task. With fewer tasks than `agree` all must agree. Where no task moved masks are 1 and the element is 0.
Cost        O(T) an element.
"""

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.rules import rule
from polytask.merging.rules.elect import elect

_ROUNDING = 1e-6  # so that whether two sides are equal does not depend on the vectors' unit


@rule(
    "consensus",
    source="arXiv:2405.07813",
    needs=("stack",),
    scale="part",
    claims=("permutation", "homogeneous"),
    trials=({"merged": "elect"},),
)
def consensus(
    stack: Float[Tensor, "T *shape"],
    *,
    agree: Annotated[int, Interval(0)] = 2,
    mask_scale: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0))] = 0.4,
    merged: Annotated[str, Choice("sum", "elect")] = "sum",
) -> Float[Tensor, "*shape"]:
    """The filtered sum, or the filtered values of the elected sign.

    Args:    stack: the task vectors of one parameter.
             agree: how many tasks an element must matter to; the paper's k.
             mask_scale: by task, how large its own part must be beside the others'; the paper's lambda.
             merged: m is the sum, the paper's consensus task arithmetic, or what the rule `elect` gives.
    Returns: the combined vector.
    """
    total = stack.sum(0) if merged == "sum" else elect(stack)
    votes = tall_masks(stack, total, mask_scale).sum(0)
    return torch.where(votes >= min(agree, len(stack)), total, 0.0).to(stack.dtype)


def tall_masks(
    stack: Float[Tensor, "T *shape"], merged: Float[Tensor, "*shape"], mask_scale: Float[Tensor, "T"] | float
) -> Bool[Tensor, "T *shape"]:
    """Where the merged vector holds each task: |x_t| >= mask_scale |merged - x_t|."""
    scales = (torch.ones(len(stack), dtype=torch.float64) * mask_scale * (1 - _ROUNDING)).to(stack)
    return stack.abs() >= scales.view(-1, *[1] * merged.dim()) * (merged - stack).abs()
