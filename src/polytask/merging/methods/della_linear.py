"""DELLA without signs: task vectors thinned out at random, small elements more than large ones, then added up.

Source      Deep et al. 2024, arXiv:2406.11617, without the step "elect"; documented by mergekit under this name.
Departures  those of `magprune`.
Cost        a sort of each row and a draw of 32 bits an element and task, one pass.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("della_linear", source="arXiv:2406.11617")
def della_linear(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.5,
    epsilon: Annotated[Any, PerTask(Interval(0, 1))] = 0.2,
    span: Annotated[str, Choice("steps", "ends")] = "steps",
    rescale: Annotated[str, Choice("density", "none")] = "density",
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * sum of weights * magprune(task vectors).

    Args:    density, epsilon, span, rescale: see `magprune`.
             weights: by task, of its task vector.
             scale: of the merged vector.
    """
    return Pipeline(
        (use_transform("magprune", density=density, epsilon=epsilon, span=span, rescale=rescale),),
        use_rule("task_arithmetic", weights=weights),
        scale=scale,
    )
