"""NuSLERP: SLERP of two models, or of their task vectors where there is a base, as one vector or line by line.

Source      mergekit's documentation: the way is divided as the two models' weights say.
Departures  those of `slerp`.
Cost        that of `slerp` or `slerp_lines`.
"""

from typing import Annotated

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.merging.contract import Pipeline, method, use_rule


@method("nuslerp", source="mergekit's documentation")
def nuslerp(
    *,
    t: Annotated[float, Interval(0, 1)] = 0.5,
    weights: Annotated[dict[str, float] | float, PerTask(Interval(0))] = 1.0,
    along: Annotated[str, Choice("tensor", "row", "column")] = "tensor",
    straight: Annotated[float, Interval(-1, 1)] = 1.0,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """SLERP at `t`.

    Args:    t, weights, straight: see `slerp`.
             along: each tensor as one vector, or each row or column of it by itself.
             scale: of the merged vector.
    """
    if along == "tensor":
        return Pipeline((), use_rule("slerp", t=t, weights=weights, straight=straight), scale=scale)
    return Pipeline((), use_rule("slerp_lines", t=t, weights=weights, straight=straight, along=along), scale=scale)
