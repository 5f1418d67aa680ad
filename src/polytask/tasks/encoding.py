"""Raw rows and fitted targets -> rows ready for a model."""

import numpy as np
import polars as pl
import torch

from polytask.tasks.examples import Examples
from polytask.tasks.features.feature import Place
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.target import Target


def encode(
    frame: pl.DataFrame, numbers: np.ndarray, preprocessor: Preprocessor, targets: list[Target], source: str, where: str
) -> Examples:
    """The rows of a frame, whose numbers in the source are `numbers`."""
    labels, present = {}, {}
    for target in targets:
        labels[target.task.name], present[target.task.name] = target.encode(frame, where)
    inputs = preprocessor.transform(frame, Place(where, numbers))
    found = {target.task.name: target.groups(frame, where) for target in targets}
    groups = {task: rows for task, rows in found.items() if rows is not None}
    return Examples(inputs, labels, present, torch.from_numpy(numbers.astype(np.int64)), source, groups)


def needed_columns(preprocessor: Preprocessor, targets: list[Target]) -> list[str]:
    """The columns that `encode` reads."""
    return list(
        dict.fromkeys([*preprocessor.columns, *(column for target in targets for column in target.task.read_columns)])
    )
