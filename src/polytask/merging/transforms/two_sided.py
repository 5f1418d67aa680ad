"""Two-sided mask: the largest elements, which may be outliers, and the smallest ones are both left out.

Source      Davari and Belilovsky 2023, arXiv:2312.06795, "Model Breadcrumbs": layer by layer, elements beyond a high
            and a low threshold of magnitude are masked.
Departures  the thresholds are given as what is kept (`density`) and what is cut at the top (`outliers`); by default
            those of the paper's beta 0.85 and gamma 0.993. Numbers of elements are rounded down, at least one element
            is kept; of equal magnitudes the one of lower index counts as the larger.
Cost        two passes over what is ranked (three where very many elements lie near a threshold), no sort.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.errors import BadValue
from polytask.core.statistics import SCOPES, Scope
from polytask.merging.contract import transform
from polytask.merging.selection import Largest, Ranks, keep_largest


def _both_ends(density: Tensor, outliers: Tensor, scope: Scope) -> Largest | None:
    for cut, mean in zip(outliers.tolist(), density.tolist(), strict=True):
        if cut + mean > 1 + 1e-9:
            raise BadValue("outliers", cut, f"at most 1 - density, {1 - mean:g}", "transform 'two_sided'")
    ends = torch.stack([outliers, (outliers + density).clamp(max=1)], dim=1)
    return None if bool((density == 1).all()) else Largest(ends, scope, least=1)


@transform("two_sided", source="arXiv:2312.06795", statistic=_both_ends)
def two_sided(
    stack: Float[Tensor, "T n"],
    measured: Ranks | None,
    *,
    density: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1, open="left"))] = 0.143,
    outliers: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1, open="right"))] = 0.007,
    scope: Annotated[str, Choice(*SCOPES)] = "tensor",
) -> Float[Tensor, "T n"]:
    """The elements of middle magnitude, zero elsewhere.

    Args:    stack: the task vectors' block; overwritten.
             measured: where both ends are; None where all are kept.
             density: by task, the fraction that is kept.
             outliers: by task, the fraction of the largest that is not; density + outliers is at most 1.
             scope: within what elements are ranked: a tensor (as in the paper), a layer or the whole model.
    Returns: the masked block.
    """
    if measured is None:
        return stack
    outliers = torch.empty_like(stack[0])
    for index, row in enumerate(stack):
        keep_largest(row, measured, index, 0, out=outliers)
        keep_largest(row, measured, index, 1, out=row).sub_(outliers)
    return stack
