"""One of several classes a row: integers, strings or booleans."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.errors import DataError, nearest
from polytask.core.outputs import OutputSchema
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.columns import check_comparable, found_values, locate, read_labels
from polytask.tasks.target import Target
from polytask.tasks.task import Task

if TYPE_CHECKING:
    import polars as pl

METRICS = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "matthews",
    "auroc",
    "average_precision",
    "log_loss",
    "calibration_error",
)


def _read(frame: Any, task: Task, place: str | None) -> "pl.Series":
    """The column; floats that are whole numbers (integers that went through a table with missing ones) as integers."""
    import polars as pl

    (column,) = task.label_columns
    series = read_labels(frame, column, task, place)
    if not series.dtype.is_float():
        return series
    values = series.drop_nulls().unique().sort()
    broken = values.filter(~(values.is_finite() & (values == values.floor())))
    if len(broken):
        where = locate(task, column, place)
        raise DataError(f"{where}: class labels {found_values(broken)}; allowed: whole numbers, strings, true/false")
    return series.cast(pl.Int64)


def _fit(task: Task, frames: Iterable[Any], place: str | None) -> Target:
    (column,) = task.label_columns
    found: dict[Any, None] = {}  # a dictionary keeps the order of the rows, a set has none
    for frame in frames:
        series = _read(frame, task, place)
        if task.classes is not None:
            _class_numbers(series, task.classes, task, place)  # refuses labels outside the declared classes
        found.update(dict.fromkeys(series.drop_nulls().unique().sort()))
    try:
        seen = sorted(found)
    except TypeError:
        where = locate(task, column, place)
        raise DataError(f"{where}: classes {found_values(found)}; allowed: values of one type") from None
    classes = task.classes if task.classes is not None else tuple(seen)
    if len(seen) > 1:
        return Target(task, classes=classes)
    what = f"not two classes in training: found {found_values(seen) or 'no label'}"
    return Target(task, classes=classes, degenerate=f"{locate(task, column, place)}: {what}")


def _class_numbers(series: "pl.Series", classes: tuple[Any, ...], task: Task, place: str | None) -> np.ndarray:
    """int64 [N]: the place of each label in `classes`; 0 where absent."""
    import polars as pl

    where = locate(task, task.label_columns[0], place)
    if series.dtype == pl.Null:
        return np.zeros(len(series), dtype=np.int64)
    for value in classes:
        check_comparable(series, "classes", value, where)
    numbers = series.replace_strict(list(classes), list(range(len(classes))), default=None, return_dtype=pl.Int64)
    unknown = series.filter(series.is_not_null() & numbers.is_null()).unique().sort()
    if len(unknown):
        hint = nearest(str(unknown[0]), [str(value) for value in classes])
        known = "" if task.classes is not None else " (those of the training split; `classes` can declare more)"
        raise DataError(f"{where}: classes {found_values(unknown)}{hint}; allowed: {found_values(classes, 30)}{known}")
    return numbers.fill_null(0).to_numpy()


def _encode(target: Target, frame: Any, place: str | None) -> tuple[Tensor, Tensor]:
    series = _read(frame, target.task, place)
    numbers = _class_numbers(series, target.classes, target.task, place)
    return torch.from_numpy(numbers.copy()), torch.from_numpy(series.is_not_null().to_numpy().copy())


def _decode(target: Target, outputs: Tensor) -> dict[str, np.ndarray]:
    probabilities = outputs.softmax(dim=1).numpy()
    name = target.task.name
    columns = {name: np.array(target.classes)[probabilities.argmax(axis=1)]}
    return columns | {f"{name}.{value}": probabilities[:, index] for index, value in enumerate(target.classes)}


def choice(target: Target) -> OutputSchema:
    """One of the classes."""
    return OutputSchema("choice", tuple(str(value) for value in target.classes))


KIND = Kind(
    losses=("cross_entropy",),
    metrics=METRICS,
    companions=METRICS,
    fit=_fit,
    schema=lambda target: choice(target)._replace(of_rows=True),
    encode=_encode,
    decode=_decode,
    options=("classes",),
)
