"""A column's values as float64 numbers, whatever its type; missing values are NaN."""

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.features.feature import Place


def is_numeric(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Boolean or dtype == pl.Null


def numbers(series: pl.Series, place: Place) -> np.ndarray:
    """float64 [N]. Dates and times become seconds since 1970; text is read as numbers where it is one.

    Raises: DataError for text that is no number and for infinite values, naming the row.
    """
    if series.dtype == pl.Duration:
        series = series.dt.total_microseconds() / 1e6
    elif series.dtype == pl.Time:
        series = series.cast(pl.Int64) / 1e9
    elif series.dtype in (pl.Date, pl.Datetime):
        series = series.cast(pl.Datetime("us")).dt.timestamp("us") / 1e6
    values = series.cast(pl.Float64, strict=False)
    if values.null_count() > series.null_count():
        position, row = place.first(values.is_null() & series.is_not_null())
        raise DataError(f"{row}: column {series.name!r} is {series[position]!r}, which is no number")
    array = values.fill_null(np.nan).to_numpy()
    if np.isinf(array).any():
        _, row = place.first(values.is_infinite())
        raise DataError(
            f"{row}: column {series.name!r} is infinite; allowed: finite numbers, or none for a missing value"
        )
    return array
