"""Lists of values: one 0/1 entry for each value that is frequent enough in training."""

from typing import Any

import numpy as np
import polars as pl

from polytask.tasks.features.counts import Counts
from polytask.tasks.features.feature import Place
from polytask.tasks.features.lists import as_lists, entries, type_of_values
from polytask.tasks.features.options import MultiHotOptions


class MultiHot:
    """Part of the input `bits`. Values beyond the kept ones, and missing lists, give zeros."""

    kind, key = "multi_hot", "bits"

    def __init__(self, column: str, options: MultiHotOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)
        self.type = ""
        self.values: list[Any] = []
        self.remarks: list[str] = []
        self._counts = Counts()

    @property
    def width(self) -> int:
        return len(self.values)

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        lists = self._lists(frame, place)
        self.type = self.type or type_of_values(lists)
        self._counts.add(entries(lists, self.type, place)["value"])

    def finish(self, place: Place) -> None:
        counts = self._counts.total(self.column, place).sort(["count", "value"], descending=[True, False])
        self.values = counts["value"].head(self.options.most).sort().to_list()
        if len(counts) > self.options.most:
            what = f"the {self.options.most} most frequent of {len(counts)} values are kept (option `most`)"
            self.remarks = [f"column {self.column!r}: {what}"]
        self._counts = Counts()

    def write(self, frame: pl.DataFrame, place: Place, into: np.ndarray) -> None:
        long = entries(self._lists(frame, place), self.type, place).drop_nulls("value")
        known = pl.Series(self.values, dtype=long["value"].dtype)
        numbers = pl.Series(range(len(self.values)), dtype=pl.Int64)
        column = long["value"].replace_strict(known, numbers, default=None, return_dtype=pl.Int64)
        kept = column.is_not_null()
        into[:] = 0
        into[long["row"].filter(kept).to_numpy(), column.filter(kept).to_numpy()] = 1

    def _lists(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        return as_lists(frame[self.column], self.kind, self.options.separator, place)

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "type": self.type, "values": self.values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "MultiHot":
        feature = cls(values["column"], MultiHotOptions(most=values["most"], separator=values.get("separator")))
        feature.type, feature.values = values["type"], values["values"]
        return feature
