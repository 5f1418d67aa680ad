"""NuSLERP: SLERP of two models, or of their task vectors where there is a base, as one vector or line by line.

Source      mergekit's documentation: t is the second weight's share of both.
Departures  those of `slerp`.
Cost        that of `slerp` or `slerp_lines`.
"""

from typing import Annotated

from polytask.core.constraints import Choice, Interval
from polytask.merging.contract import Pipeline, method, use_rule


@method("nuslerp", source="mergekit's documentation")
def nuslerp(
    *,
    t: Annotated[float, Interval(0, 1)] = 0.5,
    along: Annotated[str, Choice("tensor", "row", "column")] = "tensor",
    straight: Annotated[float, Interval(-1, 1)] = 1.0,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """SLERP at `t`.

    Args:    t, straight: see `slerp`.
             along: each tensor as one vector, or each row or column of it by itself.
             scale: of the merged vector.
    """
    if along == "tensor":
        return Pipeline((), use_rule("slerp", t=t, straight=straight), scale=scale)
    return Pipeline((), use_rule("slerp_lines", t=t, straight=straight, along=along), scale=scale)
