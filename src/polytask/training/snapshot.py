"""From a running session to a checkpoint directory and back, bit for bit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from polytask.checkpoints import Checkpoint, list_checkpoints, point, pointed, write_checkpoint
from polytask.checkpoints.checkpoint import STATE
from polytask.core.errors import CheckpointError
from polytask.sharing import MultiTaskModel, describe
from polytask.training.job import Job
from polytask.training.provenance import versions

__all__ = ["STATE", "Progress", "card", "check_same_recipe", "point_and_prune", "save", "session_state"]


@dataclass
class Progress:
    """Where a run is. Plain data, saved with every checkpoint.

    Attributes:
        stage: index of the stage; stage_step: steps done in it; step: steps done in all.
        best_score, best_step: of the selection score on the validation split; None before the first evaluation.
        best_valid: the metrics there.
        since_best: evaluations of this stage since the best one, for early stopping.
        seconds: spent in training steps.
    """

    stage: int = 0
    stage_step: int = 0
    step: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_valid: dict[str, dict[str, float | None]] = field(default_factory=dict)
    since_best: int = 0
    seconds: float = 0.0


def card(job: Job, model: MultiTaskModel, progress: Progress, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """card.json but for the file hashes. `metrics`: split -> task -> metric -> value."""
    tasks = {
        task: {"kind": target.task.kind, "metric": target.task.metric, "role": target.task.role}
        for task, target in job.targets.items()
    }
    primary = {
        split: {task: values[job.targets[task].task.metric] for task, values in by_task.items()}
        for split, by_task in metrics.items()
    }
    return {
        "version": 1,
        "tasks": tasks,
        "base": job.model.init_from,
        "parents": [],
        "rule": job.stages[-1].rule.kind,
        "sharing": job.model.sharing.kind,
        "seed": job.run.seed,
        "step": progress.step,
        "parameters": describe(model),
        "metrics": primary,
        "versions": versions(),
    }


def save(
    run: Path,
    job: Job,
    model: MultiTaskModel,
    progress: Progress,
    *,
    metrics: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    step: int | None = None,
) -> Path:
    """Writes RUN/checkpoints/step-N; `tensors` instead of the model's own where another step's are meant."""
    path = Path(run) / "checkpoints" / f"step-{progress.step if step is None else step}"
    write_checkpoint(
        path,
        tensors=model.state_dict() if tensors is None else tensors,
        config=job.config(model),
        inputs=job.data.to_json(),
        card=card(job, model, progress, metrics),
        recipe=job.recipe,
        state=state,
        extra_files=job.data.extra_files(),
    )
    return path


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


def point_and_prune(run: Path, newest: Path, is_best: bool, keep: int) -> None:
    """RUN/last, and RUN/best if this one is; then removes all but the `keep` newest and the best."""
    import shutil

    point(run, "last", newest)
    if is_best:
        point(run, "best", newest)
    best = pointed(run, "best")
    for old in list_checkpoints(run)[:-keep]:
        if old.resolve() not in (best, newest.resolve()):
            shutil.rmtree(old)


def check_same_recipe(checkpoint: Checkpoint, job: Job, run: Path) -> None:
    """A run can be continued by its own recipe only."""
    found = _difference(checkpoint.recipe, dict(job.recipe))
    if found is not None:
        path, saved, now = found
        raise CheckpointError(
            f"{run}: was written by another recipe: {path} is {_short(saved)} there and {_short(now)} here; "
            "resume with the same recipe or write to a new directory"
        )


def _difference(saved: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two recipes differ: its path and both values."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*saved, *now]))
        pairs = [(key, saved.get(key), now.get(key)) for key in keys]
    elif isinstance(saved, list) and isinstance(now, list) and len(saved) == len(now):
        pairs = list(zip(range(len(saved)), saved, now, strict=True))
    else:
        return None if saved == now else (path, saved, now)
    parts = (_difference(old, new, f"{path}.{key}" if path else str(key)) for key, old, new in pairs)
    return next((part for part in parts if part is not None), None)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
