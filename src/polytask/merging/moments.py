"""Squared lengths of task vectors, as a statistic."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.core.statistics import Scope


@dataclass(frozen=True)
class SquaredLengths:
    """The sum of squares of each row, float64 [T]; a block's products are float32's where the values are."""

    scope: Scope = "tensor"

    def begin(self, tasks: int) -> Tensor:
        return torch.zeros(tasks, dtype=torch.float64)

    def part(self, stack: Tensor, state: Tensor) -> Tensor:
        return torch.stack([torch.dot(row, row) for row in stack]).double()

    def add(self, total: Tensor, part: Tensor) -> Tensor:
        return total.add_(part)

    def end(self, state: Tensor, total: Tensor) -> tuple[Tensor, bool]:
        return total, False

    def at(self, state: Tensor, block: int) -> Tensor:
        return state
