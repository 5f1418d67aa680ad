"""Categorical columns: 0 is a value unseen in training, 1 a missing one, then the training values in sorted order."""

from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.counts import Counts
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import CategoricalOptions

UNSEEN, MISSING, RESERVED = 0, 1, 2
_TYPES = {"text": pl.String, "integer": pl.Int64, "number": pl.Float64, "boolean": pl.Boolean}


class Categorical:
    """An index a row. Values are compared in the type that the training column had."""

    kind, key = "categorical", "categorical"

    def __init__(self, column: str, options: CategoricalOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)
        self.type = ""
        self.values: list[Any] = []
        self._counts = Counts()

    @property
    def cardinality(self) -> int:
        return len(self.values) + RESERVED

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        self.type = self.type or value_type(frame.schema[self.column])
        self._counts.add(typed(frame[self.column], self.type, place))

    def finish(self, place: Place) -> None:
        self.values = self._counts.frequent(self.options.minimum_count, self.column, place)
        self._counts = Counts()

    def encode(self, frame: pl.DataFrame, place: Place) -> np.ndarray:
        """int64 [N]."""
        return indices(typed(frame[self.column], self.type, place), self.values)

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "type": self.type, "values": self.values}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Categorical":
        feature = cls(values["column"], CategoricalOptions(minimum_count=values["minimum_count"]))
        feature.type, feature.values = values["type"], values["values"]
        return feature


def value_type(dtype: pl.DataType | pl.datatypes.DataTypeClass) -> str:
    """The name in `_TYPES` under which the values of such a column are kept."""
    if dtype.is_integer():
        return "integer"
    if dtype.is_numeric():
        return "number"
    return "boolean" if dtype == pl.Boolean else "text"


def typed(series: pl.Series, type_name: str, place: Place) -> pl.Series:
    """The series in that type; NaN counts as missing. Raises: DataError naming the first row that does not convert."""
    wanted = _TYPES[type_name]
    if series.dtype == wanted:
        return series.fill_nan(None) if wanted == pl.Float64 else series
    if wanted == pl.Boolean and series.dtype == pl.String:
        converted = series.str.to_lowercase().replace_strict(
            {"true": True, "false": False}, default=None, return_dtype=pl.Boolean
        )
    else:
        converted = series.cast(wanted, strict=False)
    if converted.null_count() > series.null_count():
        position, row = place.first(converted.is_null() & series.is_not_null())
        raise DataError(
            f"{row}: column {series.name!r} is {series[position]!r}; allowed: type {type_name}, as in training"
        )
    return converted.fill_nan(None) if wanted == pl.Float64 else converted


def indices(series: pl.Series, values: list[Any]) -> np.ndarray:
    """int64 [N]: see the head of this file."""
    numbered = pl.Series(range(RESERVED, len(values) + RESERVED), dtype=pl.Int64)
    known = pl.Series(values, dtype=series.dtype)
    found = series.replace_strict(known, numbered, default=UNSEEN, return_dtype=pl.Int64)
    return found.set(series.is_null(), MISSING).to_numpy()
