"""Runs with one vocabulary for all tasks: boxes beside other kinds, and tasks that join by a vector of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polytask
from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import UnknownName

SIDES = ["left", "top", "right", "bottom"]


def rows() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 4))
    corner, size = draw.uniform(0, 0.5, size=(60, 2)), draw.uniform(0.1, 0.5, size=(60, 2))
    corner[:20] = np.nan  # these rows have no box
    sides = dict(zip(SIDES, np.concatenate([corner, corner + size], axis=1).T, strict=True))
    word = np.where(x[:, 0] > 0, "Frühling", "autumn leaves")
    return {"x": x, "word": word, "late": x[:, 1] > 0, **sides}


def train(out: Path, tasks: dict[str, Any], sharing: Any, trainable: Any = None, **model: Any) -> dict[str, Any]:
    used = [column for task in tasks for column in (SIDES if task == "box" else [task])]
    recipe = {
        "version": 1,
        "data": {
            "split": {"fractions": [0.6, 0.2, 0.2], "seed": 0},
            "drop": [column for column in ("word", "late", *SIDES) if column not in used],
        },
        "tasks": tasks,
        "model": {"encoder": {"kind": "mlp", "hidden_sizes": [8]}, "sharing": sharing, **model},
        "train": {"steps": 2, "batch_size": 16, "rule": "equal", "trainable": trainable},
    }
    return polytask.train(recipe, out=out, data={"data": rows()})


KINDS = {"box": {"kind": "boxes", "labels": SIDES}, "word": {"kind": "multiclass"}, "late": {"kind": "binary"}}


@pytest.mark.parametrize("sharing", ["hard", {"kind": "text_to_text", "spelled": True}], ids=str)
def test_boxes_are_trained_and_predicted_beside_other_kinds(sharing: Any, tmp_path: Path) -> None:
    found = train(tmp_path / "run", KINDS, sharing)
    assert 0 <= found["test"]["box"]["box_iou"] <= 1
    trained = polytask.load(tmp_path / "run")
    predicted = trained.predict({"x": rows()["x"]})
    assert predicted.columns[:4] == [f"box.{side}" for side in SIDES]
    assert set(predicted["word"]) <= {"Frühling", "autumn leaves"}
    np.testing.assert_allclose(
        predicted["word.Frühling"].to_numpy() + predicted["word.autumn leaves"].to_numpy(), 1, rtol=1e-6
    )
    stands_for = read_checkpoint(resolve(tmp_path / "run")).config["outputs"]
    names = ["Frühling", "autumn leaves"]
    assert stands_for["word"] == {"means": "choice", "names": names, "limits": None, "of_rows": True}
    assert stands_for["box"] == {"means": "numbers", "names": SIDES, "limits": [0.0, 1.0], "of_rows": True}


def test_a_task_joins_with_a_vector_of_its_own_and_leaves_again(tmp_path: Path) -> None:
    sharing = {"kind": "text_to_text", "own_prompts": True}
    train(tmp_path / "first", {"word": KINDS["word"]}, sharing)
    start = {"init_from": str(tmp_path / "first")}
    train(tmp_path / "new", {"late": KINDS["late"]}, sharing, ["own"], **start)
    both = polytask.heads.attach(tmp_path / "first", tmp_path / "new", tmp_path / "both")
    added = set(read_checkpoint(both).tensors()) - set(read_checkpoint(resolve(tmp_path / "first")).tensors())
    assert added == {"sharing.prompts.late.vector"}
    for run, task in (("first", "word"), ("new", "late")):
        alone = polytask.load(tmp_path / run).predict(rows(), [task])
        assert polytask.load(both).predict(rows(), [task]).equals(alone)
    smaller = polytask.heads.detach(both, ["late"], tmp_path / "smaller")
    assert polytask.load(smaller).predict(rows()).columns == ["word", "word.Frühling", "word.autumn leaves"]


def test_without_such_a_vector_there_is_nothing_to_train_for_a_new_task(tmp_path: Path) -> None:
    train(tmp_path / "first", {"word": KINDS["word"]}, "text_to_text")
    with pytest.raises(UnknownName, match="no beginning of a parameter's name 'heads'; allowed: sharing"):
        train(tmp_path / "new", {"late": KINDS["late"]}, "text_to_text", ["heads"], init_from=str(tmp_path / "first"))
