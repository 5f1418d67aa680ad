"""The checkpoint directory and the run directory around it."""

import json
from pathlib import Path

import pytest
import torch

from polytask.checkpoints import (
    list_checkpoints,
    point,
    pointed,
    read_checkpoint,
    resolve,
    update_card,
    verify_checkpoint,
    write_checkpoint,
)
from polytask.core.errors import CheckpointError

CARD = {
    "version": 1,
    "tasks": {"a": {"kind": "binary", "metric": "auroc", "role": "target"}},
    "metrics": {"valid": {"a": 0.75}},
    "versions": {"polytask": "0"},
}


def written(path: Path, **changes) -> Path:
    parts = {
        "tensors": {"w": torch.arange(6.0)},
        "config": {"model": {}},
        "inputs": {"sources": {}},
        "card": CARD,
        "recipe": {"version": 1, "tasks": {"a": "binary"}},
        "state": {"step": 3, "moment": torch.ones(2)},
        "extra_files": {"tokenizer/vocab.txt": b"a\nb\n"},
    }
    write_checkpoint(path, **{**parts, **changes})
    return path


def test_what_was_written_is_read(tmp_path):
    found = verify_checkpoint(written(tmp_path / "c"))
    assert torch.equal(found.tensors()["w"], torch.arange(6.0))
    assert found.config == {"model": {}}
    assert found.inputs == {"sources": {}}
    assert found.recipe == {"version": 1, "tasks": {"a": "binary"}}
    assert found.state()["step"] == 3
    assert torch.equal(found.state()["moment"], torch.ones(2))
    assert (tmp_path / "c" / "tokenizer" / "vocab.txt").read_bytes() == b"a\nb\n"
    assert "| a | binary | auroc | 0.7500 |" in (tmp_path / "c" / "README.md").read_text()


def test_the_card_is_updated_in_place(tmp_path):
    path = written(tmp_path / "c")
    before = {file.name: file.stat().st_ino for file in path.iterdir()}
    update_card(path, {"metrics": {"valid": {"a": 0.75}, "test": {"a": 0.5}}})
    found = verify_checkpoint(path)
    assert found.card["metrics"]["test"] == {"a": 0.5}
    assert found.card["tasks"] == CARD["tasks"]
    assert "| 0.7500 | 0.5000 |" in (path / "README.md").read_text()
    assert {file.name for file in path.iterdir() if file.stat().st_ino != before[file.name]} == {
        "card.json",
        "README.md",
    }


def test_a_model_is_no_point_to_resume_from(tmp_path):
    with pytest.raises(CheckpointError, match=r"no state\.safetensors: this directory is a model"):
        read_checkpoint(written(tmp_path / "c", state=None)).state()


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "inputs.json", "tokenizer/vocab.txt"])
def test_a_file_that_is_missing_cut_or_changed(tmp_path, name):
    file = written(tmp_path / "c") / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{name}: {len(content) // 2} bytes, expected {len(content)}: damaged"):
        read_checkpoint(tmp_path / "c")
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    read_checkpoint(tmp_path / "c")
    with pytest.raises(CheckpointError, match=f"{name}: content changed"):
        verify_checkpoint(tmp_path / "c")
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b"[]", "not a checkpoint's card"),
        (b"{}", "not a checkpoint's card"),
        (b'{"files": {"model.safetensors": 3}}', "not a checkpoint's card"),
    ],
)
def test_a_card_that_is_none(tmp_path, content, message):
    (written(tmp_path / "c") / "card.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"card.json: {message}"):
        read_checkpoint(tmp_path / "c")


def test_a_recipe_that_is_none(tmp_path):
    path = written(tmp_path / "c")
    for content, message in ((": [", "not readable as YAML"), ("3", "not a recipe")):
        card = json.loads((path / "card.json").read_text())
        (path / "recipe.yaml").write_text(content)
        card["files"]["recipe.yaml"]["bytes"] = len(content)
        (path / "card.json").write_text(json.dumps(card))
        with pytest.raises(CheckpointError, match=f"recipe.yaml: {message}"):
            _ = read_checkpoint(path).recipe


def test_another_directory_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        read_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="neither a checkpoint directory"):
        resolve(tmp_path)


def test_a_run_lists_its_finished_checkpoints_by_step(tmp_path):
    for step in (10, 9, 100):
        written(tmp_path / "checkpoints" / f"step-{step}")
    (tmp_path / "checkpoints" / "step-7").mkdir()  # of no writer of ours: a name without a card
    (tmp_path / "checkpoints" / "step-x").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_pointers_move_and_survive_the_run_being_moved(tmp_path):
    run = tmp_path / "run"
    for step in (1, 2):
        point(run, "last", written(run / "checkpoints" / f"step-{step}"))
    assert pointed(run, "last") == (run / "checkpoints" / "step-2").resolve()
    assert pointed(run, "best") is None
    assert resolve(run).name == "step-2"
    point(run, "best", run / "checkpoints" / "step-1")
    run.rename(tmp_path / "moved")
    assert resolve(tmp_path / "moved") == (tmp_path / "moved" / "checkpoints" / "step-1").resolve()
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["best", "checkpoints", "last"]
