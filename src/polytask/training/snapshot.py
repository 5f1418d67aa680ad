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
    saved, now = checkpoint.recipe, dict(job.recipe)
    for key in dict.fromkeys([*saved, *now]):
        if saved.get(key) != now.get(key):
            raise CheckpointError(
                f"{run}: was written by another recipe: '{key}' is {_short(saved.get(key))} there and "
                f"{_short(now.get(key))} here; resume with the same recipe or write to a new directory"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:77] + "..."
