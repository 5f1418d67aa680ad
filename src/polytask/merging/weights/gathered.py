"""One tensor whose rows are those of several models, in an order of their own."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from polytask.merging.weights.interface import Weights


class GatheredWeights:
    """Row i is the mean of the parts' rows table[i], of those that are not -1; 0 where all are.

    Args:
        parts: (weights, name), alike but for the number of rows.
        own: which part the tensor is instead of.
        table: a row of the result each.
    """

    def __init__(self, parts: Sequence[tuple[Weights, str]], own: int, table: Int[Tensor, "rows parts"]) -> None:
        self._parts, self._table = list(parts), table
        self._own, self._name = parts[own]
        self._means = bool(((table >= 0).sum(1) > 1).any())

    def names(self) -> list[str]:
        return [self._name]

    def shape(self, name: str) -> tuple[int, ...]:
        return (len(self._table), *self._own.shape(self._name)[1:])

    def dtype(self, name: str) -> torch.dtype:
        stored = self._own.dtype(self._name)
        return torch.promote_types(stored, torch.float32) if self._means else stored

    def stored_dtype(self, name: str) -> torch.dtype:
        """Of the tensor that this one is instead of, which the output keeps unless the plan says otherwise."""
        beneath = getattr(self._own, "stored_dtype", None)
        return self._own.dtype(self._name) if beneath is None else beneath(self._name)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        width = math.prod(self.shape(name)[1:])
        first, last = start // width, -(-stop // width)
        table = self._table[first:last]
        values = torch.zeros(last - first, width, dtype=self.dtype(name))
        for (weights, own), rows in zip(self._parts, table.T, strict=True):
            here = (rows >= 0).nonzero().flatten()
            if len(here):
                wanted = rows[here]
                low, high = int(wanted.min()), int(wanted.max()) + 1
                found = weights.read(own, low * width, high * width).view(-1, width)
                values.index_add_(0, here, found[wanted - low].to(values.dtype))
        if self._means:
            values /= (table >= 0).sum(1, keepdim=True).clamp(min=1)
        return values.view(-1)[start - first * width : stop - first * width]

    def where(self, name: str) -> str:
        return self._own.where(self._name)

    def files(self) -> Sequence[Path]:
        return self._own.files()

    def fingerprint(self) -> str:
        rows = hashlib.sha256(self._table.numpy().tobytes()).hexdigest()
        return "+".join([*(weights.fingerprint() for weights, _ in self._parts), rows])

    def hashes(self) -> dict[str, str]:
        return self._own.hashes()

    def close(self) -> None:
        """The parts are closed by those who opened them."""
