"""Lists of values: one 0/1 entry for each value that is frequent enough in training."""

from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.categorical import count_values, typed, value_type
from polytask.tasks.features.feature import Place
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
        self._counts: list[pl.DataFrame] = []

    @property
    def width(self) -> int:
        return len(self.values)

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        dtype = self._lists(frame, place).dtype
        if not isinstance(dtype, pl.List):
            hint = ", or text with a separator" if dtype == pl.String else ""
            raise DataError(f"{place.where}: column {self.column!r} has type {dtype}; kind multi_hot takes lists{hint}")
        self.type = self.type or value_type(dtype.inner)
        counts = count_values(self._entries(frame, place)["value"])
        self._counts = [pl.concat([*self._counts, counts]).group_by("value").agg(pl.col("count").sum())]

    def finish(self, place: Place) -> None:
        counts = self._counts[0].sort(["count", "value"], descending=[True, False])
        if not len(counts):
            raise DataError(f"{place.where}: column {self.column!r} has no value in training; drop: [{self.column}]")
        self.values = counts["value"].head(self.options.most).sort().to_list()
        if len(counts) > self.options.most:
            what = f"the {self.options.most} most frequent of {len(counts)} values are kept (option `most`)"
            self.remarks = [f"column {self.column!r}: {what}"]
        self._counts = []

    def write(self, frame: pl.DataFrame, place: Place, into: np.ndarray) -> None:
        entries = self._entries(frame, place).drop_nulls("value")
        known = pl.Series(self.values, dtype=entries["value"].dtype)
        numbers = pl.Series(range(len(self.values)), dtype=pl.Int64)
        column = entries["value"].replace_strict(known, numbers, default=None, return_dtype=pl.Int64)
        kept = column.is_not_null()
        into[:] = 0
        into[entries["row"].filter(kept).to_numpy(), column.filter(kept).to_numpy()] = 1

    def _entries(self, frame: pl.DataFrame, place: Place) -> pl.DataFrame:
        """One row an entry of a list: row (position in the frame), value."""
        lists = self._lists(frame, place)
        long = pl.DataFrame({"row": np.arange(len(frame)), "value": lists}).explode("value")
        rows = long["row"].to_numpy()
        here = Place(place.where, rows if place.rows is None else place.rows[rows])
        return long.with_columns(typed(long["value"].alias(self.column), self.type, here).alias("value"))

    def _lists(self, frame: pl.DataFrame, place: Place) -> pl.Series:
        """The column; text is divided into the values between its separators, none of which is empty."""
        values, separator = frame[self.column], self.options.separator
        if separator is None or values.dtype == pl.Null:
            return values
        if values.dtype != pl.String:
            what = f"column {self.column!r} has type {values.dtype}"
            raise DataError(f"{place.where}: {what}; kind multi_hot with a separator takes text")
        return values.str.split(separator).list.eval(pl.element().filter(pl.element() != ""))

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "type": self.type, "values": self.values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "MultiHot":
        feature = cls(values["column"], MultiHotOptions(most=values["most"], separator=values.get("separator")))
        feature.type, feature.values = values["type"], values["values"]
        return feature
