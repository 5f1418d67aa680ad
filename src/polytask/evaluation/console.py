"""The comparison in a terminal, as wide as the terminal is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polytask.evaluation.delta import FEW_SEEDS, Verdict
from polytask.evaluation.formatting import (
    UNDEFINED,
    decimals,
    duration,
    fixed,
    magnitude,
    percent,
    percent_range,
    signed,
)
from polytask.evaluation.table import Comparison, Row, ScoredTask, TaskScore

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MARKS = {
    Verdict.BETTER: ("▲", "green"),
    Verdict.WORSE: ("▼", "red"),
    Verdict.WITHIN_NOISE: ("≈", ""),
    Verdict.ONE_SEED: ("·", ""),
    Verdict.UNDEFINED: ("", ""),
}
"""A sign for each verdict, so that colour is never the only mark."""

LEGEND = "against the baseline, paired by seed, at 95 %: ▲ better  ▼ worse  ≈ within noise  · no interval"


def print_comparison(table: Comparison, console: Console | None = None) -> None:
    """Prints the table: in one piece where it fits; else without costs; else overall first and then task by task."""
    from rich.console import Console

    console = console or Console()
    tasks = list(table.tasks)
    layouts = [(digits, costs) for costs in (True, False) for digits in (4, 3)]
    grids = ((_rows_table(table, tasks, costs, digits), costs) for digits, costs in layouts)
    fitting = next(((grid, costs) for grid, costs in grids if _fits(console, grid)), None)
    if fitting is not None:
        grid, with_costs = fitting
        console.print(grid)
    else:
        overall = _rows_table(table, [], costs=True)
        with_costs = _fits(console, overall)
        console.print(overall if with_costs else _rows_table(table, [], costs=False))
        _print_by_task(table, console)
    if table.baseline is not None:
        console.print(LEGEND, style="dim", highlight=False)
    if not with_costs:
        note = f"Seconds and parameters do not fit in {console.width} columns; table.csv and the report have them."
        console.print(note, style="dim", highlight=False)
    for note in table.notes:
        console.print(note, style="yellow", highlight=False)


def _rows_table(table: Comparison, tasks: list[ScoredTask], costs: bool, digits: int = 4) -> Table:
    """Variants down; two lines a cell."""
    from rich.text import Text

    grid = _empty_table()
    grid.add_column("variant", overflow="fold")
    for task in tasks:
        grid.add_column(_task_heading(task), justify="right", no_wrap=True)
    grid.add_column(Text("delta-m\ninterval"), justify="right", no_wrap=True)
    grid.add_column(Text("tasks\nworse"), justify="right", no_wrap=True)
    if costs:
        grid.add_column(Text("time\nparameters"), justify="right", no_wrap=True)
    for row in table.rows:
        cells = [_name_cell(row), *(_score_cell(task, row, table, digits) for task in tasks)]
        cells += [_delta_cell(row), _worse_cell(row)]
        if costs:
            cells.append(Text(f"{duration(row.seconds)}\n{magnitude(row.parameters)}"))
        grid.add_row(*cells)
    return grid


def _print_by_task(table: Comparison, console: Console) -> None:
    """Tasks down, variants across, as many at a time as the terminal holds."""
    rows = list(table.rows)
    while rows:
        shown = len(rows)
        while shown > 1 and not _fits(console, _tasks_table(table, rows[:shown])):
            shown -= 1
        console.print(_tasks_table(table, rows[:shown]))
        rows = rows[shown:]


def _tasks_table(table: Comparison, rows: list[Row]) -> Table:
    grid = _empty_table()
    grid.add_column("task", overflow="fold")
    for row in rows:
        grid.add_column(_name_cell(row), justify="right", no_wrap=True)
    for task in table.tasks:
        grid.add_row(_task_heading(task), *(_score_cell(task, row, table) for row in rows))
    return grid


def _empty_table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold")


def _fits(console: Console, grid: Table) -> bool:
    wanted = console.measure(grid, options=console.options.update(max_width=100_000)).maximum
    return wanted <= console.width


def _task_heading(task: ScoredTask) -> Text:
    from rich.text import Text

    return Text(f"{task.name}\n{task.metric} {'↑' if task.higher_is_better else '↓'}")


def _name_cell(row: Row) -> Text:
    from rich.text import Text

    text = Text(row.name)
    seeds = f"{len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}"
    text.append(f"\n{seeds}", style="yellow" if len(row.seeds) < FEW_SEEDS else "dim")
    return text


def _score_cell(task: ScoredTask, row: Row, table: Comparison, digits: int = 4) -> Text:
    from rich.text import Text

    score = row.scores[task.name]
    places = decimals([other.scores[task.name].value.mean for other in table.rows], digits)
    text = Text(_with_half_width(score, places))
    if score.difference is not None and score.verdict is not None:
        mark, style = MARKS[score.verdict]
        text.append("\n")
        text.append(f"{signed(score.difference.mean, places)} {mark}".strip(), style=style or "dim")
    return text


def _with_half_width(score: TaskScore, places: int) -> str:
    if score.value.half_width is None:
        return fixed(score.value.mean, places)
    return f"{fixed(score.value.mean, places)} ±{fixed(score.value.half_width, places)}"


def _delta_cell(row: Row) -> Text:
    from rich.text import Text

    if row.delta is None:
        return Text("baseline" if row.is_baseline else UNDEFINED, style="dim")
    value = row.delta.estimate
    text = Text(percent(value.mean), style="bold")
    if value.low is not None and value.high is not None:
        text.append(f"\n{percent_range(value.low, value.high)}", style="dim not bold")
    elif value.mean is not None:
        text.append("\nno interval", style="dim not bold")
    return text


def _worse_cell(row: Row) -> Text:
    from rich.text import Text

    if row.delta is None:
        return Text("")
    if not row.judged:
        return Text("?", style="dim")
    return Text(f"{len(row.worse)} of {row.judged}")
