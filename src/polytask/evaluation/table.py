"""The comparison table: what `results.json` of a compare says, with intervals, differences and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polytask.core.errors import CheckpointError, UnknownName
from polytask.evaluation.delta import (
    FEW_SEEDS,
    Delta,
    Estimate,
    Verdict,
    delta_m,
    estimate,
    paired_differences,
    relative_change,
    verdict,
)

FORMULA = (
    "delta-m = 100/T · Σ over tasks of (−1)^l · (M − M_single) / |M_single|, in percent, positive is better; "
    "l is 1 where lower is better. M − M_single is paired by seed, |M_single| is the mean over these seeds."
)


@dataclass(frozen=True)
class ScoredTask:
    """A task as the table shows it."""

    name: str
    metric: str
    higher_is_better: bool


@dataclass(frozen=True)
class TaskScore:
    """One variant on one task.

    Attributes:
        value: the metric over seeds.
        difference: paired difference to the baseline, in the metric's units; None for the baseline itself.
        relative: the same in percent of the baseline, positive is better: this task's term of delta-m.
        verdict: None for the baseline itself.
    """

    value: Estimate
    difference: Estimate | None
    relative: Estimate | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Row:
    """One variant of a comparison. Costs are means over seeds; None where a run did not measure them."""

    name: str
    rule: str
    sharing: str
    variation: Mapping[str, Any]
    is_baseline: bool
    scores: Mapping[str, TaskScore]
    delta: Delta | None
    validation_score: float | None
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    seconds: float | None
    steps: float | None
    parameters: float | None
    peak_memory_mb: float | None

    def tasks_with(self, outcome: Verdict) -> tuple[str, ...]:
        """Tasks with this verdict, in recipe order."""
        return tuple(task for task, score in self.scores.items() if score.verdict is outcome)

    @property
    def worse(self) -> tuple[str, ...]:
        """Tasks made worse (negative transfer): the interval of their paired differences excludes zero."""
        return self.tasks_with(Verdict.WORSE)

    @property
    def judged(self) -> int:
        """Tasks with a verdict at all: two or more seeds shared with the baseline and a defined metric."""
        return sum(len(self.tasks_with(v)) for v in (Verdict.BETTER, Verdict.WORSE, Verdict.WITHIN_NOISE))

    @property
    def lower_on_average(self) -> tuple[str, ...]:
        """Tasks whose mean is on the worse side of the baseline's, within noise or not."""
        means = {task: score.relative.mean for task, score in self.scores.items() if score.relative}
        return tuple(task for task, mean in means.items() if mean is not None and mean < 0)


@dataclass(frozen=True)
class Comparison:
    """The table. Rows are in the order of `results.json`."""

    tasks: tuple[ScoredTask, ...]
    rows: tuple[Row, ...]
    baseline: str | None
    notes: tuple[str, ...]

    @property
    def baseline_row(self) -> Row | None:
        return next((row for row in self.rows if row.is_baseline), None)

    @property
    def variants(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.is_baseline)

    @property
    def chosen(self) -> Row | None:
        """The variant with the best validation score: test scores choose nothing."""
        scored = [row for row in self.variants if row.validation_score is not None]
        return max(scored, key=lambda row: row.validation_score or 0.0, default=None)


def comparison(results: Mapping[str, Any], split: str = "test") -> Comparison:
    """The table of a compare's results.

    Args:
        results: the content of its results.json.
        split: "test" or "valid".

    Raises:
        CheckpointError: these are not the results of a compare.
    """
    if results.get("kind") != "compare":
        raise CheckpointError(f"results.json: kind is {results.get('kind')!r}; a table needs kind 'compare'")
    tasks = tuple(
        ScoredTask(name, about["metric"], bool(about["higher_is_better"])) for name, about in results["tasks"].items()
    )
    names = [row["name"] for row in results["rows"]]
    baseline = results.get("baseline")
    if baseline is not None and baseline not in names:
        raise UnknownName("row", baseline, names, where="results.json: baseline")
    reference = next((_by_task(row, tasks, split) for row in results["rows"] if row["name"] == baseline), None)
    rows = tuple(_row(row, tasks, split, baseline, reference) for row in results["rows"])
    return Comparison(tasks, rows, baseline, _notes(tasks, rows))


Values = Mapping[str, Mapping[int, float | None]]


def _row(
    row: Mapping[str, Any], tasks: Sequence[ScoredTask], split: str, baseline: str | None, reference: Values | None
) -> Row:
    values = _by_task(row, tasks, split)
    is_baseline = row["name"] == baseline
    compared = None if is_baseline else reference
    scores = {
        task.name: _score(task, values[task.name], None if compared is None else compared[task.name]) for task in tasks
    }
    runs = row["runs"]
    return Row(
        name=row["name"],
        rule=row.get("rule", ""),
        sharing=row.get("sharing", ""),
        variation=row.get("variation") or {},
        is_baseline=is_baseline,
        scores=scores,
        delta=delta_m(values, compared, {t.name: t.higher_is_better for t in tasks}) if compared is not None else None,
        validation_score=estimate([run.get("score") for run in runs]).mean,
        seeds=tuple(sorted(run["seed"] for run in runs)),
        learning_rates=_learning_rates(runs),
        seconds=_mean(runs, "seconds"),
        steps=_mean(runs, "steps"),
        parameters=_mean(runs, "parameters"),
        peak_memory_mb=_mean(runs, "peak_memory_mb"),
    )


def _score(
    task: ScoredTask, values: Mapping[int, float | None], reference: Mapping[int, float | None] | None
) -> TaskScore:
    value = estimate([values[seed] for seed in sorted(values)])
    if reference is None:
        return TaskScore(value, None, None, None)
    difference = estimate(paired_differences(values, reference))
    relative = relative_change(values, reference, task.higher_is_better)
    return TaskScore(value, difference, relative, verdict(difference, task.higher_is_better))


def _by_task(row: Mapping[str, Any], tasks: Sequence[ScoredTask], split: str) -> Values:
    return {task.name: {run["seed"]: run[split].get(task.name) for run in row["runs"]} for task in tasks}


def _learning_rates(runs: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Distinct chosen rates, ascending; the baseline may have chosen one a task."""
    chosen: dict[float, None] = {}
    for run in runs:
        rate = run.get("learning_rate")
        for value in rate.values() if isinstance(rate, Mapping) else [rate]:
            if value is not None:
                chosen[float(value)] = None
    return tuple(sorted(chosen))


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [run.get(key) for run in runs]
    return estimate([value["total"] if isinstance(value, Mapping) else value for value in values]).mean


def _notes(tasks: Sequence[ScoredTask], rows: Sequence[Row]) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    notes = []
    counts = sorted({len(row.seeds) for row in rows})
    if counts and counts[0] < FEW_SEEDS:
        seeds = f"{counts[0]} seed{'' if counts[0] == 1 else 's'}"
        notes.append(f"Only {seeds}: fewer than {FEW_SEEDS}, so intervals are wide or missing and rankings may change.")
    for row in rows:
        if row.delta is not None and row.delta.left_out:
            left_out = ", ".join(row.delta.left_out)
            notes.append(
                f"{row.name}: delta-m is over {len(row.delta.tasks)} of {len(tasks)} tasks; undefined or without a "
                f"baseline to divide by: {left_out}."
            )
    judged = sum(row.judged for row in rows)
    if judged >= 20:
        notes.append(
            f"{judged} differences are judged at 95 % without correction: about {round(judged / 20)} would be marked "
            "by chance if nothing differed."
        )
    return tuple(notes)
