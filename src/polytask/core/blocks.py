"""The fixed blocks in which long vectors are read: counted from a tensor's start, so they depend on no chunk or thread.

Whatever is computed block by block (a rule, a sum) has the same bits however many blocks a thread takes at a time.
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

# Elements: a few rows of as many fit a core's cache, and an operation on one still takes longer than its call.
BLOCK = 1 << 17

Granularity = Literal["element", "row", "tensor", "global"]


def bounds(shape: Sequence[int], granularity: Granularity = "element") -> list[tuple[int, int]]:
    """(start, stop) of each block of a tensor, counted in elements; at least one, which may be empty.

    A block has BLOCK elements, or as many whole rows as fit (at least one) for what sees rows, or is the whole tensor.

    >>> bounds((4, 150_000), "row")
    [(0, 150000), (150000, 300000), (300000, 450000), (450000, 600000)]
    """
    size = math.prod(shape)
    step = {"element": BLOCK, "row": rows_at_once(shape) * row_length(shape)}.get(granularity, size)
    return [(start, min(start + step, size)) for start in range(0, size, max(step, 1))] or [(0, 0)]


def row_length(shape: Sequence[int]) -> int:
    """Elements of one row: of one entry of the first axis. A tensor with one axis or none is a single row."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def rows_at_once(shape: Sequence[int]) -> int:
    return max(BLOCK // max(row_length(shape), 1), 1)


def shaped(values: Tensor, shape: Sequence[int], granularity: Granularity) -> Tensor:
    """A block [T, n] as what looks at it wants it: [T, n], [T, rows, row] or [T, *shape]. No copy."""
    if granularity == "row":
        return values.view(len(values), -1, row_length(shape)) if values.shape[1] else values.view(len(values), 0, 0)
    return values if granularity == "element" else values.view(len(values), *shape)
