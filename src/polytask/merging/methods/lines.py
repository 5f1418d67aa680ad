"""LiNeS on task arithmetic: the sum of the task vectors, scaled up with depth.

Source      Wang et al. 2024, arXiv:2410.17146; Ilharco et al. 2022, arXiv:2212.04089.
Departures  those of the transform `lines`, which a plan can put before any rule.
Cost        one pass.
"""

from typing import Annotated, Any

from polytask.core.constraints import Interval, PerTask
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("lines", source="arXiv:2410.17146")
def lines(
    *,
    first: Annotated[float, Interval()] = 0.1,
    slope: Annotated[float, Interval()] = 0.9,
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * sum of weights * lines(task vectors).

    Args:    first, slope: see the transform `lines`.
             weights: by task, of its task vector.
             scale: of the merged vector.
    """
    rule = use_rule("task_arithmetic", weights=weights)
    return Pipeline((use_transform("lines", first=first, slope=slope),), rule, scale=scale)
