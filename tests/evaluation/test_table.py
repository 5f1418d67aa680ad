"""The comparison and its writers."""

import csv
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from polytask.core.errors import CheckpointError, UnknownName
from polytask.evaluation.console import print_comparison
from polytask.evaluation.delta import Verdict
from polytask.evaluation.table import Comparison, comparison
from polytask.evaluation.writers import csv_text, latex_text, markdown_text


def results(**changes: Any) -> dict[str, Any]:
    """Two tasks, a baseline and two variants with hand-made values over three seeds."""

    def row(name: str, accuracy: list[float | None], rmse: list[float | None], score: float) -> dict[str, Any]:
        runs = [
            {
                "seed": seed,
                "learning_rate": 0.001,
                "valid": {"a": 0.5, "b": 1.0},
                "test": {"a": x, "b": y},
                "score": score,
                "steps": 100,
                "seconds": 10.0 if name == "single" else 4.0,
                "peak_memory_mb": None,
                "parameters": 2000 if name == "single" else {"total": 1000, "shared": 900, "private": {}},
                "run": f"runs/{name}",
            }
            for seed, (x, y) in enumerate(zip(accuracy, rmse, strict=True))
        ]
        return {"name": name, "rule": "equal", "sharing": "hard", "variation": {}, "runs": runs}

    return {
        "kind": "compare",
        "tasks": {
            "a": {"kind": "binary", "metric": "accuracy", "higher_is_better": True},
            "b": {"kind": "regression", "metric": "rmse", "higher_is_better": False},
        },
        "baseline": "single",
        "budget": {"steps": 100, "learning_rates": [0.001], "seeds": [0, 1, 2]},
        "rows": [
            row("single", [0.50, 0.52, 0.48], [2.0, 2.0, 2.0], 0.1),
            row("good_a", [0.60, 0.62, 0.581], [2.2, 2.3, 2.25], 0.3),
            row("unsure", [0.50, 0.55, 0.45], [2.0, None, 1.9], 0.2),
        ],
        **changes,
    }


@pytest.fixture
def table() -> Comparison:
    return comparison(results())


def test_verdicts_and_delta_m(table: Comparison) -> None:
    good = table.rows[1]
    assert good.scores["a"].verdict is Verdict.BETTER
    assert good.scores["b"].verdict is Verdict.WORSE
    assert good.worse == ("b",)
    assert good.delta is not None
    # a: mean 0.600333 against 0.5 is +20.0667 %; b: mean 2.25 against 2, lower is better, is -12.5 %.
    assert good.delta.estimate.mean == pytest.approx((20.066667 - 12.5) / 2, abs=1e-5)
    assert table.chosen is good
    assert table.baseline_row is not None
    assert table.baseline_row.delta is None


def test_undefined_is_left_out_and_said(table: Comparison) -> None:
    unsure = table.rows[2]
    assert unsure.delta is not None
    assert unsure.delta.tasks == ("a",)
    assert unsure.scores["b"].value.undefined == 1
    assert any("unsure: delta-m is over 1 of 2 tasks" in note for note in table.notes)
    assert any("Only 3 seeds" in note for note in table.notes)


def test_costs_are_means_and_a_missing_one_stays_missing(table: Comparison) -> None:
    assert (table.rows[0].seconds, table.rows[1].parameters, table.rows[1].peak_memory_mb) == (10.0, 1000.0, None)


def test_test_scores_choose_nothing() -> None:
    swapped = results()
    for run in swapped["rows"][2]["runs"]:
        run["score"] = 0.9
    chosen = comparison(swapped).chosen
    assert chosen is not None
    assert chosen.name == "unsure"


def test_wrong_results_are_refused() -> None:
    with pytest.raises(CheckpointError, match="kind is 'train'"):
        comparison({"kind": "train"})
    with pytest.raises(UnknownName, match="did you mean 'single'"):
        comparison(results(baseline="singel"))


def test_without_baseline_there_is_no_difference() -> None:
    table = comparison(results(baseline=None))
    assert all(row.delta is None and row.scores["a"].verdict is None for row in table.rows)
    assert next(csv.DictReader(io.StringIO(csv_text(table))))["delta_m"] == ""
    assert table.chosen is not None


def test_csv_has_every_number_in_full(table: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["name"] for row in rows] == ["single", "good_a", "unsure"]
    assert float(rows[1]["b.rmse"]) == pytest.approx(2.25)
    assert rows[1]["b.rmse.verdict"] == "worse"
    assert rows[0]["a.accuracy.difference"] == ""
    delta = table.rows[1].delta
    assert delta is not None
    assert float(rows[1]["delta_m"]) == delta.estimate.mean
    assert rows[1]["peak_memory_mb"] == ""


def test_a_metric_that_is_undefined_prints_as_undefined() -> None:
    content = results()
    for row in content["rows"]:
        for run in row["runs"]:
            run["test"]["b"] = None
    table = comparison(content)
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert {row["b.rmse"] for row in rows} == {"undefined"}
    assert "undefined" in markdown_text(table)
    assert "undefined" in latex_text(table)
    assert "undefined" in printed(table, 100)


def test_latex_is_booktabs_and_escapes_names(table: Comparison) -> None:
    text = latex_text(table)
    assert r"\toprule" in text
    assert r"good\_a" in text
    assert r"$^{+}$" in text
    assert r"$^{-}$" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1


def test_markdown_has_as_many_cells_in_every_row(table: Comparison) -> None:
    lines = [line for line in markdown_text(table).splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1


def test_many_tasks_go_down(run_directories: ModuleType, tmp_path: Path) -> None:
    table = comparison(run_directories.write_compare(tmp_path, seeds=2, tasks=7, rules=("equal",)))
    assert markdown_text(table).startswith("| variant | single | equal |")


def printed(table: Comparison, width: int) -> str:
    written = io.StringIO()
    print_comparison(table, Console(width=width, file=written, force_terminal=False, color_system=None))
    return written.getvalue()


@pytest.mark.parametrize("tasks", [3, 12])
def test_console_fits_and_loses_no_task(run_directories: ModuleType, tmp_path: Path, tasks: int) -> None:
    table = comparison(run_directories.write_compare(tmp_path, seeds=2, tasks=tasks))
    for width in (60, 80, 100, 160):
        text = printed(table, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert all(task.name in text for task in table.tasks)
        assert all(row.name in text for row in table.rows)


def test_console_says_what_it_leaves_out(run_directories: ModuleType, tmp_path: Path) -> None:
    table = comparison(run_directories.write_compare(tmp_path, seeds=5))
    wide, narrow = printed(table, 100), printed(table, 80)
    assert "parameters" in wide
    assert "422 k" in wide
    assert "422 k" not in narrow
    assert "Seconds and parameters do not fit in 80 columns" in narrow


def test_one_seed_is_marked(run_directories: ModuleType, tmp_path: Path) -> None:
    table = comparison(run_directories.write_compare(tmp_path, seeds=1))
    assert all(row.judged == 0 for row in table.rows)
    assert "no interval" in printed(table, 100)
