import numpy as np
import polars as pl
import pytest
import torch

from polytask.core.noise import Noise
from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.sources.stream import Stream
from polytask.tasks.task import Task

TASKS = [Task(name="a", kind="binary"), Task(name="b", kind="regression")]
ROWS = 1000


@pytest.fixture(params=["parquet", "csv"])
def load(tmp_path, request):
    frame = pl.DataFrame(
        {
            "x": [float(i) if i % 7 else None for i in range(ROWS)],
            "c": [f"v{i % 5}" for i in range(ROWS)],
            "a": [i % 2 for i in range(ROWS)],
            "b": [i / 3 if i % 5 else None for i in range(ROWS)],
        }
    )
    if request.param == "csv":
        frame.write_csv(tmp_path / "rows.csv")
    else:
        frame.write_parquet(tmp_path / "rows.parquet", row_group_size=128)

    def loader(stream):
        spec = DataSpec(table=f"rows.{request.param}", split={"fractions": [0.7, 0.2, 0.1]}, stream=stream)
        return load_data(spec, TASKS, data_dir=tmp_path, beside=None).sources["data"]

    return loader


def collect(batches):
    return torch.cat([batch.rows for batch in batches]).tolist()


def test_a_stream_holds_the_same_rows_as_memory(load):
    memory, stream = load(False), load({"buffer_rows": 150, "block_rows": 64})
    for split, examples in memory.splits.items():
        streamed = stream.splits[split]
        assert isinstance(streamed, Stream)
        assert len(streamed) == len(examples)
        batches = list(streamed.batches(32))
        assert collect(batches) == examples.rows.tolist()  # without noise: the table's order
        position = 0
        for batch in batches:
            expected = examples.batch(np.arange(position, position + len(batch)))
            position += len(batch)
            assert (batch.inputs["categorical"] == expected.inputs["categorical"]).all()
            torch.testing.assert_close(batch.inputs["numeric"], expected.inputs["numeric"])
            torch.testing.assert_close(batch.labels["b"], expected.labels["b"])
            assert (batch.present["b"] == expected.present["b"]).all()


def test_a_pass_visits_every_row_once_in_an_order_of_its_own(load):
    train = load({"buffer_rows": 150, "block_rows": 64}).splits["train"]
    first = list(train.batches(48, Noise(0, "epoch", 0)))
    assert [len(batch) for batch in first] == [48] * (len(train) // 48) + [len(train) % 48]
    assert sorted(collect(first)) == collect(train.batches(48))
    assert collect(first) == collect(train.batches(48, Noise(0, "epoch", 0)))
    assert collect(first) != collect(train.batches(48, Noise(0, "epoch", 1)))
    assert collect(first) == collect(train.batches(100, Noise(0, "epoch", 0)))  # the order knows no batch size


@pytest.mark.parametrize("batch_size", [7, 48, 400])
def test_a_pass_starts_anywhere(load, batch_size):
    train = load({"buffer_rows": 150, "block_rows": 64}).splits["train"]
    noise = Noise(3, "epoch", 0)
    whole = list(train.batches(batch_size, noise))
    for start in range(0, len(whole) + 1, 3):
        rest = list(train.batches(batch_size, noise, start))
        assert [batch.rows.tolist() for batch in rest] == [batch.rows.tolist() for batch in whole[start:]]


def test_a_buffer_as_large_as_the_table_mixes_all_of_it(load):
    train = load({"buffer_rows": ROWS, "block_rows": 64}).splits["train"]
    order = np.array(collect(train.batches(100, Noise(0))))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.15
