"""Elect: each element's sign is chosen by the sum over tasks, and the values that agree with it are merged.

Source      Yadav, Tam, Choshen, Raffel and Bansal 2023, arXiv:2306.01708, the steps "Elect" and "Disjoint merge": the
            sign is that of the sum of the values, and the result the mean of the values with that sign.
Departures  weights, which the paper lacks. Where the values cancel exactly no sign is elected and the result is 0 (the
            paper does not say; this keeps the rule odd). Dividing by weights divides by the sum of their magnitudes, so
            a negative weight turns its task's direction around, where other tools lose the sign.
Cost        O(T) an element.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.rules import rule


@rule(
    "elect",
    source="arXiv:2306.01708, Elect and Disjoint merge",
    needs=("stack",),
    scale="mean",
    claims=("permutation", "homogeneous"),
    trials=({"divide": "weights"}, {"elect": "plain"}),
)
def elect(
    stack: Float[Tensor, "T *shape"],
    *,
    weights: Annotated[Float[Tensor, "T"] | float, PerTask(Interval())] = 1.0,
    elect: Annotated[str, Choice("weighted", "plain")] = "weighted",
    divide: Annotated[str, Choice("count", "weights", "none")] = "count",
) -> Float[Tensor, "*shape"]:
    """The elected sign's values, averaged or summed.

    Args:    stack: the task vectors of one parameter.
             weights: by task, of its values.
             elect: whether the sum that elects the sign, and a value's agreement with it, are of the weighted values.
             divide: by the number of values that agree (the paper's), by the sum of their weights' magnitudes, or not.
    Returns: the combined vector.
    """
    rows = stack.to(torch.promote_types(stack.dtype, torch.float32))
    factors = (torch.ones(len(rows), dtype=torch.float64) * weights).to(rows).view(-1, *[1] * (rows.dim() - 1))
    weighted = rows if bool((factors == 1).all()) else rows * factors
    voting = weighted if elect == "weighted" else rows
    sign = _sum(voting).sign_()
    agreeing = (voting * sign).relu_()  # 0 where a value does not agree
    if voting is weighted:
        total = _sum(agreeing).mul_(sign)
        agrees = agreeing.sign_()
    else:
        agrees = agreeing.sign_()
        total = _sum(weighted * agrees)
    if divide == "none":
        return total.to(stack.dtype)
    divisor = _sum(agrees) if divide == "count" else _sum(agrees.mul_(factors.abs()))
    return total.div_(divisor.clamp_(min=torch.finfo(divisor.dtype).tiny)).to(stack.dtype)


def _sum(rows: Tensor) -> Tensor:
    """Row after row, which is faster than a reduction over a short first axis."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total
