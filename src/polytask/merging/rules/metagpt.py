"""MetaGPT: each task weighted by its share of the squared lengths, the best merge if task vectors are orthogonal.

Source      Zhou et al. 2024, arXiv:2406.11385: to first order, and with orthogonal task vectors, the mean loss above
            the experts' is least for the coefficients |x_t|^2 / sum |x_s|^2, over the whole model.
Departures  none known; the equation's number was not at hand. All weights are 0 where all task vectors are.
Cost        O(T) beside the Gram matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.rules import rule


@rule(
    "metagpt",
    source="arXiv:2406.11385",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights"),
)
def metagpt(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """Weights that sum to 1.

    Args:    gram: inner products of the task vectors.
    Returns: each task's share of the squared lengths.
    """
    squares = gram.diagonal()
    total = squares.sum()
    return squares / total if total > 0 else torch.zeros_like(squares)
