"""Layer pruning: the layers in which a task changed least fall back to the base.

Source      Zhang et al. 2025, arXiv:2506.09093, "LwPTV": a saliency score finds the redundant layers of each task
            vector, whose masks leave the pre-trained parameters there; before any merge.
Departures  the score's formula was not at hand, only the abstract: here it is the mean square of the layer's elements.
            A share of the layers is cut, rounded down; of equal scores the first layers stay. Tensors outside of
            numbered layers belong to the layers that the plan says, and are ranked like them.
Cost        one pass.
"""

from typing import Annotated

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polytask.core.constraints import Interval, PerTask
from polytask.merging.contract import transform
from polytask.merging.layer_lengths import LongestLayers


def _longest(pruned: Tensor) -> LongestLayers | None:
    return LongestLayers(pruned) if bool(pruned.any()) else None


@transform("layer_pruning", source="arXiv:2506.09093", statistic=_longest)
def layer_pruning(
    stack: Float[Tensor, "T n"],
    measured: Bool[Tensor, "T"] | None,
    *,
    pruned: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1, open="right"))] = 0.3,
) -> Float[Tensor, "T n"]:
    """The task vectors of the layers that stay, zero elsewhere.

    Args:    stack: a block of the task vectors; overwritten.
             measured: which tasks keep this layer; None where all do.
             pruned: by task, the share of the layers that is cut.
    Returns: the block.
    """
    return stack if measured is None else torch.where(measured[:, None], stack, 0.0)
