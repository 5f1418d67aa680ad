"""Binary labels: true/false, 0/1, one value that counts as positive, or a number from which on labels do."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.errors import BadValue, DataError, nearest
from polytask.core.outputs import OutputSchema
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.columns import check_comparable, found_values, locate, read_labels
from polytask.tasks.target import Target
from polytask.tasks.task import Task

if TYPE_CHECKING:
    import polars as pl

METRICS = (
    "auroc",
    "average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "matthews",
    "log_loss",
    "calibration_error",
)


def read_binary(frame: Any, column: str, task: Task, place: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(is positive, is present), bool [N] each.

    Raises:
        DataError: without `positive`, a value other than true/false and 0/1.
        BadValue: `positive` or `at_least` is of another type than the column.
    """
    series = read_labels(frame, column, task, place)
    return _positives(series, task, locate(task, column, place)), series.is_not_null().to_numpy()


def _positives(series: "pl.Series", task: Task, where: str) -> np.ndarray:
    import polars as pl

    if series.dtype == pl.Null:
        return np.zeros(len(series), dtype=bool)
    if task.positive is not None:
        check_comparable(series, "positive", task.positive, where)
        return (series == task.positive).fill_null(False).to_numpy()
    if task.at_least is not None:
        if not series.dtype.is_numeric():
            raise BadValue("at_least", task.at_least, f"nothing, as the column holds {series.dtype}", where)
        return (series >= task.at_least).fill_null(False).to_numpy()
    if series.dtype == pl.Boolean:
        return series.fill_null(False).to_numpy()
    values = series.drop_nulls().unique().sort()
    wrong = values if series.dtype == pl.String else values.filter((values != 0) & (values != 1))
    if len(wrong):
        hint = f"or set `positive` to the value that counts as 1, of: {found_values(values)}"
        raise DataError(f"{where}: binary labels {found_values(wrong)}; allowed: true/false, 0/1, {hint}")
    return (series == 1).fill_null(False).to_numpy()


def _fit(task: Task, frames: Iterable[Any], place: str | None) -> Target:
    (column,) = task.label_columns
    positives = labels = 0
    values: list[str] = []
    for frame in frames:
        positive, present = read_binary(frame, column, task, place)
        positives, labels = positives + int(positive.sum()), labels + int(present.sum())
        if task.positive is not None and not positives:
            values.extend(str(value) for value in read_labels(frame, column, task, place).drop_nulls().unique().sort())
    if 0 < positives < labels:
        return Target(task)
    if task.positive is not None and not positives and labels:
        values = list(dict.fromkeys(values))
        hint = nearest(str(task.positive), values)
        found = f"positive {task.positive!r} occurs nowhere{hint}; found {found_values(values)}"
    else:
        found = f"{positives} of {labels} labels are positive"
    return Target(task, degenerate=f"{locate(task, column, place)}: not two classes in training: {found}")


def _encode(target: Target, frame: Any, place: str | None) -> tuple[Tensor, Tensor]:
    (column,) = target.task.label_columns
    positive, present = read_binary(frame, column, target.task, place)
    return torch.from_numpy(positive.astype(np.float32)), torch.from_numpy(present.copy())


KIND = Kind(
    losses=("binary_cross_entropy",),
    metrics=(*METRICS, "grouped_auroc"),
    companions=(*METRICS, "grouped_auroc"),
    fit=_fit,
    schema=lambda target: OutputSchema("flags", target.task.label_columns, of_rows=True),
    encode=_encode,
    decode=lambda target, outputs: {target.task.name: outputs.sigmoid().numpy()},
    options=("positive", "at_least"),
)
