"""Every rule beside one of them: who is better beyond noise, with a correction for how many were tried."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polytask.core.rules import find
from polytask.evaluation.delta import FEW_SEEDS, Estimate, estimate, paired_differences
from polytask.evaluation.formatting import counted, fixed, in_words, listed, percent, signed
from polytask.evaluation.table import Row, comparison

LEVEL = 0.05


@dataclass(frozen=True)
class Line:
    """One row beside the row `against`.

    Attributes:
        row: of the comparison.
        score: the mean of the tasks' test metrics, over seeds.
        difference: of these, paired by seed.
        p: Student's two-sided p of the differences, corrected by Holm's procedure for the number of lines; None with
            fewer than two seeds.
    """

    row: Row
    score: Estimate
    difference: Estimate
    p: float | None

    @property
    def name(self) -> str:
        """The row's; of one with many parameters its beginning."""
        return self.row.name if len(self.row.name) <= 60 else f"{self.row.name[:40]} …"

    @property
    def is_beyond_noise(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def excludes_zero(self) -> bool:
        """Whether the uncorrected interval does."""
        return not self.difference.low <= 0 <= self.difference.high if self.difference.half_width is not None else False


def lines(results: Mapping[str, Any], against: str) -> tuple[Line, list[Line]]:
    """The line of `against`, and the other variants' by their difference on the test split, the best first."""
    table = comparison(results)
    signs = {task.name: 1 if task.higher_is_better else -1 for task in table.tasks}
    scores = {row["name"]: _by_seed(row["runs"], signs) for row in results["rows"]}
    rows = {row.name: row for row in table.variants}
    differences = {name: paired_differences(scores[name], scores[against]) for name in rows if name != against}
    corrected = holm({name: p_value(values) for name, values in differences.items()})
    made = {
        name: Line(
            rows[name],
            estimate(list(scores[name].values())),
            estimate(values),
            corrected[name],
        )
        for name, values in differences.items()
    }
    reference = Line(rows[against], estimate(list(scores[against].values())), Estimate(0.0, None, 0), None)
    return reference, sorted(made.values(), key=lambda line: -_number(line.difference.mean))


def p_value(differences: Sequence[float | None]) -> float | None:
    """Of Student's two-sided test that their mean is 0; 1 where all are 0, None where there are fewer than two."""
    found = estimate(differences)
    if found.mean is None or found.half_width is None:
        return None
    if found.half_width == 0:
        return 1.0 if found.mean == 0 else 0.0
    from scipy.special import stdtr, stdtrit

    deviation = found.half_width / float(stdtrit(found.count - 1, 0.975))
    return 2 * float(stdtr(found.count - 1, -abs(found.mean) / deviation))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction (1979): the chance of any false claim among all is at most the level.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = {name: p for name, p in p_values.items() if p is not None}
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    least = 0.0
    for place, name in enumerate(sorted(known, key=lambda name: known[name])):
        least = max(least, min(1.0, (len(known) - place) * known[name]))
        corrected[name] = least
    return corrected


def sentences(reference: Line, others: Sequence[Line]) -> str:
    """Which rows are better or worse beyond noise, and which are not, said plainly."""
    against = f"`{reference.row.name}`"
    if not others or all(line.p is None for line in others):
        return f"With one seed no row can be called better or worse than {against}."
    better = [line for line in others if line.is_beyond_noise and _number(line.difference.mean) > 0]
    worse = [line for line in others if line.is_beyond_noise and _number(line.difference.mean) < 0]
    rest = [line for line in others if not line.is_beyond_noise]
    likely = sum(line.excludes_zero and _number(line.difference.mean) > 0 for line in rest)
    said = [
        f"Better than {against} beyond noise: {_names(better)}.",
        f"Worse beyond noise: {_names(worse)}.",
        f"Not different beyond noise: {_names(rest)}.",
    ]
    if likely:
        tried = counted(len(others), "comparison")
        said.append(f"Without the correction for {tried}, {likely} of these would be called better.")
    seeds = len(reference.row.seeds)
    if seeds < FEW_SEEDS:
        said.append(f"With {in_words(seeds)} seeds only large differences can be told from noise.")
    return " ".join(said)


def table(reference: Line, others: Sequence[Line]) -> str:
    """The pipe table."""
    head = ["rule", "mean score", f"difference to `{reference.row.name}`", "p", "delta-m", "learning rate", "reads"]
    body = [head, ["---", *["---:"] * (len(head) - 1)]]
    placed = sorted([reference, *others], key=lambda line: -_number(line.difference.mean))
    body += [_cells(line, line is reference) for line in placed]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in body)


def _cells(line: Line, is_reference: bool) -> list[str]:
    rates = " ".join(f"{rate:.2g}" for rate in line.row.learning_rates)
    delta = line.row.delta.estimate.mean if line.row.delta else None
    if is_reference:
        difference, p = "–", "–"
    else:
        half = "" if line.difference.half_width is None else f" ±{fixed(line.difference.half_width, 4)}"
        sign = {True: "▲" if _number(line.difference.mean) > 0 else "▼", False: "≈"}[line.is_beyond_noise]
        difference = f"{signed(line.difference.mean, 4)}{half} {sign if line.p is not None else '·'}"
        p = "–" if line.p is None else f"{line.p:.2g}" if line.p >= 0.0001 else "<0.0001"
    reads = " and ".join(find(line.row.rule).needs)
    name = f"**{line.name}**" if is_reference else line.name
    return [name, fixed(line.score.mean, 4), difference, p, percent(delta), rates, reads]


def caption(others: Sequence[Line], results: Mapping[str, Any]) -> str:
    """How the table is to be read."""
    seeds = counted(len(results["budget"]["seeds"]), "seed")
    tried = counted(len(others), "comparison")
    return (
        "The mean score is that of the tasks' test metrics. Differences to the row in bold are paired by seed, ± half "
        f"of the uncorrected 95 % Student t interval over {seeds}. p is Student's, corrected by Holm's procedure for "
        f"{tried}; ▲ and ▼ mark corrected p below {LEVEL:g}, ≈ the others. What varies with the seed is the "
        "initialisation and the order of the rows: the split is always the same. delta-m is beside single-task models. "
        "A rule that reads losses takes one backward pass a step; gram and stack take one a task, cross_gram two. "
        "Every rule has its default parameters, except where its name says otherwise."
        f"{_small_baselines(results)}"
    )


def _small_baselines(results: Mapping[str, Any]) -> str:
    """delta-m divides by the single-task scores: one that cannot be told from zero makes it mean nothing."""
    table = comparison(results)
    scores = {} if table.baseline_row is None else table.baseline_row.scores
    values = {task: score.value for task, score in scores.items() if score.value.low is not None}
    small = [f"{task} ({fixed(value.mean, 3)})" for task, value in values.items() if value.low <= 0 <= value.high]
    if not small:
        return ""
    return (
        f" delta-m divides by the single-task score of {listed(small)}, which is not told from zero: do not rank by it."
    )


def on_edge(others: Sequence[Line], results: Mapping[str, Any]) -> str:
    """A learning rate at the end of the grid may not be the best there is."""
    rates = results["budget"]["learning_rates"]
    ends = {"lowest": rates[0], "highest": rates[-1]}
    found = []
    for which, rate in ends.items():
        names = [line.name for line in others if any(math.isclose(rate, one) for one in line.row.learning_rates)]
        if names and len(rates) > 1:
            found.append(f"{listed(f'`{name}`' for name in names)} chose the {which} learning rate of the grid.")
    return " ".join(found)


def _by_seed(runs: Sequence[Mapping[str, Any]], signs: Mapping[str, int]) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for run in runs:
        values = [run["test"].get(task) for task in signs]
        defined = [sign * value for sign, value in zip(signs.values(), values, strict=True) if value is not None]
        found[run["seed"]] = sum(defined) / len(defined) if len(defined) == len(signs) else None
    return found


def _names(chosen: Sequence[Line]) -> str:
    return listed(f"`{line.name}`" for line in chosen) if chosen else "none"


def _number(value: float | None) -> float:
    return -math.inf if value is None else value
