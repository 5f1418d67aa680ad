"""Experts to merge: from one start a fine-tune for each task, and beside them the one run on all tasks together.

    OUT/{base/, experts/TASK/, joint/}      each a run's directory; `best` of base is the start, untrained

An expert takes the joint run's steps, and of its own task as many rows a step (see `studies.baseline`). All begin with
the same weights, which is what makes their differences to `base` comparable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from polytask.checkpoints import point, pointed
from polytask.core.errors import BadValue
from polytask.studies.baseline import shared_hard, single_task
from polytask.training import snapshot
from polytask.training.events import Listener
from polytask.training.job import Job
from polytask.training.loop import fit

BASE, EXPERTS, JOINT = "base", "experts", "joint"


@dataclass(frozen=True)
class Experts:
    """What was trained.

    Attributes:
        base: the directory of the start.
        tasks: task -> the directory of its expert, in the job's order.
        joint: the directory of the run on all tasks; None where it was not asked for.
        results: task -> what its run's results.json holds; JOINT -> the joint run's.
    """

    base: Path
    tasks: dict[str, Path]
    joint: Path | None
    results: dict[str, Mapping[str, Any]]


def train_experts(job: Job, out: Path, *, joint: bool = False, listeners: Sequence[Listener] = ()) -> Experts:
    """Trains an expert a task. What an interrupted call has finished is not repeated.

    Args:
        job: the run on all tasks; its model's encoder is what is shared, whatever its sharing architecture.
        out: the directory; new, empty, or of the same job.
        joint: whether the run on all tasks is trained too.
        listeners: called with every event, and {"event": "run", "index", "of", "name"} before each run.

    Raises:
        BadValue: a task is called as the run on all tasks is, where there is to be one.
        CheckpointError: `out` holds runs of another recipe.
    """
    if joint and JOINT in job.tasks:
        raise BadValue("the name of a task", JOINT, "another name: the run on all tasks is called that", "experts")
    runs = {task: (Path(out) / EXPERTS / quote(task, safe=""), single_task(job, task)) for task in job.tasks}
    if joint:
        runs[JOINT] = (Path(out) / JOINT, job)
    base = _write_base(job, Path(out) / BASE)
    results: dict[str, Mapping[str, Any]] = {}
    for index, (name, (path, planned)) in enumerate(runs.items()):
        for listener in listeners:
            listener({"event": "run", "index": index + 1, "of": len(runs), "name": name})
        results[name] = fit(_recorded(planned), path, resume=True, listeners=listeners)
    return Experts(base, {task: runs[task][0] for task in job.tasks}, runs[JOINT][0] if joint else None, results)


def start_of(job: Job) -> Job:
    """The job whose untrained model is the start of every expert, with the heads of all tasks."""
    return replace(job, model=shared_hard(job.model))


def _write_base(job: Job, path: Path) -> Path:
    """The start as a run's directory: one that a merge reads, and that predicts nothing worth having."""
    start = _recorded(start_of(job))
    snapshot.found(path, start, resume=True)
    if pointed(path, "best") is None:
        snapshot.begin(path, start, 0)
        model = start.build()
        point(path, "best", snapshot.save(path, start, model, snapshot.card(start, model, 0, {}), None))
    return path


def _recorded(job: Job) -> Job:
    """The job with its own stages and settings in its recipe; only the best checkpoint is kept."""
    run = job.run.model_copy(update={"checkpoint_every": "end"})
    recipe = {
        **job.recipe,
        "stages": [stage.model_dump(mode="json") for stage in job.stages],
        "run": run.model_dump(mode="json"),
    }
    return replace(job, run=run, recipe=recipe)
