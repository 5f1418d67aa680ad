"""A number a row, standardised for the loss with the training split's mean and standard deviation."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.errors import DataError
from polytask.core.outputs import STANDARDISED, OutputSchema
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.columns import found_values, locate, read_labels
from polytask.tasks.target import Target
from polytask.tasks.task import Task

METRICS = ("r2", "rmse", "mae", "explained_variance")


def read_numbers(frame: Any, column: str, task: Task, place: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(float64 values, is present) [N]; 0 where absent."""
    import polars as pl

    where = locate(task, column, place)
    series = read_labels(frame, column, task, place)
    if series.dtype in (pl.String, pl.Boolean):
        found = found_values(series.drop_nulls().unique().sort())
        raise DataError(f"{where}: {task.kind} labels of type {series.dtype}: {found}; allowed: numbers")
    values, present = series.cast(pl.Float64).fill_null(0.0).to_numpy(), series.is_not_null().to_numpy()
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(f"{where}: {infinite} of {len(values)} labels are infinite; allowed: finite numbers")
    return values, present


def fitted(task: Task, frames: Iterable[Any], place: str | None) -> Target:
    """Mean and (population) standard deviation of all chunks.

    Chunks are combined as in Chan, Golub and LeVeque 1983 ("Algorithms for computing the sample variance"), which stays
    accurate where labels are large and close together.
    """
    (column,) = task.label_columns
    count, mean, squares = 0, 0.0, 0.0  # squares: the sum of squared deviations from the mean
    smallest, largest = math.inf, -math.inf
    for frame in frames:
        values, present = read_numbers(frame, column, task, place)
        values = values[present]
        if not len(values):
            continue
        total, difference = count + len(values), float(values.mean()) - mean
        squares += float(values.var()) * len(values) + difference**2 * count * len(values) / total
        mean, count = mean + difference * len(values) / total, total
        smallest, largest = min(smallest, float(values.min())), max(largest, float(values.max()))
    if smallest < largest:
        return Target(task, mean=mean, std=math.sqrt(squares / count))
    found = f"{count} labels, all {smallest!r}" if count else "no label"
    what = f"not two values in training: found {found}"
    return Target(task, mean=mean, degenerate=f"{locate(task, column, place)}: {what}")


def encoded(target: Target, frame: Any, place: str | None) -> tuple[Tensor, Tensor]:
    (column,) = target.task.label_columns
    values, present = read_numbers(frame, column, target.task, place)
    labels = np.where(present, (values - target.mean) / target.std, 0.0)
    return torch.from_numpy(labels.astype(np.float32)), torch.from_numpy(present.copy())


def _to_units(target: Target, values: Tensor) -> Tensor:
    return values.to(torch.float64) * target.std + target.mean


def standardised(target: Target) -> OutputSchema:
    """One number, as the loss sees the label."""
    return OutputSchema("numbers", target.task.label_columns, STANDARDISED, of_rows=True)


KIND = Kind(
    losses=("mean_squared_error", "l1", "huber"),
    metrics=METRICS,
    companions=METRICS,
    fit=fitted,
    schema=standardised,
    encode=encoded,
    decode=lambda target, outputs: {target.task.name: _to_units(target, outputs).numpy()},
    to_units=_to_units,
)
