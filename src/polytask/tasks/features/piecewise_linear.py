"""Numeric columns as piecewise-linear codes: how far a value has gone through each interval of training quantiles."""

from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.feature import Place
from polytask.tasks.features.numbers import numbers
from polytask.tasks.features.options import PiecewiseLinearOptions

_KEPT = 1_000_000  # values that the quantiles are taken from; of more, every second, fourth, ... is kept


class PiecewiseLinear:
    """Interval (a, b) gives clip((x - a) / (b - a), 0, 1), not standardised; a missing value gives zeros.

    Training rows with missing values add the 0/1 column that marks them.

    Source: Gorishniy, Rubachev and Babenko 2022, arXiv:2203.05556, equation 1, with edges at quantiles (section 3.2).
    Departures: values beyond the outer edges stay at 0 and 1, where the paper lets the two outer intervals go on. Where
    more than half of the values are 0, as in amounts that most rows lack, 0 is an edge and the quantiles are those of
    the others, since quantiles of all values would see nothing but 0.
    Cost: at most `bins` numbers a row.
    """

    kind, key = "piecewise_linear", "numeric"

    def __init__(self, column: str, options: PiecewiseLinearOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)
        self.edges, self.indicator = np.zeros(0), False
        self._chunks: list[np.ndarray] = []
        self._stride, self._seen = 1, 0

    @property
    def width(self) -> int:
        return len(self.edges) - 1 + int(self.indicator)

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        values = numbers(frame[self.column], place)
        self.indicator = self.indicator or bool(np.isnan(values).any())
        self._chunks.append(values[-self._seen % self._stride :: self._stride])
        self._seen += len(values)
        while sum(len(chunk) for chunk in self._chunks) > _KEPT:
            self._chunks = [np.concatenate(self._chunks)[::2]]
            self._stride *= 2

    def finish(self, place: Place) -> None:
        values = np.concatenate(self._chunks) if self._chunks else np.zeros(0)
        values = values[~np.isnan(values)]
        self._chunks = []
        if not len(values):
            raise DataError(
                f"{place.where}: column {self.column!r} has no value in training; leave it out: drop: [{self.column}]"
            )
        if not np.isfinite(values).all():
            raise DataError(f"{place.where}: column {self.column!r} has infinite numbers; drop: [{self.column}]")
        self.edges = _edges(values, self.options.bins)

    def write(self, frame: pl.DataFrame, place: Place, into: np.ndarray) -> None:
        values = numbers(frame[self.column], place)
        missing = np.isnan(values)
        low, high = self.edges[:-1], self.edges[1:]
        coded = np.clip((values[:, None] - low) / (high - low), 0.0, 1.0)
        into[:, : len(low)] = np.where(missing[:, None], 0.0, coded)
        if self.indicator:
            into[:, -1] = missing

    def to_json(self) -> dict[str, Any]:
        fitted = {"edges": self.edges.tolist(), "indicator": self.indicator}
        return {"column": self.column, **self.options.model_dump(), **fitted}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PiecewiseLinear":
        feature = cls(values["column"], PiecewiseLinearOptions(bins=values["bins"]))
        feature.edges, feature.indicator = np.array(values["edges"], dtype=np.float64), values["indicator"]
        return feature


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Distinct quantiles, at least two; a constant column gets the interval of length 1 that begins at its value."""
    other = values[values != 0]
    if 0 < len(other) < len(values) / 2 and bins > 1:
        edges = np.unique(np.append(np.quantile(other, np.linspace(0, 1, bins)), 0.0))
    else:
        edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])
