"""Writes safetensors files tensor by tensor, in the order of their headers; and booleans as bits."""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from polytask.merging.weights.safetensors import CODES

Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@contextmanager
def sequential_file(
    path: Path, layout: Layout, metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[Tensor], None]]:
    """A file that is laid out first; gives what writes the next tensor of the layout.

    Args:
        path: of the file.
        layout: name -> (type, shape), in the order in which the tensors will be written.
        metadata: of the header.
    """
    left = list(layout.items())[::-1]

    def write(tensor: Tensor) -> None:
        name, (dtype, shape) = left.pop()
        assert (tensor.dtype, tuple(tensor.shape)) == (dtype, tuple(shape)), name
        file.write(_bytes(tensor))

    with path.open("wb") as file:
        file.write(_header(layout, metadata))
        yield write
    assert not left, "the file is not complete"


@contextmanager
def growing_file(path: Path, metadata: Mapping[str, str] | None = None) -> Iterator[Callable[[str, Tensor], None]]:
    """A file whose tensors become known while it is written; gives what writes one, (name, tensor).

    The values go into a file beside it, since the header, which is before them, is known at the end. There is no file
    where there were no tensors.

    Args:
        path: of the file.
        metadata: of the header.
    """
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}

    def write(name: str, tensor: Tensor) -> None:
        assert name not in layout, name
        layout[name] = (tensor.dtype, tuple(tensor.shape))
        values.write(_bytes(tensor))

    beside = path.with_name(f"{path.name}.values")
    try:
        with beside.open("w+b") as values:
            yield write
            if layout:
                values.seek(0)
                with path.open("wb") as file:
                    file.write(_header(layout, metadata))
                    copyfileobj(values, file)
    finally:
        beside.unlink(missing_ok=True)


def _header(layout: Layout, metadata: Mapping[str, str] | None) -> bytes:
    """What is before the values."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in layout.items():
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)) + content


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())


def to_bits(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, "bytes"]:
    """Eight elements a byte, the first in the lowest bit."""
    return torch.from_numpy(np.packbits(mask.flatten().numpy(), bitorder="little"))


def from_bits(packed: UInt8[Tensor, "bytes"], elements: int) -> Bool[Tensor, "elements"]:
    """What `to_bits` packed."""
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=elements, bitorder="little").astype(bool))
