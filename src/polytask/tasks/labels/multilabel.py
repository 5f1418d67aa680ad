"""Several binary labels a row, each with its own column and its own missing ones, predicted by one head."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.outputs import OutputSchema
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.binary import METRICS, read_binary
from polytask.tasks.labels.columns import locate
from polytask.tasks.target import Target
from polytask.tasks.task import Task


def _read(frame: Any, task: Task, place: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(is positive, is present), bool [N, L] each."""
    positive, present = zip(*(read_binary(frame, column, task, place) for column in task.label_columns), strict=True)
    return np.stack(positive, axis=1), np.stack(present, axis=1)


def _fit(task: Task, frames: Iterable[Any], place: str | None) -> Target:
    """Degenerate only if no column has both values: rare labels are normal where there are many."""
    positives = labels = np.zeros(len(task.label_columns), dtype=np.int64)
    for frame in frames:
        positive, present = _read(frame, task, place)
        positives, labels = positives + positive.sum(axis=0), labels + present.sum(axis=0)
    if ((positives > 0) & (positives < labels)).any():
        return Target(task)
    counts = ", ".join(f"{count} of {total}" for count, total in zip(positives, labels, strict=True))
    what = f"no column has two classes in training: {counts} labels are positive"
    return Target(task, degenerate=f"{locate(task, task.label_columns[0], place)} and on: {what}")


def _encode(target: Target, frame: Any, place: str | None) -> tuple[Tensor, Tensor]:
    positive, present = _read(frame, target.task, place)
    return torch.from_numpy(positive.astype(np.float32)), torch.from_numpy(present)


def _decode(target: Target, outputs: Tensor) -> dict[str, np.ndarray]:
    probabilities = outputs.sigmoid().numpy()
    names = [f"{target.task.name}.{column}" for column in target.task.label_columns]
    return {name: probabilities[:, index] for index, name in enumerate(names)}


KIND = Kind(
    losses=("binary_cross_entropy",),
    metrics=METRICS,
    companions=METRICS,
    fit=_fit,
    schema=lambda target: OutputSchema("flags", target.task.label_columns, of_rows=True),
    encode=_encode,
    decode=_decode,
    options=("labels",),
)
