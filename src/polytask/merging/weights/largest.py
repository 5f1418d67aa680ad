"""The largest of several tensors of whole numbers, number by number."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from polytask.merging.jobs import Source


class LargestWeights:
    """One tensor. Args: sources: alike in shape and type; the name is the first's."""

    def __init__(self, sources: "Sequence[Source]") -> None:
        self._sources = list(sources)
        self._first = sources[0]

    def names(self) -> list[str]:
        return [self._first.name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._first.weights.shape(self._first.name)

    def dtype(self, name: str) -> torch.dtype:
        return self._first.weights.dtype(self._first.name)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return reduce(torch.maximum, (source.weights.read(source.name, start, stop) for source in self._sources))

    def where(self, name: str) -> str:
        return self._first.weights.where(self._first.name)

    def files(self) -> Sequence[Path]:
        return self._first.weights.files()

    def fingerprint(self) -> str:
        return "+".join(source.weights.fingerprint() for source in self._sources)

    def hashes(self) -> dict[str, str]:
        return self._first.weights.hashes()

    def close(self) -> None:
        """The sources are closed by those who opened them."""
