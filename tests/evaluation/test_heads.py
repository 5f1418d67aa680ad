"""Tasks that join a trained model or leave it: what is not theirs stays as it was, bit by bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import polytask
from polytask.checkpoints import read_checkpoint, resolve, verify_checkpoint
from polytask.cli import app
from polytask.core.errors import BadValue, CheckpointError, UnknownName

LABELS = ("left", "right", "third")


def rows(count: int = 80) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(count, 3))
    return {"x": x, "left": x[:, 0] > 0, "right": x @ [1.0, 2.0, 3.0], "third": draw.integers(0, 3, count)}


def train(out: Path, *tasks: str, sharing: Any = "hard", **changes: Any) -> Path:
    kinds = {"left": "binary", "right": "regression", "third": "multiclass"}
    recipe = {
        "version": 1,
        "data": {
            "split": {"fractions": [0.6, 0.2, 0.2], "seed": 0},
            "drop": [label for label in LABELS if label not in tasks],
        },
        "tasks": {task: kinds[task] for task in tasks},
        "model": {"encoder": {"kind": "mlp", "hidden_sizes": [6], "normalization": "layer"}, "sharing": sharing},
        "train": {"steps": 3, "batch_size": 16, "rule": "equal"},
    }
    recipe["model"] |= changes.pop("model", {})
    recipe["train"] |= changes
    polytask.train(recipe, out=out, data={"data": rows()})
    return out


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], names: list[str]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names)


SHARING = [
    "hard",
    "mmoe",
    {"kind": "mmoe", "gate": {"reads": "examples"}},
    "cgc",
    {"kind": "film", "hidden_sizes": [5]},
    {"kind": "channel_masks", "hidden_sizes": [8]},
    {"kind": "home", "normalization": "layer"},
]


@pytest.mark.parametrize("sharing", SHARING, ids=str)
def test_a_task_joins_and_leaves_again_and_the_rest_is_equal_bit_by_bit(sharing: Any, tmp_path: Path) -> None:
    first = train(tmp_path / "first", "left", "right", sharing=sharing)
    new = train(tmp_path / "new", "third", sharing=sharing, model={"init_from": str(first)}, trainable=["own"])
    both = polytask.heads.attach(first, new, tmp_path / "both")
    verify_checkpoint(both)
    before, learnt, after = (read_checkpoint(resolve(path)).tensors() for path in (first, new, both))
    assert set(before) < set(after)
    assert same(before, after, list(before))
    assert same(learnt, after, list(learnt))
    old, joined, other = (polytask.load(path) for path in (first, both, new))
    assert joined.predict(rows()).columns == ["left", "right", *other.predict(rows()).columns]
    assert joined.predict(rows(), ["left", "right"]).equals(old.predict(rows()))
    assert joined.predict(rows(), ["third"]).equals(other.predict(rows()))
    smaller = polytask.heads.detach(both, ["third"], tmp_path / "smaller")
    verify_checkpoint(smaller)
    again = read_checkpoint(smaller)
    assert set(again.tensors()) == set(before)
    assert same(before, again.tensors(), list(before))
    assert again.card["tasks"] == read_checkpoint(resolve(first)).card["tasks"]
    assert again.card["parameters"] == read_checkpoint(resolve(first)).card["parameters"]
    assert polytask.load(smaller).predict(rows()).equals(old.predict(rows()))


def test_a_shared_part_that_has_changed_is_refused(tmp_path: Path) -> None:
    first = train(tmp_path / "first", "left")
    new = train(tmp_path / "new", "right", model={"init_from": str(first)})
    with pytest.raises(CheckpointError, match=r"'sharing.encoder.*' is not that of .*trainable: \[own\]"):
        polytask.heads.attach(first, new, tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    first, new = train(tmp_path / "first", "left"), train(tmp_path / "new", "right", sharing="mmoe")
    with pytest.raises(CheckpointError, match=r"its model in config.json is not that of"):
        polytask.heads.attach(first, new, tmp_path / "both")


@pytest.mark.parametrize(
    ("sharing", "task", "stays"),
    [("cross_stitch", "left", True), ("aitm", "left", True), ("aitm", "third", False)],
)
def test_what_others_read_of_a_task_that_leaves_stays(sharing: str, task: str, stays: bool, tmp_path: Path) -> None:
    run = train(tmp_path / "run", *LABELS, sharing=sharing)
    smaller = polytask.heads.detach(run, [task], tmp_path / "smaller")
    before, after = (read_checkpoint(resolve(path)).tensors() for path in (run, smaller))
    assert same(before, after, list(after))
    assert any(task in name.split(".") for name in after) == stays
    staying = [label for label in LABELS if label != task]
    assert polytask.load(smaller).predict(rows()).equals(polytask.load(run).predict(rows(), staying))
    assert read_checkpoint(smaller).card["tasks"].keys() == set(staying)
    again = polytask.heads.attach(smaller, run, tmp_path / "again")
    assert polytask.load(again).predict(rows(), list(LABELS)).equals(polytask.load(run).predict(rows(), list(LABELS)))
    last = polytask.heads.detach(smaller, [staying[0]], tmp_path / "last")
    assert polytask.load(last).predict(rows()).equals(polytask.load(run).predict(rows(), staying[1:]))


def test_a_task_that_the_others_would_read_cannot_join(tmp_path: Path) -> None:
    first, new = train(tmp_path / "first", "left", sharing="cross_stitch"), tmp_path / "new"
    train(new, "left", "right", sharing="cross_stitch")
    said = r"sharing 'cross_stitch': the tasks that 'left' would read is \['left', 'right'\]; allowed: .*, \['left'\]"
    with pytest.raises(BadValue, match=said):
        polytask.heads.attach(first, new, tmp_path / "both")


def test_a_task_that_would_read_others_than_it_learnt_with_cannot_join(tmp_path: Path) -> None:
    first, new = train(tmp_path / "first", "left", sharing="aitm"), train(tmp_path / "new", "right", sharing="aitm")
    with pytest.raises(BadValue, match=r"the tasks that 'right' would read is \['left', 'right'\]; .*\['right'\]"):
        polytask.heads.attach(first, new, tmp_path / "both")


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "left", "right")
    with pytest.raises(UnknownName, match=r"no task 'lft' \(did you mean 'left'"):
        polytask.heads.detach(run, ["lft"], tmp_path / "out")
    with pytest.raises(BadValue, match=r"tasks to detach is .*; allowed: all but at least one"):
        polytask.heads.detach(run, ["left", "right"], tmp_path / "out")
    with pytest.raises(BadValue, match=r"tasks to attach is .*; allowed: at least one that the first model lacks"):
        polytask.heads.attach(run, run, tmp_path / "out")
    with pytest.raises(BadValue, match=r"a task to attach is 'left'; allowed: none that the model has: left, right"):
        polytask.heads.attach(run, run, tmp_path / "out", tasks=["left"])


def test_the_command_line_detaches(tmp_path: Path) -> None:
    run = train(tmp_path / "run", "left", "right")
    found = CliRunner().invoke(app, ["heads", "detach", str(run), "--tasks", "right", "--out", str(tmp_path / "out")])
    assert found.exit_code == 0
    assert "out: left, " in found.output.replace("\n", "")
    assert polytask.load(tmp_path / "out").model.tasks == ["left"]
