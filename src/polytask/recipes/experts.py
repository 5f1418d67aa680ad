"""`polytask.experts` and `polytask.alternate`: fine-tunes of one start, to be merged, from a recipe."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.studies.alternating import alternate as run_rounds
from polytask.studies.experts import train_experts
from polytask.training.events import Listener


def experts(
    recipe: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    joint: bool = False,
    data: Any = None,
    encoder: Callable[..., nn.Module] | None = None,
    data_dir: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """Trains an expert a task, all from one start, and returns what a merge's plan says of them:
    {"base": directory, "tasks": {task: directory}}.

    Each takes as many steps as the recipe's run on all tasks would, and as many rows of its task. What an interrupted
    call has finished is not repeated.

    Args:
        recipe: of the run on all tasks.
        out: a directory; new, empty, or of the same recipe.
        joint: train the run on all tasks too, into OUT/joint.
        The others as in `polytask.train`.
    """
    job = make_job(read_recipe(recipe, settings), data=data, encoder=encoder, data_dir=data_dir)
    found = train_experts(job, Path(out), joint=joint, listeners=listeners)
    return {"base": str(found.base), "tasks": {task: str(path) for task, path in found.tasks.items()}}


def alternate(
    recipe: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    rounds: int,
    coefficient: float = 1.0,
    rule: str | Mapping[str, Any] | None = None,
    data: Any = None,
    encoder: Callable[..., nn.Module] | None = None,
    data_dir: str | Path | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    listeners: Sequence[Listener] = (),
) -> Path:
    """Tunes and merges in turn (ATM, arXiv:2411.03055), and returns the directory of the last merge.

    Args:
        recipe: of the run on all tasks; the rounds divide its steps among themselves.
        out: a directory; new, empty, or of the same recipe.
        rounds: how many; 1 is merging once.
        coefficient: of the mean of the task vectors.
        rule: as in a plan, instead of task arithmetic with this coefficient.
        The others as in `polytask.train`.
    """
    job = make_job(read_recipe(recipe, settings), data=data, encoder=encoder, data_dir=data_dir)
    return run_rounds(job, Path(out), rounds=rounds, coefficient=coefficient, rule=rule, listeners=listeners)
