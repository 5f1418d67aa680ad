"""The merges of experts, small: trained once, merged and scored, and told in words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.expert_merges import grafts, measure, page
from benchmarks.expert_merges.apart import MergeFailed, merged_apart
from benchmarks.expert_merges.scoring import ByLength, Scorer, scaled
from benchmarks.expert_merges.settings import ROOMS, SCALES, SETTINGS, Method, methods_for
from tests.training.runs import job

from polytask.core.errors import CheckpointError, UnknownName
from polytask.merging.contract import method_names
from polytask.tasks.examples import Examples, Ragged

SMALL = {
    "tasks": {"click": "binary", "topic": "multiclass"},
    "data__drop": ["buy", "price"],
    "train__epochs": None,
    "train__steps": 5,
}
METHODS = ["task_arithmetic", "ties", "passthrough"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str], Path]:
    place, lines = tmp_path_factory.mktemp("work") / "small", []
    results = measure.measure(job(**SMALL), place, METHODS, lines.append)
    return json.loads(json.dumps(results)), lines, place


def test_another_density_is_on_the_other_side() -> None:
    assert SCALES[0] == 1.0
    assert len(SCALES) == SETTINGS
    assert Method("ties").other_parameters() == {"density": 0.5}
    assert Method("dare_linear").other_parameters() == {"density": 0.2}
    assert Method("linear").other_parameters() == Method("upgrad").other_parameters() == {}


def test_methods_that_merge_fewer_models_are_left_out_with_the_reason() -> None:
    methods, left_out = methods_for(["a", "b", "c"], ROOMS)
    chosen = [method.name for method in methods]
    assert set(chosen) | set(left_out) == set(method_names())
    assert "allowed: 2" in left_out["slerp"]
    assert methods_for(["a", "b"], ["balancing", "ties"])[0][-1] == Method("ties")
    assert Method("graddrop") in methods_for(["a", "b"], ["balancing"])[0]
    assert Method("tsv_m") not in methods_for(["a", "b"], ["balancing"])[0]
    (learned,), _ = methods_for(["a", "b"], [{"kind": "adamerging", "steps": 3, "data": {"rows": 8}}])
    assert (learned.name, learned.data, learned.other_parameters()) == ("adamerging steps=3", {"rows": 8}, {})
    with pytest.raises(UnknownName, match="no parameter 'step'"):
        methods_for(["a", "b"], [{"kind": "adamerging", "step": 3}])
    assert {"ties", "upgrad", "mean", "tsv_m"} <= set(chosen)


def test_lengths_are_of_the_vector_and_leave_heads_alone() -> None:
    base, merged = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 0.0]), "head": torch.tensor([5.0])}
    assert torch.equal(scaled(base, merged, 0.5)["w"], torch.tensor([1.5, 1.0]))
    assert torch.equal(scaled(base, merged, 2.0)["w"], torch.tensor([3.0, -2.0]))
    assert torch.equal(scaled(base, merged, 2.0)["head"], merged["head"])


def test_rows_come_by_length_and_each_once() -> None:
    tokens = Ragged(torch.arange(9), torch.tensor([0, 4, 5, 7, 9]))
    rows = Examples({"input_ids": tokens}, {}, {}, torch.arange(4), "data")
    batches = list(ByLength(rows).batches(2))
    assert [batch.rows.tolist() for batch in batches] == [[1, 2], [3, 0]]
    assert [batch.inputs["input_ids"].shape[1] for batch in batches] == [2, 4]


def test_what_is_measured(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    results, lines, _ = measured
    assert [row["name"] for row in results["rows"]] == ["task_arithmetic", "ties"]
    assert list(results["left_out"]) == ["passthrough"]
    assert all(len(row["tried"]) == results["settings_tried"] for row in results["rows"])
    for row in results["rows"]:
        best = max(one["score"] for one in row["tried"])
        assert measure.share(row["valid"], page._experts(results, "valid")) == pytest.approx(best)
        assert {key: row["settings"].get(key) for key in row["settings"]} in [
            {key: value for key, value in one.items() if key != "score"} for one in row["tried"] if one["score"] == best
        ]
        assert list(row["test"]) == ["click", "topic"]
        assert row["seconds"] > 0
    assert results["beside"]["tall_masks"]["bytes"] > 0
    assert any("run 3 of 3: joint" in line for line in lines)


def test_experts_tuned_and_merged_in_turn_stand_beside_the_methods(
    measured: tuple[dict[str, Any], list[str], Path],
) -> None:
    results, _, place = measured
    rounds = list(next(place.parent.glob("alternating-*")).glob("round-*"))
    assert results["beside"]["atm"]["rounds"] == len(rounds) == measure.ROUNDS
    assert "| tuning and merging in turn (ATM) |" in page.blocks(results)[2]


def test_other_seeds_stand_in_a_column(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    results, _, place = measured
    lines: list[str] = []
    other = measure.measure(job(**SMALL, train__seed=1), place.parent / "seed-1", ["ties"], lines.append, alone=False)
    assert other["beside"] == {}
    assert any("run 2 of 2: topic" in line for line in lines)
    assert other["tasks"] != results["tasks"]
    together = page.joined(results, {"other_seeds": [other]})
    _, orderings, table, caption, _ = page.blocks(together)
    head, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    column = head.index("mean of two seeds (lowest, highest)")
    found = {line[0]: line[column] for line in cells}
    means = [page._mean(each, next(row for row in each["rows"] if row["name"] == "ties")) for each in (results, other)]
    mean, low, high = (page._percent(value) for value in (sum(means) / 2, min(means), max(means)))
    assert found["`ties`"] == f"{mean} ({low}, {high})"
    assert found["`task_arithmetic`"] == ""
    assert len({len(line) for line in cells}) == 1
    assert "those of 1 too" in caption
    both = json.loads(json.dumps(together))
    both["other_seeds"][0]["rows"] += [{**other["rows"][0], "name": "task_arithmetic"}]
    assert "`ties` beats `task_arithmetic` (arXiv:2306.01708): not told apart here, " in page.blocks(both)[1]
    assert " over two seeds." in page.blocks(both)[1]
    assert " over two seeds." not in orderings


def test_a_merge_that_fails_tells_polytasks_own_line(tmp_path: Path) -> None:
    with pytest.raises(MergeFailed, match="did you mean 'ties'"):
        merged_apart({"tasks": {"a": "a"}, "rule": "tyes"}, tmp_path / "out")


def test_a_scorer_gives_the_experts_their_own_scores(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    results, _, place = measured
    scorer = Scorer(job(**SMALL))
    base, experts = (next(place.parent.glob("experts-*")) / name for name in ("base", "experts"))
    for task, about in results["tasks"].items():
        weights = {**measure.weights_of(base), **measure.weights_of(experts / task)}
        for split in ("valid", "test"):
            assert scorer(weights, split, [task]) == pytest.approx({task: about[split]})


def test_what_is_finished_is_not_done_again(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    results, _, place = measured
    lines: list[str] = []
    again = measure.measure(job(**SMALL), place, METHODS, lines.append)
    assert json.loads(json.dumps(again)) == results
    assert not any("task_arithmetic" in line for line in lines)


def test_the_words_tell_what_was_measured(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    results, _, _ = measured
    sentences, orderings, table, caption, left_out = page.blocks(results)
    assert "2 methods merged the experts of click and topic" in sentences
    assert "`ties` beats `task_arithmetic` (arXiv:2306.01708): " in orderings
    assert len(table.splitlines()) == 2 + 1 + len(results["beside"]) + 2
    assert "One seed of experts (seed 0)" in caption
    assert "`passthrough` (" in left_out
    better = json.loads(json.dumps(results))
    ties = next(row for row in better["rows"] if row["name"] == "ties")
    for split in ("valid", "test"):
        ties[split] = {task: 2 * about[split] for task, about in better["tasks"].items()}
    assert "`ties` leads; it keeps 200.0 %" in page.blocks(better)[0]
    assert "`ties` beats `task_arithmetic` (arXiv:2306.01708): so it is here, 200.0 % beside " in page.blocks(better)[1]
    ties["test"] = next(row for row in better["rows"] if row["name"] == "task_arithmetic")["test"]
    assert "`ties` beats `task_arithmetic` (arXiv:2306.01708): not told apart here" in page.blocks(better)[1]


def test_grafts_are_told_beside_what_their_paper_reports(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    results = json.loads(json.dumps(measured[0]))
    assert "A graft of" not in page.blocks(results)[1]
    results["rows"][0] |= {"name": "graft steps=60", "test": dict.fromkeys(results["tasks"], 0.0)}
    assert "one task at a time): **not so here**, 0.0 % where the grafts" in page.blocks(results)[1]
    results["rows"][0]["test"] = {task: about["test"] for task, about in results["tasks"].items()}
    assert "one task at a time): so it is here, 100.0 % where the grafts" in page.blocks(results)[1]


def test_more_methods_join_only_on_the_same_experts(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    results, _, _ = measured
    more = {**results, "rows": [{**results["rows"][0], "name": "other"}], "left_out": {"ties": "a reason"}}
    together = page.joined(results, more)
    assert [row["name"] for row in together["rows"]] == ["other", "task_arithmetic", "ties"]
    assert list(together["left_out"]) == ["passthrough"]
    with pytest.raises(CheckpointError, match="the experts' scores differ"):
        page.joined(results, {**more, "tasks": {}})


GRAFTS = (
    {"kind": "trim", "density": 1.0},
    {"kind": "trim", "density": 0.05},
    {"kind": "graft", "density": 0.05, "steps": 2, "tasks": ["topic"]},
)


def test_each_expert_is_grafted_alone(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    _, _, place = measured
    lines: list[str] = []
    found = json.loads(json.dumps(grafts.measure(job(**SMALL), place.parent / "grafts", GRAFTS, lines.append)))
    whole, largest, learned = found["rows"]
    assert (whole["name"], learned["name"]) == ("trim density=1", "graft density=0.05 steps=2")
    for task, about in found["tasks"].items():
        assert about["expert"] == pytest.approx({split: measured[0]["tasks"][task][split] for split in about["expert"]})
        assert {split: whole["tasks"][task][split] for split in about["expert"]} == pytest.approx(about["expert"])
    assert list(largest["tasks"]) == ["click", "topic"]
    assert list(learned["tasks"]) == ["topic"]
    assert learned["tasks"]["topic"]["steps"] == 2
    assert found["commits_of_runs"]
    assert any("topic" in line for line in lines)
    found["rows"] = [{**row, "density": page.OF_GRAFTS} for row in (largest, learned)]
    together = page.joined(measured[0], found)
    _, orderings, *_, caption, table = page.blocks(together)
    assert "accuracy (arXiv:2302.06600, one task at a time): " in orderings
    assert " on average over topic after 2 steps, each graft alone on the base, beside " in orderings
    assert "16 a step and 2 steps" in caption
    assert len(table.splitlines()) == 2 + 3
    found["tasks"]["topic"]["expert"]["test"] += 0.1
    with pytest.raises(CheckpointError, match="the scores of topic differ"):
        page.joined(measured[0], found)


def test_a_graft_of_no_kind_is_refused(measured: tuple[dict[str, Any], list[str], Path]) -> None:
    _, _, place = measured
    with pytest.raises(UnknownName, match="did you mean 'graft'"):
        grafts.measure(job(**SMALL), place.parent / "grafts", [{"kind": "grafts", "density": 0.1}], print)
