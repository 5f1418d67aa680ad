"""Which elements have the largest magnitudes, exactly and without sorting.

The 31 bits of a float32 magnitude, read as an integer, are in the order of the magnitudes. A sixteenth of the blocks
tells in which window the wanted rank lies; one pass over all blocks counts what is above the window and keeps what is
in it, from which the value at the rank follows exactly. Where several elements share that value, those with the lowest
index come first. Should the rank lie outside the window after all, a histogram of the top 15 bits finds the one bucket
that certainly holds it, and that is the next window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.statistics import Scope

_BUCKETS = 1 << 15
_MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign
_INFINITE = 0x7F800000  # the bits of infinity
_SAMPLED = 16  # one block of so many is looked at to find the window
_REMEMBERED = 1 << 21  # elements of the window that are remembered block by block: 8 MB
_WIDEST = 1 << 21  # values of a window whose histogram is taken where it holds more than that
ALL = -1


class Ranks(NamedTuple):
    """Row by row and rank by rank, where the largest end; arrays [R, K].

    Attributes:
        threshold: magnitude above which all belong to the largest, float32; infinite where none do.
        ties: how many of the block's elements that equal the threshold belong to the largest; ALL of them.
    """

    threshold: np.ndarray
    ties: np.ndarray


class _State(NamedTuple):
    """What is known; arrays [R, K]. In the order of the steps: sample, window, (buckets, window,) (ties,) known."""

    step: str
    low: np.ndarray  # the window's least bits, in the end the threshold's
    high: np.ndarray  # the window's greatest bits
    wanted: np.ndarray  # how many of the window's elements belong to the largest, in the end of the ties
    ties: np.ndarray | None = None  # [R, K, blocks] how many ties of each block do; ALL


class _Window(NamedTuple):
    """What one pass finds, by row and rank [R K]: elements in all, those above, and the window's, less its least bits.

    The window's are kept block by block; where they are many their histogram is, or nothing if that is too large.
    """

    elements: int
    above: np.ndarray
    blocks: list[list[np.ndarray]] | None
    histograms: list[np.ndarray | None] | None
    size: int


@dataclass(frozen=True)
class Largest:
    """The statistic that tells which elements are among the largest fraction of each row.

    Args:
        fractions: [R, K] in 0 ... 1: for each row of what is ranked, one rank or several.
        scope: within what they are ranked.
        of: the values that are ranked, [R, n], from a block's [T, n]; the block itself by default.
        least: fewest elements that the last of a row's fractions stands for; numbers are otherwise rounded down.
    """

    fractions: Tensor
    scope: Scope
    of: Callable[[Tensor], Tensor] | None = None
    least: int = 0

    def begin(self, tasks: int) -> _State:
        empty = np.zeros(self.fractions.shape, dtype=np.int64)
        return _State("sample", empty, empty, empty)

    def visits(self, state: _State, block: int) -> bool:
        return state.step != "sample" or block % _SAMPLED == 0

    def part(self, stack: Tensor, state: _State) -> Any:
        rows = (stack if self.of is None else self.of(stack)).flatten(1).float().numpy().view(np.int32)
        bits = np.empty(rows.shape[1], dtype=np.int32)
        if state.step in ("sample", "buckets"):
            found = (np.bitwise_and(row, _MAGNITUDE, out=bits) for row in rows)
            return np.stack([np.bincount(np.right_shift(row, 16, out=bits), minlength=_BUCKETS) for row in found])
        above, inside, equal = [], [], []
        row_before = -1
        for row, (low, high) in self._places(state):
            if row != row_before:
                np.bitwise_and(rows[row], _MAGNITUDE, out=bits)
                row_before = row
            if state.step == "ties":
                equal.append(int(np.count_nonzero(bits == low)))
                continue
            beyond = bits > high
            above.append(np.count_nonzero(beyond))
            chosen = bits[np.not_equal(bits >= low, beyond, out=beyond)]
            chosen -= np.int32(low)
            inside.append(chosen)
        if state.step == "ties":
            return [equal]
        return _Window(bits.shape[0], np.array(above, dtype=np.int64), [inside], None, sum(map(len, inside)))

    def add(self, total: Any, part: Any) -> Any:
        if not isinstance(total, _Window):
            total += part  # a histogram, or the list of the blocks' ties
            return total
        counts = total.elements + part.elements, total.above + part.above
        size = total.size + part.size
        if total.blocks is not None and part.blocks is not None and size <= _REMEMBERED:
            total.blocks.extend(part.blocks)
            return _Window(*counts, total.blocks, None, size)
        pairs = zip(_histograms(total), _histograms(part), strict=True)
        return _Window(*counts, None, [_sum(left, right) for left, right in pairs], size)

    def end(self, state: _State, total: Any) -> tuple[_State, bool]:
        if state.step == "sample":
            return self._sampled(state, total), True
        if state.step == "buckets":
            wanted = self._wanted(total.sum(-1))
            bucket, _, _ = _place(np.broadcast_to(total[:, None], (*wanted.shape, _BUCKETS)), wanted)
            return state._replace(step="window", low=bucket << 16, high=(bucket << 16) | 0xFFFF), True
        if state.step == "ties":
            return self._with_ties(state, np.array(total)), False
        return self._found(state, total)

    def at(self, state: _State, block: int) -> Ranks:
        bits = np.where(state.low > _INFINITE, _INFINITE, state.low).astype(np.int32)
        ties = np.where(state.wanted > 0, ALL, 0) if state.ties is None else state.ties[..., block]
        return Ranks(bits.view(np.float32), ties)

    def _places(self, state: _State) -> list[tuple[int, tuple[int, int]]]:
        """(row, (low, high)) of each rank in the order of [R K]."""
        at = np.ndindex(state.low.shape)
        return [(row, (int(state.low[row, rank]), int(state.high[row, rank]))) for row, rank in at]

    def _wanted(self, elements: np.ndarray) -> np.ndarray:
        """How many elements each fraction stands for, of `elements` [R] a row."""
        exact = self.fractions.double().numpy() * elements[:, None]
        counts = np.floor(exact * (1 + 2.0**-40)).astype(np.int64)  # 0.29 * 100 is a little less than 29
        counts[:, -1] = np.maximum(counts[:, -1], self.least)
        return np.minimum(counts, elements[:, None])

    def _sampled(self, state: _State, histogram: np.ndarray) -> _State:
        """The window: the sample's rank, give or take four standard deviations of its share and 0.4 %."""
        seen = histogram.sum(-1)[:, None]
        share = self.fractions.double().numpy()
        margin = 4 * np.sqrt(share * (1 - share) / np.maximum(seen, 1)) + 0.004
        spread = np.broadcast_to(histogram[:, None], (*share.shape, _BUCKETS))
        edges = [np.clip((share + sign * margin) * seen, 0, seen).astype(np.int64) for sign in (1, -1)]
        low, high = (_place(spread, edge)[0] for edge in edges)
        low = np.where(share + margin >= 1, 0, low)
        return state._replace(step="window", low=low << 16, high=(high << 16) | 0xFFFF)

    def _found(self, state: _State, total: _Window) -> tuple[_State, bool]:
        """The values at the ranks, if they lie in the window."""
        wanted = self._wanted(np.full(len(self.fractions), total.elements))
        left = wanted - total.above.reshape(wanted.shape)
        places = [_ranked(total, rank, count) for rank, count in enumerate(left.ravel().tolist())]
        if any(place is None and count > 0 for place, count in zip(places, wanted.ravel(), strict=True)):
            return state._replace(step="buckets"), True
        parts = zip(*(place or (0, 0, 0) for place in places), strict=True)
        offset, count, here = (np.array(values, dtype=np.int64).reshape(wanted.shape) for values in parts)
        low = np.where(wanted == 0, _INFINITE, state.low + offset)
        known = _State("ties", low, state.high, np.where(wanted == 0, 0, count))
        if ((wanted == 0) | (count == here)).all():  # no tie is broken
            return known._replace(step="known"), False
        if total.blocks is None:
            return known, True
        offsets = offset.ravel()
        ties = [[np.count_nonzero(each == offsets[i]) for i, each in enumerate(block)] for block in total.blocks]
        return self._with_ties(known, np.array(ties)), False

    def _with_ties(self, state: _State, ties: np.ndarray) -> _State:
        """`ties` [blocks, R K]: those of the lowest indices are taken."""
        ties = ties.T.reshape(*state.low.shape, -1)
        before = np.cumsum(ties, axis=-1) - ties
        taken = np.clip(state.wanted[..., None] - before, 0, ties)
        return state._replace(step="known", ties=np.where((taken == ties) & (ties > 0), ALL, taken))


def keep_largest(row: Tensor, ranks: Ranks, index: int, rank: int = 0, *, out: Tensor | None = None) -> Tensor:
    """The row [n] with zeros instead of what is not among the largest.

    Args:    row: values as they were ranked; magnitudes count as float32.
             ranks: what `Largest` measured, for this block.
             index, rank: which row and which of its ranks.
             out: where the result goes, the row itself perhaps; a new tensor by default.
    """
    out = torch.empty_like(row) if out is None else out
    if row.dtype != torch.float32:
        return torch.mul(row, keep_largest(row.float(), ranks, index, rank) != 0, out=out)
    threshold, ties = float(ranks.threshold[index, rank]), int(ranks.ties[index, rank])
    if ties == 0:
        return _cut(row, threshold, out=out)
    if threshold == 0:
        return out.copy_(row)  # zeros are kept or not, it is the same
    least = float(np.nextafter(np.float32(threshold), np.float32(-1)))
    if ties == ALL:
        return _cut(row, least, out=out)
    beyond = torch.from_numpy(np.flatnonzero(row.abs().numpy() == np.float32(threshold))[ties:])
    return _cut(row, least, out=out).index_fill_(0, beyond, 0.0)


_cut = torch.ops.aten.hardshrink.out  # values beyond the threshold, 0 else


def _histograms(window: _Window) -> list[np.ndarray | None]:
    """By row and rank, of the window's values less its least bits; None where the window is too wide for one."""
    if window.histograms is not None:
        return window.histograms
    assert window.blocks is not None
    joined = [np.concatenate(each) for each in zip(*window.blocks, strict=True)]
    return [None if len(each) and each.max() >= _WIDEST else np.bincount(each) for each in joined]


def _sum(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray | None:
    """Of two histograms, the first of which may be changed."""
    if left is None or right is None:
        return None
    longer, shorter = (left, right) if len(left) >= len(right) else (right, left)
    longer[: len(shorter)] += shorter
    return longer


def _ranked(window: _Window, rank: int, count: int) -> tuple[int, int, int] | None:
    """(value less the window's least bits, how many of that value are wanted, how many there are); None if outside.

    Args:    rank: which of [R K].
             count: how many of the window's elements are wanted.
    """
    if window.blocks is None:
        assert window.histograms is not None
        histogram = window.histograms[rank]
        if histogram is None or not 1 <= count <= histogram.sum():
            return None
        value, left, here = _place(histogram[None], np.array([count]))
        return int(value[0]), int(left[0]), int(here[0])
    inside = np.concatenate([block[rank] for block in window.blocks])
    if not 1 <= count <= len(inside):
        return None
    value = int(np.partition(inside, len(inside) - count)[len(inside) - count])
    return value, count - int(np.count_nonzero(inside > value)), int(np.count_nonzero(inside == value))


def largest(row: Float[Tensor, "n"], fraction: float) -> Float[Tensor, "n"]:
    """A row in memory with zeros instead of what is not among its largest; at least one stays, as `Largest` counts.

    Cost: two numbers an element.
    """
    count = max(int(fraction * len(row) * (1 + 2.0**-40)), 1)
    if count >= len(row):
        return row.clone()
    magnitudes, place = row.float().abs().numpy(), len(row) - count
    magnitudes.partition(place)
    ties = count - np.count_nonzero(magnitudes[place:] > magnitudes[place])
    return keep_largest(row, Ranks(magnitudes[place].reshape(1, 1), np.array([[ties]])), 0)


def _place(histogram: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bucket in which the wanted-th largest lies, how many of that bucket are wanted, how many it has.

    Where none is wanted it is the top bucket, of which none is.
    """
    above = histogram[..., ::-1].cumsum(-1)  # elements in a bucket or a higher one, from the top
    place = np.argmax(above >= wanted[..., None], axis=-1)
    bucket = histogram.shape[-1] - 1 - place
    here = np.take_along_axis(histogram, bucket[..., None], axis=-1)[..., 0]
    return bucket, wanted - (np.take_along_axis(above, place[..., None], axis=-1)[..., 0] - here), here
