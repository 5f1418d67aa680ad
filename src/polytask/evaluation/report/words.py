"""The sentences of the report, made from the numbers. All return HTML; names are escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from polytask.evaluation.delta import Estimate, Verdict
from polytask.evaluation.formatting import (
    counted,
    decimals,
    duration,
    fixed,
    in_words,
    listed,
    magnitude,
    percent,
    percent_range,
    ratio,
)
from polytask.evaluation.report.reading import Run
from polytask.evaluation.table import Comparison, Row


def comparison_headline(table: Comparison) -> str:
    """What was found, in one sentence, about the variant that validation chose."""
    row, baseline = table.chosen, table.baseline_row
    if row is None:
        return (
            f"{counted(len(table.tasks), 'task').capitalize()}, and no variant to compare with the single-task models."
        )
    models = "Separate models" if row.sharing == "single" else "One model"
    count = len(table.tasks)
    start = f"{models} for {counted(count, 'task')}: {_strong(row.name)}"
    if baseline is None or row.delta is None:
        return (
            f"{start} scores {fixed(row.validation_score, 4)} on validation; there is no baseline to compare it with."
        )
    against = f"{in_words(count)} single-task model{'' if count == 1 else 's'}"
    costs = _costs(row, baseline)
    sentence = f"{start} {_difference(row.delta.estimate, against)}{costs}; {_worse(row)}."
    return sentence.replace(" %", "&nbsp;%")


def comparison_lede(table: Comparison, results: Mapping[str, Any]) -> str:
    """The other variants, and what all of them were given."""
    sentences = []
    chosen = table.chosen
    others = [row for row in table.variants if row is not chosen and row.delta is not None]
    if others:
        shown = [f"{escape(row.name)} {percent(row.delta.estimate.mean)}" for row in others if row.delta]
        sentences.append(f"The other{'' if len(others) == 1 else 's'}: {listed(shown)}.")
    if chosen is not None and len(table.variants) > 1:
        sentences.append(f"The headline names {escape(chosen.name)} for its validation score; test chose nothing.")
    budget = results.get("budget") or {}
    if budget.get("steps"):
        rates = budget.get("learning_rates") or []
        tried = f", {counted(len(rates), 'learning rate')} tried and chosen on validation" if rates else ""
        seeds = counted(len(budget.get("seeds") or []), "seed")
        sentences.append(f"Every row had {budget['steps']:,} steps{tried}, {seeds}, and one score on test.")
    return " ".join(sentences).replace(" %", "&nbsp;%")


def runs_headline(runs: Sequence[Run]) -> str:
    """What one run reached; or what several are."""
    if len(runs) > 1:
        return f"{counted(len(runs), 'run')} side by side: {listed([_strong(run_name(run, runs)) for run in runs])}."
    run = runs[0]
    if not run.results:
        return f"A run that has not ended: {run.events.last_step:,} steps so far."
    split = "test" if run.results.get("test") else "valid"
    scores = []
    for task in run.tasks[:4]:
        value = run.results.get(split, {}).get(task.name, {}).get(task.metric)
        scores.append(f"{escape(task.name)} {_strong(fixed(value, decimals([value])))} {escape(task.metric)}")
    more = f" and {len(run.tasks) - 4} more" if len(run.tasks) > 4 else ""
    shown = listed(scores) if not more else ", ".join(scores) + more
    start = f"One model learned {counted(len(run.tasks), 'task')} in {duration(run.results.get('seconds'))}"
    return f"{start}: {shown} on {'test' if split == 'test' else 'validation'}."


def runs_lede(runs: Sequence[Run]) -> str:
    """Cost and how it ended, for one run alone."""
    if len(runs) > 1:
        return "Each run was trained on its own; nothing here was held equal between them."
    run = runs[0]
    if not run.results:
        return "There is no results.json yet; the curves show what the event stream holds."
    rule, sharing = escape(run.results["rule"]), escape(run.results["sharing"])
    parts = [
        f"{run.results['steps']:,} steps with the rule {rule} and {sharing} sharing",
        f"best on validation at step {run.results['best_step']:,}",
        f"{magnitude(run.results['parameters']['total'])} parameters",
        f"seed {run.results['seed']}",
    ]
    ended = f" It ended because: {escape(run.events.stop)}." if run.events.stop else ""
    return f"{', '.join(parts)}.{told(run.results.get('conditioning', {}))}{ended}"


def told(conditioning: Mapping[str, str]) -> str:
    """What tells a network its task; tasks told alike are named together, and of many kinds the first four.

    >>> told({"click": "4 vectors", "buy": "4 vectors"}), told({})
    (' The network is told its task: click and buy by 4 vectors.', '')
    """
    tasks: dict[str, list[str]] = {}
    for task, words in conditioning.items():
        tasks.setdefault(words, []).append(task)
    shown = [f"{escape(listed(named))} by {escape(words)}" for words, named in list(tasks.items())[:4]]
    more = f"; and {counted(len(tasks) - 4, 'way')} more" if len(tasks) > 4 else ""
    return f" The network is told its task: {'; '.join(shown)}{more}." if shown else ""


def run_name(run: Run, runs: Sequence[Run]) -> str:
    """The directory's name; with its parent's where two runs share it."""
    same = [other for other in runs if other.path.resolve().name == run.path.resolve().name]
    path = run.path.resolve()
    return path.name if len(same) == 1 else f"{path.parent.name}/{path.name}"


def _difference(value: Estimate, against: str) -> str:
    if value.mean is None:
        return f"cannot be set against {against}: delta-m is undefined"
    if value.low is None or value.high is None:
        return f"is {_strong(percent(value.mean))} (one seed, no interval) against {against}"
    interval = f"95 % interval {percent_range(value.low, value.high)}"
    if value.low <= 0 <= value.high:
        return f"is {_strong('within noise')} of {against}, {percent(value.mean)} ({interval})"
    return f"is {_strong(percent(value.mean))} ({interval}) against {against}"


def _costs(row: Row, baseline: Row) -> str:
    parts = []
    if row.parameters is not None and baseline.parameters:
        parts.append(f"{_share(row.parameters / baseline.parameters)} their parameters")
    if row.seconds is not None and baseline.seconds:
        parts.append(f"{_share(row.seconds / baseline.seconds)} their time")
    return f", with {' and '.join(parts)}" if parts else ""


def _worse(row: Row) -> str:
    if not row.judged:
        return "with one seed no task can be called better or worse"
    number = len(row.worse)
    better = len(row.tasks_with(Verdict.BETTER))
    verb = "is" if number == 1 else "are"
    more = f", {better} {'is' if better == 1 else 'are'} better" if better else ""
    return (
        f"{number or 'no'} of {counted(row.judged, 'task')} {verb} worse{more}" if number else f"no task is worse{more}"
    )


def _share(value: float) -> str:
    return f"{100 * value:.0f} % of" if value < 0.995 else f"{ratio(value)} times"


def _strong(text: str) -> str:
    return f"<strong>{escape(text)}</strong>"
