"""Random loss weighting: new random weights in every step, a baseline that any clever rule should beat.

Source      Lin, Ye, Zhang and Tsang 2022, arXiv:2111.10603, section 3: the softmax of standard normal numbers.
Departures  none. Of the distributions that the paper tries, this is the one that it recommends by default.
Cost        O(T); one backward pass.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.noise import Noise
from polytask.core.rules import rule


@rule(
    "random_loss_weighting",
    source="arXiv:2111.10603, section 3",
    needs=("losses",),
    scale="mean",
    claims=("homogeneous", "nonnegative_weights", "convex_weights", "linear_under_scaling"),
)
def random_loss_weighting(losses: Float[Tensor, "T"], *, noise: Noise) -> Float[Tensor, "T"]:
    """softmax(z) with z standard normal.

    Args:    losses: the tasks' losses; only their number matters.
             noise: of this step.
    Returns: convex weights of the losses, dimensionless.
    """
    return torch.softmax(torch.from_numpy(noise.normal(len(losses))), dim=0)
