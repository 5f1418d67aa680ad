"""Tuning and merging in turn: each round starts where the last one merged, and the rounds share the job's steps."""

from pathlib import Path

import pytest
import torch
from tests.training.runs import job

from polytask.checkpoints import read_checkpoint, resolve
from polytask.checkpoints.directory import read_json
from polytask.core.errors import BadValue
from polytask.studies.alternating import alternate

SMALL = {"tasks": {"click": "binary", "topic": "multiclass"}, "data__drop": ["buy", "price"]}
STEPS = {"train__epochs": None, "train__steps": 5}


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(resolve(run)).tensors())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("atm") / "out"
    assert alternate(job(**SMALL, **STEPS), out, rounds=2, coefficient=0.8) == out / "round-2" / "merged"
    return out


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_adds_the_mean_of_its_task_vectors_times_the_coefficient(done: Path, number: int) -> None:
    place = done / f"round-{number}"
    base, merged = tensors(place / "base"), tensors(place / "merged")
    experts = [tensors(place / "experts" / task) for task in SMALL["tasks"]]
    shared = [name for name in merged if not name.startswith("heads.")]
    assert any(not torch.equal(merged[name], base[name]) for name in shared)
    for name in shared:
        wanted = base[name] + 0.8 * (sum(own[name] for own in experts) / 2 - base[name])
        torch.testing.assert_close(merged[name], wanted)


def test_a_round_starts_from_the_last_merge_with_its_heads_and_other_rows(done: Path) -> None:
    merged, base = tensors(done / "round-1" / "merged"), tensors(done / "round-2" / "base")
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], base[name]) for name in base)
    runs = [read_json(done / f"round-{number}" / "experts/click/results.json") for number in (1, 2)]
    assert [run["steps"] for run in runs] == [2, 3]
    assert runs[0]["seed"] != runs[1]["seed"]


def test_one_round_is_merging_once(done: Path, tmp_path: Path) -> None:
    once = alternate(job(**SMALL, **{**STEPS, "train__steps": 2}), tmp_path / "out", rounds=1, rule="ties")
    experts = done / "round-1" / "experts"
    for task in SMALL["tasks"]:
        own, same = tensors(tmp_path / "out/round-1/experts" / task), tensors(experts / task)
        assert all(torch.equal(own[name], same[name]) for name in same)
    assert read_checkpoint(once).card["rule"] != read_checkpoint(done / "round-1/merged").card["rule"]


@pytest.mark.parametrize("rounds, settings", [(0, STEPS), (6, STEPS), (1, {"train__epochs": 1})])
def test_rounds_that_the_steps_do_not_allow(rounds: int, settings: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="rounds"):
        alternate(job(**SMALL, **settings), tmp_path / "out", rounds=rounds)
    assert not (tmp_path / "out").exists()
