"""Rows that stay on disk: read block by block, shuffled within a bounded buffer."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl
import torch

from polytask.core.noise import Noise
from polytask.tasks.data_spec import StreamSpec
from polytask.tasks.encoding import encode, needed_columns
from polytask.tasks.examples import Batch, Examples
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.sources.raw import RawRows
from polytask.tasks.target import Target


@dataclass(frozen=True)
class Stream:
    """One split of one source, read anew in every pass. See `Examples` for the same in memory.

    A pass visits the table's blocks in random order; as many blocks as fill the buffer are read, their rows shuffled
    and given out, and so on. The order depends on the noise alone, so a pass can start anywhere without reading what is
    before.
    """

    rows: RawRows
    chosen: np.ndarray  # bool [N]: the split's rows
    preprocessor: Preprocessor
    targets: list[Target]
    source: str
    settings: StreamSpec = field(default_factory=StreamSpec)

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def batches(self, batch_size: int, noise: Noise | None = None, start: int = 0) -> Iterator[Batch]:
        """The split's rows, each once, in batches (the last may be smaller).

        Args: noise: decides the order, None for that of the table; start: the number of the first batch to give.
        """
        skip = start * batch_size
        left_over: Batch | None = None
        for pool, blocks in enumerate(self._pools(noise)):
            size = sum(self._count(block) for block in blocks)
            if skip >= size:
                skip -= size
                continue
            examples = self._read(blocks)
            order = np.arange(size) if noise is None else noise.child("pool", pool).permutation(size)
            order, skip = order[skip:], 0
            if left_over is not None:
                missing = batch_size - len(left_over)
                left_over = joined(left_over, examples.batch(order[:missing]))
                order = order[missing:]
                if len(left_over) < batch_size:
                    continue
                yield left_over
                left_over = None
            whole = len(order) - len(order) % batch_size
            for position in range(0, whole, batch_size):
                yield examples.batch(order[position : position + batch_size])
            if whole < len(order):
                left_over = examples.batch(order[whole:])
        if left_over is not None:
            yield left_over

    def _pools(self, noise: Noise | None) -> Iterator[list[int]]:
        """Numbers of the blocks that are in the buffer together."""
        blocks = np.arange(-(-len(self.rows) // self.settings.block_rows))
        if noise is not None:
            blocks = blocks[noise.child("blocks").permutation(len(blocks))]
        pool: list[int] = []
        filled = 0
        for block in blocks.tolist():
            count = self._count(block)
            if not count:
                continue
            pool.append(block)
            filled += count
            if filled >= self.settings.buffer_rows:
                yield pool
                pool, filled = [], 0
        if pool:
            yield pool

    def _count(self, block: int) -> int:
        return int(np.count_nonzero(self._chosen_in(block)))

    def _chosen_in(self, block: int) -> np.ndarray:
        return self.chosen[block * self.settings.block_rows : (block + 1) * self.settings.block_rows]

    def _read(self, blocks: list[int]) -> Examples:
        columns = needed_columns(self.preprocessor, self.targets)
        frames, numbers = [], []
        for block in blocks:
            start = block * self.settings.block_rows
            inside = np.flatnonzero(self._chosen_in(block))
            frames.append(self.rows.slice(start, self.settings.block_rows, columns)[inside])
            numbers.append(inside + start)
        return encode(
            pl.concat(frames), np.concatenate(numbers), self.preprocessor, self.targets, self.source, self.rows.where
        )


def joined(first: Batch, second: Batch) -> Batch:
    """The rows of both; token ids and graphs are padded to the longer."""

    def both(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: torch.cat(_same_width(a[key], b[key])) for key in a}

    return Batch(
        inputs=both(first.inputs, second.inputs),
        labels=both(first.labels, second.labels),
        present=both(first.present, second.present),
        groups=both(first.groups, second.groups),
        rows=torch.cat([first.rows, second.rows]),
        source=first.source,
    )


def _same_width(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    if a.dim() == 1 or a.shape[1:] == b.shape[1:]:
        return [a, b]
    width = max(a.shape[1], b.shape[1])
    return [torch.nn.functional.pad(x, [0, 0] * (x.dim() - 2) + [0, width - x.shape[1]]) for x in (a, b)]
