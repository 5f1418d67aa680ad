"""Reads run and compare directories. Long event streams are thinned while they are read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polytask.core.errors import CheckpointError
from polytask.evaluation.report.merging import INTERFERENCE, Merge, read_merge
from polytask.evaluation.table import Comparison, ScoredTask, comparison

MOST_POINTS = 80
"""Points of a line that follows every step; each is then the mean over as many steps as it takes."""

Points = dict[int, float]
"""Step -> value."""


@dataclass
class Events:
    """What one run's event stream says, as points over steps.

    Attributes:
        metrics: task -> metric -> validation values; undefined ones are left out.
        losses: task -> training loss.
        weights: task -> loss weight.
        cosines: (task, task) -> cosine of their gradients; the first is the earlier in recipe order.
        sharpness: task -> how much its loss rises around the parameters, under a rule that looks there.
        steps_a_point: over how many steps a point of the last four is a mean.
        last_step: the last step that was taken.
        stop: why the run ended; None while it runs or when it was killed.
    """

    metrics: dict[str, dict[str, Points]] = field(default_factory=dict)
    losses: dict[str, Points] = field(default_factory=dict)
    weights: dict[str, Points] = field(default_factory=dict)
    cosines: dict[tuple[str, str], Points] = field(default_factory=dict)
    sharpness: dict[str, Points] = field(default_factory=dict)
    steps_a_point: int = 1
    last_step: int = 0
    stop: str | None = None


@dataclass(frozen=True)
class Run:
    """One training run. `results` is empty when the run has not ended."""

    path: Path
    events: Events
    results: Mapping[str, Any]
    recipe: str | None

    @property
    def tasks(self) -> tuple[ScoredTask, ...]:
        about = self.results.get("tasks", {})
        return tuple(ScoredTask(name, a["metric"], bool(a["higher_is_better"])) for name, a in about.items())


@dataclass(frozen=True)
class Variant:
    """What one line of a figure stands for: some runs that differ by their seed.

    Attributes:
        streams: one a seed; the baseline's are joined from its single-task runs.
    """

    name: str
    is_baseline: bool
    streams: tuple[Events, ...]


@dataclass(frozen=True)
class Study:
    """One compare directory.

    Attributes:
        gates: each variant's runs' reports on gates, one a seed.
        by_source: each row's task -> source -> metric -> value on test, one a seed; a baseline's runs are one.
    """

    path: Path
    results: Mapping[str, Any]
    table: Comparison
    variants: tuple[Variant, ...]
    recipe: str | None
    gates: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    by_source: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def read(directory: Path) -> Run | Study | Merge:
    """A run, compare or merge directory.

    Raises:
        CheckpointError: it is neither, or a file in it is damaged.
    """
    if (directory / INTERFERENCE).is_file():
        return read_merge(directory)
    results = _results(directory)
    if results.get("kind") == "compare":
        return _study(directory, results)
    if not results and not (directory / "events.jsonl").is_file():
        raise CheckpointError(
            f"{directory}: neither a run, a compare nor a merge: no results.json, events.jsonl or {INTERFERENCE}"
        )
    return Run(directory, read_events(directory / "events.jsonl"), results, _recipe(directory))


def read_events(path: Path) -> Events:
    """One run's event stream. A last line that was cut by a kill is left out; any other damage is an error."""
    events = Events()
    if not path.is_file():
        return events
    events.steps_a_point = max(1, -(-_last_step(path) // MOST_POINTS))
    bins: dict[tuple[str, Any], dict[int, tuple[float, int]]] = {}
    for event in _lines(path):
        if event["event"] == "step":
            _add_step(bins, event, events.steps_a_point)
        elif event["event"] == "evaluate" and event.get("split", "valid") == "valid":
            _add_evaluation(events, event)
        elif event["event"] == "stop":
            events.stop = event.get("reason")
        events.last_step = max(events.last_step, event.get("step", 0))
    targets: dict[str, dict[Any, Points]] = {
        "losses": events.losses,
        "weights": events.weights,
        "cosines": events.cosines,
        "sharpness": events.sharpness,
    }
    for (what, key), sums in bins.items():
        targets[what][key] = {step: total / count for step, (total, count) in sums.items()}
    return events


def _study(directory: Path, results: Mapping[str, Any]) -> Study:
    table = comparison(results)
    variants = []
    for row in results["rows"]:
        streams = tuple(_row_events(directory, run) for run in row["runs"])
        variants.append(Variant(row["name"], row["name"] == results.get("baseline"), streams))
    gates = {
        row["name"]: [_results(directory / run["run"]).get("gates", {}) for run in row["runs"]]
        for row in results["rows"]
        if all("run" in run and (directory / run["run"]).is_dir() for run in row["runs"])
    }
    by_source = {row["name"]: [_by_source(directory, run) for run in row["runs"]] for row in results["rows"]}
    return Study(directory, results, table, tuple(variants), _study_recipe(directory, results, table), gates, by_source)


def _by_source(directory: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's run, or its single-task runs, scored on each source; a run whose directory is gone says nothing."""
    paths = run["runs_by_task"].values() if "runs_by_task" in run else [run["run"]]
    found: dict[str, Any] = {}
    for path in paths:
        if (directory / path).is_dir():
            found |= _results(directory / path).get("test_by_source", {})
    return found


def _row_events(directory: Path, run: Mapping[str, Any]) -> Events:
    if "runs_by_task" not in run:
        return read_events(directory / run["run"] / "events.jsonl")
    joined = Events()
    for task, path in run["runs_by_task"].items():
        events = read_events(directory / path / "events.jsonl")
        joined.metrics[task] = events.metrics.get(task, {})
        joined.losses[task] = events.losses.get(task, {})
        joined.last_step = max(joined.last_step, events.last_step)
        joined.steps_a_point = events.steps_a_point
    return joined


def _study_recipe(directory: Path, results: Mapping[str, Any], table: Comparison) -> str | None:
    """The compare's own recipe; else that of the first run of the variant that the headline names."""
    own = _recipe(directory)
    if own is not None:
        return own
    name = table.chosen.name if table.chosen else None
    row = next((row for row in results["rows"] if row["name"] == name), None)
    run = row["runs"][0].get("run") if row and row["runs"] else None
    return _recipe(directory / run) if run else None


def _results(directory: Path) -> Mapping[str, Any]:
    path = directory / "results.json"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged, no JSON ({error})") from None


def _recipe(directory: Path) -> str | None:
    path = directory / "recipe.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                event = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                raise CheckpointError(f"{path}: line {number} is damaged, no JSON ({error})") from None
            if not isinstance(event, dict) or "event" not in event:
                raise CheckpointError(f"{path}: line {number} is no event: it has no key 'event'")
            yield event


def _last_step(path: Path) -> int:
    """The last step of a stream, from its end: some kilobytes hold whole lines, however long the run was."""
    size, block = path.stat().st_size, 1 << 16
    while True:
        with path.open("rb") as file:
            file.seek(max(0, size - block))
            lines = file.read().splitlines()[0 if block >= size else 1 :]
        steps = [_step_of(line) for line in lines]
        if any(steps) or block >= size:
            return max(steps, default=0)
        block *= 8


def _step_of(line: bytes) -> int:
    try:
        event = json.loads(line)
    except ValueError:
        return 0
    return int(event.get("step", 0)) if isinstance(event, dict) else 0


def _add_step(bins: dict[tuple[str, Any], dict[int, tuple[float, int]]], event: dict[str, Any], width: int) -> None:
    # A bin is drawn at its last step.
    step = -(-event["step"] // width) * width
    values: list[tuple[tuple[str, Any], float | None]] = []
    for what in ("losses", "weights"):
        values += [((what, task), value) for task, value in (event.get(what) or {}).items()]
    values += [(("sharpness", task), value) for task, value in event.get("measured", {}).get("sharpness", {}).items()]
    cosines = event.get("cosines")
    if cosines:
        tasks = cosines["tasks"]
        for i, first in enumerate(tasks):
            values += [(("cosines", (first, tasks[j])), cosines["values"][i][j]) for j in range(i + 1, len(tasks))]
    for key, value in values:
        if value is not None:
            total, count = bins.setdefault(key, {}).get(step, (0.0, 0))
            bins[key][step] = (total + value, count + 1)


def _add_evaluation(events: Events, event: dict[str, Any]) -> None:
    for task, metrics in event["metrics"].items():
        for metric, value in metrics.items():
            if value is not None:
                events.metrics.setdefault(task, {}).setdefault(metric, {})[event["step"]] = value
