"""The benchmarks: their definitions, the store that only grows, and the documentation that is made from it."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from benchmarks.__main__ import BY_NAME, main
from benchmarks.experiment import COMPARE, Experiment, experiment_names, read_experiment

from benchmarks import (
    distinct_texts,
    experiment,
    pages,
    results,
    running,
    school_boosting,
    school_words,
    trainer_overhead,
    trees,
    words,
)
from polytask.core.errors import BadValue, CheckpointError, Inconsistent, UnknownName
from polytask.core.validation import validated
from polytask.evaluation.table import comparison
from polytask.recipes.reading import read_recipe
from polytask.tasks.data_spec import DataSpec

PROVENANCE = {
    "polytask": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.7",
    "commit": "abc",
    "hardware": "a computer",
    "date": "2026-01-02T03:04:05+00:00",
}


def compared(shared: list[list[float]], seeds: int = 5) -> dict[str, Any]:
    """A comparison of two tasks: single-task models at 0.8 and 0.6, and a shared model with these scores by seed."""

    def row(name: str, scores: list[list[float]], parameters: int) -> dict[str, Any]:
        runs = [
            {
                "seed": seed,
                "learning_rate": 0.1,
                "valid": {"a": 0.5, "b": 0.5},
                "test": {"a": scores[seed][0], "b": scores[seed][1]},
                "score": 0.5,
                "steps": 10,
                "seconds": 2.0,
                "peak_memory_mb": 1.0,
                "parameters": {"total": parameters, "shared": 0, "private": {}},
                "run": f"runs/{name}",
            }
            for seed in range(seeds)
        ]
        return {"name": name, "rule": "equal", "sharing": "hard", "variation": {}, "runs": runs}

    noise = [0.001 * seed for seed in range(seeds)]
    task = {"kind": "binary", "metric": "auroc", "higher_is_better": True, "role": "target"}
    return {
        "kind": "compare",
        "version": 1,
        "tasks": {"a": task, "b": task},
        "baseline": "single",
        "budget": {"steps": 10, "learning_rates": [0.1], "seeds": list(range(seeds))},
        "rows": [row("single", [[0.8 + x, 0.6 + x] for x in noise], 200), row("equal", shared, 100)],
        "provenance": PROVENANCE,
    }


def record(name: str, measured: dict[str, Any], **changes: Any) -> dict[str, Any]:
    provenance = {**PROVENANCE, **changes}
    return {
        "experiment": name,
        "results": measured,
        "hours": 0.1,
        "cores_used_by_others": 0.0,
        "provenance": provenance,
    }


@pytest.mark.parametrize("name", experiment_names())
def test_an_experiment_is_what_polytask_can_run(name: str) -> None:
    about = read_experiment(name)
    if about.recipe is not None:
        recipe = read_recipe(about.recipe, about.settings).recipe
        for rule in about.rules or ():
            read_recipe(recipe.resolved(), {"stages.0.rule": rule})


def test_an_unknown_key_of_an_experiment_is_refused() -> None:
    values = {"title": "t", "about": "a", "minutes": 1, "recipe": "census_income", "rulez": ["equal"]}
    with pytest.raises(UnknownName, match="rules"):
        validated(Experiment, values, "experiments/x.yaml")


def test_an_experiment_beside_another_takes_its_settings_and_may_not_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "FOLDER", tmp_path)
    first = "{title: t, about: a, minutes: 1, recipe: tox21, seeds: 4, rules: [equal, mgda], against: equal}"
    (tmp_path / "first.yaml").write_text(first)
    (tmp_path / "more.yaml").write_text("{title: m, about: b, minutes: 2, beside: first, rules: [equal, pcgrad]}")
    more = read_experiment("more")
    assert (more.recipe, more.seeds, more.against, more.rules) == ("tox21", 4, "equal", ("equal", "pcgrad"))
    assert (more.title, more.minutes) == ("m", 2)
    (tmp_path / "more.yaml").write_text("{title: m, about: b, minutes: 2, beside: first, seeds: 5, rules: [equal]}")
    with pytest.raises(BadValue, match=r"seeds.*those of first"):
        read_experiment("more")
    (tmp_path / "more.yaml").write_text("{title: m, about: b, minutes: 2, beside: first, rules: [pcgrad]}")
    with pytest.raises(Inconsistent, match="'equal' is none of the rules"):
        read_experiment("more")


def test_a_misspelt_experiment_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cenzus"]) == 2
    assert "did you mean 'census'" in capsys.readouterr().err


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    path = results.new_path("census", "2026-01-02", "abc", tmp_path)
    results.append(path, record("census", {"first": 1}))
    with pytest.raises(CheckpointError, match="never overwritten"):
        results.append(path, record("census", {"second": 2}))
    with pytest.raises(CheckpointError, match="never overwritten"):
        results.new_path("census", "2026-01-02", "abc", tmp_path)
    newest = results.newest("census", tmp_path)
    assert newest is not None
    assert newest["results"] == {"first": 1}


def test_the_newest_result_is_the_one_measured_last(tmp_path: Path) -> None:
    for commit, date in (("b", "2026-01-02T05:00:00+00:00"), ("a", "2026-01-02T06:00:00+00:00")):
        path = results.new_path("census", "2026-01-02", commit, tmp_path)
        results.append(path, record("census", {"commit": commit}, date=date))
    newest = results.newest("census", tmp_path)
    assert newest is not None
    assert newest["results"] == {"commit": "a"}


def test_the_documentation_is_what_the_results_say() -> None:
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page(), "make bench ARGS=--tables-only"


@pytest.mark.parametrize("path", pages.MARKED, ids=lambda path: path.name)
def test_other_pages_are_what_the_results_say(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert pages.with_tables(text) == text, "make bench ARGS=--tables-only"


def test_markers_get_the_table_and_the_rest_stays(tmp_path: Path) -> None:
    path = results.new_path("census", "2026-01-02", "abc", tmp_path)
    results.append(path, record("census", compared([[0.9, 0.7]] * 5)))
    text = "before\n<!-- benchmarks:census -->\nold\n<!-- end -->\nafter\n"
    made = pages.with_tables(text, tmp_path)
    assert made.startswith("before\n<!-- benchmarks:census -->\n|")
    assert made.endswith("<!-- end -->\nafter\n")
    assert "| networks, one a task | 0.8020 ±0.0020 | 0.6020 ±0.0020 | 2 | 200 | 2.0 s | 5 |" in made
    assert "old" not in made
    assert pages.with_tables(made, tmp_path) == made


def test_architectures_are_judged_beside_hard_sharing_and_beside_single_task_models(tmp_path: Path) -> None:
    path = results.new_path("census_sharing", "2026-01-02", "abc", tmp_path)
    measured = compared([[0.9 + 0.001 * seed, 0.7] for seed in range(5)])
    hard, worse = measured["rows"][1], copy.deepcopy(measured["rows"][1])
    hard["name"], worse["name"] = "hard", "mmoe"
    for run in worse["runs"]:
        run["test"] = {"a": run["test"]["a"] - 0.05 - 0.001 * run["seed"] ** 2, "b": 0.7}
    measured["rows"].append(worse)
    results.append(path, record("census_sharing", measured))
    made = pages.with_tables("<!-- benchmarks:census_sharing -->\n<!-- end -->\n", tmp_path)
    assert "Better than `hard` beyond noise: none. Worse beyond noise: `mmoe`." in made
    assert "better than single-task models" in made


@pytest.mark.parametrize(
    "scores, said",
    [
        ([0.9, 0.7], ["better than single-task models", "No task is made worse beyond noise."]),
        (
            [0.7, 0.5],
            ["**worse than single-task models**", "(negative transfer): `equal` (a and b)", "Below the single"],
        ),
        ([0.9, 0.59], ["(negative transfer): `equal` (b)"]),
        ([0.802, 0.602], ["not different from single-task models beyond noise", "and none better"]),
    ],
)
def test_sentences_say_what_is_worse_too(scores: list[float], said: list[str]) -> None:
    text = words.comparison_sentences(comparison(compared([scores] * 5)))
    assert [part for part in said if part not in text] == []
    assert "0.50 times their parameters" in text


def test_one_seed_claims_nothing() -> None:
    text = words.comparison_sentences(comparison(compared([[0.9, 0.7]], seeds=1)))
    assert "with one seed, so without an interval" in text
    assert "no task can be called better or worse" in text


def test_training_rows_held_out_elsewhere_are_taken_out(tmp_path: Path) -> None:
    spec = DataSpec.model_validate(
        {"split": "split", "sources": {"a": {"table": "a.parquet"}, "b": {"table": "b.parquet"}}}
    )
    a = {"text": ["One .", "two", "three"], "label": [0, 1, 0], "split": ["train", "train", "test"]}
    b = {"text": ["one", "THREE", "four"], "label": [0, 1, 0], "split": ["valid", "train", "train"]}
    for name, columns in (("a", a), ("b", b)):
        pl.DataFrame(columns).write_parquet(tmp_path / f"{name}.parquet")
    assert distinct_texts.prepare(spec, tmp_path, tmp_path / "out") == {"a": 1, "b": 1}
    assert pl.read_parquet(tmp_path / "out/a.parquet")["text"].to_list() == ["two", "three"]
    assert pl.read_parquet(tmp_path / "out/b.parquet")["text"].to_list() == ["one", "four"]


def test_trees_see_training_categories_only() -> None:
    features = pl.DataFrame({"n": [1.0, None, 3.0], "c": ["x", "y", "z"]})
    encoded, categorical = trees.encode(features, np.array([True, True, False]))
    assert categorical == [False, True]
    np.testing.assert_array_equal(encoded[:, 0], [1.0, np.nan, 3.0])
    np.testing.assert_array_equal(encoded[:, 1], [0.0, 1.0, np.nan])


def test_trees_learn_both_tasks(data_dir: Path) -> None:
    grid = {"learning_rate": [0.1], "max_leaf_nodes": [7]}
    found = trees.measure("census_income", data_dir, grid=grid, most_trees=10, rows=5000)
    assert found["features"] == 39
    assert {task: about["test"] > 0.8 for task, about in found["tasks"].items()} == {
        "income": True,
        "never_married": True,
    }


def test_the_trainer_takes_the_steps_of_a_loop_by_hand() -> None:
    assert trainer_overhead.measure(steps=5, rounds=1)["largest_difference_of_weights"] < 1e-5


def test_an_experiment_runs_once_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole small comparison, through the store to the page."""
    settings = {"data.rows": {"train": 64, "valid": 32, "test": 32}, "train.epochs": None, "train.steps": 2}
    changes = {"settings": settings, "rules": ("equal",), "seeds": 2, "learning_rate_multiples": (1.0,)}
    small = read_experiment("multidigits").model_copy(update=changes)
    monkeypatch.setattr(running, "read_experiment", lambda name: small)
    lines: list[str] = []
    path = running.run("multidigits", None, workspace=tmp_path / "work", folder=tmp_path / "results", say=lines.append)
    assert len(lines) == 8  # three single-task models and one shared, two seeds
    measured = results.newest("multidigits", tmp_path / "results")
    assert measured is not None
    assert [row["name"] for row in measured["results"]["rows"]] == ["single", "equal"]
    assert {"commit", "hardware", "date", "torch", "python"} <= set(measured["provenance"])
    assert "runs/" not in path.read_text()
    assert "## Two digits in one image" in pages.page(tmp_path / "results")
    with pytest.raises(CheckpointError, match="never overwritten"):
        running.run("multidigits", None, workspace=tmp_path / "work", folder=tmp_path / "results")


def test_every_comparison_is_expected_to_end_within_the_budget() -> None:
    minutes = {name: read_experiment(name).minutes for name in experiment_names()}
    every_rule = sum(minutes[name] for name in minutes if name.startswith("rules_"))
    sharing = sum(minutes[name] for name in minutes if name.endswith("_sharing"))
    apart = BY_NAME  # not among those that `make bench` runs
    assert all(minutes[name] <= (120 if "experts" in name else 15) for name in apart)
    assert sum(minutes.values()) - every_rule - sharing - sum(minutes[name] for name in apart) <= 90
    assert every_rule <= 180
    assert sharing <= 60
    assert any(read_experiment(name).kind == COMPARE for name in experiment_names())


def test_boosting_on_schools_has_every_row(data_dir: Path) -> None:
    found = school_boosting.measure(data_dir, seeds=2, depths=[2], most_trees=40, schools=6, say=lambda line: None)
    assert found["schools"] == 6
    assert [row["name"] for row in found["rows"]] == list(school_boosting.ROWS)
    for row in found["rows"]:
        assert all(run["test"]["r2"] > 0 for run in row["runs"])
    assert all(len(run["outlier_weights"]) == 6 for run in found["rows"][3]["runs"])
    sentences, table = school_words.blocks(found)
    assert "Of 6 schools " in sentences
    assert table.count("\n| `") == 5
