"""EMR: for each element the elected sign and the largest magnitude, a bit a task where signs agree, a number a task.

Source      Huang et al. 2024, arXiv:2405.17461: elect (the rule `emr`), mask, rescale: the task's factor is its sum of
            magnitudes over that of what its mask leaves of the elected vector.
Departures  the elected vector is rounded to the base's type, before the factor is taken.
Cost        in the store: one more model, and a bit an element for each task.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polytask.merging.rules.emr import emr
from polytask.merging.stores.contract import Packed, Parts, Vectors
from polytask.merging.stores.tall_masks import masked
from polytask.merging.weights.sequential import to_bits


class Emr:
    """See above."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._ones = torch.zeros(len(vectors.tasks), dtype=torch.int64)
        self._own = torch.zeros(len(vectors.tasks), dtype=torch.float64)
        self._left = torch.zeros(len(vectors.tasks), dtype=torch.float64)
        self._elements = 0

    def packed(self, name: str) -> Packed:
        stack = self._vectors.stack(name)
        elected = emr(stack)
        masks = stack * elected > 0
        merged = elected.to(self._vectors.base.dtype(name))
        self._elements += merged.numel()
        self._ones += masks.flatten(1).sum(1)
        self._own += stack.flatten(1).abs().sum(1, dtype=torch.float64)
        self._left += (masks * merged.float()).flatten(1).abs().sum(1, dtype=torch.float64)
        return Packed([{"mask": to_bits(mask)} for mask in masks], merged)

    def about(self) -> list[dict[str, Any]]:
        rows = zip(self._ones.tolist(), self._own.tolist(), self._left.tolist(), strict=True)
        elements = max(self._elements, 1)
        return [{"ones": ones / elements, "factor": own / left if left else 1.0} for ones, own, left in rows]

    @staticmethod
    def restored(name: str, below: Tensor, parts: Parts, merged: Tensor | None, about: Mapping[str, Any]) -> Tensor:
        return masked(below, parts, merged, about["factor"])
