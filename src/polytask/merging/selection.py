"""Which elements have the largest magnitudes, exactly and without sorting.

The 31 bits of a float32 magnitude, read as an integer, are in the order of the magnitudes. A histogram of the top 15
finds the bucket in which a rank lies, a histogram of the low 16 within that bucket finds the value, and where several
elements share that value those with the lowest index come first: three passes, the third only where there is such a
tie to break.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polytask.core.statistics import Scope

_BUCKETS = 1 << 15
_INFINITE = 0x7F800000  # the bits of infinity
_REMEMBERED = 1 << 22  # elements of the bucket that are remembered block by block: 8 MB


class Ranks(NamedTuple):
    """Row by row and rank by rank, where the largest end; arrays [R, K].

    Attributes:
        threshold: magnitude above which all belong to the largest, float32; infinite where none do.
        ties: how many of the elements that equal the threshold belong to the largest, of those in question.
    """

    threshold: np.ndarray
    ties: np.ndarray


class _State(NamedTuple):
    step: int  # 0: the bucket is looked for, 1: the value in it, 2: the ties of each block, 3: all is known
    counts: np.ndarray  # [R, K] how many are wanted; then how many of those that are not known to be larger
    bits: np.ndarray  # [R, K] the threshold's bits, as far as known
    ties: np.ndarray | None = None  # [R, K, blocks] how many ties of each block belong to the largest


class _Within(NamedTuple):
    """What lies in the bucket, for each row and rank: the low 16 bits block by block, or their histogram if many."""

    blocks: list[list[np.ndarray]] | None
    histogram: np.ndarray | None
    size: int

    def counted(self) -> np.ndarray:
        """[R K, 65536]"""
        if self.histogram is not None:
            return self.histogram
        assert self.blocks is not None
        ranks = zip(*self.blocks, strict=True)
        return np.stack([np.bincount(np.concatenate(lows), minlength=1 << 16) for lows in ranks])


@dataclass(frozen=True)
class Largest:
    """The statistic that tells which elements are among the largest fraction of each row.

    Args:
        fractions: [R, K] in 0 ... 1: for each row of what is ranked, one rank or several.
        scope: within what they are ranked.
        of: the values that are ranked, [R, n], from a block's [T, n]; the block itself by default.
        least: fewest elements that a fraction stands for; the number is otherwise rounded down.
    """

    fractions: Tensor
    scope: Scope
    of: Callable[[Tensor], Tensor] | None = None
    least: int = 0

    def begin(self, tasks: int) -> _State:
        empty = np.zeros(self.fractions.shape, dtype=np.int64)
        return _State(0, empty, empty)

    def part(self, stack: Tensor, state: _State) -> Any:
        bits = _bits(stack if self.of is None else self.of(stack))
        if state.step == 0:
            return np.stack([torch.bincount(row >> 16, minlength=_BUCKETS).numpy() for row in bits])
        ranks = [(bits[row].numpy(), state.bits[row, rank]) for row, rank in np.ndindex(state.bits.shape)]
        if state.step == 1:
            lows = [row[row >> 16 == threshold >> 16].astype(np.uint16) for row, threshold in ranks]
            return _Within([lows], None, sum(map(len, lows)))
        return [[np.count_nonzero(row == threshold) for row, threshold in ranks]]

    def add(self, total: Any, part: Any) -> Any:
        if not isinstance(total, _Within):
            total += part  # a histogram, or the list of the blocks' ties
            return total
        size = total.size + part.size
        if total.blocks is None or part.blocks is None or size > _REMEMBERED:
            return _Within(None, total.counted() + part.counted(), size)
        total.blocks.extend(part.blocks)
        return total._replace(size=size)

    def end(self, state: _State, total: Any) -> tuple[_State, bool]:
        if state.step == 0:
            wanted = self._counts(total.sum(-1))
            bucket, left, _ = _place(np.broadcast_to(total[:, None], (*wanted.shape, _BUCKETS)), wanted)
            return _State(1, left, bucket << 16), True
        if state.step == 2:
            return self._with_ties(state, np.array(total)), False
        low, left, here = _place(total.counted().reshape(*state.bits.shape, 1 << 16), state.counts)
        known = state._replace(step=2, counts=left, bits=state.bits | low)
        if ((left == 0) | (left == here)).all():  # no tie is broken
            return known._replace(step=3), False
        if total.blocks is None:
            return known, True
        lows = low.ravel()
        ties = [[np.count_nonzero(row == lows[i]) for i, row in enumerate(block)] for block in total.blocks]
        return self._with_ties(known, np.array(ties)), False

    def _with_ties(self, state: _State, ties: np.ndarray) -> _State:
        """`ties` [blocks, R K]: those of the lowest indices are taken."""
        ties = ties.T.reshape(*state.bits.shape, -1)
        before = np.cumsum(ties, axis=-1) - ties
        return state._replace(step=3, ties=np.clip(state.counts[..., None] - before, 0, ties))

    def at(self, state: _State, block: int) -> Ranks:
        threshold = np.where(state.bits > _INFINITE, _INFINITE, state.bits).astype(np.int32).view(np.float32)
        if state.ties is None:
            return Ranks(threshold, np.where(state.counts > 0, np.iinfo(np.int64).max, 0))
        return Ranks(threshold, state.ties[..., block])

    def _counts(self, elements: np.ndarray) -> np.ndarray:
        """How many elements each fraction stands for, of `elements` [R] a row."""
        exact = self.fractions.double().numpy() * elements[:, None]
        counts = np.floor(exact * (1 + 2.0**-40)).astype(np.int64)  # 0.29 * 100 is a little less than 29
        return np.minimum(np.maximum(counts, self.least), elements[:, None])


def kept(row: Tensor, ranks: Ranks, index: int, rank: int = 0) -> Tensor:
    """The row [n] with zeros instead of what is not among the largest.

    Args:    row: values as they were ranked; magnitudes count as float32.
             ranks: what `Largest` measured, for this block.
             index, rank: which row and which of its ranks.
    """
    if row.dtype != torch.float32:
        return row * (kept(row.float(), ranks, index, rank) != 0)
    threshold, ties = float(ranks.threshold[index, rank]), int(ranks.ties[index, rank])
    if ties == 0:
        return torch.hardshrink(row, threshold)
    below = float(np.nextafter(np.float32(threshold), np.float32(-1)))
    if threshold == 0:
        return row.clone()  # zeros are kept or not, it is the same
    reached = torch.hardshrink(row, below)
    tied = torch.from_numpy(np.flatnonzero(row.abs().numpy() == np.float32(threshold))[ties:])
    return reached.index_fill_(0, tied, 0.0)


def _bits(values: Tensor) -> Tensor:
    """Magnitudes as int32 [R, n], which are in their order."""
    return values.flatten(1).float().abs().view(torch.int32)


def _place(histogram: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bucket in which the wanted-th largest lies, how many of that bucket are wanted, how many it has; all [R, K].

    Where none is wanted it is the top bucket, of which none is.
    """
    above = histogram[..., ::-1].cumsum(-1)  # elements in a bucket or a higher one, from the top
    place = np.argmax(above >= wanted[..., None], axis=-1)
    bucket = histogram.shape[-1] - 1 - place
    here = np.take_along_axis(histogram, bucket[..., None], axis=-1)[..., 0]
    return bucket, wanted - (np.take_along_axis(above, place[..., None], axis=-1)[..., 0] - here), here
