"""Model Stock: the mean of the fine-tunes, drawn towards the base by as much as they disagree.

Source      Jang et al. 2024, arXiv:2403.19522: for N fine-tunes whose task vectors form the angle a with one another,
            t = N cos a / (1 + (N - 1) cos a) times the mean of their weights and 1 - t times the base, layer by layer.
Departures  cos a is the mean over the pairs, without those that have a zero vector and so no angle. The derivation
            takes it as positive; below 0 it counts as 0 here, unless `clip` is off. Of one task alone t is 1.
            A layer is a tensor here; `groups` says otherwise.
Cost        O(T^2) beside the Gram matrix.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.errors import BadValue
from polytask.core.geometry import cosines
from polytask.core.rules import rule


@rule(
    "model_stock",
    source="arXiv:2403.19522",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "linear_under_scaling"),
    groups="tensor",
)
def model_stock(gram: Float[Tensor, "T T"], *, clip: bool = True) -> Float[Tensor, "T"]:
    """Equal weights t / N.

    Args:    gram: inner products of the task vectors.
             clip: count a negative mean cosine as 0.
    Returns: the weights.
    """
    return shares(gram, clip, "rule 'model_stock'").repeat(len(gram))


def shares(gram: Float[Tensor, "*rows T T"], clip: bool, where: str) -> Float[Tensor, "*rows"]:
    """t / N; BadValue where the mean cosine is so low that the formula has no value."""
    tasks = gram.shape[-1]
    pairs = cosines(gram)[..., torch.ones(tasks, tasks, dtype=torch.bool).triu(1)]
    cosine = pairs.nanmean(-1).nan_to_num(1.0)  # of no pair that has an angle
    cosine = cosine.clamp(min=0) if clip else cosine
    below = 1 + (tasks - 1) * cosine
    if bool((below <= 1e-9).any()):
        raise BadValue("the mean cosine", float(cosine.min()), f"more than {-1 / (tasks - 1):g}; or clip: true", where)
    return cosine / below
