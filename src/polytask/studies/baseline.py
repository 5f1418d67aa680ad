"""Single-task baselines: for each task the run that it would have had alone, on the joint run's budget.

A single-task run takes as many optimiser steps as the joint run, and where tasks have sources of their own, as many of
its task's rows a step, so it sees each of its labels as often. With one task a batch it takes the steps that the joint
run gives to its source. It is evaluated as often as the joint run, so each chooses among as many checkpoints.
"""

from dataclasses import dataclass, replace

from polytask.core.errors import BadValue
from polytask.sharing import ModelSpec
from polytask.tasks.mixture import Mixture
from polytask.training.job import Job
from polytask.training.spec import RuleChoice, StageSpec


def single_task(job: Job, task: str) -> Job:
    """The baseline of one task: the job's model and stages for it alone."""
    shares = [_share(job, stage, task) for stage in job.stages if stage.tasks is None or task in stage.tasks]
    if not shares:
        raise BadValue(f"the stages that train task {task!r}", 0, "at least 1")
    every = [share.evaluate_every for share in shares if share.evaluate_every is not None]
    run = job.run.model_copy(update={"evaluate_every": min(every, default=None)})
    recipe = {**job.recipe, "single_task": task}
    stages = [share.stage for share in shares]
    return replace(job, tasks=[task], model=shared_hard(job.model), stages=stages, run=run, recipe=recipe)


def shared_hard(model: ModelSpec) -> ModelSpec:
    """The model with its encoder, whatever is around that, and nothing between it and the heads."""
    return model.model_copy(update={"sharing": ModelSpec(sharing={"kind": "hard"}).sharing})


@dataclass(frozen=True)
class _Share:
    """One task's share of a stage; `evaluate_every` is None where an epoch is the joint run's."""

    stage: StageSpec
    evaluate_every: int | None


def _share(job: Job, stage: StageSpec, task: str) -> _Share:
    tasks = [name for name in job.tasks if stage.tasks is None or name in stage.tasks]
    splits = {
        name: source.splits["train"]
        for name, source in job.data.sources.items()
        if any(task in tasks for task in source.tasks)
    }
    mixture = Mixture(splits, stage.mixture, stage.batch_size, job.run.seed)
    own = job.sources[task]
    one_source = stage.mixture.batches == "one_task"
    drawn = sum(mixture.shares[name] for name in own) if one_source else 1.0

    def of_steps(steps: int) -> int:
        return max(1, round(steps * drawn))

    every = job.run.evaluate_every
    if every is None and len(splits) > 1:
        every = mixture.steps_per_epoch
    changes = {
        "tasks": None,
        "rule": RuleChoice(kind="equal"),
        "attachments": (),  # they compare tasks
        "epochs": None,
        "steps": of_steps(stage.steps or (stage.epochs or 1) * mixture.steps_per_epoch),
        "batch_size": stage.batch_size if one_source else sum(mixture.piece_sizes[name] for name in own),
    }
    return _Share(stage.model_copy(update=changes), None if every is None else of_steps(every))
