"""DELLA: task vectors thinned out at random, small elements more than large ones, then merged where signs agree.

Source      Deep et al. 2024, arXiv:2406.11617: drop (MagPrune), elect, fuse (the mean of the elected values, times a
            factor: `scale`).
Departures  those of `magprune` and `elect`.
Cost        a sort of each row and a draw of 32 bits an element and task, one pass.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("della", source="arXiv:2406.11617")
def della(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.5,
    epsilon: Annotated[Any, PerTask(Interval(0, 1))] = 0.2,
    span: Annotated[str, Choice("steps", "ends")] = "steps",
    rescale: Annotated[str, Choice("density", "none")] = "density",
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    elect: Annotated[str, Choice("weighted", "plain")] = "weighted",
    divide: Annotated[str, Choice("count", "weights", "none")] = "count",
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * elect(magprune(task vectors)).

    Args:    density, epsilon, span, rescale: see `magprune`.
             weights, elect, divide: see `elect`.
             scale: of the merged vector.
    """
    return Pipeline(
        (use_transform("magprune", density=density, epsilon=epsilon, span=span, rescale=rescale),),
        use_rule("elect", weights=weights, elect=elect, divide=divide),
        scale=scale,
    )
