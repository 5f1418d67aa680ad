"""Nearswap: the base moves towards one other model, each element by at most `t`.

Source      the model card of QuartetAnemoi-70B-t0.0001 and mergekit's documentation: base + clip(t / |d|, 0, 1) d for
            the difference d, which is d cut off at +t and -t.
Departures  none.
Cost        O(1) an element.
"""

from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule


@rule(
    "nearswap",
    source="mergekit's documentation",
    needs=("stack",),
    scale="part",
    claims=("permutation", "non_conflicting", "stationary", "strongly_stationary"),
    tasks=1,
)
def nearswap(stack: Float[Tensor, "1 *shape"], *, t: Annotated[float, Interval(0)] = 1e-4) -> Float[Tensor, "*shape"]:
    """The bounded difference.

    Args:    stack: the other model minus the base.
             t: the largest change of an element, in the weights' own units.
    Returns: the combined vector.
    """
    return stack[0].clamp(-t, t)
