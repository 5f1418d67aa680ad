"""One source: raw rows -> columns -> split -> fitted targets and features -> rows ready for a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError, UnknownName
from polytask.core.noise import Noise
from polytask.tasks.data_spec import MADE, SPLITS, SourceSpec, StreamSpec
from polytask.tasks.encoding import encode, needed_columns
from polytask.tasks.examples import Examples
from polytask.tasks.features.choose import choose_features
from polytask.tasks.features.feature import Place
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.sources.opening import effective_split, image_root, open_rows
from polytask.tasks.sources.raw import RawRows
from polytask.tasks.sources.stream import Stream
from polytask.tasks.splits import UNUSED, assign, check_not_empty, sample, split_columns
from polytask.tasks.target import Target
from polytask.tasks.task import Task

STREAM_ABOVE = 2 * 1024**3  # bytes on disk; a table below this is held in memory


@dataclass
class Opened:
    """A source whose features are fitted and whose labels are not read yet.

    Attributes:
        columns: the features.
        assignment: the split of each row.
        remarks: what a reader of the run should know.
    """

    name: str
    spec: SourceSpec
    rows: RawRows
    columns: list[str]
    assignment: np.ndarray
    training: "_TrainingRows"
    preprocessor: Preprocessor
    remarks: list[str] = field(default_factory=list)

    def splits(self, targets: list[Target], held_out: list[Target]) -> dict[str, Examples | Stream]:
        """The rows of each split, with the labels of these tasks; those held out are in the test split only."""
        streamed, found = stream_settings(self.rows, self.spec), {}
        for number, split in enumerate(SPLITS):
            chosen, own = self.assignment == number, [*targets, *(held_out if split == "test" else ())]
            if not chosen.any():
                continue
            if streamed is None:
                found[split] = _examples(self.rows, chosen, self.preprocessor, own, self.name)
            else:
                found[split] = Stream(self.rows, chosen, self.preprocessor, own, self.name, streamed)
        return found


def open_source(
    name: str,
    spec: SourceSpec,
    tasks: list[Task],
    *,
    reserved: list[str],
    data_dir: Path | None,
    beside: Path | None,
    tokenizer: str | None = None,
    handed_over: Any = None,
) -> Opened:
    """Args: tasks: whose labels it has. reserved: columns of labels and masks of any task of the run, which are
    features nowhere."""
    rows = open_rows(name, spec, tasks, data_dir=data_dir, beside=beside, handed_over=handed_over)
    _check_columns(rows, spec, tasks)
    columns = feature_columns(rows, spec, reserved)
    remarks: list[str] = []
    assignment = _split(rows, spec)
    streamed = stream_settings(rows, spec)
    training = _TrainingRows(rows, columns, assignment, None if streamed is None else streamed.block_rows)
    first, _ = next(iter(training))
    features = choose_features(
        first.select(columns),
        spec.features,
        where=rows.where,
        numeric=spec.numeric,
        tokenizer=tokenizer,
        root=image_root(spec, data_dir, beside),
    )
    preprocessor = Preprocessor(features, name)
    if _drop_unreadable(rows, preprocessor, assignment, remarks, streamed):
        check_not_empty(assignment, effective_split(spec), rows.where)
    preprocessor.fit(training)
    return Opened(name, spec, rows, columns, assignment, training, preprocessor, remarks)


def fit_targets(by_source: Mapping[str, list[Task]], opened: Mapping[str, Opened]) -> dict[str, Target]:
    """Each task fitted on the training rows of all its sources; one that `degenerate: drop` drops is left out.

    Of a degenerate task's sources the strictest decides: one that says `error`, else one that says `drop`.
    """
    of_task: dict[str, list[str]] = {}
    chunks: dict[str, list[pl.DataFrame]] = {}
    for name, tasks in by_source.items():
        columns = list(dict.fromkeys(column for task in tasks for column in task.columns))
        chunks[name] = [frame for frame, _ in opened[name].training.read(columns)]  # labels only fit in memory
        for task in tasks:
            of_task.setdefault(task.name, []).append(name)
    every = {task.name: task for tasks in by_source.values() for task in tasks}
    targets: dict[str, Target] = {}
    for task, names in of_task.items():
        frames = [frame for name in names for frame in chunks[name]]
        place = ", ".join(opened[name].rows.where for name in names)
        wishes = [opened[name].spec.degenerate for name in names]
        target = Target.fit(every[task], frames, place=place, allow_degenerate="error" not in wishes)
        if target.degenerate and "drop" in wishes:
            opened[names[0]].remarks.append(f"{target.degenerate}; the task is dropped (degenerate: drop)")
        else:
            targets[task] = target
    return targets


def load_part(
    name: str,
    spec: SourceSpec,
    preprocessor: Preprocessor,
    targets: list[Target],
    *,
    split: str,
    most: int | None,
    seed: int,
    labels: bool,
    data_dir: Path | None,
    beside: Path | None,
    handed_over: Any = None,
) -> Examples:
    """Some rows of one split of a source, read as a model that was fitted before reads them.

    Args:
        targets: the tasks of this source.
        split: train, valid or test.
        most: how many rows at most, drawn by the seed; None takes all.
        labels: whether the label columns are read; without them the rows have none, and need none.

    Raises: DataError for a split without rows, as for the parts.
    """
    tasks = [target.task for target in targets]
    rows = open_rows(name, spec, tasks, data_dir=data_dir, beside=beside, handed_over=handed_over)
    own = targets if labels else []
    wanted = needed_columns(preprocessor, own)
    split_by = split_columns(effective_split(spec)) if rows.assignment is None else []
    for column in (*wanted, *split_by):
        if column not in rows.schema:
            raise UnknownName("column", column, rows.schema, where=rows.where)
    root = image_root(spec, data_dir, beside)
    for feature in preprocessor.features:
        if feature.kind == "image" and root is not None:
            vars(feature).update(root=root)
    assignment = _split(rows, spec)
    _drop_unreadable(rows, preprocessor, assignment, [], stream_settings(rows, spec))
    numbers = np.flatnonzero(assignment == SPLITS.index(split))
    if not len(numbers):
        raise DataError(f"{rows.where}: the split {split!r} has no row; allowed: a split with rows")
    if most is not None and most < len(numbers):
        numbers = np.sort(numbers[Noise(seed, "part", name).permutation(len(numbers))[:most]])
    return encode(rows.read(wanted)[numbers], numbers, preprocessor, own, name, rows.where)


def feature_columns(rows: RawRows, spec: SourceSpec, reserved: list[str]) -> list[str]:
    """Every column that is not dropped, no label or mask, nor what the split is made by (but a scaffold's molecule)."""
    split = effective_split(spec)
    left_out = [
        *spec.drop,
        *reserved,
        *(split_columns(split) if rows.assignment is None and split.scaffold is None else ()),
    ]
    for column in [*spec.features, *(other for options in spec.features.values() for other in options.beside)]:
        if column in left_out:
            raise DataError(f"{rows.where}: features.{column}: a label, mask, split or dropped column is no feature")
    columns = [column for column in rows.schema if column not in left_out]
    if not columns:
        raise DataError(
            f"{rows.where}: no column is left as a feature; left out are {', '.join(dict.fromkeys(left_out))}"
        )
    return columns


def stream_settings(rows: RawRows, spec: SourceSpec) -> StreamSpec | None:
    """None: in memory."""
    if spec.stream is False:
        return None
    return spec.stream or (StreamSpec() if rows.bytes > STREAM_ABOVE else None)


@dataclass
class _TrainingRows:
    """(frame, place) chunks of the training rows; can be gone through again."""

    rows: RawRows
    columns: list[str]
    assignment: np.ndarray
    block_rows: int | None  # None: one chunk

    def __iter__(self) -> Iterator[tuple[pl.DataFrame, Place]]:
        yield from self.read(self.columns)

    def read(self, columns: list[str]) -> Iterator[tuple[pl.DataFrame, Place]]:
        size = self.block_rows or len(self.rows)
        for start, frame in self.rows.blocks(size, columns):
            chosen = np.flatnonzero(self.assignment[start : start + len(frame)] == 0)
            if len(chosen):
                yield frame[chosen], Place(self.rows.where, chosen + start)


def _check_columns(rows: RawRows, spec: SourceSpec, tasks: list[Task]) -> None:
    columns = list(rows.schema)
    asked = [(column, f"tasks.{task.name}") for task in tasks for column in task.read_columns]
    if rows.assignment is None:
        asked += [(column, "data.split") for column in split_columns(effective_split(spec))]
    asked += [(column, "data.drop") for column in spec.drop] + [(column, "data.features") for column in spec.features]
    asked += [(column, "data.features") for options in spec.features.values() for column in options.beside]
    for column, place in asked:
        if column not in rows.schema:
            raise UnknownName("column", column, columns, where=f"{rows.where}, {place}")
    said = (*spec.drop, *spec.features, *split_columns(effective_split(spec)))
    if "split" in rows.schema and "split" not in said:
        raise DataError(
            f"{rows.where}: its column 'split' would be a feature; say `split: split` to split by it, drop: [split] to "
            "leave it out, or features: {split: categorical}"
        )


def _split(rows: RawRows, spec: SourceSpec) -> np.ndarray:
    split = effective_split(spec)
    if rows.assignment is not None:
        if spec.split is not None:
            raise DataError(f"{rows.where}: the rows came as train, valid and test, so `split` must not be given")
        assignment = rows.assignment
        if not ((assignment == 0).any() and (assignment == 1).any()):
            raise DataError(
                f"{rows.where}: the split 'train' or 'valid' is missing or empty; allowed: both with rows, and 'test'"
            )
        return sample(assignment, spec.rows, spec.seed)
    frame = rows.read(split_columns(split)) if split_columns(split) else pl.DataFrame({"row": np.arange(len(rows))})
    taken_already = spec.origin in MADE
    return sample(assign(frame, split, spec.seed, rows.where), None if taken_already else spec.rows, spec.seed)


def _drop_unreadable(
    rows: RawRows, preprocessor: Preprocessor, assignment: np.ndarray, remarks: list[str], streamed: StreamSpec | None
) -> int:
    """Takes rows out of their split that a feature declared `invalid: drop` cannot read."""
    columns = preprocessor.droppable
    if not columns:
        return 0
    dropped = 0
    for start, frame in rows.blocks(len(rows) if streamed is None else streamed.block_rows, columns):
        unreadable = ~preprocessor.valid(frame) & (assignment[start : start + len(frame)] >= 0)
        assignment[start : start + len(frame)][unreadable] = UNUSED
        dropped += int(unreadable.sum())
    if dropped:
        remarks.append(
            f"{rows.where}: {dropped} rows dropped, whose {' or '.join(columns)} cannot be read (invalid: drop)"
        )
    return dropped


def _examples(
    rows: RawRows, chosen: np.ndarray, preprocessor: Preprocessor, targets: list[Target], source: str
) -> Examples:
    numbers = np.flatnonzero(chosen)
    frame = rows.read(needed_columns(preprocessor, targets))
    return encode(
        frame if len(numbers) == len(frame) else frame[numbers], numbers, preprocessor, targets, source, rows.where
    )
