"""Reading a label column: which labels exist, and whether a task's options fit the type of their values."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from polytask.core.errors import BadValue, DataError, UnknownName

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from polytask.tasks.task import Task


def read_labels(frame: Any, column: str, task: "Task", place: str | None) -> "pl.Series":
    """The column with null wherever the label is absent: null, NaN, the `ignore` value, or `where` not true."""
    import polars as pl

    series = _read_column(frame, column, locate(task, column, place))
    if task.ignore is not None and series.dtype != pl.Null:
        check_comparable(series, "ignore", task.ignore, locate(task, column, place))
        series = series.set((series == task.ignore).fill_null(False), None)
    if task.where is not None:
        series = series.set(~read_mask(frame, task, place), None)
    return series


def locate(task: "Task", column: str, place: str | None) -> str:
    """`file: task 'income', column 'x'`, the beginning of a message."""
    return f"{place + ': ' if place else ''}task {task.name!r}, column {column!r}"


def check_comparable(series: "pl.Series", option: str, value: object, where: str) -> None:
    """An option's value that can never equal a value of the column (1 and "1", true and "true") is a mistake."""
    import polars as pl

    if series.dtype == pl.Null:
        return
    if series.dtype == pl.Boolean:
        fits, allowed = isinstance(value, bool), "true or false"
    elif series.dtype.is_numeric():
        fits, allowed = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        fits, allowed = isinstance(value, str), "a string (in quotes)"
    if not fits:
        raise BadValue(option, value, f"{allowed}, as the column holds {series.dtype}", where)


def found_values(values: Iterable[object], most: int = 8) -> str:
    """Some values for a message."""
    values = list(values)
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(repr(value) for value in values[:most]) + more


def _read_column(frame: Any, column: str, where: str) -> "pl.Series":
    """The column as booleans, numbers or strings, NaN turned into null."""
    import polars as pl

    columns = list(frame.columns) if hasattr(frame, "columns") else list(frame)
    if column not in columns:
        raise UnknownName("column", column, columns, where)
    values = frame[column]
    if not isinstance(values, pl.Series):
        values = _series_of(column, values, where)
    if values.dtype in (pl.Categorical, pl.Enum):
        return values.cast(pl.String)
    if values.dtype.is_decimal():
        values = values.cast(pl.Float64)
    if values.dtype.is_float():
        return values.fill_nan(None)
    if not (values.dtype.is_numeric() or values.dtype in (pl.Boolean, pl.String, pl.Null)):
        raise DataError(f"{where}: labels are of type {values.dtype}; allowed: true/false, numbers, strings")
    return values


def _series_of(column: str, values: Any, where: str) -> "pl.Series":
    """Values of a mapping (NumPy array, tensor, list, pandas column) as a Series."""
    import numpy as np
    import polars as pl

    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{where}: labels have shape {list(array.shape)}; allowed: one label a row")
    if array.dtype.kind != "O":
        return pl.Series(column, array)
    missing = [value is None or (isinstance(value, float) and value != value) for value in array]
    try:
        return pl.Series(column, [None if absent else value for value, absent in zip(array, missing, strict=True)])
    except TypeError as error:
        raise DataError(f"{where}: labels of several types ({error}); allowed: one type a column") from None


def read_mask(frame: Any, task: "Task", place: str | None) -> "pl.Series":
    """Where `where` is true or not zero; a missing value is not true."""
    import polars as pl

    where = locate(task, str(task.where), place)
    mask = _read_column(frame, str(task.where), where)
    if mask.dtype == pl.String:
        found = found_values(mask.drop_nulls().unique().sort())
        raise DataError(f"{where}: `where` needs true/false or numbers; found {found}")
    if mask.dtype == pl.Null:
        return mask.cast(pl.Boolean).fill_null(False)
    return mask.fill_null(False) if mask.dtype == pl.Boolean else (mask != 0).fill_null(False)


def read_groups(frame: Any, task: "Task", place: str | None) -> "Tensor":
    """int64 [N]: the hash of the value in the column `group_by`, the same in every chunk of the rows.

    Raises:
        DataError: a row has no group.
    """
    import torch

    where = locate(task, str(task.group_by), place)
    series = _read_column(frame, str(task.group_by), where)
    if series.null_count():
        raise DataError(f"{where}: {series.null_count()} of {len(series)} rows have no value; allowed: a group in each")
    return torch.from_numpy(series.hash().to_numpy().astype("int64"))
