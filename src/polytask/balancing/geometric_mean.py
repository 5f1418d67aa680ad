"""Geometric mean of the losses: no loss's unit matters, and a relative gain counts the same for every task.

Source      Chennupati, Sistu, Yogamani and Rawashdeh 2019, arXiv:1904.08492, the geometric loss strategy (GLS):
            the T-th root of the product of the losses.
Departures  none for losses above 0: the gradient of the root weighs task t by root / (T L_t), which is given here as
            weights. A loss that is exactly 0 counts as 1e-30; one below 0 is refused.
Cost        O(T); one backward pass.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import require_at_least, rule

SMALLEST = 1e-30


@rule(
    "geometric_mean",
    source="arXiv:1904.08492, geometric loss strategy",
    needs=("losses",),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights"),
)
def geometric_mean(losses: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """The gradient of (product of L_t)^(1 / T) with respect to the losses.

    Args:    losses: the tasks' losses, at least 0, any units.
    Returns: weights of the losses; their product is T^-T.
    """
    require_at_least(losses, 0.0, "its root is taken")
    logarithms = losses.clamp(min=SMALLEST).log()
    return torch.exp(logarithms.mean() - logarithms) / len(losses)
