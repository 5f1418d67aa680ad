"""How often each value occurs, over chunks of rows."""

from typing import Any

import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.feature import Place


class Counts:
    """Of the values of one column; missing ones do not count."""

    def __init__(self) -> None:
        self._found: list[pl.DataFrame] = []

    def add(self, series: pl.Series) -> None:
        found = series.drop_nulls().alias("value").value_counts().select("value", pl.col("count").cast(pl.Int64))
        self._found = [pl.concat([*self._found, found]).group_by("value").agg(pl.col("count").sum())]

    def total(self, column: str, place: Place) -> pl.DataFrame:
        """A row a distinct value: value, count. Raises: DataError where there is none."""
        if not self._found or not len(self._found[0]):
            raise DataError(
                f"{place.where}: column {column!r} has no value in training; leave it out: drop: [{column}]"
            )
        return self._found[0]

    def frequent(self, minimum: int, column: str, place: Place) -> list[Any]:
        """The values that occur so often, sorted."""
        return self.total(column, place).filter(pl.col("count") >= minimum)["value"].sort().to_list()
