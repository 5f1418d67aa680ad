"""What a store costs in accuracy, told for models that say where their rows are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import polytask
from cli.small_recipe import recipe, table
from polytask.checkpoints import verify_checkpoint
from polytask.evaluation.trained import load
from polytask.merging.stores.packing import pack
from polytask.merging.stores.unpacking import get
from polytask.recipes.stored import scores_kept


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and an expert on two of its tasks that started from it, on a table beside them."""
    folder = tmp_path_factory.mktemp("runs")
    table().write_csv(folder / "x.csv")
    tasks = {task: recipe()["tasks"][task] for task in ("sold", "price")}
    data = {**recipe()["data"], "drop": ["size"]}
    train = {**recipe()["train"], "steps": 20}
    for name, start in (("base", None), ("expert", str(folder / "base" / "best"))):
        model = {**recipe()["model"], "init_from": start}
        polytask.train(recipe(tasks=tasks, data=data, model=model, train=train), out=folder / name, data_dir=folder)
    return folder


def packed(runs: Path, out: Path, **settings: Any) -> dict[str, Any]:
    tasks = {"expert": str(runs / "expert")}
    found = pack(str(runs / "base"), tasks, out, kind="sparse", settings=settings)
    return scores_kept(out, found["paths"], data_dir=runs)["expert"]


def test_the_scores_are_those_of_the_models_before_and_after(runs: Path, tmp_path: Path) -> None:
    whole = packed(runs, tmp_path / "whole", density=1.0)
    assert list(whole) == ["sold", "price"]
    results = load(runs / "expert").card["metrics"]["valid"]
    for task, about in whole.items():
        assert about["before"] == about["after"] == pytest.approx(results[task])
    part = packed(runs, tmp_path / "part", density=0.02)
    get(tmp_path / "part", "expert", tmp_path / "again")
    rows = table().filter(table()["split"] == "valid")
    scored = load(tmp_path / "again").evaluate(rows)
    for task, about in part.items():
        assert about["after"] == pytest.approx(scored[task][about["metric"]])
        assert about["before"] == whole[task]["before"]
    assert part["price"]["higher_is_better"]
    assert part["price"]["after"] < part["price"]["before"]


def test_a_model_that_came_back_is_a_checkpoint_that_says_so(runs: Path, tmp_path: Path) -> None:
    packed(runs, tmp_path / "store", density=0.5)
    get(tmp_path / "store", "expert", tmp_path / "again")
    checkpoint = verify_checkpoint(tmp_path / "again")
    assert checkpoint.card["stored"]["kind"] == "sparse"
    assert checkpoint.card["metrics"] == {}
    assert "state.safetensors" not in checkpoint.card["files"]


def test_what_cannot_be_scored_says_why(runs: Path, tmp_path: Path) -> None:
    found = pack(str(runs / "base"), {"expert": str(runs / "expert")}, tmp_path / "store")
    gone = scores_kept(tmp_path / "store", found["paths"], data_dir=tmp_path)["expert"]
    assert "x.csv" in gone["not_scored"]
    changed = table().with_columns(price=table()["price"] * 2)
    changed.write_csv(tmp_path / "x.csv")
    other = scores_kept(tmp_path / "store", found["paths"], data_dir=tmp_path)["expert"]
    assert "are not those that it was trained on" in other["not_scored"]


def test_the_command_prints_what_is_kept(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from polytask.cli import app

    line = ["store", "pack", "--base", str(runs / "base"), "--task", f"expert={runs / 'expert'}", "--kind", "low_rank"]
    app([*line, "--set", "rank=2", "--data-dir", str(runs), "--out", str(tmp_path / "s")], standalone_mode=False)
    said = capsys.readouterr().out
    assert "% of the elements in thin factors" in said
    assert "  sold: validation auroc" in said
    assert "% kept" in said
    app([*line, "--no-score", "--out", str(tmp_path / "t")], standalone_mode=False)
    assert "validation" not in capsys.readouterr().out


def test_tensors_are_the_graft(runs: Path, tmp_path: Path) -> None:
    packed(runs, tmp_path / "store", density=0.5)
    get(tmp_path / "store", "expert", tmp_path / "again")
    base, expert, found = (
        load_file(path / "model.safetensors")
        for path in (runs / "base" / "best", runs / "expert" / "best", tmp_path / "again")
    )
    assert list(found) == list(expert)
    for name, value in found.items():
        assert bool(((value == expert[name]) | (value == base[name])).all())
    assert any(not torch.equal(value, expert[name]) for name, value in found.items())
