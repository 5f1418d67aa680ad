import time

import numpy as np

from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.sources.multidigits import multidigits
from polytask.tasks.task import Task

TASKS = [
    Task(name="left", kind="multiclass"),
    Task(name="right", kind="multiclass"),
    Task(name="sum", kind="regression"),
]


def test_columns_rows_and_seed():
    rows = {"train": 50, "valid": 20, "test": 30}
    frame = multidigits(rows, seed=3)
    assert frame["split"].value_counts().sort("split")["count"].to_list() == [30, 50, 20]
    assert frame["image"].to_numpy().shape == (100, 28, 28)
    assert (frame["left"] + frame["right"] == frame["sum"]).all()
    assert frame.equals(multidigits(rows, seed=3))
    assert not frame.equals(multidigits(rows, seed=4))


def test_the_digits_stand_in_opposite_corners_and_overlap():
    images = multidigits({"train": 200})["image"].to_numpy()
    assert not images[:, :8, 20:].any()  # the other two corners stay black
    assert not images[:, 20:, :8].any()
    assert images[:, :8, :20].any()
    assert images[:, 20:, 8:].any()
    assert images.max() == 255


def test_no_source_image_serves_two_splits():
    """The top left 8 rows hold the left digit alone, so equal patches would mean a shared source image."""
    frame = multidigits({"train": 3000, "valid": 1500, "test": 1500})
    patches = frame["image"].to_numpy()[:, :8, :20].reshape(len(frame), -1)
    by_split = {
        split: {row.tobytes() for row in patches[(frame["split"] == split).to_numpy()]}
        for split in ("train", "valid", "test")
    }
    assert len(by_split["train"]) > 1000
    assert not by_split["train"] & by_split["valid"]
    assert not by_split["train"] & by_split["test"]
    assert not by_split["valid"] & by_split["test"]


def test_ten_thousand_images_take_about_a_second():
    start = time.perf_counter()
    multidigits({"train": 8000, "valid": 1000, "test": 1000})
    assert time.perf_counter() - start < 5  # about 0.1 s on an idle machine


def test_loading_leaves_the_global_random_state(untouched_random_state):
    load_data(DataSpec(builtin="multidigits", rows={"train": 400}), TASKS, data_dir=None, beside=None)


def test_load():
    rows = {"train": 400, "valid": 20, "test": 20}
    data = load_data(DataSpec(builtin="multidigits", rows=rows, seed=1), TASKS, data_dir=None, beside=None)
    source = data.sources["data"]
    assert {split: len(examples) for split, examples in source.splits.items()} == rows
    assert source.schema.shapes == {"image": (1, 28, 28)}
    batch = source.splits["valid"].batch(np.array([0, 5]))
    assert batch.rows.tolist() == [400, 405]  # row numbers in the source
    assert batch.inputs["image"].min() >= 0
    assert batch.inputs["image"].max() <= 1
    units = batch.labels["sum"] * data.targets["sum"].std + data.targets["sum"].mean
    assert np.allclose(units, batch.labels["left"] + batch.labels["right"], atol=1e-5)
