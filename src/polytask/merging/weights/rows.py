"""One tensor with another number of rows: the first of its own, and where they end the next model's."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from polytask.merging.weights.interface import Weights


class RowsWeights:
    """`rows` rows of one tensor. Row i is the first part's that has a row i.

    Args:
        parts: (weights, name), the tensor itself first; alike but for the first axis.
        rows: of the result.
    """

    def __init__(self, parts: Sequence[tuple[Weights, str]], rows: int) -> None:
        self._parts, self._rows = list(parts), rows
        self._own, self._name = parts[0]

    def names(self) -> list[str]:
        return [self._name]

    def shape(self, name: str) -> tuple[int, ...]:
        return (self._rows, *self._own.shape(name)[1:])

    def dtype(self, name: str) -> torch.dtype:
        return self._own.dtype(name)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        width = math.prod(self.shape(name)[1:])
        pieces = []
        for weights, own in self._parts:
            end = min(stop, weights.shape(own)[0] * width)
            if start < end:
                pieces.append(weights.read(own, start, end).to(self.dtype(name)))
                start = end
        assert start == stop, "some part has every row"
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def where(self, name: str) -> str:
        return self._own.where(name)

    def files(self) -> Sequence[Path]:
        return self._own.files()

    def fingerprint(self) -> str:
        return "+".join(weights.fingerprint() for weights, _ in self._parts)

    def hashes(self) -> dict[str, str]:
        return self._own.hashes()

    def close(self) -> None:
        """The parts are closed by those who opened them."""
