"""Raw rows of a source, before any split or fit: what every kind of source gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl


class RawRows(Protocol):
    """Rows that can be read column by column, or a slice at a time when they are larger than memory.

    Attributes:
        where: file or source, for messages.
        schema: column -> type.
        bytes: size on disk; 0 in memory.
        assignment: int8 [N] (see `polytask.tasks.splits`) where the source brings its own split.
    """

    where: str
    bytes: int
    assignment: np.ndarray | None

    @property
    def schema(self) -> dict[str, pl.DataType]: ...

    def __len__(self) -> int: ...

    def read(self, columns: list[str]) -> pl.DataFrame: ...

    def slice(self, start: int, rows: int, columns: list[str]) -> pl.DataFrame: ...

    def blocks(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]: ...


@dataclass
class FrameRows:
    """Rows in memory."""

    frame: pl.DataFrame
    where: str
    assignment: np.ndarray | None = None
    bytes: int = 0

    @property
    def schema(self) -> dict[str, pl.DataType]:
        return dict(self.frame.schema)

    def __len__(self) -> int:
        return len(self.frame)

    def read(self, columns: list[str]) -> pl.DataFrame:
        return self.frame.select(columns)

    def slice(self, start: int, rows: int, columns: list[str]) -> pl.DataFrame:
        return self.frame.select(columns).slice(start, rows)

    def blocks(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        for start in range(0, len(self), rows):
            yield start, self.slice(start, rows, columns)
