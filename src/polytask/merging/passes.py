"""The passes over a model: what its pipelines must know first, measured stage by stage, then the blocks themselves.

Work is cut into spans, runs of blocks of fixed length, and results are added in their order, so nothing depends on
which thread does what. `execute` is how a list of calls is carried out: one after another, or by a few threads.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from polytask.core.blocks import Granularity, bounds
from polytask.core.statistics import located, visits
from polytask.merging.stages import Stage

SPAN = 8  # blocks that one thread takes at a time

# (start, stop, check) -> values [T, n] that the caller may overwrite, and the base's [n]; `check` looks for NaN
Read = Callable[[int, int, bool], tuple[Tensor, Tensor | None]]
Execute = Callable[[Iterable[Callable[[], Any]]], Iterator[Any]]


def one_by_one(calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
    """The results in order, computed when asked for."""
    return (call() for call in calls)


@dataclass
class Piece:
    """One tensor on its way through its stages.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        tasks: of the rows.
        stages: see `stages_of`.
        read: gives a block of the rows.
        group: its layer, for statistics over layers.
        measured: for each stage with a statistic that has been measured: the state, and the tensor's first block in it.
        checked: whether every value has been looked at for NaN.
    """

    name: str
    shape: tuple[int, ...]
    tasks: Sequence[str]
    stages: Sequence[Stage]
    read: Read
    group: str = ""
    measured: dict[int, tuple[Any, int]] = field(default_factory=dict)
    checked: bool = False

    def __post_init__(self) -> None:
        rows = any(stage.granularity == "row" for stage in self.stages)
        granularity: Granularity = "row" if rows else "element"
        self.cuts = bounds(self.shape, granularity)

    def spans(self) -> list[range]:
        """The runs of blocks that are one thread's work."""
        every = range(len(self.cuts))
        return [every[first : first + SPAN] for first in every[::SPAN]]

    def reaching(self, block: int, stage: int) -> tuple[Tensor, Tensor | None]:
        """The values of a block after the stages before `stage`, and the base's."""
        start, stop = self.cuts[block]
        values, base = self.read(start, stop, not self.checked)
        return self.through(values, base, block, 0, stage), base

    def through(self, values: Tensor, base: Tensor | None, block: int, first: int, last: int) -> Tensor:
        """The values of a block after the stages first ... last - 1."""
        for index in range(first, last):
            stage = self.stages[index]
            state, offset = self.measured.get(index, (None, 0))
            seen = stage.statistic.at(state, offset + block) if stage.statistic else None
            values = stage.call(values, base, seen, self.cuts[block][0])
        return values


def independent(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces in sets that share no statistic, in the order of their first pieces."""
    sets: list[list[int]] = []
    owner: dict[Any, int] = {}  # key of a shared statistic -> its set
    for number, piece in enumerate(pieces):
        keys = [key for index in range(len(piece.stages)) if (key := _shared(piece, index)) is not None]
        joined = sorted({owner[key] for key in keys if key in owner})
        home = joined[0] if joined else len(sets)
        if not joined:
            sets.append([])
        for other in joined[1:]:
            sets[home] += sets[other]
            sets[other] = []
            owner.update({key: home for key, place in owner.items() if place == other})
        sets[home].append(number)
        owner.update(dict.fromkeys(keys, home))
    return [[pieces[number] for number in sorted(numbers)] for numbers in sets if numbers]


def measure(pieces: Sequence[Piece], execute: Execute = one_by_one) -> None:
    """Measures every stage's statistic over these pieces, first stage first, and leaves them in `piece.measured`."""
    for index in range(max((len(piece.stages) for piece in pieces), default=0)):
        groups: dict[Any, list[Piece]] = {}
        for piece in pieces:
            if index < len(piece.stages) and piece.stages[index].statistic is not None:
                groups.setdefault(_shared(piece, index) or id(piece), []).append(piece)
        for group in groups.values():
            _measure_group(group, index, execute)


def combined(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Every piece's combined vector, in memory, in the type of its values."""
    measure(pieces)
    return {piece.name: whole(piece) for piece in pieces}


def whole(piece: Piece) -> Tensor:
    """One piece's combined vector, in memory; its statistics must have been measured."""
    last = len(piece.stages) - 1
    if not piece.stages[last].whole:
        parts = [piece.through(*piece.reaching(block, last), block, last, last + 1) for block in range(len(piece.cuts))]
        return torch.cat(parts).view(piece.shape)
    values, base = assembled(piece)
    return piece.through(values, base, 0, last, last + 1).view(piece.shape)


def assembled(piece: Piece) -> tuple[Tensor, Tensor | None]:
    """All that reaches the rule, [T, elements], and the base."""
    last, elements = len(piece.stages) - 1, piece.cuts[-1][1]
    values = base = None
    for block, (start, stop) in enumerate(piece.cuts):
        part, base_part = piece.reaching(block, last)
        if values is None:
            values = torch.empty(len(part), elements, dtype=part.dtype)
            base = None if base_part is None else torch.empty(elements, dtype=base_part.dtype)
        values[:, start:stop] = part
        if base is not None and base_part is not None:
            base[start:stop] = base_part
    assert values is not None
    return values, base


def _shared(piece: Piece, index: int) -> Any:
    """What tells which other pieces the stage's statistic is taken with; None if none."""
    stage = piece.stages[index]
    if stage.statistic is None or stage.statistic.scope == "tensor":
        return None
    return (index, stage.signature, piece.group if stage.statistic.scope == "layer" else None)


def _measure_group(pieces: Sequence[Piece], index: int, execute: Execute) -> None:
    statistic = pieces[0].stages[index].statistic
    assert statistic is not None
    layers = [piece.group for piece in pieces for _ in piece.cuts]
    state, more = located(statistic, statistic.begin(len(pieces[0].tasks)), layers), True
    while more:
        looked = state
        state, more = statistic.end(state, reduce(statistic.add, execute(_calls(pieces, index, looked))))
        for piece in pieces:
            every = all(visits(statistic, looked, block) for block in range(len(piece.cuts)))
            piece.checked = piece.checked or every
    first = 0
    for piece in pieces:
        piece.measured[index] = (state, first)
        first += len(piece.cuts)


def _calls(pieces: Sequence[Piece], index: int, state: Any) -> Iterator[Callable[[], Any]]:
    """What one pass computes, a call for each span of which it looks at a block."""
    for piece in pieces:
        statistic = piece.stages[index].statistic
        assert statistic is not None
        for span in piece.spans():
            chosen = [block for block in span if visits(statistic, state, block)]
            if chosen:
                yield partial(_span_total, piece, index, chosen, state)


def _span_total(piece: Piece, index: int, span: Sequence[int], state: Any) -> Any:
    statistic = piece.stages[index].statistic
    assert statistic is not None
    return reduce(statistic.add, (statistic.part(piece.reaching(block, index)[0], state) for block in span))
