"""SLERP line by line: each row or column of a tensor by itself, at the angle between the two models' there.

Source      mergekit's documentation of NuSLERP without flattening; the weights are slerp's.
Departures  those of slerp. A tensor with one axis is one row, and one column.
Cost        O(1) an element, and the whole tensor in memory.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.rules import rule
from polytask.merging.sphere import TINY, share_of_way


@rule(
    "slerp_lines",
    source="mergekit's documentation",
    needs=("stack",),
    granularity="tensor",
    scale="mean",
    claims=("homogeneous", "linear_under_scaling"),
    of="either",
    tasks=2,
    trials=({"t": 0.2},),
)
def slerp_lines(
    stack: Float[Tensor, "2 *shape"],
    *,
    t: Annotated[float, Interval(0, 1)] = 0.5,
    weights: Annotated[Float[Tensor, "2"] | float, PerTask(Interval(0))] = 1.0,
    straight: Annotated[float, Interval(-1, 1)] = 1.0,
    along: Annotated[str, Choice("row", "column")] = "row",
) -> Float[Tensor, "*shape"]:
    """The points at `t` of the ways.

    Args:    stack: of two models.
             t: 0 is the first model, 1 the second.
             weights: of the two; with them the way is divided as (1 - t) and t times the weights say.
             straight: cosine beyond which a way is a straight line.
             along: what is turned by itself: rows (an entry of the first axis) or columns (one of the last).
    Returns: the combined values.
    """
    t = share_of_way(t, weights, "rule 'slerp_lines'")
    shape = stack.shape[1:]
    columns = along == "column" and len(shape) > 1
    if columns:
        lines = stack.flatten(1, -2).mT
    else:
        lines = stack.flatten(2) if len(shape) > 1 else stack.reshape(2, 1, -1)
    a, b = lines.double()
    norms = (a.square().sum(1) * b.square().sum(1)).sqrt()
    cosine = ((a * b).sum(1) / torch.where(norms > 0, norms, 1.0)).clamp(-1, 1)
    sine = torch.where(norms > 0, (1 - cosine.square()).clamp(min=0).sqrt(), 0.0)
    angle, curved = torch.atan2(sine, cosine), (sine > TINY) & (cosine <= straight)
    below = torch.where(curved, sine, 1.0)
    first = torch.where(curved, ((1 - t) * angle).sin() / below, 1 - t)
    second = torch.where(curved, (t * angle).sin() / below, t)
    combined = (first[:, None] * a + second[:, None] * b).to(stack.dtype)
    return combined.mT.reshape(shape) if columns else combined.view(shape)
