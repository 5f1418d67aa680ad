"""DARE with task arithmetic: task vectors thinned out at random and rescaled, then added up.

Source      Yu et al. 2023, arXiv:2311.03099; Ilharco et al. 2022, arXiv:2212.04089.
Departures  those of `drop`.
Cost        a draw of 32 bits an element and task, one pass.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("dare_linear", source="arXiv:2311.03099")
def dare_linear(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.5,
    rescale: Annotated[str, Choice("density", "none")] = "density",
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * sum of weights * drop(task vectors).

    Args:    density, rescale: see `drop`.
             weights: by task, of its task vector.
             scale: of the merged vector.
    """
    return Pipeline(
        (use_transform("drop", density=density, rescale=rescale),),
        use_rule("task_arithmetic", weights=weights),
        scale=scale,
    )
