"""SCE: select the positions that differ most, weigh tasks by their squared change, erase what opposes the majority.

Source      Wan et al. 2024, arXiv:2408.07990 (FuseChat).
Departures  those of `select` and `calculate_erase`.
Cost        that of `select`, one pass more, then one.
"""

from typing import Annotated

from polytask.core.constraints import Choice, Interval
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("sce", source="arXiv:2408.07990")
def sce(
    *,
    density: Annotated[float, Interval(0, 1, open="left")] = 0.1,
    vote: Annotated[str, Choice("plain", "weighted")] = "plain",
    divide: Annotated[str, Choice("none", "weights")] = "none",
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * calculate_erase(select(task vectors)), tensor by tensor.

    Args:    density: see `select`.
             vote, divide: see `calculate_erase`.
             scale: of the merged vector.
    """
    rule = use_rule("calculate_erase", vote=vote, divide=divide)
    return Pipeline((use_transform("select", density=density),), rule, scale=scale)
