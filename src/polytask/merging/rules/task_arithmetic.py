"""Task arithmetic: the weighted sum of the task vectors.

Source      Ilharco et al. 2022, arXiv:2212.04089, section 2: the sum of the task vectors times a scaling term (the
            pipeline's `scale`) is added to the base; a negated vector removes its task.
Departures  a weight for each task beside the common scale, and the choice to divide the weights by their sum.
Cost        O(T) an element, one pass.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, PerTask
from polytask.core.rules import rule
from polytask.core.task_vectors import weighted_sum
from polytask.merging.rules.linear import shares


@rule(
    "task_arithmetic",
    source="arXiv:2212.04089, section 2",
    needs=("stack",),
    scale="sum",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
    trials=({"normalize": True},),
)
def task_arithmetic(
    stack: Float[Tensor, "T *shape"],
    *,
    weights: Annotated[Float[Tensor, "T"] | float, PerTask(Interval())] = 1.0,
    normalize: bool = False,
) -> Float[Tensor, "*shape"]:
    """sum_t weights[t] * stack[t].

    Args:    stack: the task vectors of one parameter.
             weights: by task; a task that is not named has weight 1.
             normalize: whether the weights are divided by their sum.
    Returns: the combined vector.
    Raises:  BadValue: weights that sum to 0, where they are normalised.
    """
    factors = torch.ones(len(stack), dtype=torch.float64) * weights
    return weighted_sum(stack, shares(factors, "rule 'task_arithmetic'") if normalize else factors)
