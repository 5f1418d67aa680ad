"""UPGrad: the mean of the task gradients, each projected onto the cone of directions that hurt no task.

Source      Quinton and Rey 2024, "Jacobian descent for multi-objective optimization", arXiv:2406.16232, section 3 and
            proposition 1 (the projection through the Gram matrix).
Departures  none; no regularisation is added to G, so the promise of no conflict holds at any scale of the gradients.
            torchjd 0.18 adds 1e-4 to the diagonal of the scaled G: its result is up to 4.5e-4 of its length away from
            this one on random Jacobians.
Cost        T bounded quadratic programs of size T; see core.geometry.dual_cone_weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.geometry import dual_cone_weights
from polytask.core.rules import rule


@rule(
    "upgrad",
    source="arXiv:2406.16232, section 3, proposition 1",
    needs=("gram",),
    scale="mean",
    claims=(
        "permutation",
        "homogeneous",
        "non_conflicting",
        "nonnegative_weights",
        "linear_under_scaling",
        "strongly_stationary",
    ),
)
def upgrad(gram: Float[Tensor, "T T"], *, priority: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Mean over tasks t of the projection of priority[t] * g[t] onto the dual cone of all gradients.

    Args:    gram: inner products of the task vectors (units of g squared).
             priority: preference for each task, mean 1.
    Returns: dimensionless weights, all priority / T when no two tasks conflict.
    """
    return dual_cone_weights(gram, torch.diag(priority)).mean(0)
