"""TIES: trim each task vector, elect a sign for each element, merge the values that agree.

Source      Yadav, Tam, Choshen, Raffel and Bansal 2023, arXiv:2306.01708, Algorithm 1: the three steps.
Departures  those of `trim` (equal magnitudes at the threshold) and `elect` (weights; values that cancel).
Cost        that of `trim` over the model, then one pass.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.statistics import SCOPES
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("ties", source="arXiv:2306.01708, Algorithm 1")
def ties(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.2,
    scope: Annotated[str, Choice(*SCOPES)] = "all",
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    elect: Annotated[str, Choice("weighted", "plain")] = "weighted",
    divide: Annotated[str, Choice("count", "weights", "none")] = "count",
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * elect(trim(task vectors)).

    Args:    density, scope: see `trim`.
             weights, elect, divide: see the rule `elect`.
             scale: of the merged vector, the paper's lambda.
    """
    return Pipeline(
        (use_transform("trim", density=density, scope=scope),),
        use_rule("elect", weights=weights, elect=elect, divide=divide),
        scale=scale,
    )
