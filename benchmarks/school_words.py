"""What boosting on schools shows, in sentences and a table."""

from collections.abc import Mapping
from typing import Any

from benchmarks.school_boosting import ROWS
from polytask.evaluation.delta import Estimate, Verdict, estimate, paired_differences, verdict
from polytask.evaluation.formatting import counted, duration, fixed, in_words, listed

REFERENCE = "pooled"
_SAID = {
    Verdict.BETTER: "better than",
    Verdict.WORSE: "**worse** than",
    Verdict.WITHIN_NOISE: "not different beyond noise from",
    Verdict.ONE_SEED: "with one seed not to be told from",
}


def blocks(results: Mapping[str, Any]) -> list[str]:
    """What the page says."""
    return [sentences(results), table(results)]


def sentences(results: Mapping[str, Any]) -> str:
    """How the robust ensemble stands beside each other row, and how many schools it takes for outliers."""
    rows = {row["name"]: row["runs"] for row in results["rows"]}
    verdicts = {name: _verdict(rows["robust"], rows[name]) for name in rows if name != "robust"}
    said = [
        f"{_SAID[found]} {listed(f'`{name}`' for name in verdicts if verdicts[name] is found)}"
        for found in _SAID
        if found in verdicts.values()
    ]
    outlying = [_nearer_to_the_greatest(run["outlier_weights"]) for run in rows["robust"]]
    count = in_words(outlying[0]) if len(set(outlying)) == 1 else f"{min(outlying)} to {max(outlying)}, by the seed,"
    return (
        f"By its RMSE over the test part of all {results['pupils']:,} pupils `robust` is {listed(said)} (paired by "
        f"seed). Of {results['schools']} schools {count} have an outlier weight nearer to the greatest than to the "
        "least."
    )


def table(results: Mapping[str, Any]) -> str:
    """The pipe table: a line a row."""
    rows = {row["name"]: row["runs"] for row in results["rows"]}
    lines = [
        ["", "what", "RMSE", "R2", "mean RMSE of a school", f"RMSE beside `{REFERENCE}`", "time, the choice included"],
        ["---", "---", *["---:"] * 5],
    ]
    for name, runs in rows.items():
        difference = estimate(paired_differences(_errors(runs), _errors(rows[REFERENCE])))
        lines.append(
            [
                f"`{name}`",
                ROWS[name],
                *(_value(estimate([run["test"][key] for run in runs]), 3) for key in ("rmse", "r2", "school_rmse")),
                "–" if name == REFERENCE else _value(difference, 3),
                duration(sum(run["seconds"] for run in runs) / len(runs)),
            ]
        )
    piped = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{piped}\n\nMeans over {counted(len(rows[REFERENCE]), 'seed')} ± half of the 95 % Student t interval."


def _nearer_to_the_greatest(weights: list[float]) -> int:
    return sum(weight > (min(weights) + max(weights)) / 2 for weight in weights)


def _verdict(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> Verdict:
    return verdict(estimate(paired_differences(_errors(runs), _errors(others))), higher_is_better=False)


def _errors(runs: list[dict[str, Any]]) -> dict[int, float | None]:
    return {run["seed"]: run["test"]["rmse"] for run in runs}


def _value(value: Estimate, places: int) -> str:
    text = fixed(value.mean, places)
    return text if value.half_width is None else f"{text} ±{fixed(value.half_width, places)}"
