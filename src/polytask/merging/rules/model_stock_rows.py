"""Model Stock row by row: each row's mean, drawn towards the base by as much as the fine-tunes disagree there.

Source      Jang et al. 2024, arXiv:2403.19522; an angle for each output row is mergekit's `filter_wise`, documented and
            advised against by its makers.
Departures  those of `model_stock`. A row is an entry of the first axis; a tensor with one axis is a single row.
Cost        O(T^2) an element, in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule
from polytask.merging.rules.model_stock import shares


@rule(
    "model_stock_rows",
    source="arXiv:2403.19522; mergekit's documentation",
    needs=("stack",),
    granularity="row",
    scale="mean",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
)
def model_stock_rows(stack: Float[Tensor, "T rows row"], *, clip: bool = True) -> Float[Tensor, "rows row"]:
    """Of each row the sum of the task vectors times t / N.

    Args:    stack: whole rows of the task vectors.
             clip: count a row's negative mean cosine as 0.
    Returns: the combined rows.
    """
    X = stack.double()
    share = shares(torch.einsum("trn,srn->rts", X, X), clip, "rule 'model_stock_rows'")
    return (share[:, None] * X.sum(0)).to(stack.dtype)
