import numpy as np
import polars as pl
import pytest
import torch

from polytask.core.errors import DataError
from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.task import Task

A = Task(name="a", kind="binary")
B = Task(name="b", kind="regression", label="amount")


def load(datasets, tasks=(A,), spec=None):
    return load_data(spec or DataSpec(), list(tasks), data_dir=None, beside=None, datasets=datasets)


class Rows(torch.utils.data.Dataset):
    """Every third row lacks the label of task b."""

    def __len__(self):
        return 30

    def __getitem__(self, position):
        inputs = torch.full((4,), float(position))
        labels = {"a": torch.tensor(position % 2)} | ({"b": 2.0 * position} if position % 3 else {})
        return inputs, labels


def test_a_torch_dataset_with_missing_labels():
    data = load({"data": Rows()}, [A, B])
    source = data.sources["data"]
    assert source.schema.shapes == {"numeric": (4,)}
    assert sum(len(split) for split in source.splits.values()) == 30
    train = source.splits["train"]
    assert (train.present["b"] == (train.rows % 3 != 0)).all()
    assert train.present["a"].all()
    assert (train.labels["a"] == train.rows % 2).all()


def test_a_mapping_of_splits_is_the_split():
    split = {"x": np.arange(8.0), "a": np.arange(8) % 2}
    data = load({"data": {"train": split, "valid": split, "test": split}})
    assert [len(examples) for examples in data.sources["data"].splits.values()] == [8, 8, 8]
    with pytest.raises(DataError, match="train, valid and test, so `split` must not be given"):
        load({"data": {"train": split, "valid": split}}, spec=DataSpec(split={"fractions": [0.5, 0.3, 0.2]}))
    with pytest.raises(DataError, match="'train' or 'valid' is missing"):
        load({"data": {"train": split, "test": split}})
    with pytest.raises(DataError, match="same columns"):
        load({"data": {"train": split, "valid": {"x": np.arange(8.0)}}})


def test_named_sources_one_a_task():
    frame = pl.DataFrame({"x": np.arange(20.0), "a": np.arange(20) % 2})
    other = {"x": torch.arange(40.0).reshape(20, 2), "amount": np.arange(20.0)}
    data = load({"a": frame, "b": other}, [A, B])
    assert data.sources["a"].tasks == ["a"]
    assert data.sources["b"].schema.shapes == {"numeric": (2,)}
    assert list(data.targets) == ["a", "b"]


def test_images_keep_their_shape_and_arrays_their_name():
    arrays = {
        "picture": np.full((10, 6, 5, 3), 255, np.uint8),
        "grid": np.ones((10, 4, 4), np.float32),
        "a": np.arange(10) % 2,
    }
    source = load({"data": arrays}, spec=DataSpec(split={"fractions": [0.6, 0.2, 0.2]})).sources["data"]
    assert source.schema.shapes == {"image": (3, 6, 5), "grid": (4, 4)}
    assert source.splits["train"].inputs["image"].eq(1).all()


def test_npz(tmp_path):
    np.savez(tmp_path / "rows.npz", images=np.zeros((10, 4, 4), np.uint8), a=np.arange(10) % 2)
    data = load_data(DataSpec(arrays="rows.npz"), [A], data_dir=tmp_path, beside=None)
    assert data.sources["data"].schema.shapes == {"image": (1, 4, 4)}
    whole = (tmp_path / "rows.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.npz"):
        load_data(DataSpec(arrays="cut.npz"), [A], data_dir=tmp_path, beside=None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"x": np.zeros(3), "a": np.zeros(4)}, "different lengths"),
        ([(np.zeros(3), 1)], "allowed: \\(inputs"),
        ([(np.zeros(3), {"a": 1}), (np.zeros(4), {"a": 0})], "item 1: input 'input' has shape"),
        ([({"x": 1.0}, {"a": 1}), ({"z": 1.0}, {"a": 0})], "'x' is missing in some items"),
        (3, "allowed: a frame"),
    ],
)
def test_bad_rows(rows, message):
    with pytest.raises(DataError, match=message):
        load({"data": rows})


def test_the_given_arrays_are_not_changed():
    arrays = {"x": np.arange(20.0), "a": np.arange(20) % 2}
    before = {name: values.copy() for name, values in arrays.items()}
    load({"data": arrays})
    assert all((arrays[name] == values).all() for name, values in before.items())
