"""From a recipe's `data:` to rows ready for training, and from a checkpoint directory to rows ready for prediction."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask.core.errors import BadValue, CheckpointError, DataError, MissingInput, UnknownName
from polytask.core.inputs import InputSchema
from polytask.tasks.data_spec import ORIGINS, DataSpec, RowsSpec, SourceSpec, SplitSpec, StreamSpec
from polytask.tasks.examples import Examples
from polytask.tasks.loading import fit_targets, open_source
from polytask.tasks.overlap import shared_rows
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.sources.stream import Stream
from polytask.tasks.target import Target
from polytask.tasks.task import Task

__all__ = [
    "Data",
    "DataSpec",
    "RowsSpec",
    "SourceData",
    "SourceSpec",
    "SplitSpec",
    "StreamSpec",
    "load_data",
    "read_inputs",
]

INPUTS_FILE = "inputs.json"


@dataclass(frozen=True)
class SourceData:
    """One source, split and fitted.

    Attributes:
        tasks: names of the tasks whose labels it has; in its test split there may be those of more (`held_out`).
        splits: "train", "valid" and, where there is one, "test".
        remarks: what a reader of the run should know (truncated texts, dropped rows, ...).
    """

    name: str
    tasks: list[str]
    splits: dict[str, Examples | Stream]
    preprocessor: Preprocessor
    remarks: list[str] = field(default_factory=list)

    @property
    def schema(self) -> InputSchema:
        return self.preprocessor.schema

    def to_json(self) -> dict[str, Any]:
        """This source's part of inputs.json."""
        return {**self.preprocessor.to_json(), "tasks": self.tasks}


@dataclass(frozen=True)
class Data:
    """All sources of a run and the tasks fitted on their training rows, in the recipe's order.

    Attributes:
        between: remarks about several sources together, and about those that are left out.
    """

    targets: dict[str, Target]
    sources: dict[str, SourceData]
    between: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        return [*(remark for source in self.sources.values() for remark in source.remarks), *self.between]

    def to_json(self) -> dict[str, Any]:
        """The content of inputs.json."""
        return {
            "version": 1,
            "sources": {name: source.to_json() for name, source in self.sources.items()},
            "targets": {name: target.to_json() for name, target in self.targets.items()},
        }

    def extra_files(self) -> dict[str, bytes]:
        """What stands beside inputs.json: name -> content."""
        files: dict[str, bytes] = {}
        for source in self.sources.values():
            files |= source.preprocessor.extra_files()
        return files


def load_data(
    spec: DataSpec,
    tasks: list[Task],
    *,
    data_dir: Path | None,
    beside: Path | None,
    tokenizer: str | None = None,
    datasets: Mapping[str, Any] | None = None,
) -> Data:
    """Reads, splits and fits every source that a task uses.

    Args:
        spec: the recipe's `data:`.
        tasks: in the recipe's order.
        data_dir: where paths are looked for first; beside: the recipe's folder, looked in next.
        tokenizer: Hugging Face directory or hub id, where the encoder reads text.
        datasets: source name -> rows from Python (see `polytask.tasks.sources.arrays.rows_from_python`).

    Raises: DataError, UnknownName, MissingInput, BadValue: see the parts.
    """
    datasets = dict(datasets or {})
    specs = spec.named_sources(tuple(datasets))
    if not specs:
        raise MissingInput(
            f"data: say where the rows are ({', '.join(ORIGINS)} or sources), or hand them over from Python"
        )
    for name in datasets:
        if name not in specs:
            raise UnknownName("source", name, specs, where="data handed over from Python")
    by_source = assign_tasks(tasks, list(specs))
    held_out = held_out_tasks(tasks, by_source)
    reserved = list(dict.fromkeys(column for task in tasks for column in task.columns))
    opened = {
        name: open_source(
            name,
            specs[name],
            [*own, *held_out[name]],
            reserved=reserved,
            data_dir=data_dir,
            beside=beside,
            tokenizer=tokenizer,
            handed_over=datasets.get(name),
        )
        for name, own in by_source.items()
    }
    targets = fit_targets(by_source, opened)
    if not targets:
        raise DataError("no task is left: every one is degenerate and `degenerate: drop` dropped it")
    sources: dict[str, SourceData] = {}
    between: list[str] = []
    for name, own in by_source.items():
        fitted = [targets[task.name] for task in own if task.name in targets]
        if fitted:
            scored = [targets[task.name] for task in held_out[name] if task.name in targets]
            splits = opened[name].splits(fitted, scored)
            remarks = [*opened[name].remarks, *opened[name].preprocessor.remarks(name)]
            names = [target.task.name for target in fitted]
            sources[name] = SourceData(name, names, splits, opened[name].preprocessor, remarks)
        else:
            between += [*opened[name].remarks, f"source {name!r} has no task left and is not used"]
    shared = shared_rows({name: (opened[name].rows, opened[name].columns, opened[name].assignment) for name in sources})
    between += [] if shared is None else [shared]
    ordered = {task.name: targets[task.name] for task in tasks if task.name in targets}
    return Data(ordered, sources, tuple(between))


def assign_tasks(tasks: list[Task], sources: list[str]) -> dict[str, list[Task]]:
    """source -> its tasks, in the sources' order; a source without a task is left out.

    A task without `source` belongs to the only source, else to the source with the task's name.
    """
    by_source: dict[str, list[Task]] = {name: [] for name in sources}
    for task in tasks:
        names = task.sources or (sources[0] if len(sources) == 1 else task.name,)
        if task.source is None and names[0] not in by_source:
            raise BadValue(
                "source", None, f"one of {', '.join(sources)}, as there are several sources", f"tasks.{task.name}"
            )
        for name in names:
            if name not in by_source:
                raise UnknownName("source", name, sources, where=f"tasks.{task.name}")
            by_source[name].append(task)
    return {name: own for name, own in by_source.items() if own}


def held_out_tasks(tasks: list[Task], trained: Mapping[str, list[Task]]) -> dict[str, list[Task]]:
    """source -> the tasks that are only scored on it; `trained`: source -> those that are trained on it.

    Raises: UnknownName for a source that no task is trained on, as nothing would have learned to read its rows;
        BadValue for the only source, or the one of the task's name, where `source` does not say what it is trained on.
    """
    found: dict[str, list[Task]] = {name: [] for name in trained}
    for task in tasks:
        where = f"tasks.{task.name}"
        for name in task.held_out:
            if name not in found:
                raise UnknownName("source that a task is trained on", name, list(trained), f"{where}.held_out")
            if task in trained[name]:
                raise BadValue("held_out", list(task.held_out), f"not {name}, which it is trained on", where)
            found[name].append(task)
    return found


def read_inputs(directory: Path) -> tuple[dict[str, Preprocessor], dict[str, Target]]:
    """source -> its preprocessing and task -> target, from a checkpoint directory alone.

    Raises: CheckpointError when inputs.json is missing or damaged.
    """
    directory = Path(directory)
    path = directory / INPUTS_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        sources, targets = values["sources"], values["targets"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: no {INPUTS_FILE} in this checkpoint directory") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    files = {file.name: file.read_bytes() for file in sorted(directory.glob("tokenizer*")) if file.is_file()}
    return (
        {name: Preprocessor.from_json(stored, files) for name, stored in sources.items()},
        {name: Target.from_json(stored) for name, stored in targets.items()},
    )
