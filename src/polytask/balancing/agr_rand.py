"""Agr-Rand: the sum of the gradients where all tasks agree on the sign, random numbers where two of them do not.

Source      Mansilla, Echeveste, Milone and Ferrante 2021, "Domain generalization via gradient surgery",
            arXiv:2108.01621, Agr-Rand: elements in conflict get normally distributed numbers, so that no weight is
            dead; their standard deviation is the mean magnitude of the elements on which the tasks agree, as in the
            authors' code.
Departures  where the tasks agree on no element of a parameter it stays as it is. The numbers take the sign of the first
            task that has one, which changes no distribution and makes the rule odd: f(-X) = -f(X). An element that is 0
            for every task stays 0.
Cost        O(T) a parameter element.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.agr_sum import agreed
from polytask.core.noise import Noise
from polytask.core.rules import rule


@rule(
    "agr_rand",
    source="arXiv:2108.01621, Agr-Rand",
    needs=("stack",),
    scale="sum",
    claims=("homogeneous", "linear_under_scaling"),
    granularity="tensor",
)
def agr_rand(stack: Float[Tensor, "T *shape"], *, noise: Noise) -> Float[Tensor, "*shape"]:
    """The sum where the signs agree, normal numbers of its mean magnitude elsewhere.

    Args:    stack: the task vectors of one parameter.
             noise: of this step and parameter.
    Returns: the combined vector.
    """
    rows = stack.flatten(1) if stack.dim() > 1 else stack[:, None]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    same, total = agreed(rows), rows.sum(0)
    size = total[same].abs().mean() if bool(same.any()) else total.new_zeros(())
    first = rows.gather(0, (rows != 0).int().argmax(0)[None])[0].sign()
    drawn = torch.from_numpy(noise.normal(rows.shape[1])).to(rows)
    return torch.where(same, total, first * size * drawn).to(stack.dtype).view(stack.shape[1:])
