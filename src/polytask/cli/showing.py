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
