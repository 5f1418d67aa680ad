"""Select: only those positions are kept in which the tasks differ most.

Source      Wan et al. 2024, arXiv:2408.07990 (FuseChat), the step "Select" of SCE: of each parameter matrix the
            positions with the largest variance over the task vectors.
Departures  with one task there is no variance, and all is kept; of several, positions where all agree exactly are not.
            The number of positions is rounded down, to at least one; of equal variances those of the lowest index are
            kept. The paper's text was not at hand.
Cost        two passes over the tensor (three where very many variances lie near the threshold), no sort.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.core.statistics import SCOPES, Scope
from polytask.merging.contract import transform
from polytask.merging.selection import Largest, Ranks, keep_largest


def _variances(stack: Float[Tensor, "T n"]) -> Float[Tensor, "1 n"]:
    rows = stack.float()
    mean = rows[0].clone()
    for row in rows[1:]:
        mean += row
    mean /= len(rows)
    total, apart = torch.zeros_like(mean), torch.empty_like(mean)
    for row in rows:
        total += torch.sub(row, mean, out=apart).square_()
    return total.div_(len(rows))[None]


def _most_varied(density: float, scope: Scope) -> Largest | None:
    return None if density == 1 else Largest(torch.tensor([[density]]), scope, of=_variances, least=1)


@transform("select", source="arXiv:2408.07990, Select", statistic=_most_varied, separate=False)
def select(
    stack: Float[Tensor, "T n"],
    measured: Ranks | None,
    *,
    density: Annotated[float, Interval(0, 1, open="left")] = 0.1,
    scope: Annotated[str, Choice(*SCOPES)] = "tensor",
) -> Float[Tensor, "T n"]:
    """The task vectors at the selected positions, zero elsewhere.

    Args:    stack: the task vectors' block; overwritten.
             measured: where the largest variances end; None where all are kept.
             density: the fraction of positions that is kept; the paper's tau.
             scope: within what positions are ranked: a tensor (as in the paper), a layer or the whole model.
    Returns: the block.
    """
    if measured is None or len(stack) == 1:
        return stack
    varied = _variances(stack)[0]
    kept = keep_largest(varied, measured, 0, out=varied).sign_()
    return stack.mul_(kept)
