"""From a running session to a checkpoint directory and back, bit for bit."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from polytask.checkpoints import (
    Checkpoint,
    list_checkpoints,
    point,
    pointed,
    read_checkpoint,
    remove_directory,
    remove_unfinished,
    write_checkpoint,
)
from polytask.checkpoints.directory import TEMPORARY, json_bytes, read_json, write_file
from polytask.core.errors import CheckpointError
from polytask.sharing import MultiTaskModel, describe
from polytask.training.events import cut
from polytask.training.job import Job
from polytask.training.provenance import versions

RESULTS, RECIPE, EVENTS, NOT_FINITE = "results.json", "recipe.yaml", "events.jsonl", "not_finite.json"


@dataclass
class Progress:
    """Where a run is. Plain data, saved with every checkpoint.

    Attributes:
        stage: index of the stage; stage_step: steps done in it; step: steps done in all.
        best_score, best_step: of the selection score on the validation split; None before the first that is defined.
        best_valid: the metrics there.
        stage_best: the stage's best score; since_best: evaluations of the stage since then. For early stopping.
        seconds: spent in training steps.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_valid: dict[str, dict[str, float | None]] = field(default_factory=dict)
    stage_best: float | None = None
    since_best: int = 0
    seconds: float = 0.0

    def next_stage(self) -> None:
        self.stage, self.stage_step = self.stage + 1, 0
        self.stage_best, self.since_best = None, 0

    def see(self, score: float | None, metrics: dict[str, dict[str, float | None]], least_gain: float) -> bool:
        """Takes an evaluation in; True if it is the best so far, or if none has had a defined score yet."""
        if score is not None and (self.stage_best is None or score > self.stage_best + least_gain):
            self.stage_best, self.since_best = score, 0
        else:
            self.since_best += 1
        is_best = self.best_score is None or (score is not None and score > self.best_score)
        if is_best:
            self.best_score, self.best_step, self.best_valid = score, self.step, metrics
        return is_best


@dataclass(frozen=True)
class Found:
    """What a run's directory holds before training.

    Attributes:
        results: of a run that is done.
        last: the checkpoint to continue from; None begins anew.
    """

    results: dict[str, Any] | None = None
    last: Path | None = None


def found(out: Path, job: Job, resume: bool) -> Found:
    """Looks into a run's directory, which must be new or empty unless the run is to be continued; writes nothing."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is a file; name a directory")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    names = [name for name in names if not name.startswith(TEMPORARY)]  # of a process that was killed while beginning
    if names and not resume:
        raise CheckpointError(
            f"{out}: not empty ({names[0]} is there); name a new directory, or continue this run with --resume"
        )
    if not names:
        return Found()
    if RECIPE not in names:
        raise CheckpointError(f"{out}: not a run to continue ({names[0]} is there, {RECIPE} is not)")
    _check_same_recipe(_recipe(out), job, out)
    if RESULTS in names:
        return Found(results=read_json(out / RESULTS))
    last = pointed(out, "last")
    if last is not None:
        _check_same_data(read_checkpoint(last), job, out)
    return Found(last=last)


def begin(out: Path, job: Job, position: int) -> None:
    """Makes the run's directory with its recipe, and the event stream up to where it continues."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out}: could not be made ({error.strerror or error})") from error
    for folder in (out, out / "checkpoints"):
        remove_unfinished(folder)
    prune(out, job.run.keep)
    (out / NOT_FINITE).unlink(missing_ok=True)
    write_recipe(out, job)
    cut(out / EVENTS, position)


def write_recipe(out: Path, job: Job) -> None:
    """RUN/recipe.yaml, the resolved recipe."""
    write_file(out / RECIPE, yaml.safe_dump(dict(job.recipe), sort_keys=False, allow_unicode=True).encode())


@dataclass(frozen=True)
class Stripped:
    """What saved models lack: what only tasks with the role training_only need.

    Attributes:
        tasks: those tasks.
        names: of their tensors.
        parameters: of what is left, as `describe` counts them.
    """

    tasks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    parameters: dict[str, Any] | None = None


def stripped(job: Job, model: MultiTaskModel) -> Stripped:
    """What is left out of saved models: what the other tasks read of a training-only one stays."""
    tasks = tuple(task for task, target in job.targets.items() if target.task.role == "training_only")
    if not tasks or len(tasks) == len(job.targets):
        return Stripped()
    without = job.build_without(model, tasks)
    kept = without.state_dict()
    return Stripped(tasks, tuple(name for name in model.state_dict() if name not in kept), describe(without))


def whole(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors of a run's checkpoint, those of training-only tasks too."""
    return {**checkpoint.tensors(), **checkpoint.state().get("training_only", {})}


def save(
    run: Path,
    job: Job,
    model: MultiTaskModel,
    card: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    without: Stripped = Stripped(),
) -> Path:
    """Writes RUN/checkpoints/step-N, with N from the card."""
    path, tensors = Path(run) / "checkpoints" / f"step-{card['step']}", model.state_dict()
    if state is not None:
        state = {**state, "training_only": {name: tensors[name] for name in without.names}}
    write_checkpoint(
        path,
        tensors={name: tensor for name, tensor in tensors.items() if name not in without.names},
        config=job.config(model, without.tasks),
        inputs=job.data.to_json(),
        card=card,
        recipe=job.recipe,
        state=state,
        extra_files=job.data.extra_files(),
    )
    return path


def card(
    job: Job, model: MultiTaskModel, step: int, metrics: Mapping[str, Any], without: Stripped = Stripped()
) -> dict[str, Any]:
    """card.json but for the file hashes. `metrics`: as `main_metrics` gives them."""
    tasks = {
        task: {"kind": target.task.kind, "metric": target.task.metric, "role": target.task.role}
        for task, target in job.targets.items()
        if task not in without.tasks
    }
    return {
        "version": 1,
        "tasks": tasks,
        "base": job.model.init_from,
        "parents": [],
        "rule": job.stages[-1].rule.kind,
        "sharing": job.model.sharing.kind,
        "seed": job.run.seed,
        "step": step,
        "parameters": without.parameters or describe(model),
        "metrics": dict(metrics),
        "versions": versions(),
    }


def main_metrics(job: Job, by_split: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, Any]:
    """split -> task -> its own metric's value, from split -> task -> metric -> value."""
    return {
        split: {task: values[job.targets[task].task.metric] for task, values in by_task.items()}
        for split, by_task in by_split.items()
    }


def session_state(
    progress: Progress, stage_state: Mapping[str, Any], events: int, deterministic: bool
) -> dict[str, Any]:
    """state.safetensors: with the model's tensors, everything that the next step depends on."""
    return {
        "progress": asdict(progress),
        "stage": stage_state,
        "events": events,
        "threads": torch.get_num_threads(),
        "deterministic": deterministic,
        "torch": torch.__version__,
    }


def keep(run: Path, newest: Path, is_best: bool, number: int) -> None:
    """RUN/best if this one is, then RUN/last; then removes all but the `number` newest and the best.

    `last` comes after `best`: a run that is killed in between continues from the older `last` and comes to the same
    `best` again.
    """
    if is_best:
        point(run, "best", newest)
    point(run, "last", newest)
    prune(run, number)


def prune(run: Path, number: int) -> None:
    """Removes all checkpoints but the `number` newest, the best and the last."""
    kept = [pointed(run, name) for name in ("best", "last")]
    for old in list_checkpoints(run)[:-number]:
        if old.resolve() not in kept:
            remove_directory(old)


def _recipe(run: Path) -> Any:
    try:
        return yaml.safe_load((run / RECIPE).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(f"{run / RECIPE}: not readable as YAML ({str(error).splitlines()[0]})") from None


def _check_same_recipe(saved: Any, job: Job, run: Path) -> None:
    """A run can be continued by its own recipe only, whether or not that knows what a timing of engines has found."""
    written = yaml.safe_load(yaml.safe_dump(dict(job.recipe)))  # as it would be read back
    difference = next((each for each in _differences(saved, written) if not _is_chosen_engine(each)), None)
    if difference is not None:
        path, before, now = difference
        raise CheckpointError(
            f"{run}: was written by another recipe: {path} is {_short(before)} there and {_short(now)} here; "
            "resume with the same recipe or write to a new directory"
        )


def _check_same_data(checkpoint: Checkpoint, job: Job, run: Path) -> None:
    difference = _difference(checkpoint.inputs, json.loads(json_bytes(job.data.to_json())))
    if difference is not None:
        path, before, now = difference
        raise CheckpointError(
            f"{run}: the training data have changed since: {path} was {_short(before)} and is {_short(now)}; "
            "give it the same data or write to a new directory"
        )


def _difference(saved: Any, now: Any) -> tuple[str, Any, Any] | None:
    """The first place where two nested values differ: its path and both values."""
    return next(_differences(saved, now), None)


def _differences(saved: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        pairs = [(key, saved.get(key), now.get(key)) for key in dict.fromkeys([*saved, *now])]
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        pairs = list(zip(range(len(saved)), saved, now, strict=True))
    else:
        if saved != now:
            yield path, saved, now
        return
    for key, old, new in pairs:
        yield from _differences(old, new, f"{path}.{key}" if path else str(key))


def _is_chosen_engine(difference: tuple[str, Any, Any]) -> bool:
    """Whether what a run has found differs from a recipe that does not know of it."""
    path, _, now = difference
    return path.endswith(".rule.engine.chosen") and now is None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
