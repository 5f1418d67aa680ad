"""Arcee Fusion: the base takes over those elements of one other model whose change stands out.

Source      mergekit's documentation: the importance of an element is its change's magnitude times the divergence
            between the softmax of its row in the model and in the base; it is taken over where its importance is at
            least the tensor's median plus `spread` times the interquartile range, with `spread` 1.5.
Departures  the divergence is KL(model, base) along the last axis, the quartiles are exact (others sample 10^6 elements)
            and interpolated. A tensor with one axis is one row.
Cost        two softmaxes and a partition of the tensor, in float64, a few rows at a time.
"""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule

_ROWS = 256  # at a time


@rule(
    "arcee_fusion",
    source="mergekit's documentation",
    needs=("stack", "base"),
    granularity="tensor",
    scale="part",
    claims=("permutation", "non_conflicting"),
    tasks=1,
)
def arcee_fusion(
    stack: Float[Tensor, "1 *shape"], base: Float[Tensor, "*shape"], *, spread: Annotated[float, Interval(0)] = 1.5
) -> Float[Tensor, "*shape"]:
    """The changes that stand out.

    Args:    stack: the other model minus the base, one parameter.
             base: the base's values.
             spread: how many interquartile ranges above the median an importance must be.
    Returns: the change, 0 where it is not taken over.
    """
    change = stack[0]
    if change.numel() == 0:
        return change.clone()
    rows = change.reshape(-1, change.shape[-1]) if change.dim() > 1 else change.reshape(1, -1)
    pairs = zip(rows.split(_ROWS), base.reshape(rows.shape).split(_ROWS), strict=True)
    importance = torch.cat([_importance(some.double(), of.double()) for some, of in pairs])
    low, middle, high = np.quantile(importance.numpy(), (0.25, 0.5, 0.75))
    return torch.where(importance >= middle + spread * (high - low), rows, 0.0).to(change.dtype).view(change.shape)


def _importance(change: Float[Tensor, "rows n"], base: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    model = (base + change).log_softmax(1)
    divergence = (model.exp() * (model - base.log_softmax(1))).sum(1, keepdim=True)
    return change.abs() * divergence.clamp(min=0)
