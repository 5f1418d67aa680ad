"""The tables of the report as HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from polytask.evaluation.delta import FEW_SEEDS, Estimate, Verdict
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

MARKS = {Verdict.BETTER: "▲", Verdict.WORSE: "▼", Verdict.WITHIN_NOISE: "≈"}
CLASSES = {Verdict.BETTER: "better", Verdict.WORSE: "worse", Verdict.WITHIN_NOISE: "noise"}


@dataclass(frozen=True)
class Cell:
    """A value and a smaller line under it; both are HTML."""

    value: str
    under: str = ""
    style: str = ""


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
        return Cell('<span aria-label="not measured">–</span>', style="quiet")
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
    under = f"{percent_range(value.low, value.high)} {_mark(outcome)}{over}"
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
    if score.value.mean is None:
        return Cell(UNDEFINED, style="quiet")
    value = fixed(score.value.mean, places) + _half_width(score.value, places)
    few = f"defined in {score.value.count} of {counted(score.value.count + score.value.undefined, 'seed')}"
    under = few if score.value.undefined else ""
    if score.difference is None or score.verdict is None or score.difference.mean is None:
        return Cell(value, under)
    difference = f"{signed(score.difference.mean, places)} {_mark(score.verdict)}"
    return Cell(value, f"{difference}<br>{under}" if under else difference, CLASSES.get(score.verdict, ""))


def _half_width(value: Estimate, places: int) -> str:
    return "" if value.half_width is None else f' <span class="interval">±{fixed(value.half_width, places)}</span>'


def _mark(outcome: Verdict) -> str:
    """A sign and a word: colour is never the only mark."""
    sign = f'<span aria-hidden="true">{MARKS[outcome]}</span> ' if outcome in MARKS else ""
    words = outcome.value if outcome is not Verdict.ONE_SEED else "one seed"
    return f'<span class="verdict">{sign}{words}</span>'


def _costs(row: Row) -> list[Cell]:
    steps = "" if row.steps is None else f"{row.steps:,.0f} steps"
    rates = ", ".join(f"{rate:g}" for rate in row.learning_rates) or "not recorded"
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
