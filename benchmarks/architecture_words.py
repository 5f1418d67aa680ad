"""What the costs of the architectures show, in sentences and a table."""

from collections.abc import Mapping
from typing import Any

from polytask.evaluation.formatting import fixed, listed
from polytask.sharing.names import SHARING


def blocks(results: Mapping[str, Any]) -> list[str]:
    """What the page says."""
    return [sentences(results), table(results)]


def sentences(results: Mapping[str, Any]) -> str:
    loops = [
        f"{fixed(about['median'], 2)} of the time for {name} ({fixed(about['low'], 2)} to {fixed(about['high'], 2)})"
        for name, about in results["loops"].items()
    ]
    slower = [name for name, about in results["loops"].items() if about["median"] > 1]
    said = f"Against the same formulas written as loops over experts a step takes {listed(loops)}"
    said += f"; **slower than a loop**: {listed(slower)}." if slower else "; none is slower than a loop."
    said += f" A step of hard sharing takes {fixed(results['hard_ms'][1], 2)} ms here. Brackets: quartiles."
    if "columns" in results:
        said += f" Architectures that read a token a column have {results['columns']} columns, the others 256 numbers."
    beside: dict[str, list[str]] = {}
    for name, about in results["architectures"].items():
        beside.setdefault(about.get("beside", "hard"), []).append(f"`{name}`")
    others = [f"those of {listed(names)} to `{base}`" for base, names in beside.items() if base != "hard"]
    said += f" Ratios are to `hard`, {listed(others)}." if others else ""
    later = [f"`{name}`" for name in SHARING.names() if name not in results["architectures"]]
    return f"{said} Not measured yet: {listed(later)}." if later else said


def table(results: Mapping[str, Any]) -> str:
    """The pipe table: a line an architecture."""
    lines = [
        [
            "architecture",
            "parameters",
            "of one task",
            "multiply-adds a row",
            "for one task of 8",
            "step",
            "one task, forward",
        ],
        ["---", *["---:"] * 6],
    ]
    for name, about in results["architectures"].items():
        lines.append(
            [
                f"`{name}`",
                *(f"{about[key]:,}" for key in ("parameters", "private", "multiply_adds", "multiply_adds_one_task")),
                _ratio(about["step"]),
                _ratio(about["one_task_forward"]),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ratio(about: Mapping[str, float]) -> str:
    return f"{fixed(about['median'], 2)} ({fixed(about['low'], 2)} to {fixed(about['high'], 2)})"
