"""Low rank: of each matrix of a task vector the product of two thin factors that is nearest to it.

Source      Eckart and Young 1936: the truncated singular value decomposition.
Departures  none. What has more than two axes is a matrix with its first axis as rows. A tensor with fewer, and one that
            its factors would not make smaller, is kept as the task has it. The factors are rounded to the base's type.
Cost        `merging.decompositions.thin_svd` for each matrix and task. In the store: rank (m + n) numbers a matrix.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.merging.decompositions import thin_svd
from polytask.merging.stores.contract import WHOLE, Packed, Parts, Vectors


class LowRank:
    """See above."""

    def __init__(self, vectors: Vectors, *, rank: Annotated[int, Interval(1)] = 16) -> None:
        self._vectors, self._rank = vectors, rank
        self._factored = 0

    def packed(self, name: str) -> Packed:
        shape, dtype = self._vectors.shape(name), self._vectors.base.dtype(name)
        rows, elements = shape[0] if shape else 0, self._vectors.elements(name)
        if len(shape) < 2 or not elements or self._rank * (rows + elements // rows) >= elements:
            return self._vectors.whole(name)
        self._factored += elements
        parts = []
        for matrix in self._vectors.stack(name).flatten(2):
            U, S, Vh = thin_svd(matrix, self._rank)
            root = S.sqrt()
            parts.append({"left": (U * root).to(dtype), "right": (root[:, None] * Vh).to(dtype)})
        return Packed(parts)

    def about(self) -> list[dict[str, Any]]:
        return [{"factored": self._vectors.share(self._factored)} for _ in self._vectors.tasks]

    @staticmethod
    def restored(name: str, below: Tensor, parts: Parts, merged: Tensor | None, about: Mapping[str, Any]) -> Tensor:
        if WHOLE in parts:
            return parts[WHOLE]
        product = parts["left"].float() @ parts["right"].float()
        return torch.add(below.float(), product.view(below.shape)).to(below.dtype)
