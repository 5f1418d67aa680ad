"""What the driver needs of a model on disk, whatever its format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Weights(Protocol):
    """A model's tensors by name. Opening one reads headers only; values are read piece by piece, from any thread."""

    def names(self) -> Sequence[str]:
        """In the order of the files."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        ...

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start ... stop - 1 of the flattened tensor, 1-D, in the stored dtype; not to be written to.

        A view of the memory map where the format allows, so it costs nothing until it is looked at.
        """
        ...

    def where(self, name: str) -> str:
        """The file that holds the tensor, for messages."""
        ...

    def files(self) -> Sequence[Path]:
        """What was opened."""
        ...

    def fingerprint(self) -> str:
        """Changes when the files do (names, sizes, times of change); cheap, no values are read."""
        ...

    def hashes(self) -> dict[str, str]:
        """File name -> SHA-256 of its content; reads everything."""
        ...

    def close(self) -> None: ...
