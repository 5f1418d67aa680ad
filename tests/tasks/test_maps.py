"""Tasks whose labels are maps: classes, numbers and directions of pixels; and their files."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from polytask.core.errors import DataError, UnknownName
from polytask.tasks.losses import cosine, cross_entropy
from polytask.tasks.metrics import METRICS
from polytask.tasks.sources.folders import rows_from_folder
from polytask.tasks.target import Target
from polytask.tasks.task import Task


def frame(*maps: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame({"y": np.stack(maps)})


def task(kind: str, **options: object) -> Task:
    return Task(name="t", kind=kind, label="y", **options)


LABELS = np.array([[0.0, 2.0], [-1.0, 5.0]], dtype=np.float32)


def test_segmentation_numbers_the_classes_and_leaves_ignored_pixels_out() -> None:
    target = Target.fit(task("segmentation", classes=[5, 0, 2], ignore=-1), frame(LABELS))
    labels, present = target.encode(frame(LABELS))
    assert labels.tolist() == [[[1, 2], [0, 0]]]
    assert present.tolist() == [[[True, True], [False, True]]]
    assert target.outputs == 3
    assert Target.fit(task("segmentation", ignore=-1), frame(LABELS)).classes == (0, 2, 5)
    read = Target.from_json(target.to_json())
    outputs = torch.eye(3)[labels]
    assert read.decode(outputs)["t"].tolist() == [[[0, 2], [5, 5]]]
    with pytest.raises(DataError, match=r"classes 3\.0; allowed: 5, 0, 2"):
        target.encode(frame(np.where(LABELS == 2, 3, LABELS).astype(np.float32)))


def test_a_pixels_loss_is_that_of_a_row() -> None:
    outputs, labels = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 2).long()
    present = torch.ones(2, 3, 2, dtype=torch.bool)
    present[0, 0] = False
    expected = cross_entropy(outputs[present], labels[present], present[present])
    torch.testing.assert_close(cross_entropy(outputs, labels, present), expected)


def test_mean_iou_by_hand() -> None:
    # Class 0: intersection 1, union 3; class 1: 2 of 4; class 2 neither label nor prediction. One pixel has no label.
    labels = torch.tensor([[[0, 0, 1], [1, 1, 2]]])
    predicted = torch.tensor([[[0, 1, 1], [1, 0, 0]]])
    present = torch.tensor([[[True, True, True], [True, True, False]]])
    found = METRICS["mean_iou"].compute(torch.eye(3)[predicted], labels, present)
    assert found == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert METRICS["accuracy"].compute(torch.eye(3)[predicted], labels, present) == pytest.approx(3 / 5)


def test_depth_keeps_its_units_and_its_absent_pixels() -> None:
    depth = np.array([[[2.0], [0.0]], [[4.0], [np.nan]]], dtype=np.float32)
    target = Target.fit(task("dense_regression", ignore=0), frame(depth))
    labels, present = target.encode(frame(depth))
    assert present.tolist() == [[[True, False], [True, False]]]
    outputs = torch.tensor([[[3.0, 9.0], [3.0, 9.0]]])
    scores = target.score(outputs, labels, present)
    assert scores == pytest.approx({"mae": 1, "relative_error": (1 / 2 + 1 / 4) / 2, "rmse": 1})
    numerator, count = target.loss(outputs, labels, present)
    assert float(numerator / count) == pytest.approx(1)


def test_normals_are_judged_by_their_angle() -> None:
    up, zero = [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]
    target = Target.fit(task("surface_normals", ignore=0), frame(np.array([[up, up, zero]], dtype=np.float32)))
    labels, present = target.encode(frame(np.array([[up, up, zero]], dtype=np.float32)))
    tilted = [0.0, math.sin(math.radians(20)), math.cos(math.radians(20))]
    outputs = torch.tensor([[[[0.0, 0.0, 7.0], tilted, [1.0, 0.0, 0.0]]]])  # the length does not count
    scores = target.score(outputs, labels, present)
    assert scores["mean_angle"] == pytest.approx(10, abs=1e-4)
    assert [scores[name] for name in ("within_11_25", "within_22_5", "within_30")] == [0.5, 1, 1]
    numerator, count = target.loss(outputs, labels, present)
    assert float(numerator / count) == pytest.approx((1 - math.cos(math.radians(20))) / 2, abs=1e-6)
    torch.testing.assert_close(cosine(outputs, labels, present), numerator)


def test_where_takes_out_whole_rows() -> None:
    rows = pl.DataFrame({"y": np.ones((2, 2, 2)), "seen": [False, True]})
    _, present = Target.fit(task("dense_regression", where="seen"), rows).encode(rows)
    assert present.sum(dim=(1, 2)).tolist() == [0, 4]


@pytest.mark.parametrize(
    "kind, values, message",
    [
        ("segmentation", np.ones((1, 2, 2, 3)), r"a label is an array \[2, 2, 3\]; allowed: \[H, W\]"),
        ("surface_normals", np.ones((1, 2, 2)), r"allowed: \[H, W, 3\]"),
        ("segmentation", np.full((1, 2, 2), 0.5), "class labels 0.5; allowed: whole numbers"),
        ("segmentation", np.ones((1, 2, 2)), "not two classes in training: found 1"),
        ("dense_regression", np.zeros((1, 2, 2)), "no label in training"),
        ("dense_regression", np.ones(1), r"a label is an array \[\]"),
    ],
)
def test_labels_that_are_no_such_map_are_refused(kind: str, values: np.ndarray, message: str) -> None:
    options = {"ignore": 0} if kind == "dense_regression" else {}
    with pytest.raises(DataError, match=f"t.npz: task 't', column 'y'.*{message}"):
        Target.fit(task(kind, **options), pl.DataFrame({"y": values}), place="t.npz")
    with pytest.raises(UnknownName, match="column"):
        Target.fit(task(kind), pl.DataFrame({"x": [1]}), place="t.npz")


def folder(root: Path) -> Path:
    for split, rows in (("train", 11), ("val", 2)):
        for column, shape in (("image", (2, 2, 3)), ("label", (2, 2))):
            (root / split / column).mkdir(parents=True)
            for row in range(rows):
                np.save(root / split / column / f"{row}.npy", np.full(shape, float(row)))
    return root


def test_a_folder_of_arrays_is_a_table_with_its_own_split(tmp_path: Path) -> None:
    rows = rows_from_folder(folder(tmp_path))
    assert list(rows.schema) == ["image", "label"]
    assert rows.assignment is not None
    assert rows.assignment.tolist() == [0] * 11 + [1] * 2
    assert rows.read(["label"])["label"].to_numpy()[:, 0, 0].tolist() == [*range(11), 0, 1]  # 2.npy before 10.npy
    assert [len(block) for _, block in rows.blocks(5, ["image"])] == [5, 5, 3]


def test_a_folder_that_lacks_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing; allowed: the folders train and val"):
        rows_from_folder(tmp_path)
    folder(tmp_path)
    (tmp_path / "val/label/1.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"1\.npy: no whole \.npy file"):
        rows_from_folder(tmp_path).read(["label"])
    (tmp_path / "val/label/1.npy").unlink()
    with pytest.raises(DataError, match=r"val: 1\.npy is in one of the columns image and label only"):
        rows_from_folder(tmp_path)
    np.save(tmp_path / "val/label/1.npy", np.ones((3, 3)))
    with pytest.raises(DataError, match=r"1\.npy: an array \(3, 3\); 0\.npy of this column is \(2, 2\)"):
        rows_from_folder(tmp_path).read(["label"])
