"""DARE with TIES: task vectors thinned out at random and rescaled, then merged where their signs agree.

Source      Yu et al. 2023, arXiv:2311.03099; Yadav et al. 2023, arXiv:2306.01708.
Departures  those of `drop` and `elect`; TIES' own trimming is left out, as in other tools: put `trim` after `drop` in
            a plan of your own to have it.
Cost        a draw of 32 bits an element and task, one pass.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("dare_ties", source="arXiv:2311.03099")
def dare_ties(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.5,
    rescale: Annotated[str, Choice("density", "none")] = "density",
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    elect: Annotated[str, Choice("weighted", "plain")] = "weighted",
    divide: Annotated[str, Choice("count", "weights", "none")] = "count",
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * elect(drop(task vectors)).

    Args:    density, rescale: see `drop`.
             weights, elect, divide: see `elect`.
             scale: of the merged vector.
    """
    return Pipeline(
        (use_transform("drop", density=density, rescale=rescale),),
        use_rule("elect", weights=weights, elect=elect, divide=divide),
        scale=scale,
    )
