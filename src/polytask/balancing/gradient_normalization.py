"""Gradient normalization: every task's gradient is given the mean of their norms, so that none dominates.

Source      the gradient normalization of Xie, Dai, Lu et al. 2023, "OFVL-MS: once for visual localization across
            multiple indoor scenes", arXiv:2308.11928: the magnitudes of the tasks' gradients on the shared parameters
            are made alike, so that all tasks learn at one pace.
Departures  we read the paper's abstract and not its formula, so the common norm is ours: the mean of the tasks' norms,
            which leaves the update's size where it was. Over all shared parameters, or each layer's (`groups: layer`).
            A zero gradient gets weight 0 and does not count in the mean.
Cost        O(T).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


@rule(
    "gradient_normalization",
    source="arXiv:2308.11928, gradient normalization",
    needs=("gram",),
    scale="sum",
    claims=("permutation", "homogeneous", "nonnegative_weights", "linear_under_scaling"),
)
def gradient_normalization(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """Weights m / |g_t| with m the mean of the norms |g_t|.

    Args:    gram: inner products of the task vectors (units of g squared).
    Returns: dimensionless weights.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    there = norms > 0
    mean = norms.sum() / there.sum().clamp(min=1)
    return torch.where(there, mean / torch.where(there, norms, 1.0), 0.0)
