"""Reading labels that are a map: one value, or some, for each pixel of a row."""

from typing import Any

import numpy as np

from polytask.core.errors import DataError, UnknownName
from polytask.tasks.labels.columns import locate, read_mask
from polytask.tasks.task import Task


def read_maps(frame: Any, task: Task, place: str | None, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The label column as [N, H, W], or [N, H, W, channels] where there are several; and bool [N, H, W]: which pixels
    have a label, neither NaN nor, in all channels, the value `ignore`, in rows where `where` is true."""
    (column,) = task.label_columns
    where = locate(task, column, place)
    columns = list(frame.columns) if hasattr(frame, "columns") else list(frame)
    if column not in columns:
        raise UnknownName("column", column, columns, where)
    values = frame[column]
    array = values.to_numpy() if hasattr(values, "to_numpy") else np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise DataError(
            f"{where}: labels are of type {getattr(values, 'dtype', array.dtype)}; allowed: maps of numbers"
        )
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    found = array.shape[3] if array.ndim == 4 else 1
    if array.ndim not in (3, 4) or found != channels:
        allowed = "[H, W]" if channels == 1 else f"[H, W, {channels}]"
        raise DataError(f"{where}: a label is an array {list(array.shape[1:])}; allowed: {allowed}")
    values = array[..., None] if array.ndim == 3 else array
    present = np.asarray(np.isfinite(values).all(axis=-1))
    if task.ignore is not None:
        present &= ~np.asarray((values == task.ignore).all(axis=-1))
    if task.where is not None:
        present &= read_mask(frame, task, place).to_numpy()[:, None, None]
    return array, present
