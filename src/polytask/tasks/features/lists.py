"""Columns whose rows are lists of values."""

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.categorical import typed, value_type
from polytask.tasks.features.feature import Place


def as_lists(values: pl.Series, kind: str, separator: str | None, place: Place) -> pl.Series:
    """The column; text is divided into the values between its separators, none of which is empty.

    Raises: DataError for a column that has no lists, or has a separator and is no text.
    """
    dtype = values.dtype
    if dtype == pl.Null:
        return values.cast(pl.List(pl.Null))
    if separator is not None:
        if dtype != pl.String:
            what = f"column {values.name!r} has type {dtype}"
            raise DataError(f"{place.where}: {what}; kind {kind} with a separator takes text")
        return values.str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
    if isinstance(dtype, pl.Array):
        return values.arr.to_list()
    if not isinstance(dtype, pl.List):
        hint = ", or text with a separator" if dtype == pl.String else ""
        raise DataError(f"{place.where}: column {values.name!r} has type {dtype}; kind {kind} takes lists{hint}")
    return values


def type_of_values(lists: pl.Series) -> str:
    """The name of the type of what is in the lists."""
    assert isinstance(lists.dtype, pl.List)
    return value_type(lists.dtype.inner)


def entries(lists: pl.Series, type_name: str, place: Place) -> pl.DataFrame:
    """A row an entry, in order: row (position in the frame), value. A missing list has one, which is null."""
    long = pl.DataFrame({"row": np.arange(len(lists)), "value": lists}).explode("value")
    rows = long["row"].to_numpy()
    here = Place(place.where, rows if place.rows is None else place.rows[rows])
    return long.with_columns(typed(long["value"].alias(lists.name), type_name, here).alias("value"))
