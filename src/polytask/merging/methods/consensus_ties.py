"""Consensus TIES: TIES without the elements that matter to one task only, or to none.

Source      Wang et al. 2024, arXiv:2405.07813, consensus merging around TIES (arXiv:2306.01708).
Departures  those of `trim`, `elect` and `consensus`. The masks are of the trimmed task vectors, where the paper may
            mean the whole ones; an element that trimming takes is small beside the merged one, as is its mask.
Cost        that of `ties`.
"""

from typing import Annotated, Any

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.statistics import SCOPES
from polytask.merging.contract import Pipeline, method, use_rule, use_transform


@method("consensus_ties", source="arXiv:2405.07813")
def consensus_ties(
    *,
    density: Annotated[Any, PerTask(Interval(0, 1, open="left"))] = 0.2,
    scope: Annotated[str, Choice(*SCOPES)] = "all",
    agree: Annotated[int, Interval(0)] = 2,
    mask_scale: Annotated[Any, PerTask(Interval(0))] = 0.4,
    scale: Annotated[float, Interval()] = 1.0,
) -> Pipeline:
    """base + scale * consensus(trim(task vectors)).

    Args:    density, scope: see `trim`.
             agree, mask_scale: see the rule `consensus`.
             scale: of the merged vector.
    """
    rule = use_rule("consensus", agree=agree, mask_scale=mask_scale, merged="elect")
    return Pipeline((use_transform("trim", density=density, scope=scope),), rule, scale=scale)
