"""ATM: tuning and merging in turn, so that every round's experts start from the last round's merge.

    OUT/round-N/{base/, experts/TASK/, merged/}

Source      Zhou et al. 2024, arXiv:2411.03055: from the current model every task is tuned a little apart, the task
            vectors are added up with one coefficient over their number, the result is the next round's start.
Departures  any merge rule may take the place of task arithmetic. Each round has its share of the job's steps and an
            order of rows of its own; heads go on from round to round. Each expert is its best checkpoint on the
            validation split. The paper's text was to be had only in part.
Cost        that of the experts, and a merge a round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.merging.run import PLAN, merge
from polytask.studies.experts import Experts, train_experts
from polytask.training.events import Listener
from polytask.training.job import Job
from polytask.training.spec import StageSpec

MERGED = "merged"


def alternate(
    job: Job,
    out: Path,
    *,
    rounds: int,
    coefficient: float = 1.0,
    rule: str | Mapping[str, Any] | None = None,
    listeners: Sequence[Listener] = (),
) -> Path:
    """The directory of the last merge. What an interrupted call has finished is not repeated.

    Args:
        job: the run on all tasks, whose steps the rounds divide among themselves.
        out: the directory; new, empty, or of the same job.
        rounds: how many; 1 is merging once.
        coefficient: of the mean of the task vectors, the paper's alpha.
        rule: as in a plan, instead of task arithmetic with this coefficient.
        listeners: as in `train_experts`.

    Raises:
        BadValue: fewer steps than rounds.
    """
    for stage in job.stages:
        if stage.steps is None or stage.steps < rounds or rounds < 1:
            allowed = f"1 or more, and at most the stage's steps, {stage.steps}: give steps, not epochs"
            raise BadValue("rounds", rounds, allowed, f"stage {stage.name!r}")
    chosen = {"kind": "task_arithmetic", "scale": coefficient / len(job.tasks)} if rule is None else rule
    start = job.model.init_from
    for number in range(rounds):
        place = Path(out) / f"round-{number + 1}"
        experts = train_experts(_round(job, number, rounds, start), place, listeners=listeners)
        start = str(_merged(experts, chosen, place / MERGED))
    assert start is not None
    return Path(start)


def _round(job: Job, number: int, rounds: int, start: str | None) -> Job:
    """The job's share of one round: steps that add up to the job's, from the last merge, in another order of rows."""
    stages: list[StageSpec] = []
    for stage in job.stages:
        assert stage.steps is not None
        done = stage.steps * number // rounds
        stages.append(stage.model_copy(update={"steps": stage.steps * (number + 1) // rounds - done}))
    seed = job.run.seed if number == 0 else int(Noise(job.run.seed, "round", number).integers(1, 2**31)[0])
    run = job.run.model_copy(update={"seed": seed})
    return replace(job, stages=stages, run=run, model=job.model.model_copy(update={"init_from": start}))


def _merged(experts: Experts, rule: str | Mapping[str, Any], out: Path) -> Path:
    if not (out / PLAN).is_file():
        tasks = {task: str(path) for task, path in experts.tasks.items()}
        merge({"base": str(experts.base), "tasks": tasks, "rule": rule}, out=out)
    return out
