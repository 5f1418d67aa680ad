"""The contract of a feature: one column (or two) of raw rows in, one part of the model's inputs out."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Place:
    """Where rows come from, for messages.

    Attributes:
        where: the source or file.
        rows: their row numbers in it; None when they are 0, 1, 2, ...
    """

    where: str
    rows: np.ndarray | None = None

    def row(self, position: int) -> str:
        return f"{self.where}, row {position if self.rows is None else int(self.rows[position])}"

    def first(self, marked: pl.Series) -> tuple[int, str]:
        """Position of the first row marked True and its description."""
        position = int(marked.fill_null(False).arg_true()[0])
        return position, self.row(position)


class Feature(Protocol):
    """A fitted feature. `observe` sees the training rows, in one or more chunks; `finish` ends the fitting.

    Attributes:
        kind: its name in recipes.
        key: the input that it is a part of, or all of.
        columns: the columns it reads.
        options: what the recipe said.
    """

    kind: str
    key: str
    columns: tuple[str, ...]
    options: Any

    def observe(self, frame: pl.DataFrame, place: Place) -> None: ...

    def finish(self, place: Place) -> None: ...

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Feature": ...
