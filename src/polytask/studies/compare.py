"""The one comparison: variants beside single-task baselines, under one budget, with one grid of learning rates.

Every row (and, in the baseline's row, every task) tries the same multiples of its recipe's learning rate with the first
seed and keeps the one with the best validation score for all seeds. Nothing is chosen on the test split.

Budget: a single-task run takes as many optimiser steps as the joint run, and where tasks have sources of their own, as
many of its task's rows a step, so it sees each of its labels as often.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from polytask.checkpoints.directory import json_bytes, read_json, write_file
from polytask.core.errors import BadValue, CheckpointError
from polytask.evaluation.table import comparison
from polytask.evaluation.writers import csv_text, latex_text
from polytask.sharing import ModelSpec
from polytask.tasks.mixture import Mixture
from polytask.training.events import Listener
from polytask.training.features import FeatureCache
from polytask.training.job import Job
from polytask.training.loop import fit
from polytask.training.provenance import provenance
from polytask.training.spec import RuleChoice, StageSpec

BASELINE = "single"


@dataclass(frozen=True)
class Variant:
    """A row of the table: a name, the run that it stands for, and what it changes in the recipe."""

    name: str
    job: Job
    variation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What every row may spend.

    Attributes:
        seeds: of the runs; five or more give an honest interval.
        multiples: of each recipe's learning rates; tried with the first seed.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    multiples: tuple[float, ...] = (1 / 3, 1.0, 3.0)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BadValue("seeds", list(self.seeds), "one or more seeds, each once")
        if not self.multiples or min(self.multiples) <= 0:
            raise BadValue("learning_rate_multiples", list(self.multiples), "one or more numbers above 0")


@dataclass(frozen=True)
class Planned:
    """One training run of a comparison."""

    label: str
    path: str
    job: Job


def compare(
    variants: Sequence[Variant],
    base: Job,
    budget: Budget,
    out: Path,
    *,
    listeners: Sequence[Listener] = (),
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Runs the baselines and the variants and writes DIR/{results.json, table.csv, table.tex, recipe.yaml, runs/}.

    Runs that an interrupted comparison has finished are not repeated.

    Args:
        variants: the rows after the baseline's.
        base: the run whose model and stages the single-task baselines take, each with one task.
        budget: seeds and learning rates.
        out: the study's directory.
        listeners: called with every event of every run, and {"event": "run", "index", "of", "name"} before each.
        recipe: for the record.
    """
    names = [variant.name for variant in variants]
    if len({*names, BASELINE}) <= len(names):
        raise BadValue("the names of the variants", names, f"each once, and none called {BASELINE!r}")
    out = Path(out)
    _prepare(out, recipe)
    baselines = {task: single_task(base, task) for task in base.tasks}
    rate_runs = len(budget.multiples) + len(budget.seeds) - 1
    runner = _Runner(out, budget, tuple(listeners), total=(len(baselines) + len(variants)) * rate_runs)
    rows: list[dict[str, Any]] = [
        _baseline_row({task: runner.row(f"{BASELINE}/{task}", job) for task, job in baselines.items()})
    ]
    first = next(iter(rows[0]["runs"]), {})
    for variant in variants:
        runs = runner.row(variant.name, variant.job)
        for run in runs:
            del run["tasks"]
        rows.append(
            {
                "name": variant.name,
                "rule": variant.job.stages[-1].rule.kind,
                "sharing": variant.job.model.sharing.kind,
                "variation": dict(variant.variation),
                "runs": runs,
            }
        )
    tasks = rows[0].pop("tasks")
    results = {
        "kind": "compare",
        "version": 1,
        "tasks": tasks,
        "baseline": BASELINE,
        "budget": {
            "steps": first.get("steps"),
            "learning_rates": sorted({rate for stage in base.stages for rate in _rates(stage, budget)}),
            "seeds": list(budget.seeds),
        },
        "rows": rows,
        "provenance": provenance(),
    }
    write_file(out / "results.json", json_bytes(results))
    table = comparison(results)
    write_file(out / "table.csv", csv_text(table).encode())
    write_file(out / "table.tex", latex_text(table).encode())
    return results


def _prepare(out: Path, recipe: Mapping[str, Any] | None) -> None:
    """The study's directory: new, empty, or of a comparison with the same recipe, which goes on."""
    text = None if recipe is None else yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    saved = out / "recipe.yaml"
    if out.exists() and any(out.iterdir()):
        if (out / "events.jsonl").exists() or not (saved.exists() or (out / "runs").is_dir()):
            raise CheckpointError(f"{out}: not empty, and no comparison; name a new directory")
        if text is not None and saved.exists() and saved.read_text(encoding="utf-8") != text:
            raise CheckpointError(f"{out}: holds a comparison with another recipe; name a new directory")
    out.mkdir(parents=True, exist_ok=True)
    if text is not None:
        write_file(saved, text.encode())


def single_task(job: Job, task: str) -> Job:
    """The baseline of one task: the same model and stages for it alone, as many steps, as many of its rows a step."""
    stages = [
        _single_task_stage(job, stage, task) for stage in job.stages if stage.tasks is None or task in stage.tasks
    ]
    if not stages:
        raise BadValue(f"the stages that train task {task!r}", 0, "at least 1")
    model = ModelSpec(init_from=job.model.init_from, encoder=job.model.encoder, sharing={"kind": "hard"})
    recipe = {**job.recipe, "single_task": task}
    return replace(job, tasks=[task], model=model, stages=stages, recipe=recipe)


def _single_task_stage(job: Job, stage: StageSpec, task: str) -> StageSpec:
    tasks = [name for name in job.tasks if stage.tasks is None or name in stage.tasks]
    splits = {
        name: source.splits["train"] for name, source in job.data.sources.items() if set(source.tasks) & set(tasks)
    }
    mixture = Mixture(splits, stage.mixture, stage.batch_size, job.run.seed)
    steps = stage.steps or (stage.epochs or 1) * mixture.steps_per_epoch
    own = next(name for name, source in job.data.sources.items() if task in source.tasks)
    if stage.mixture.batches == "one_task" and len(splits) > 1:
        steps = max(1, round(steps * mixture.shares[own]))
    changes = {
        "tasks": None,
        "rule": RuleChoice(kind="equal"),
        "epochs": None,
        "steps": steps,
        "batch_size": mixture.piece_sizes[own],
    }
    return stage.model_copy(update=changes)


class _Runner:
    """Trains the runs of one row after the other, reporting progress over all."""

    def __init__(self, out: Path, budget: Budget, listeners: tuple[Listener, ...], total: int) -> None:
        self.out, self.budget, self.listeners, self.total = out, budget, listeners, total
        self.done = 0
        self.features: FeatureCache = {}

    def row(self, name: str, job: Job) -> list[dict[str, Any]]:
        """The runs of a row, one a seed, with the learning rate that the first seed's validation score chose."""
        first, *others = self.budget.seeds
        tried = {
            multiple: self._run(
                f"{name}, seed {first}, learning rate x {multiple:.3g}",
                f"runs/{name}/seed-{first}-rate-{multiple:.3g}",
                job,
                first,
                multiple,
            )
            for multiple in self.budget.multiples
        }
        chosen = max(tried, key=lambda multiple: _order(tried[multiple]["score"]))
        alternatives = [{"learning_rate": run["learning_rate"], "score": run["score"]} for run in tried.values()]
        runs = [{**tried[chosen], "all_runs": alternatives}]
        for seed in others:
            runs.append(
                self._run(f"{name}, seed {seed}", f"runs/{name}/seed-{seed}-rate-{chosen:.3g}", job, seed, chosen)
            )
        return runs

    def _run(self, label: str, path: str, job: Job, seed: int, multiple: float) -> dict[str, Any]:
        self.done += 1
        for listener in self.listeners:
            listener({"event": "run", "index": self.done, "of": self.total, "name": label})
        stages = [_with_rate(stage, multiple) for stage in job.stages]
        run = job.run.model_copy(update={"seed": seed, "checkpoint_every": "end"})
        recipe = {
            **job.recipe,
            "stages": [stage.model_dump(mode="json") for stage in stages],
            "run": run.model_dump(mode="json"),
        }
        planned = replace(job, stages=stages, run=run, recipe=recipe)
        results = _finished(self.out / path, planned) or self._fit(planned, path)
        metric = {task: about["metric"] for task, about in results["tasks"].items()}
        return {
            "seed": seed,
            "learning_rate": stages[-1].optimizer.lr,
            "valid": {task: results["valid"][task][name] for task, name in metric.items()},
            "test": {task: results["test"].get(task, {}).get(name) for task, name in metric.items()},
            **{key: results[key] for key in ("score", "best_step", "steps", "seconds", "peak_memory_mb", "parameters")},
            "run": path,
            "tasks": results["tasks"],
        }

    def _fit(self, job: Job, path: str) -> dict[str, Any]:
        run = self.out / path
        if run.exists():  # left by an interrupted comparison
            remove_run(run)
        return fit(job, run, listeners=self.listeners, features=self.features)


def remove_run(run: Path) -> None:
    """Removes an unfinished run; anything that is no run is left and refused."""
    if not (run / "recipe.yaml").exists():
        raise CheckpointError(f"{run}: exists and is no run of polytask; name another directory")
    shutil.rmtree(run)


def _finished(run: Path, job: Job) -> dict[str, Any] | None:
    """The results of a run that was done before with the same recipe."""
    if not (run / "results.json").exists() or not (run / "recipe.yaml").exists():
        return None
    saved = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    if saved != yaml.safe_load(yaml.safe_dump(dict(job.recipe))):
        raise CheckpointError(f"{run}: holds a run of another recipe; name a new directory for this comparison")
    return read_json(run / "results.json")


def _baseline_row(by_task: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The single-task runs of every task as one row: scores side by side, costs added up."""
    tasks: dict[str, Any] = {}
    runs = []
    for together in zip(*by_task.values(), strict=True):
        for run in together:
            tasks |= run["tasks"]
        valid, test = (
            {task: value for run in together for task, value in run[split].items()} for split in ("valid", "test")
        )
        scores = [run["score"] for run in together if run["score"] is not None]
        parameters = [run["parameters"] for run in together]
        runs.append(
            {
                "seed": together[0]["seed"],
                "learning_rate": {task: run["learning_rate"] for task, run in zip(by_task, together, strict=True)},
                "valid": valid,
                "test": test,
                "score": sum(scores) / len(scores) if scores else None,
                "best_step": {task: run["best_step"] for task, run in zip(by_task, together, strict=True)},
                "steps": max(run["steps"] for run in together),
                "seconds": sum(run["seconds"] for run in together),
                "peak_memory_mb": max(run["peak_memory_mb"] for run in together),
                "parameters": {
                    "total": sum(count["total"] for count in parameters),
                    "shared": 0,
                    "private": {task: count["total"] for task, count in zip(by_task, parameters, strict=True)},
                },
                "runs_by_task": {task: run["run"] for task, run in zip(by_task, together, strict=True)},
            }
        )
    return {"name": BASELINE, "rule": "equal", "sharing": BASELINE, "variation": {}, "runs": runs, "tasks": tasks}


def _with_rate(stage: StageSpec, multiple: float) -> StageSpec:
    optimizer = stage.optimizer.model_copy(update={"lr": stage.optimizer.lr * multiple})
    return stage.model_copy(update={"optimizer": optimizer})


def _rates(stage: StageSpec, budget: Budget) -> list[float]:
    return [stage.optimizer.lr * multiple for multiple in budget.multiples]


def _order(score: float | None) -> float:
    return float("-inf") if score is None else score
