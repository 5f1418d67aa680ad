"""TALL-masks: the sum of the task vectors, and a bit an element for each task that says where the sum holds the task.

Source      Wang et al. 2024, arXiv:2405.07813: the mask of task t is where |x_t| >= mask_scale |merged - x_t|, and the
            task's model is the base plus mask * merged.
Departures  merged is rounded to the base's type. The paper chooses mask_scale for each task on held-out data.
Cost        in the store: one more model, and a bit an element for each task.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from polytask.core.constraints import Interval
from polytask.merging.rules.consensus import tall_masks
from polytask.merging.stores.contract import Packed, Parts, Vectors
from polytask.merging.weights.sequential import from_bits, to_bits


class TallMasks:
    """See above."""

    def __init__(self, vectors: Vectors, *, mask_scale: Annotated[float, Interval(0)] = 0.4) -> None:
        self._vectors, self._scale = vectors, mask_scale
        self._ones = [0] * len(vectors.tasks)
        self._elements = 0

    def packed(self, name: str) -> Packed:
        stack = self._vectors.stack(name)
        merged = stack.sum(0)
        masks = tall_masks(stack, merged, self._scale)
        self._elements += merged.numel()
        self._ones = [ones + int(mask.sum()) for ones, mask in zip(self._ones, masks, strict=True)]
        return Packed([{"mask": to_bits(mask)} for mask in masks], merged.to(self._vectors.base.dtype(name)))

    def about(self) -> list[dict[str, Any]]:
        return [{"ones": ones / max(self._elements, 1)} for ones in self._ones]

    @staticmethod
    def restored(name: str, below: Tensor, parts: Parts, merged: Tensor | None, about: Mapping[str, Any]) -> Tensor:
        return masked(below, parts, merged, 1.0)


def masked(below: Tensor, parts: Parts, merged: Tensor | None, factor: float) -> Tensor:
    """below + factor * mask * merged, in float32, rounded once."""
    assert merged is not None
    mask = from_bits(parts["mask"], merged.numel()).view(merged.shape)
    return (below.float() + factor * (mask * merged.float())).to(below.dtype)
