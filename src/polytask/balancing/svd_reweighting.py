"""SVD reweighting: a task counts by how much of its vector lies in the principal directions of all tasks' vectors.

Source      Wu, Zhang and Re 2020, "Understanding and improving information transfer in multi-task learning",
            arXiv:2005.00944, Algorithm 2: with theta_t = X' y_t and U_r of their best rank-r approximation, the weight
            of task t is |theta_t' U_r|. With G the Gram matrix of the theta and G = V D^2 V', that is the root of
            sum_{j <= r} D_j^2 V_tj^2, so G suffices.
Departures  the vectors are the tasks' gradients of the shared parameters, anew in each step; X' y_t is, up to a factor,
            that gradient for a linear model with squared loss at zero, once before training. For the published use call
            the rule's function with the Gram matrix of X' y_t and give the weights to `static`. The weights are scaled
            to a mean of 1. Where singular values tie at r, the tied directions share what is left of r.
Cost        one eigendecomposition of size T.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule

TIE = 1e-9  # of the largest eigenvalue


@rule(
    "svd_reweighting",
    source="arXiv:2005.00944, Algorithm 2",
    needs=("gram",),
    scale="sum",
    claims=("permutation", "homogeneous", "nonnegative_weights"),
    trials=({"rank": 3},),
)
def svd_reweighting(gram: Float[Tensor, "T T"], *, rank: Annotated[int, Interval(1)] = 1) -> Float[Tensor, "T"]:
    """Weights in proportion to |theta_t' U_r|, with mean 1; 1 for all where every vector is 0.

    Args:    gram: inner products of the task vectors theta (units of theta squared).
             rank: r, of the approximation; from the number of tasks on a task's weight is its vector's length.
    Returns: dimensionless weights.
    """
    squares, vectors = torch.linalg.eigh(gram)
    squares = squares.clamp(min=0)
    kept = _kept(squares, min(rank, len(gram)))
    lengths = (vectors.square() @ (squares * kept)).clamp(min=0).sqrt()
    total = lengths.sum()
    return lengths * (len(gram) / total) if float(total) > 0 else torch.ones_like(lengths)


def _kept(squares: Float[Tensor, "T"], rank: int) -> Float[Tensor, "T"]:
    """1 for the `rank` largest and 0 for the others; those that tie at the border share alike."""
    border = squares[-rank]
    near = TIE * squares[-1]
    above, tied = squares > border + near, (squares - border).abs() <= near
    return above.double() + tied * (rank - above.sum()) / tied.sum()
