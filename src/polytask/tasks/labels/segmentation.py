"""One of several classes for each pixel."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.errors import DataError
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.columns import found_values, locate
from polytask.tasks.labels.maps import read_maps
from polytask.tasks.labels.multiclass import choice
from polytask.tasks.target import Target
from polytask.tasks.task import Task

METRICS = ("mean_iou", "accuracy")


def _fit(task: Task, frames: Iterable[Any], place: str | None) -> Target:
    found: dict[int, None] = {}
    for frame in frames:
        array, present = read_maps(frame, task, place, 1)
        values = np.unique(array[present])
        _whole(values, task, place)
        found.update(dict.fromkeys(int(value) for value in values))
    seen = sorted(found)
    classes = task.classes if task.classes is not None else tuple(seen)
    if len(seen) > 1:
        return Target(task, classes=classes)
    what = f"not two classes in training: found {found_values(seen) or 'no label'}"
    return Target(task, classes=classes, degenerate=f"{locate(task, task.label_columns[0], place)}: {what}")


def _whole(values: np.ndarray, task: Task, place: str | None) -> None:
    broken = values[values != np.floor(values)]
    if len(broken):
        where = locate(task, task.label_columns[0], place)
        raise DataError(f"{where}: class labels {found_values(broken.tolist())}; allowed: whole numbers")


def _encode(target: Target, frame: Any, place: str | None) -> tuple[Tensor, Tensor]:
    task = target.task
    array, present = read_maps(frame, task, place, 1)
    classes = np.array([int(value) for value in target.classes], dtype=np.int64)
    order = np.argsort(classes)
    values = np.where(present, array, classes[0] if len(classes) else 0)
    numbers = np.searchsorted(classes[order], values).clip(max=max(len(classes) - 1, 0))
    unknown = present & (classes[order][numbers] != values) if len(classes) else present
    if unknown.any():
        where = locate(task, task.label_columns[0], place)
        found = found_values(np.unique(array[unknown]).tolist())
        raise DataError(f"{where}: classes {found}; allowed: {found_values(classes.tolist(), 30)}, or say `ignore`")
    numbered = order[numbers] if len(classes) else numbers
    return torch.from_numpy(np.where(present, numbered, 0).astype(np.int64)), torch.from_numpy(present)


def _decode(target: Target, outputs: Tensor) -> dict[str, np.ndarray]:
    classes = np.array([int(value) for value in target.classes], dtype=np.int64)
    return {target.task.name: classes[outputs.argmax(dim=-1).numpy()]}


KIND = Kind(
    losses=("cross_entropy",),
    metrics=METRICS,
    companions=METRICS,
    fit=_fit,
    schema=choice,
    encode=_encode,
    decode=_decode,
    options=("classes",),
)
