"""Lists of values in order, as the items of a session: an index each, as of a categorical column."""

from typing import Any

import numpy as np
import polars as pl

from polytask.tasks.features.categorical import RESERVED, indices
from polytask.tasks.features.counts import Counts
from polytask.tasks.features.feature import Place
from polytask.tasks.features.lists import as_lists, entries, type_of_values
from polytask.tasks.features.options import SequenceOptions

PADDING = 1
"""How many indices come before those of a categorical column: 0 pads."""


class Sequence:
    """A column of the input `sequence`. A list that is empty or missing counts as one missing value; of one that is
    longer than `max_length` the last values are kept."""

    kind, key = "sequence", "sequence"

    def __init__(self, column: str, options: SequenceOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)
        self.type = ""
        self.values: list[Any] = []
        self._counts = Counts()
        self._long = self._rows = 0

    @property
    def cardinality(self) -> int:
        return len(self.values) + RESERVED + PADDING

    @property
    def remarks(self) -> list[str]:
        if not self._long:
            return []
        cut = f"{self._long} of {self._rows} lists are longer than {self.options.max_length} and lost their beginning"
        return [f"column {self.column!r}: {cut} (option `max_length`)"]

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        lists = self._lists(frame, place)
        self.type = self.type or type_of_values(lists)
        self._counts.add(entries(lists, self.type, place)["value"])

    def finish(self, place: Place) -> None:
        self.values = self._counts.frequent(self.options.minimum_count, self.column, place)
        self._counts = Counts()

    def encode(self, frame: pl.DataFrame, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [total], the rows' indices end to end; int64 [N], how many each row has)."""
        long = entries(self._lists(frame, place), self.type, place)
        rows, most = long["row"].to_numpy(), self.options.max_length
        lengths = np.bincount(rows, minlength=len(frame))
        place_in_row = np.arange(len(rows)) - (np.cumsum(lengths) - lengths)[rows]
        self._rows += len(frame)
        self._long += int((lengths > most).sum())
        kept = place_in_row >= lengths[rows] - most
        return indices(long["value"], self.values)[kept] + PADDING, np.minimum(lengths, most)

    def _lists(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        lists = as_lists(frame[self.column], self.kind, self.options.separator, place)
        return lists.to_frame().select(pl.when(lists.list.len() > 0).then(lists).alias(self.column))[self.column]

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "type": self.type, "values": self.values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Sequence":
        options = SequenceOptions(**{key: values[key] for key in SequenceOptions.model_fields})
        feature = cls(values["column"], options)
        feature.type, feature.values = values["type"], values["values"]
        return feature
