"""Random weights: convex weights of the task gradients, drawn anew at every step.

Source      Lin, Ye, Zhang and Tsang 2022, "Reasonable effectiveness of random weighting", arXiv:2111.10603, section 3
            (random gradient weighting, RGW): w = softmax(z), z standard normal.
Departures  none. The task-specific parameters keep their own gradients, as always when a rule weighs gradients.
Cost        nothing beyond the Gram matrix.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.noise import Noise
from polytask.core.rules import rule


@rule(
    "random",
    source="arXiv:2111.10603, section 3 (RGW)",
    needs=("gram",),
    scale="mean",
    claims=("homogeneous", "nonnegative_weights", "convex_weights", "linear_under_scaling"),
)
def random(gram: Float[Tensor, "T T"], *, noise: Noise) -> Float[Tensor, "T"]:
    """softmax(z) with z drawn from the standard normal distribution.

    Args:    gram: inner products of the task vectors; only their number matters.
             noise: where z comes from.
    Returns: positive weights that sum to 1, dimensionless.
    """
    exponential = np.exp(noise.normal(len(gram)))
    return torch.from_numpy(exponential / exponential.sum())
