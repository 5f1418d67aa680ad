"""Trim: each task keeps its elements of largest magnitude; the rest become zero.

Source      Yadav, Tam, Choshen, Raffel and Bansal 2023, arXiv:2306.01708, the step "Trim": the top k % of each task
            vector by magnitude are kept, the vector being that of the whole model.
Departures  none at the default scope. `tensor` and `layer` rank within a tensor or layer, as other tools do. A fraction
            that is no whole number of elements is rounded down, to at least one; of equal magnitudes at the threshold
            those of the lowest index are kept. Magnitudes are compared in float32.
Cost        one pass over what is ranked and a sixteenth of one, or two (see `merging.selection`); no sort.
"""

from typing import Annotated

from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.statistics import SCOPES, Scope
from polytask.merging.contract import transform
from polytask.merging.selection import Largest, Ranks, keep_largest


def _largest(density: Tensor, scope: Scope) -> Largest | None:
    return None if bool((density == 1).all()) else Largest(density[:, None], scope, least=1)


@transform("trim", source="arXiv:2306.01708, Trim", statistic=_largest)
def trim(
    stack: Float[Tensor, "T n"],
    measured: Ranks | None,
    *,
    density: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1, open="left"))] = 0.2,
    scope: Annotated[str, Choice(*SCOPES)] = "all",
) -> Float[Tensor, "T n"]:
    """The largest elements of each row, zero elsewhere.

    Args:    stack: the task vectors' block; overwritten.
             measured: where the largest end; None where all are kept.
             density: by task, the fraction that is kept.
             scope: within what elements are ranked: the whole model (the paper's), a layer or a tensor.
    Returns: the trimmed block.
    """
    if measured is None:
        return stack
    for index, row in enumerate(stack):
        keep_largest(row, measured, index, out=row)
    return stack
