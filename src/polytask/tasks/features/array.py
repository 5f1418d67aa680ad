"""Arrays of numbers as they are: float32 of the training rows' shape, under the column's own name."""

from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import ArrayOptions


class Array:
    """An input whose key is the column's name."""

    kind = "array"

    def __init__(self, column: str, options: ArrayOptions) -> None:
        self.column, self.key, self.options = column, column, options
        self.columns: tuple[str, ...] = (column,)
        self.shape: tuple[int, ...] = ()

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        self.shape = self.shape or self._rows(frame, place).shape[1:]

    def finish(self, place: Place) -> None:
        pass

    def encode(self, frame: pl.DataFrame, place: Place) -> np.ndarray:
        array = self._rows(frame, place)
        if array.shape[1:] != self.shape:
            raise DataError(
                f"{place.where}: column {self.column!r} has arrays {array.shape[1:]}; the model takes {self.shape}"
            )
        if not np.isfinite(array).all():
            position = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
            raise DataError(f"{place.row(position)}: column {self.column!r} holds a missing or infinite number")
        return array.astype(np.float32)

    def _rows(self, frame: pl.DataFrame, place: Place) -> np.ndarray:
        return fixed_length(frame[self.column], place)

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Array":
        feature = cls(values["column"], ArrayOptions())
        feature.shape = tuple(values["shape"])
        return feature


def fixed_length(series: pl.Series, place: Place, length: int | None = None) -> np.ndarray:
    """[N, *shape] of a column of arrays, or of lists of numbers that all have one length.

    Raises: DataError naming the first row that is missing or has another length.
    """
    if series.null_count():
        raise DataError(
            f"{place.first(series.is_null())[1]}: column {series.name!r} is missing; every row must have its array"
        )
    if isinstance(series.dtype, pl.Array):
        return series.to_numpy()
    if not isinstance(series.dtype, pl.List):
        raise DataError(
            f"{place.where}: column {series.name!r} has type {series.dtype}; allowed: lists or arrays of numbers"
        )
    if not len(series):
        return np.zeros((0, length or 0))
    lengths = series.list.len()
    length = length or int(lengths[0])
    if (lengths != length).any():
        position, row = place.first(lengths != length)
        raise DataError(f"{row}: column {series.name!r} has {lengths[position]} numbers; expected {length}")
    return series.cast(pl.List(pl.Float64)).explode().to_numpy().reshape(len(series), length)
