"""LwPTV on task arithmetic: the sum of the task vectors without the layers in which each changed least.

Source      Zhang et al. 2025, arXiv:2506.09093; Ilharco et al. 2022, arXiv:2212.04089.
Departures  those of `layer_pruning`, which a plan can put before any rule.
Cost        two passes.
"""

from typing import Annotated, Any

from polytask.core.constraints import Interval, PerTask
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("lwptv", source="arXiv:2506.09093")
def lwptv(
    *,
    pruned: Annotated[Any, PerTask(Interval(0, 1, open="right"))] = 0.3,
    weights: Annotated[Any, PerTask(Interval())] = 1.0,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * sum of weights * layer_pruning(task vectors).

    Args:    pruned: see `layer_pruning`.
             weights: by task, of its task vector.
             scale: of the merged vector.
    """
    rule = use_rule("task_arithmetic", weights=weights)
    return Pipeline((use_transform("layer_pruning", pruned=pruned),), rule, scale=scale)
