"""Results as the commands print them."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polytask.cli.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def console() -> "Console":
    """Standard output, as wide as the terminal is (80 columns where there is none, or COLUMNS)."""
    from rich.console import Console

    return Console(highlight=False)


def show_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def show_comparison(results: Mapping[str, Any]) -> None:
    from polytask.evaluation.console import print_comparison
    from polytask.evaluation.table import comparison

    print_comparison(comparison(results), console())


def reused_line(progress: Progress, how: str) -> str:
    """Says so where runs were taken over from an earlier call."""
    if not progress.reused:
        return ""
    runs = "1 run was" if progress.reused == 1 else f"{progress.reused} runs were"
    return f"{runs} finished before and not trained again ({how}).\n"


def show_scores(results: Mapping[str, Any]) -> None:
    """A run's tasks with their metric on validation and test."""
    from polytask.evaluation.formatting import fixed

    table = _table("task", "metric", right=("validation", "test") if results["test"] else ("validation",))
    for task, about in results["tasks"].items():
        name = about["metric"]
        values = [results[split].get(task, {}).get(name) for split in ("valid", "test") if results[split]]
        arrow = "↑" if about["higher_is_better"] else "↓"
        table.add_row(task, f"{name} {arrow}", *(fixed(value, 4) for value in values))
        for source, scores in results.get("test_by_source", {}).get(task, {}).items():
            note = ", held out" if source in about.get("held_out", ()) else ""
            table.add_row(f"  on {source}{note}", "", "", fixed(scores[name], 4), style="dim")
    console().print(table)


def metrics_table(metrics: Mapping[str, Mapping[str, float | None]], targets: Mapping[str, Any]) -> Any:
    """Every metric of every task; the task's own metric first."""
    from polytask.evaluation.formatting import fixed
    from polytask.tasks.metrics import METRICS

    table = _table("task", "metric", right=("value",))
    for task, values in metrics.items():
        for position, (name, value) in enumerate(values.items()):
            arrow = "↑" if METRICS[name].higher_is_better else "↓"
            table.add_row(
                "" if position else task,
                f"{name} {arrow}",
                fixed(value, 4),
                style=None if name == targets[task].task.metric else "dim",
            )
    return table


def _table(*left: str, right: tuple[str, ...] = ()) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold")
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
