"""The tables of the report as HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from polytask.evaluation.delta import FEW_SEEDS, Estimate, Verdict, estimate
from polytask.evaluation.formatting import (
    UNDEFINED,
    counted,
    decimals,
    duration,
    fixed,
    magnitude,
    megabytes,
    percent,
    percent_range,
    signed,
)
from polytask.evaluation.report.reading import Run
from polytask.evaluation.report.words import run_name
from polytask.evaluation.table import Comparison, Row, ScoredTask

MOST_TASKS_ACROSS = 5
"""With more tasks than this the table is turned: tasks go down, variants across."""

_BREAK = " <wbr>"  # where a cell may become two lines; nowhere else

MARKS = {Verdict.BETTER: "▲", Verdict.WORSE: "▼", Verdict.WITHIN_NOISE: "≈"}
CLASSES = {Verdict.BETTER: "better", Verdict.WORSE: "worse", Verdict.WITHIN_NOISE: "noise"}


@dataclass(frozen=True)
class Cell:
    """A value and a smaller line under it; both are HTML."""

    value: str
    under: str = ""
    style: str = ""


_NOT_MEASURED = Cell('<span aria-label="not measured">–</span>', style="quiet")


def comparison_table(table: Comparison, caption: str) -> str:
    """Every variant with its tasks, delta-m and costs."""
    corner = Cell("Variant")
    headings = [
        Cell("delta-m", "95 % interval", "delta"),
        Cell("Tasks worse"),
        *(Cell(escape(task.name), _direction(task)) for task in table.tasks),
        Cell("Time", "steps"),
        Cell("Parameters", "peak memory"),
        Cell("Learning rate", "seeds"),
    ]
    names = [Cell(escape(row.name), _kind(row), "baseline" if row.is_baseline else "") for row in table.rows]
    body = [
        [_delta(row), _worse(row), *(_score(task, row, table) for task in table.tasks), *_costs(row)]
        for row in table.rows
    ]
    if len(table.tasks) > MOST_TASKS_ACROSS:
        turned = [list(column) for column in zip(*body, strict=True)]
        return _html(caption, Cell("Task"), names, headings, turned)
    return _html(caption, corner, headings, names, body)


def runs_table(runs: Sequence[Run], caption: str) -> str:
    """Every metric of every task, a column a run: the test value, and the validation value under it."""
    keys: dict[tuple[str, str], None] = {}
    for run in runs:
        for split in ("test", "valid"):
            for task, metrics in run.results.get(split, {}).items():
                keys.update(((task, metric), None) for metric in metrics)
    names = [Cell(escape(run_name(run, runs)), escape(run.results.get("rule", "not ended"))) for run in runs]
    ordered = sorted(keys, key=lambda key: list(dict.fromkeys(task for task, _ in keys)).index(key[0]))
    rows = [Cell(escape(task), escape(metric)) for task, metric in ordered]
    body = [[_run_score(run, task, metric) for run in runs] for task, metric in ordered]
    for title, under, show in _RUN_COSTS:
        rows.append(Cell(title, under))
        body.append([show(run) if run.results else Cell("not ended", style="quiet") for run in runs])
    return _html(caption, Cell("Task"), names, rows, body)


def sources_table(reports: Mapping[str, Sequence[Mapping[str, Any]]], about: Mapping[str, Mapping[str, Any]]) -> str:
    """Each task's metric on each of its sources, a column a variant; empty where no task has several sources.

    Args:
        reports: variant -> what each of its runs, one a seed, scored: task -> source -> metric -> value.
        about: task -> its metric, the direction of that, and the sources that are `held_out`.
    """
    places = dict.fromkeys(
        (task, source) for task in about for runs in reports.values() for run in runs for source in run.get(task, {})
    )
    if not places:
        return ""
    names = [Cell(escape(variant)) for variant in reports]
    rows = [
        Cell(f"{escape(task)} on {escape(source)}", _source_note(task, source, about[task])) for task, source in places
    ]
    body = []
    for task, source in places:
        found = [[run[task][source] for run in runs if source in run.get(task, {})] for runs in reports.values()]
        scores = [estimate([scored.get(about[task]["metric"]) for scored in runs]) for runs in found]
        digits = decimals([score.mean for score in scores])
        body.append(
            [_mean(score, digits) if runs else _NOT_MEASURED for runs, score in zip(found, scores, strict=True)]
        )
    return _html("Test metrics on each source", Cell("Task"), names, rows, body)


def _source_note(task: str, source: str, about: Mapping[str, Any]) -> str:
    direction = _direction(ScoredTask(task, about["metric"], bool(about["higher_is_better"])))
    return f"{direction}, held out" if source in about.get("held_out", ()) else direction


_RUN_COSTS = (
    ("Time", "steps", lambda run: Cell(duration(run.results["seconds"]), f"{run.results['steps']:,}")),
    (
        "Parameters",
        "peak memory",
        lambda run: Cell(magnitude(run.results["parameters"]["total"]), megabytes(run.results.get("peak_memory_mb"))),
    ),
    (
        "Sharing",
        "seed",
        lambda run: Cell(escape(str(run.results["sharing"])), str(run.results["seed"])),
    ),
)


def _run_score(run: Run, task: str, metric: str) -> Cell:
    test, valid = (run.results.get(split, {}).get(task, {}) for split in ("test", "valid"))
    if metric not in test and metric not in valid:
        return _NOT_MEASURED
    places = decimals([test.get(metric), valid.get(metric)])
    if metric not in test:
        return Cell(fixed(valid[metric], places), "validation")
    under = f"validation {fixed(valid[metric], places)}" if metric in valid else ""
    return Cell(fixed(test[metric], places), under)


def _direction(task: ScoredTask) -> str:
    word = "higher" if task.higher_is_better else "lower"
    arrow = "↑" if task.higher_is_better else "↓"
    return f'{escape(task.metric)} <span title="{word} is better" aria-label="{word} is better">{arrow}</span>'


def _kind(row: Row) -> str:
    if row.is_baseline:
        return "baseline"
    said = row.name.split(", ")
    varied = ", ".join(f"{path}={value}" for path, value in row.variation.items() if str(value) not in said)
    return escape(varied or f"{row.sharing} sharing")


def _delta(row: Row) -> Cell:
    if row.delta is None:
        return Cell("0 %", "by definition", "quiet") if row.is_baseline else Cell(UNDEFINED, style="quiet")
    value, over = row.delta.estimate, ""
    if row.delta.left_out:
        over = f"<br>over {len(row.delta.tasks)} tasks"
    if value.mean is None:
        return Cell(UNDEFINED, over, "quiet")
    if value.low is None or value.high is None:
        return Cell(f"<strong>{percent(value.mean)}</strong>", f"one seed, no interval{over}")
    outcome = (
        Verdict.WITHIN_NOISE if value.low <= 0 <= value.high else Verdict.BETTER if value.mean > 0 else Verdict.WORSE
    )
    under = f"{percent_range(value.low, value.high)}{_mark(outcome)}{over}"
    return Cell(f"<strong>{percent(value.mean)}</strong>", under, CLASSES[outcome])


def _worse(row: Row) -> Cell:
    if row.delta is None:
        return Cell("", style="quiet")
    if not row.judged:
        return Cell("not judged", f"{len(row.lower_on_average)} lower on average", "quiet")
    names = ", ".join(row.worse)
    shown = names if len(names) <= 28 else f"{names[:26].rsplit(',', 1)[0]} ..."
    return Cell(f"{len(row.worse)} of {row.judged}", escape(shown), "worse-count" if row.worse else "")


def _score(task: ScoredTask, row: Row, table: Comparison) -> Cell:
    score = row.scores[task.name]
    places = decimals([other.scores[task.name].value.mean for other in table.rows])
    shown = _mean(score.value, places)
    if score.difference is None or score.verdict is None or score.difference.mean is None:
        return shown
    difference = f"{signed(score.difference.mean, places)}{_mark(score.verdict)}"
    under = f"{difference}<br>{shown.under}" if shown.under else difference
    return Cell(shown.value, under, CLASSES.get(score.verdict, ""))


def _mean(value: Estimate, places: int) -> Cell:
    """A mean over seeds, and in how many of them it is defined where that is not all."""
    if value.mean is None:
        return Cell(UNDEFINED, style="quiet")
    few = f"defined in {value.count} of {counted(value.count + value.undefined, 'seed')}" if value.undefined else ""
    return Cell(fixed(value.mean, places) + _half_width(value, places), few)


def _half_width(value: Estimate, places: int) -> str:
    return (
        "" if value.half_width is None else f'{_BREAK}<span class="interval">±{fixed(value.half_width, places)}</span>'
    )


def _mark(outcome: Verdict) -> str:
    """A sign and a word, on a line of their own where the table is narrow: colour is never the only mark."""
    sign = f'<span aria-hidden="true">{MARKS[outcome]}</span> ' if outcome in MARKS else ""
    words = outcome.value if outcome is not Verdict.ONE_SEED else "one seed"
    return f'{_BREAK}<span class="verdict">{sign}{words}</span>'


def _costs(row: Row) -> list[Cell]:
    steps = "" if row.steps is None else f"{row.steps:,.0f} steps"
    rates = "<br>".join(f"{rate:g}" for rate in row.learning_rates) or "not recorded"
    seeds = counted(len(row.seeds), "seed")
    if len(row.seeds) < FEW_SEEDS:
        seeds = f'<span class="few" title="fewer than {FEW_SEEDS} seeds">{seeds}, few</span>'
    return [
        Cell(duration(row.seconds), steps),
        Cell(magnitude(row.parameters), megabytes(row.peak_memory_mb)),
        Cell(rates, seeds),
    ]


def _html(
    caption: str, corner: Cell, columns: Sequence[Cell], names: Sequence[Cell], body: Sequence[Sequence[Cell]]
) -> str:
    head = "".join(_cell("th", cell, 'scope="col"') for cell in (corner, *columns))
    lines = []
    for name, cells in zip(names, body, strict=True):
        row_class = f' class="{name.style}"' if name.style else ""
        shown = _cell("th", name, 'scope="row"') + "".join(_cell("td", cell) for cell in cells)
        lines.append(f"<tr{row_class}>{shown}</tr>")
    narrow = " narrow" if len(columns) < 3 else ""
    return (
        f'<div class="scroll{narrow}" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(tag: str, cell: Cell, attributes: str = "") -> str:
    opening = " ".join(part for part in (tag, attributes, f'class="{cell.style}"' if cell.style else "") if part)
    under = f'<span class="under">{cell.under}</span>' if cell.under else ""
    return f"<{opening}>{cell.value}{under}</{tag}>"
