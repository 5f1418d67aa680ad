"""Every rule beside one: differences, the correction for their number, and what is said of them."""

from typing import Any

import pytest
from scipy.stats import ttest_1samp

from benchmarks import results, rules_table
from polytask.core.errors import CheckpointError

SCORES = {
    "single": [0.70, 0.71, 0.70, 0.71, 0.70],
    "equal": [0.80, 0.81, 0.80, 0.81, 0.80],
    "good": [0.90, 0.911, 0.901, 0.91, 0.90],
    "bad": [0.60, 0.611, 0.601, 0.61, 0.60],
    "same": [0.80, 0.81, 0.80, 0.81, 0.80],
    "unclear": [0.82, 0.80, 0.79, 0.83, 0.80],
}


def compared(scores: dict[str, list[float]]) -> dict[str, Any]:
    """A comparison with one task."""
    rows = [
        {
            "name": name,
            "rule": "equal",
            "sharing": "hard",
            "variation": {},
            "runs": [
                {"seed": s, "learning_rate": 0.1, "valid": {"a": v}, "test": {"a": v}, "score": v, "seconds": 2.0}
                for s, v in enumerate(values)
            ],
        }
        for name, values in scores.items()
    ]
    task = {"kind": "binary", "metric": "auroc", "higher_is_better": True, "role": "target"}
    budget = {"steps": 10, "learning_rates": [0.1, 0.2], "seeds": [0, 1, 2, 3, 4]}
    return {"kind": "compare", "tasks": {"a": task}, "baseline": "single", "budget": budget, "rows": rows}


def recorded(name: str, scores: dict[str, list[float]], **definition: Any) -> dict[str, Any]:
    return {"experiment": name, "definition": {"recipe": "r", **definition}, "results": compared(scores)}


def test_the_verdicts_are_those_of_a_paired_test_with_holms_correction() -> None:
    reference, others = rules_table.lines(compared(SCORES), "equal")
    assert [line.row.name for line in others] == ["good", "unclear", "same", "bad"]
    assert reference.row.name == "equal"
    raw = {
        name: float(ttest_1samp([a - b for a, b in zip(SCORES[name], SCORES["equal"], strict=True)], 0).pvalue)
        for name in ("good", "bad", "unclear")
    }
    smallest, second = sorted([raw["good"], raw["bad"]])
    found = {line.row.name: line.p for line in others}
    assert sorted([found["good"], found["bad"]]) == pytest.approx([4 * smallest, max(4 * smallest, 3 * second)])
    assert found["same"] == 1
    text = rules_table.sentences(reference, others)
    assert "Better than `equal` beyond noise: `good`." in text
    assert "Worse beyond noise: `bad`." in text
    assert "Not different beyond noise: `unclear` and `same`." in text
    made = rules_table.table(reference, others)
    assert "| good | 0.9044 | +0.1004 ±" in made
    assert made.count("▲") == made.count("▼") == 1
    assert "`good`" in rules_table.on_edge(others, compared(SCORES))


def test_holm_is_monotone_and_at_most_one() -> None:
    # 4 * 0.01, 3 * 0.02, 2 * 0.4; the last, 0.5, is not below the one before
    assert rules_table.holm({"a": 0.4, "b": 0.01, "c": 0.02, "d": 0.5, "e": None}) == {
        "a": 0.8,
        "b": 0.04,
        "c": 0.06,
        "d": 0.8,
        "e": None,
    }


def test_one_seed_is_no_verdict() -> None:
    reference, others = rules_table.lines(compared({name: values[:1] for name, values in SCORES.items()}), "equal")
    assert rules_table.sentences(reference, others).startswith("With one seed")


def test_few_seeds_and_scores_near_zero_are_said() -> None:
    few = compared({name: values[:3] for name, values in SCORES.items()})
    assert rules_table.sentences(*rules_table.lines(few, "equal")).endswith(
        "With three seeds only large differences can be told from noise."
    )
    found = compared(SCORES)
    assert "seeds only" not in rules_table.sentences(*rules_table.lines(found, "equal"))
    _, others = rules_table.lines(found, "equal")
    assert "do not rank" not in rules_table.caption(others, found)
    found = compared({**SCORES, "single": [0.0, 0.0, 0.0, 0.0, 0.1]})
    assert "the single-task score of a (0.020), which is not told from zero" in rules_table.caption(others, found)


def test_rows_of_two_results_join_where_all_else_is_the_same() -> None:
    first = recorded("x", {name: SCORES[name] for name in ("single", "equal", "good")})
    more = {name: SCORES[name] for name in ("single", "equal", "bad")}
    together = results.joined([first, recorded("x_more", more)])
    assert [row["name"] for row in together["rows"]] == ["single", "equal", "good", "bad"]
    with pytest.raises(CheckpointError, match="settings differ"):
        results.joined([first, recorded("x_more", more, settings={"train.epochs": 1})])
    with pytest.raises(CheckpointError, match="single has other scores"):
        results.joined([first, recorded("x_more", {**more, "single": [0.7] * 5})])
