"""The comparison as CSV (every number in full), LaTeX (booktabs) and Markdown (as in the console)."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from polytask.evaluation.delta import FEW_SEEDS, Estimate, Verdict
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
from polytask.evaluation.table import FORMULA, Comparison, Row, ScoredTask

_MOST_TASKS_ACROSS = 5
_MARKS = {Verdict.BETTER: "▲", Verdict.WORSE: "▼", Verdict.WITHIN_NOISE: "≈"}
_LATEX_MARKS = {Verdict.BETTER: "^{+}", Verdict.WORSE: "^{-}"}
_LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    "▲": r"$\blacktriangle$",
    "Σ": r"$\Sigma$",
    "·": r"$\cdot$",
}


def csv_text(table: Comparison) -> str:
    """One row a variant, numbers in full; a value that does not exist is the word "undefined" or, for a cost, empty."""
    records = [_record(row, table) for row in table.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def markdown_text(table: Comparison) -> str:
    """A pipe table; tasks go down instead of across when there are many."""
    grid = _grid(table, "<br>", lambda text: text.replace("|", r"\|"))
    header, *body = grid
    lines = [_piped(header), _piped(["---", *["---:"] * (len(header) - 1)]), *map(_piped, body)]
    legend = (
        "▲ better, ▼ worse, ≈ within noise: 95 % Student t interval of the differences to the baseline, paired by seed."
    )
    return "\n".join([*lines, "", legend, "", FORMULA, *(f"\n{note}" for note in table.notes)]) + "\n"


def latex_text(table: Comparison) -> str:
    """A booktabs tabular. A superscript + or - says that the interval of the paired differences excludes zero."""
    header, *body = _grid(table, " ", _latex, latex=True)
    lines = [
        "% needs \\usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        _ampersands(header),
        r"\midrule",
        *map(_ampersands, body),
        r"\bottomrule",
        r"\end{tabular}",
        "% mean and 95 % Student t interval over seeds; ^{+} better, ^{-} worse than the baseline, paired by seed",
        f"% {FORMULA}",
        *(f"% {note}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def _record(row: Row, table: Comparison) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": row.name,
        "rule": row.rule,
        "sharing": row.sharing,
        "variation": " ".join(f"{path}={value}" for path, value in row.variation.items()),
        "seeds": len(row.seeds),
        "few_seeds": len(row.seeds) < FEW_SEEDS,
    }
    for task in table.tasks:
        score, column = row.scores[task.name], f"{task.name}.{task.metric}"
        record |= _columns(column, score.value)
        record |= _columns(f"{column}.difference", score.difference)
        record[f"{column}.verdict"] = score.verdict.value if score.verdict else ""
    record |= _columns("delta_m", row.delta.estimate if row.delta else None)
    record["delta_m.tasks"] = len(row.delta.tasks) if row.delta else ""
    record["tasks_worse"] = len(row.worse) if row.judged else ""
    for cost in ("seconds", "steps", "parameters", "peak_memory_mb"):
        value = getattr(row, cost)
        record[cost] = "" if value is None else repr(value)
    record["learning_rates"] = " ".join(repr(rate) for rate in row.learning_rates)
    return record


def _columns(name: str, value: Estimate | None) -> dict[str, str]:
    """Three columns; all empty for the baseline's comparison with itself."""
    if value is None:
        return {name: "", f"{name}.low": "", f"{name}.high": ""}
    numbers = {name: value.mean, f"{name}.low": value.low, f"{name}.high": value.high}
    return {key: UNDEFINED if number is None else repr(number) for key, number in numbers.items()}


def _grid(table: Comparison, break_: str, escape: Any, latex: bool = False) -> list[list[str]]:
    """Header and rows of text; transposed when the tasks would not fit across."""
    arrows = ("$\\uparrow$", "$\\downarrow$") if latex else ("↑", "↓")
    headings = [
        "variant",
        *(f"{escape(t.name)}{break_}{escape(t.metric)} {arrows[not t.higher_is_better]}" for t in table.tasks),
        "$\\Delta m$" if latex else "delta-m",
        *("tasks worse", "time", "parameters", "seeds"),
    ]
    grid = [headings]
    for row in table.rows:
        scores = [_score(task, row, table, break_, escape, latex) for task in table.tasks]
        worse = f"{len(row.worse)} of {row.judged}" if row.judged else "--" if latex else "–"
        costs = [duration(row.seconds), magnitude(row.parameters), str(len(row.seeds))]
        grid.append([escape(row.name), *scores, escape(_delta(row, break_)), worse, *map(escape, costs)])
    if len(table.tasks) > _MOST_TASKS_ACROSS:
        return [list(column) for column in zip(*grid, strict=True)]
    return grid


def _score(task: ScoredTask, row: Row, table: Comparison, break_: str, escape: Any, latex: bool) -> str:
    score = row.scores[task.name]
    places = decimals([other.scores[task.name].value.mean for other in table.rows])
    text = fixed(score.value.mean, places)
    if score.value.half_width is not None:
        text += f" ±{fixed(score.value.half_width, places)}"
    if score.difference is None or score.verdict is None or score.difference.mean is None:
        return str(escape(text))
    if latex:
        mark = _LATEX_MARKS.get(score.verdict)
        return f"{escape(text)}${mark}$" if mark else str(escape(text))
    return str(
        escape(f"{text}{break_}{signed(score.difference.mean, places)} {_MARKS.get(score.verdict, '')}".rstrip())
    )


def _delta(row: Row, break_: str) -> str:
    if row.delta is None:
        return "baseline" if row.is_baseline else UNDEFINED
    value = row.delta.estimate
    if value.low is None or value.high is None:
        return percent(value.mean)
    return f"{percent(value.mean)}{break_}({percent_range(value.low, value.high)})"


def _latex(text: str) -> str:
    return "".join(_LATEX_ESCAPES.get(character, character) for character in text)


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"
