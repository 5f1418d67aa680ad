"""Model Breadcrumbs with TIES: task vectors without their largest and smallest elements, merged where signs agree.

Source      Davari and Belilovsky 2023, arXiv:2312.06795; Yadav et al. 2023, arXiv:2306.01708; documented by mergekit
            under this name.
Departures  those of `two_sided` and `elect`.
Cost        two passes of `two_sided` over the model, then one.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.statistics import SCOPES
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("breadcrumbs_ties", source="arXiv:2312.06795")
def breadcrumbs_ties(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.143,
    outliers: Annotated[Any, PerTask(Interval(0, 1, open="right"))] = 0.007,
    scope: Annotated[str, Choice(*SCOPES)] = "tensor",
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    elect: Annotated[str, Choice("weighted", "plain")] = "weighted",
    divide: Annotated[str, Choice("count", "weights", "none")] = "count",
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * elect(two_sided(task vectors)).

    Args:    density, outliers, scope: see `two_sided`.
             weights, elect, divide: see `elect`.
             scale: of the merged vector.
    """
    return Pipeline(
        (use_transform("two_sided", density=density, outliers=outliers, scope=scope),),
        use_rule("elect", weights=weights, elect=elect, divide=divide),
        scale=scale,
    )
