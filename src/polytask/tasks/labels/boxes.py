"""One box a row: left, top, right and bottom as shares of the picture's width and height."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.errors import BadValue, DataError
from polytask.core.outputs import OutputSchema
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.columns import locate
from polytask.tasks.labels.regression import read_numbers
from polytask.tasks.target import Target
from polytask.tasks.task import Task

METRICS = ("box_iou", "mae")


def _read(frame: Any, task: Task, place: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [N, 4], is present [N]): a row has all four numbers or no label."""
    if len(task.label_columns) != 4:
        allowed = "four columns: left, top, right and bottom"
        raise BadValue("labels", list(task.label_columns), allowed, f"tasks.{task.name}")
    columns, exist = zip(*(read_numbers(frame, column, task, place) for column in task.label_columns), strict=True)
    present = np.asarray(np.stack(exist).all(axis=0))
    boxes = np.where(present[:, None], np.stack(columns, axis=1), 0.0)
    inside = ((boxes >= 0) & (boxes <= 1)).all(axis=1)
    wrong = present & ~(inside & (boxes[:, :2] < boxes[:, 2:]).all(axis=1))
    if wrong.any():
        where = f"{locate(task, task.label_columns[0], place)} and on"
        allowed = "left < right and top < bottom, each between 0 and 1: shares of the picture's width and height"
        found = f"{wrong.sum()} of {present.sum()} labels are no boxes, the first {boxes[wrong][0].tolist()}"
        raise DataError(f"{where}: {found}; allowed: {allowed}")
    return boxes, present


def _fit(task: Task, frames: Iterable[Any], place: str | None) -> Target:
    """Nothing is learned; only whether there are two different boxes."""
    first: np.ndarray | None = None
    differ = False
    for frame in frames:
        boxes, present = _read(frame, task, place)
        if present.any():
            first = boxes[present][0] if first is None else first
            differ |= bool((boxes[present] != first).any())
    found = "no label" if first is None else f"all boxes are {first.tolist()}"
    what = f"{locate(task, task.label_columns[0], place)} and on: not two boxes in training: {found}"
    return Target(task, degenerate=None if differ else what)


def _encode(target: Target, frame: Any, place: str | None) -> tuple[Tensor, Tensor]:
    boxes, present = _read(frame, target.task, place)
    return torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(np.repeat(present[:, None], 4, axis=1))


def _decode(target: Target, outputs: Tensor) -> dict[str, np.ndarray]:
    names = [f"{target.task.name}.{column}" for column in target.task.label_columns]
    return {name: outputs[:, index].numpy() for index, name in enumerate(names)}


KIND = Kind(
    losses=("l1", "huber", "mean_squared_error"),
    metrics=METRICS,
    companions=METRICS,
    fit=_fit,
    schema=lambda target: OutputSchema("numbers", target.task.label_columns, (0.0, 1.0), of_rows=True),
    encode=_encode,
    decode=_decode,
    options=("labels",),
)
