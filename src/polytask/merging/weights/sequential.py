"""Writes a safetensors file tensor by tensor, in the order of its header; and booleans as bits."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from polytask.merging.weights.safetensors import CODES

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


class SequentialFile:
    """A file that is laid out first and then filled in order.

    Args:
        path: of the file.
        layout: name -> (type, shape), in the order in which the tensors will be written.
        metadata: of the header.
    """

    def __init__(self, path: Path, layout: Layout, metadata: Mapping[str, str] | None = None) -> None:
        self._left = list(layout.items())[::-1]
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        for name, (dtype, shape) in layout.items():
            end = at + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
            at = end
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        content += b" " * (-len(content) % 8)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        self._file.write(struct.pack("<Q", len(content)) + content)

    def __enter__(self) -> "SequentialFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()

    def write(self, tensor: Tensor) -> None:
        """The next tensor of the layout."""
        name, (dtype, shape) = self._left.pop()
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, tuple(shape)), name
        self._file.write(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))

    def close(self) -> None:
        assert not self._left, "the file is not complete"
        self._file.close()


def to_bits(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, "bytes"]:
    """Eight elements a byte, the first in the lowest bit."""
    return torch.from_numpy(np.packbits(mask.flatten().numpy(), bitorder="little"))


def from_bits(packed: UInt8[Tensor, "bytes"], elements: int) -> Bool[Tensor, "elements"]:
    """What `to_bits` packed."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=elements, bitorder="little").astype(bool))
