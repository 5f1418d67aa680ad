"""The one comparison: variants beside single-task baselines, under one budget, with one grid of learning rates.

Every row (and, in the baseline's row, every task) tries the same multiples of its recipe's learning rate with the first
seed and keeps the one with the best validation score for all seeds. Nothing is chosen on the test split. A learning
rate at which a run diverges is out of the choice. The table is about the tasks with the role `target`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from polytask.checkpoints.directory import json_bytes, write_file
from polytask.core.errors import BadValue, CheckpointError, NotFinite
from polytask.evaluation.table import comparison
from polytask.evaluation.writers import csv_text, latex_text
from polytask.studies.baseline import single_task
from polytask.studies.parameters import with_parameters
from polytask.training.devices import Devices
from polytask.training.events import Listener
from polytask.training.features import FeatureCache
from polytask.training.job import Job
from polytask.training.loop import check, fit
from polytask.training.provenance import provenance
from polytask.training.spec import StageSpec

BASELINE = "single"
RECIPE = "recipe.yaml"


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
        parameters: what every row has, all tasks together: widths are scaled; None leaves the models as they are.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    multiples: tuple[float, ...] = (1 / 3, 1.0, 3.0)
    parameters: int | None = None

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise BadValue("seeds", list(self.seeds), "one or more seeds, each once")
        if not self.multiples or min(self.multiples) <= 0 or len(set(self.multiples)) < len(self.multiples):
            raise BadValue("learning_rate_multiples", list(self.multiples), "one or more numbers above 0, each once")
        if self.parameters is not None and self.parameters < 1:
            raise BadValue("parameters", self.parameters, "1 or more")

    @property
    def runs(self) -> int:
        """Of one row, or of one task's baseline."""
        return len(self.multiples) + len(self.seeds) - 1


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
    out, devices = Path(out), Devices(base.run)
    tasks = _compared(base)
    baselines = {task: _within(single_task(base, task), budget, len(tasks)) for task in tasks}
    variants = [replace(variant, job=_within(variant.job, budget, 1)) for variant in variants]
    features: FeatureCache = {}
    for variant in variants:  # a mistake in a row is reported before hours have gone into the rows above it
        check(variant.job, features)
    devices.on_first(lambda: _prepare(out, recipe))
    listeners = listeners if devices.is_first else ()
    runner = _Runner(out, budget, tuple(listeners), features, (len(baselines) + len(variants)) * budget.runs)
    single = {
        task: runner.row(f"{BASELINE} {task}", f"{BASELINE}/{_folder(task)}", job) for task, job in baselines.items()
    }
    rows = [_baseline_row(single)]
    for place, variant in enumerate(variants):
        taken = [_folder(earlier) for earlier in [BASELINE, *names[:place]]]
        folder = _folder(variant.name) + "_" * taken.count(_folder(variant.name))
        rows.append(_variant_row(variant, runner.row(variant.name, folder, variant.job), list(baselines)))
    results = {
        "kind": "compare",
        "version": 1,
        "tasks": {task: runs[0]["tasks"][task] for task, runs in single.items()},
        "baseline": BASELINE,
        "budget": {
            "steps": rows[0]["runs"][0]["steps"],
            "learning_rates": sorted({stage.optimizer.lr * by for stage in base.stages for by in budget.multiples}),
            "seeds": list(budget.seeds),
            **({} if budget.parameters is None else {"parameters": budget.parameters}),
        },
        "rows": rows,
        "provenance": provenance(),
    }
    devices.on_first(lambda: _write(out, results))
    return results


class _Runner:
    """Trains the runs of one row after the other, reporting progress over all."""

    def __init__(
        self, out: Path, budget: Budget, listeners: tuple[Listener, ...], features: FeatureCache, total: int
    ) -> None:
        self.out, self.budget, self.listeners, self.features, self.total = out, budget, listeners, features, total
        self.done = 0

    def row(self, name: str, folder: str, job: Job) -> list[dict[str, Any]]:
        """The runs of a row, one a seed, with the learning rate that the first seed's validation score chose."""
        first, *others = self.budget.seeds
        tried: dict[float, dict[str, Any]] = {}
        alternatives: list[dict[str, Any]] = []
        for multiple in self.budget.multiples:
            label = f"{name}, seed {first}, learning rate x {multiple:.3g}"
            rate = job.stages[-1].optimizer.lr * multiple
            try:
                tried[multiple] = self._run(label, folder, job, first, multiple)
            except NotFinite as error:
                alternatives.append({"learning_rate": rate, "score": None, "error": str(error)})
            else:
                alternatives.append({"learning_rate": rate, "score": tried[multiple]["score"]})
        if not tried:
            raise NotFinite(f"{name}: no learning rate works; the first: {alternatives[0]['error']}")
        chosen = max(tried, key=lambda multiple: _order(tried[multiple]["score"]))
        runs = [{**tried[chosen], "all_runs": alternatives}]
        for seed in others:
            runs.append(self._run(f"{name}, seed {seed}", folder, job, seed, chosen))
        return runs

    def _run(self, label: str, folder: str, job: Job, seed: int, multiple: float) -> dict[str, Any]:
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
        path = f"runs/{folder}/seed-{seed}-rate-{multiple:g}"
        results = fit(planned, self.out / path, resume=True, listeners=self.listeners, features=self.features)
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


def _within(job: Job, budget: Budget, models: int) -> Job:
    """The job with its share of the parameters, where the row is so many models."""
    return job if budget.parameters is None else with_parameters(job, budget.parameters // models)


def _compared(job: Job) -> list[str]:
    """The tasks of the table: an auxiliary task is there to help these, not to be good at."""
    return [task for task, target in job.targets.items() if target.task.role == "target"] or job.tasks


def _prepare(out: Path, recipe: Mapping[str, Any] | None) -> None:
    """The study's directory: new, empty, or of a comparison with the same recipe, which goes on."""
    text = None if recipe is None else yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
    saved = out / RECIPE
    if out.exists() and any(out.iterdir()):
        if (out / "events.jsonl").exists() or not (saved.exists() or (out / "runs").is_dir()):
            raise CheckpointError(f"{out}: not empty, and no comparison; name a new directory")
        if text is not None and saved.exists() and saved.read_text(encoding="utf-8") != text:
            raise CheckpointError(f"{out}: holds a comparison with another recipe; name a new directory")
    out.mkdir(parents=True, exist_ok=True)
    if text is not None:
        write_file(saved, text.encode())


def _write(out: Path, results: Mapping[str, Any]) -> None:
    write_file(out / "results.json", json_bytes(results))
    table = comparison(results)
    write_file(out / "table.csv", csv_text(table).encode())
    write_file(out / "table.tex", latex_text(table).encode())


def _variant_row(variant: Variant, runs: list[dict[str, Any]], tasks: list[str]) -> dict[str, Any]:
    kept = []
    for run in runs:
        scores = {split: {task: run[split].get(task) for task in tasks} for split in ("valid", "test")}
        kept.append({key: scores.get(key, value) for key, value in run.items() if key != "tasks"})
    return {
        "name": variant.name,
        "rule": variant.job.stages[-1].rule.kind,
        "sharing": variant.job.model.sharing.kind,
        "variation": dict(variant.variation),
        "runs": kept,
    }


def _baseline_row(by_task: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The single-task runs of every task as one row: scores side by side, costs added up."""
    runs = []
    for together in zip(*by_task.values(), strict=True):
        own = dict(zip(by_task, together, strict=True))
        scores = [run["score"] for run in together if run["score"] is not None]
        totals = {task: run["parameters"]["total"] for task, run in own.items()}
        runs.append(
            {
                "seed": together[0]["seed"],
                "learning_rate": {task: run["learning_rate"] for task, run in own.items()},
                "valid": {task: run["valid"][task] for task, run in own.items()},
                "test": {task: run["test"][task] for task, run in own.items()},
                "score": sum(scores) / len(scores) if scores else None,
                "best_step": {task: run["best_step"] for task, run in own.items()},
                "steps": max(run["steps"] for run in together),
                "seconds": sum(run["seconds"] for run in together),
                "peak_memory_mb": max(run["peak_memory_mb"] for run in together),
                "parameters": {"total": sum(totals.values()), "shared": 0, "private": totals},
                "runs_by_task": {task: run["run"] for task, run in own.items()},
            }
        )
    return {"name": BASELINE, "rule": "equal", "sharing": BASELINE, "variation": {}, "runs": runs}


def _with_rate(stage: StageSpec, multiple: float) -> StageSpec:
    optimizer = stage.optimizer.model_copy(update={"lr": stage.optimizer.lr * multiple})
    return stage.model_copy(update={"optimizer": optimizer})


def _folder(name: str) -> str:
    """A name as a folder: values in it may be paths or formulas."""
    return re.sub(r"[^\w.,=+ -]+", "_", name).strip(". ") or "_"


def _order(score: float | None) -> float:
    return float("-inf") if score is None else score
