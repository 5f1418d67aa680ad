"""A number for each pixel, such as a depth: in the label's own units, not standardised."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.outputs import OutputSchema
from polytask.tasks.kinds import Kind
from polytask.tasks.labels.columns import locate
from polytask.tasks.labels.maps import read_maps
from polytask.tasks.target import Target
from polytask.tasks.task import Task

METRICS = ("mae", "relative_error", "rmse")


def fitted(task: Task, frames: Iterable[Any], place: str | None, channels: int) -> Target:
    """Nothing is learned; only whether there is any label at all."""
    count = 0
    for frame in frames:
        count += int(read_maps(frame, task, place, channels)[1].sum())
    none = f"{locate(task, task.label_columns[0], place)}: no label in training"
    return Target(task, degenerate=None if count else none)


def encoded(target: Target, frame: Any, place: str | None, channels: int) -> tuple[Tensor, Tensor]:
    """(labels, present) [N, H, W], or [N, H, W, channels], where a pixel has all its channels or none."""
    array, present = read_maps(frame, target.task, place, channels)
    if channels > 1:
        present = np.broadcast_to(present[..., None], array.shape)
    labels = np.where(present, array, 0).astype(np.float32)
    return torch.from_numpy(labels), torch.from_numpy(present.copy())


KIND = Kind(
    losses=("l1", "mean_squared_error", "huber"),
    metrics=METRICS,
    companions=METRICS,
    fit=lambda task, frames, place: fitted(task, frames, place, 1),
    schema=lambda target: OutputSchema("numbers", target.task.label_columns),
    encode=lambda target, frame, place: encoded(target, frame, place, 1),
    decode=lambda target, outputs: {target.task.name: outputs.numpy()},
)
