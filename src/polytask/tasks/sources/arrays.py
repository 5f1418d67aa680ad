"""Rows handed over from Python: frames, mappings of arrays, torch Datasets; and .npz files."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.core.errors import DataError
from polytask.tasks.data_spec import SPLITS
from polytask.tasks.sources.raw import FrameRows
from polytask.tasks.task import Task


def rows_from_python(data: Any, tasks: list[Task], where: str) -> FrameRows:
    """Args: data: a polars or pandas frame, a mapping of arrays, a torch Dataset of (inputs, {task: label}), or a
    mapping {"train": ..., "valid": ..., "test": ...} of such things, which then is the split."""
    if isinstance(data, Mapping) and "train" in data and all(key in SPLITS for key in data):
        frames = {
            split: frame_from_python(data[split], tasks, f"{where}[{split!r}]") for split in SPLITS if split in data
        }
        numbers = [np.full(len(frame), SPLITS.index(split), dtype=np.int8) for split, frame in frames.items()]
        try:
            joined = pl.concat(list(frames.values()), how="vertical_relaxed")
        except pl.exceptions.PolarsError as error:
            columns = "; ".join(f"{split}: {', '.join(frame.columns)}" for split, frame in frames.items())
            raise DataError(f"{where}: the splits do not have the same columns ({columns})") from error
        return FrameRows(joined, where, np.concatenate(numbers))
    return FrameRows(frame_from_python(data, tasks, where), where)


def frame_from_python(data: Any, tasks: list[Task], where: str) -> pl.DataFrame:
    """Raises: DataError for something else, or for columns of different lengths."""
    if isinstance(data, pl.DataFrame):
        return data
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if isinstance(data, Mapping):
        return frame_from_arrays(data, where)
    if isinstance(data, np.ndarray | torch.Tensor | tuple | str):
        raise DataError(
            f"{where} is a {type(data).__name__}; allowed: a frame, a mapping {{column: array}} or of splits, a torch "
            "Dataset; data is {source: rows}, so a mapping of columns stands as data={'data': columns}"
        )
    if type(data).__module__.split(".")[0] == "pandas":
        return pl.from_pandas(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return frame_from_items((data[position] for position in range(len(data))), tasks, where)
    if hasattr(data, "__iter__"):
        return frame_from_items(data, tasks, where)
    raise DataError(
        f"{where} is a {type(data).__name__}; allowed: a frame, a mapping of arrays or of splits, a torch Dataset"
    )


def frame_from_arrays(arrays: Mapping[str, Any], where: str) -> pl.DataFrame:
    """A column an array; arrays with more than one dimension become columns of arrays."""
    columns = {str(name): _series(str(name), values, where) for name, values in arrays.items()}
    lengths = {name: len(series) for name, series in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{where}: columns of different lengths ({', '.join(f'{name} {n}' for name, n in lengths.items())})"
        )
    return pl.DataFrame(list(columns.values()))


def frame_from_items(items: Iterable[Any], tasks: list[Task], where: str) -> pl.DataFrame:
    """Rows of (inputs, {task: label}); inputs: a mapping, or one array, which becomes the column `input`.

    A label goes to the task's label column; a task that an item's mapping lacks has no label there.
    """
    inputs: dict[str, list[Any]] = {}
    labels: dict[str, list[Any]] = {}
    rows = 0
    for rows, item in enumerate(items, start=1):
        if not (isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Mapping)):
            raise DataError(f"{where}, item {rows - 1} is a {type(item).__name__}; allowed: (inputs, {{task: label}})")
        given = item[0] if isinstance(item[0], Mapping) else {"input": item[0]}
        for store, values in ((inputs, given), (labels, item[1])):
            for name, value in values.items():
                store.setdefault(str(name), [None] * (rows - 1)).append(_plain(value))
            for column in store.values():
                if len(column) < rows:
                    column.append(None)
    if not rows:
        raise DataError(f"{where} has no items")
    incomplete = [name for name, column in inputs.items() if any(value is None for value in column)]
    if incomplete:
        raise DataError(f"{where}: the input {incomplete[0]!r} is missing in some items")
    columns = {name: _stacked(name, column, where) for name, column in inputs.items()}
    return frame_from_arrays(columns | _label_columns(labels, tasks), where)


def rows_from_npz(path: Path) -> FrameRows:
    """A column an array of the file. Pickled objects are refused."""
    try:
        # The file is opened here, since numpy leaves it open when it is damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: no whole .npz file of plain arrays ({error})") from error
    return FrameRows(frame_from_arrays(arrays, str(path)), str(path))


def _series(name: str, values: Any, where: str) -> pl.Series:
    if isinstance(values, pl.Series):
        return values.alias(name)
    plain = _plain(values)
    if isinstance(plain, np.ndarray) and plain.ndim == 0:
        raise DataError(f"{where}: column {name!r} is one value, not an array of rows")
    try:
        if isinstance(plain, np.ndarray) and plain.dtype == object:
            plain = plain.tolist()
        if isinstance(plain, np.ndarray) and plain.dtype == np.float16:
            plain = plain.astype(np.float32)
        return pl.Series(name, plain, strict=False) if isinstance(plain, list) else pl.Series(name, plain)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{where}: column {name!r} cannot be read as rows ({error})") from error


def _stacked(name: str, values: list[Any], where: str) -> Any:
    if not isinstance(values[0], np.ndarray):
        return values
    for position, value in enumerate(values):
        if value.shape != values[0].shape:
            raise DataError(
                f"{where}, item {position}: input {name!r} has shape {value.shape}, the first item {values[0].shape}"
            )
    return np.stack(values)


def _label_columns(labels: dict[str, list[Any]], tasks: list[Task]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    by_name = {task.name: task for task in tasks}
    for name, values in labels.items():
        task = by_name.get(name)
        if task is not None and len(task.label_columns) > 1:  # a multilabel item: one entry a label column
            for position, column in enumerate(task.label_columns):
                columns[column] = [None if value is None else np.asarray(value)[position].item() for value in values]
        else:
            plain = [value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value for value in values]
            columns[name if task is None else task.label_columns[0]] = plain
    return columns


def _plain(value: Any) -> Any:
    """A tensor as a numpy array; everything else as it is."""
    if hasattr(value, "detach"):
        return value.detach().cpu().numpy()
    return value
