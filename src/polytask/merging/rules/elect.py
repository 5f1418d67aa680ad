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
    factors = (torch.ones(len(rows), dtype=torch.float64) * weights).to(rows).tolist()
    voting = factors if elect == "weighted" else [1.0] * len(rows)
    value, total, divisor = (torch.empty_like(rows[0]) for _ in range(3))
    sign = _scaled(rows[0], voting[0], value).clone()
    for row, factor in zip(rows[1:], voting[1:], strict=True):
        sign += _scaled(row, factor, value)
    sign.sign_()
    for t, (row, vote, factor) in enumerate(zip(rows, voting, factors, strict=True)):
        torch.mul(_scaled(row, vote, value), sign, out=value).relu_()  # 0 where it does not agree
        _add(total, value if vote == factor else value * factor, first=t == 0)
        if divide != "none":
            _add(divisor, value.sign_() if divide == "count" else value.sign_().mul_(abs(factor)), first=t == 0)
    total.mul_(sign)
    if divide != "none":
        total.div_(divisor.clamp_(min=torch.finfo(divisor.dtype).tiny))
    return total.to(stack.dtype)


def _scaled(row: Tensor, factor: float, out: Tensor) -> Tensor:
    """factor * row, in `out`; the row itself where the factor is 1."""
    return row if factor == 1.0 else torch.mul(row, factor, out=out)


def _add(total: Tensor, value: Tensor, *, first: bool) -> None:
    """Adds a value to the total, which the first one begins."""
    total.copy_(value) if first else total.add_(value)
