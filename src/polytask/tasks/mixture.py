"""Which rows of which sources make up each training step.

The order is a function of (seed, epoch, step): nothing is remembered between steps, so a run resumes anywhere, and the
batch of all processes together is the same for any number of them.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from polytask.core.errors import BadValue, DataError, MissingInput
from polytask.core.noise import Noise
from polytask.tasks.examples import Batch, Examples


class Stream(Protocol):
    """A split that is read from disk while training."""

    def __len__(self) -> int:
        """How many rows it has."""
        ...

    def batches(self, batch_size: int, noise: Noise | None = None, start: int = 0) -> Iterator[Batch]:
        """One pass, beginning with batch number `start`, in the order that `noise` decides (None: as stored).

        The batch that ends a pass has the rows that are left over.
        """
        ...


Split = Examples | Stream


class MixtureSpec(BaseModel):
    """How tasks with sources of their own share the steps; with a single source there is nothing to choose.

    Attributes:
        kind: a source's share of the rows: `proportional` to its number of rows n, `uniform`, or `temperature`:
            proportional to n^(1/value), which lies between the two for value > 1.
        value: the temperature.
        batches: `mixed`: every step has a piece of each source, sized by its share (at least one row); `one_task`:
            every step draws one source with its share as probability.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["proportional", "uniform", "temperature"] = "proportional"
    value: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    batches: Literal["mixed", "one_task"] = "mixed"

    @model_validator(mode="before")
    @classmethod
    def _accept_name(cls, fields: Any) -> Any:
        return {"kind": fields} if isinstance(fields, str) else fields

    @model_validator(mode="after")
    def _check(self) -> "MixtureSpec":
        if self.kind == "temperature" and self.value is None:
            raise MissingInput("mixture: kind 'temperature' needs a value, such as value: 2")
        if self.kind != "temperature" and self.value is not None:
            raise BadValue("value", self.value, f"nothing, as kind {self.kind!r} has no value", "mixture")
        return self

    def shares(self, rows: Mapping[str, int]) -> dict[str, float]:
        """The share of each source, given how many rows each has; they sum to 1.

        >>> MixtureSpec(kind="temperature", value=2).shares({"small": 100, "large": 900})
        {'small': 0.25, 'large': 0.75}
        """
        powers = {"proportional": 1.0, "uniform": 0.0, "temperature": 1 / (self.value or 1.0)}
        sizes = {source: float(n) ** powers[self.kind] for source, n in rows.items()}
        return {source: size / sum(sizes.values()) for source, size in sizes.items()}


class Mixture:
    """The training steps over one or more sources.

    Each source is cycled: pass after pass over its rows, each in a fresh random order, in pieces of a fixed size (the
    last piece of a pass has what is left over). With one source a pass is an epoch. With several, an epoch is as many
    steps as all rows together would fill, and small sources may be passed through several times in it.

    Args:
        splits: source -> its training split.
        spec: how sources share the steps.
        batch_size: rows a step, over all sources and processes.
        seed: decides every order and draw.

    Raises:
        DataError: a split without rows.
        BadValue: fewer rows a step than sources to mix.
    """

    def __init__(self, splits: Mapping[str, Split], spec: MixtureSpec, batch_size: int, seed: int) -> None:
        if not splits:
            raise MissingInput("mixture: no data source given")
        for source, split in splits.items():
            if len(split) == 0:
                raise DataError(f"source {source!r}: its training split has no rows")
        mixed = spec.batches == "mixed"
        least = len(splits) if mixed else 1
        if batch_size < least:
            why = f"{least} or more (a row of each source a step; or batches: one_task)" if mixed else "1 or more"
            raise BadValue("batch_size", batch_size, why)
        self.splits = dict(splits)
        self.batch_size = batch_size
        self.seed = seed
        rows = {source: len(split) for source, split in splits.items()}
        self.shares = spec.shares(rows)
        self.piece_sizes = _piece_sizes(self.shares, batch_size) if mixed else dict.fromkeys(splits, batch_size)
        self.steps_per_epoch = math.ceil(sum(rows.values()) / batch_size)
        self._mixed = mixed

    def batches(self, epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[list[Batch]]:
        """The steps `start`, start + 1, ... of an epoch, each a list of pieces in the order of the sources.

        A process gets its part of every piece, which has no rows where the piece has fewer rows than there are
        processes.
        """
        cursors = {source: self._cursor(source) for source in self.splits}
        for chosen in self._choices(epoch, start):
            yield [cursors[source].piece(number).part(rank, world) for source, number in chosen]

    def _cursor(self, source: str) -> "_Cursor":
        return _Cursor(source, self.splits[source], self.piece_sizes[source], self.seed)

    def _choices(self, epoch: int, start: int) -> Iterator[list[tuple[str, int]]]:
        """For each step from `start` to the end of the epoch: the sources in it and the running number of each one's
        piece.
        """
        first, end = epoch * self.steps_per_epoch + start, (epoch + 1) * self.steps_per_epoch
        if self._mixed or len(self.splits) == 1:
            for step in range(first, end):
                yield [(source, step) for source in self.splits]
            return
        sources = list(self.splits)
        # Every draw since the first step, because a source's position is how often it was drawn before.
        edges = np.cumsum([self.shares[source] for source in sources])[:-1]
        drawn = np.searchsorted(edges, Noise(self.seed, "source").uniform(end), side="right")
        counts = np.bincount(drawn[:first], minlength=len(sources))
        for index in drawn[first:]:
            yield [(sources[index], int(counts[index]))]
            counts[index] += 1


class _Cursor:
    """One source's pieces by running number; keeps the order of the current pass."""

    def __init__(self, source: str, split: Split, size: int, seed: int) -> None:
        self.source, self.split, self.size, self.seed = source, split, size, seed
        self.pieces_per_pass = math.ceil(len(split) / size)
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self._stream: Iterator[Batch] = iter(())
        self._next = -1  # number of the piece that the stream gives next

    def piece(self, number: int) -> Batch:
        """Piece `number` of the endless sequence of passes. Asked for in order, a stream is read once."""
        number_of_pass, index = divmod(number, self.pieces_per_pass)
        noise = Noise(self.seed, "order", self.source, number_of_pass)
        if isinstance(self.split, Examples):
            if number_of_pass != self._pass:
                self._pass, self._order = number_of_pass, torch.from_numpy(noise.permutation(len(self.split)))
            return self.split.batch(self._order[index * self.size : (index + 1) * self.size])
        if number != self._next or index == 0:
            self._stream = self.split.batches(self.size, noise, index)
        self._next = number + 1
        return next(self._stream)


def evaluation_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Every row once, in stored order."""
    if batch_size < 1:
        raise BadValue("batch_size", batch_size, "1 or more")
    if isinstance(split, Examples):
        for begin in range(0, len(split), batch_size):
            yield split.batch(torch.arange(begin, min(begin + batch_size, len(split))))
    else:
        yield from split.batches(batch_size)


def _piece_sizes(shares: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Rows of each source a step: largest remainder rounding of share * batch_size, at least one; ties go to the
    earlier.
    """
    quotas = {source: share * batch_size for source, share in shares.items()}
    sizes = {source: max(1, math.floor(quota)) for source, quota in quotas.items()}
    while sum(sizes.values()) < batch_size:
        sizes[max(sizes, key=lambda source: quotas[source] - sizes[source])] += 1
    while sum(sizes.values()) > batch_size:  # the sources raised to one row take from those furthest above their quota
        above = [source for source in sizes if sizes[source] > 1]
        sizes[min(above, key=lambda source: quotas[source] - sizes[source])] -= 1
    return sizes
