"""DualProj: the mean of the task gradients, projected onto the cone of directions that hurt no task.

Source      Lopez-Paz and Ranzato 2017, "Gradient episodic memory for continual learning", arXiv:1706.08840,
            the dual quadratic program.
Departures  there the gradient of the current task is projected and the memories' gradients constrain it; here, as in
            Quinton and Rey 2024 (arXiv:2406.16232, section 4), it is the mean of all tasks, and all of them
            constrain it. No margin is added to the dual variables and nothing to G: torchjd 0.18, which adds 1e-4
            to the diagonal of the scaled G, is up to 9.3e-4 of its length away on random Jacobians.
Cost        one bounded quadratic program of size T; see core.geometry.dual_cone_weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.geometry import dual_cone_weights
from polytask.core.rules import rule


@rule(
    "dualproj",
    source="arXiv:1706.08840, the dual quadratic program",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "non_conflicting", "nonnegative_weights", "strongly_stationary"),
)
def dualproj(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """The nearest d to the mean gradient with g_t . d >= 0 for every task t.

    Args:    gram: inner products of the task vectors (units of g squared).
    Returns: dimensionless weights, all at least 1 / T; all 1 / T when the mean conflicts with no task.
    """
    tasks = len(gram)
    return dual_cone_weights(gram, torch.full((1, tasks), 1 / tasks, dtype=torch.float64))[0]
