"""WUDI: the matrix that interferes least with each task on the inputs that its own delta reveals.

Source      Cheng et al. 2025, arXiv:2503.08099: minimise sum_t |(M - X_t) X_t^T|^2 / |X_t|^2 (Frobenius norms) over
            M, from M = sum X_t, by 300 steps of Adam with learning rate 1e-5: the rows of a linear layer's delta span
            about the space of the task's inputs.
Departures  solver = "exact" gives the minimum nearest to the sum, which Adam approaches; the objective is quadratic.
            Tensors that are not matrices take the tasks' mean. A task without a delta adds nothing. The paper's text
            was not at hand.
Cost        2 (T + 1) m n^2 for the products and 2 m n^2 a step; float64 for the products of `exact`, float32 else.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.core.rules import rule
from polytask.merging.decompositions import pseudo_inverse
from polytask.merging.descent import adam


@rule(
    "wudi",
    source="arXiv:2503.08099",
    needs=("matrix",),
    scale="own",
    claims=(),
    otherwise="linear",
)
def wudi(
    matrix: Float[Tensor, "T m n"],
    *,
    solver: Annotated[str, Choice("adam", "exact")] = "adam",
    steps: Annotated[int, Interval(1)] = 300,
    learning_rate: Annotated[float, Interval(0, open="left")] = 1e-5,
) -> Float[Tensor, "m n"]:
    """The combined matrix of least interference.

    Args:    matrix: the tasks' deltas of one matrix.
             solver: the paper's descent, or the minimum itself.
             steps, learning_rate: of the descent.
    Returns: the combined matrix.
    """
    X = matrix.to(torch.float64 if solver == "exact" else torch.float32)
    squares = X.square().sum((1, 2))
    unit = X / torch.where(squares > 0, squares, 1.0)[:, None, None]
    inputs = unit.mT @ X  # X_t^T X_t / |X_t|^2
    total, wanted, start = inputs.sum(0), (X @ inputs).sum(0), X.sum(0)
    if solver == "exact":
        return (start + (wanted - start @ total) @ pseudo_inverse(total)).to(matrix.dtype)
    return adam(start, lambda M: 2 * (M @ total - wanted), steps, learning_rate).to(matrix.dtype)
