import io
import json

import numpy as np
import polars as pl
import pytest

from polytask.core.errors import DataError
from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.task import Task

Pillow = pytest.importorskip("PIL.Image", reason="needs pillow")

TASK = Task(name="label", kind="binary")
SPLIT = {"fractions": [0.6, 0.2, 0.2]}


def png(array):
    stream = io.BytesIO()
    Pillow.fromarray(array).save(stream, format="png")
    return stream.getvalue()


def table(arrays):
    return pl.DataFrame({"picture": [png(array) for array in arrays], "label": [i % 2 for i in range(len(arrays))]})


def load(frame, **options):
    spec = DataSpec(split=SPLIT, features={"picture": {"kind": "image", **options}} if options else {})
    return load_data(spec, [TASK], data_dir=None, beside=None, datasets={"data": frame})


def test_encoded_images_become_channels_first_in_zero_to_one():
    arrays = np.random.default_rng(0).integers(0, 256, (10, 5, 7, 3), dtype=np.uint8)
    source = load(table(arrays)).sources["data"]
    assert source.schema.shapes == {"image": (3, 5, 7)}
    valid = source.splits["valid"]
    expected = arrays[valid.rows.numpy()].transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(valid.inputs["image"], expected)


def test_grey_images_and_conversion():
    arrays = np.zeros((10, 5, 7), dtype=np.uint8)
    assert load(table(arrays)).sources["data"].schema.shapes == {"image": (1, 5, 7)}
    assert load(table(arrays), channels=3, size=(4, 6)).sources["data"].schema.shapes == {"image": (3, 4, 6)}


def test_sizes_must_agree_unless_resized():
    arrays = [np.zeros((5, 7 + i // 9), dtype=np.uint8) for i in range(10)]
    with pytest.raises(DataError, match=r"row 9: column 'picture' has size .*size: \[height, width\]"):
        load(table(arrays))
    assert load(table(arrays), size=(5, 5)).sources["data"].schema.shapes == {"image": (1, 5, 5)}


def test_unreadable_bytes_name_the_row():
    frame = table(np.zeros((10, 5, 7), dtype=np.uint8))
    frame = frame.with_columns(picture=pl.Series([*frame["picture"][:4], b"no image", *frame["picture"][5:]]))
    with pytest.raises(DataError, match="row 4: column 'picture' has no readable image"):
        load(frame)


def test_a_table_of_paths(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(png(np.full((4, 4), 25 * i, dtype=np.uint8)))
    frame = pl.DataFrame({"file": [f"{i}.png" for i in range(10)], "label": [i % 2 for i in range(10)]})
    frame.write_csv(tmp_path / "index.csv")
    spec = DataSpec(images="index.csv", split=SPLIT, features={"file": "image"})
    source = load_data(spec, [TASK], data_dir=None, beside=tmp_path).sources["data"]
    test = source.splits["test"]
    assert (test.inputs["image"][:, 0, 0, 0] * 255 / 25).round().long().tolist() == test.rows.tolist()
    back = Preprocessor.from_json(json.loads(json.dumps(source.preprocessor.to_json())))
    assert back.schema == source.schema
