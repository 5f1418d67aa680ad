"""Model Breadcrumbs: task vectors without their largest and smallest elements, added up.

Source      Davari and Belilovsky 2023, arXiv:2312.06795: the masked task vectors are added with a common factor
            (`scale`).
Departures  those of `two_sided`.
Cost        two passes of `two_sided` over the model, then one.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.statistics import SCOPES
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("breadcrumbs", source="arXiv:2312.06795")
def breadcrumbs(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.143,
    outliers: Annotated[Any, PerTask(Interval(0, 1, open="right"))] = 0.007,
    scope: Annotated[str, Choice(*SCOPES)] = "tensor",
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * sum of weights * two_sided(task vectors).

    Args:    density, outliers, scope: see `two_sided`.
             weights: by task, of its task vector.
             scale: of the merged vector.
    """
    return Pipeline(
        (use_transform("two_sided", density=density, outliers=outliers, scope=scope),),
        use_rule("task_arithmetic", weights=weights),
        scale=scale,
    )
