"""Numeric columns: standardised values, and a 0/1 column that marks missing ones."""

from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.feature import Place
from polytask.tasks.features.moments import Moments
from polytask.tasks.features.numbers import numbers
from polytask.tasks.features.options import NumericOptions


class Numeric:
    """(value - mean) / std; a missing value becomes 0, the mean. Training rows with missing values add the indicator.

    A column that is constant in training has std 1 here, so that it stays finite on new rows.
    """

    kind, key = "numeric", "numeric"

    def __init__(self, column: str, options: NumericOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)
        self.mean, self.std, self.indicator = 0.0, 1.0, False
        self._moments = Moments(1)

    @property
    def width(self) -> int:
        return 2 if self.indicator else 1

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        self._moments.add(numbers(frame[self.column], place)[:, None])

    def finish(self, place: Place) -> None:
        if not self._moments.count[0]:
            raise DataError(
                f"{place.where}: column {self.column!r} has no value in training; leave it out: drop: [{self.column}]"
            )
        self.indicator = bool(self._moments.missing[0])
        if self.options.standardise:
            self.mean, self.std = float(self._moments.mean[0]), float(self._moments.std[0])
        if not np.isfinite([self.mean, self.std]).all():
            raise DataError(
                f"{place.where}: column {self.column!r} has numbers too large to be standardised; drop: [{self.column}]"
            )

    def write(self, frame: pl.DataFrame, place: Place, into: np.ndarray) -> None:
        values = numbers(frame[self.column], place)
        missing = np.isnan(values)
        into[:, 0] = np.where(missing, 0.0, (values - self.mean) / self.std)
        if self.indicator:
            into[:, 1] = missing

    def to_json(self) -> dict[str, Any]:
        fitted = {"mean": self.mean, "std": self.std, "indicator": self.indicator}
        return {"column": self.column, **self.options.model_dump(), **fitted}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Numeric":
        feature = cls(values["column"], NumericOptions(standardise=values["standardise"]))
        feature.mean, feature.std, feature.indicator = values["mean"], values["std"], values["indicator"]
        return feature
