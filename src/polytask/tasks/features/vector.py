"""Lists of numbers of one length: each entry standardised as a numeric column."""

from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.array import fixed_length
from polytask.tasks.features.feature import Place
from polytask.tasks.features.moments import Moments
from polytask.tasks.features.options import VectorOptions


class Vector:
    """Part of the input `numeric`. A missing (NaN) entry becomes 0, the mean."""

    kind, key = "vector", "numeric"

    def __init__(self, column: str, options: VectorOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)
        self.mean = self.std = np.zeros(0)
        self._moments: Moments | None = None

    @property
    def width(self) -> int:
        return len(self.mean)

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        values = self._rows(frame, place, None if self._moments is None else len(self._moments.mean))
        self._moments = self._moments or Moments(values.shape[1])
        self._moments.add(values)

    def finish(self, place: Place) -> None:
        moments = self._moments
        if moments is None or not len(moments.mean):
            raise DataError(
                f"{place.where}: column {self.column!r} has no number in training; leave it out: drop: [{self.column}]"
            )
        self.mean = moments.mean if self.options.standardise else np.zeros_like(moments.mean)
        self.std = moments.std if self.options.standardise else np.ones_like(moments.mean)
        if not (np.isfinite(self.mean).all() and np.isfinite(self.std).all()):
            raise DataError(
                f"{place.where}: column {self.column!r} has numbers too large to be standardised; drop: [{self.column}]"
            )

    def write(self, frame: pl.DataFrame, place: Place, into: np.ndarray) -> None:
        values = self._rows(frame, place, self.width)
        into[:] = np.where(np.isnan(values), 0.0, (values - self.mean) / self.std)

    def _rows(self, frame: pl.DataFrame, place: Place, length: int | None) -> np.ndarray:
        values = fixed_length(frame[self.column], place, length).astype(np.float64)
        if values.ndim != 2 or (length is not None and values.shape[1] != length):
            raise DataError(
                f"{place.where}: column {self.column!r} has arrays {values.shape[1:]}; expected {length} numbers"
            )
        infinite = np.isinf(values).any(1)
        if infinite.any():
            raise DataError(
                f"{place.row(int(np.flatnonzero(infinite)[0]))}: column {self.column!r} holds an infinite number"
            )
        return values

    def to_json(self) -> dict[str, Any]:
        return {
            "column": self.column,
            **self.options.model_dump(),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Vector":
        feature = cls(values["column"], VectorOptions(standardise=values["standardise"]))
        feature.mean, feature.std = np.array(values["mean"]), np.array(values["std"])
        return feature
