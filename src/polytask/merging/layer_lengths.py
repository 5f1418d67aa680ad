"""Which layers of each task vector are the longest for their size: a statistic over the whole model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask.core.statistics import Scope


class _State(NamedTuple):
    layer: np.ndarray | None = None  # of each block, as a number
    kept: np.ndarray | None = None  # [blocks, T]


@dataclass(frozen=True)
class LongestLayers:
    """For each task the layers that stay when a share of them, those of the smallest mean square, is cut.

    Args:
        pruned: by task, the share that is cut, rounded down; of equal layers the first stay.
    """

    pruned: Tensor
    scope: Scope = field(default="all", init=False)

    def begin(self, tasks: int) -> _State:
        return _State()

    def located(self, state: _State, layers: Sequence[str]) -> _State:
        numbers: dict[str, int] = {}
        return _State(np.array([numbers.setdefault(layer, len(numbers)) for layer in layers], dtype=np.int64))

    def part(self, stack: Tensor, state: _State) -> Any:
        squares = torch.stack([torch.dot(row, row) for row in stack.flatten(1)]).double()
        return [(squares.numpy(), stack[0].numel())]

    def add(self, total: Any, part: Any) -> Any:
        total += part
        return total

    def end(self, state: _State, total: Any) -> tuple[_State, bool]:
        layer = np.zeros(len(total), dtype=np.int64) if state.layer is None else state.layer
        squares, sizes = np.zeros((layer.max() + 1, len(total[0][0]))), np.zeros(layer.max() + 1)
        np.add.at(squares, layer, np.stack([square for square, _ in total]))
        np.add.at(sizes, layer, [size for _, size in total])
        order = np.argsort(-squares / np.maximum(sizes, 1)[:, None], axis=0, kind="stable")  # the longest first
        rank = np.argsort(order, axis=0)
        cut = np.floor(self.pruned.numpy() * len(sizes) * (1 + 2.0**-40))
        return state._replace(kept=(rank < len(sizes) - cut)[layer]), False

    def at(self, state: _State, block: int) -> Tensor:
        assert state.kept is not None
        return torch.from_numpy(state.kept[block])
