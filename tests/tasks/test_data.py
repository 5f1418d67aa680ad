"""Sources, tasks and features together, on small tables made here."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from polytask.core.errors import BadValue, CheckpointError, DataError, MissingInput, PolytaskError, UnknownName
from polytask.tasks.data import DataSpec, load_data, read_inputs
from polytask.tasks.task import Task, expand_tasks

CLICK = Task(name="click", kind="binary")
CONVERSION = Task(name="conversion", kind="binary", where="click")


@pytest.fixture
def table(tmp_path):
    rows = np.arange(60)
    frame = pl.DataFrame(
        {
            "age": rows % 13 * 1.5,
            "city": [f"c{i % 4}" for i in rows],
            "weight": rows * 1.0,
            "click": rows % 2,
            "conversion": (rows % 4 == 1).astype(int),
            "split": ["train" if i < 40 else "valid" if i < 50 else "test" for i in rows],
        }
    )
    frame.write_csv(tmp_path / "shop.csv")
    return frame


def load(tmp_path, tasks=(CLICK, CONVERSION), **spec):
    return load_data(
        DataSpec(**{"table": "shop.csv", "split": "split", **spec}), list(tasks), data_dir=tmp_path, beside=None
    )


def test_labels_masks_split_and_dropped_columns_are_no_features(table, tmp_path):
    source = load(tmp_path, drop=["weight"]).sources["data"]
    assert source.preprocessor.columns == ["age", "city"]
    assert source.tasks == ["click", "conversion"]
    only = load(tmp_path, [CLICK], drop=["weight"]).sources["data"]
    assert only.preprocessor.columns == ["age", "city", "conversion"]  # a column like any other without its task
    masked = load(tmp_path, [Task(name="conversion", kind="binary", where="click")], drop=["weight"]).sources["data"]
    assert masked.preprocessor.columns == ["age", "city"]


def test_a_label_exists_only_where_the_mask_column_says_so(table, tmp_path):
    train = load(tmp_path).sources["data"].splits["train"]
    assert (train.present["conversion"] == (train.rows % 2 == 1)).all()


def test_only_training_rows_are_fitted(table, tmp_path):
    numeric = load(tmp_path, drop=["weight"]).sources["data"].preprocessor.features[0]
    assert numeric.mean == pytest.approx(table["age"][:40].mean())
    shifted = table.with_columns(age=pl.when(pl.col("split") == "train").then("age").otherwise(1e6))
    shifted.write_csv(tmp_path / "shop.csv")
    assert load(tmp_path, drop=["weight"]).sources["data"].preprocessor.features[0].to_json() == numeric.to_json()


def test_inputs_json_alone_turns_raw_rows_into_the_same_bits(table, tmp_path):
    data = load(tmp_path)
    (tmp_path / "inputs.json").write_text(json.dumps(data.to_json()))
    preprocessors, targets = read_inputs(tmp_path)
    source = data.sources["data"]
    assert list(targets) == ["click", "conversion"]
    again = preprocessors["data"].transform(table.filter(pl.col("split") == "test"))
    for key, values in source.splits["test"].inputs.items():
        assert values.numpy().tobytes() == again[key].numpy().tobytes()
    (tmp_path / "inputs.json").write_text(json.dumps(data.to_json())[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        read_inputs(tmp_path)
    with pytest.raises(CheckpointError, match=r"no inputs\.json"):
        read_inputs(tmp_path / "nowhere")


def test_degenerate_tasks(table, tmp_path):
    table.with_columns(conversion=pl.lit(0)).write_csv(tmp_path / "shop.csv")
    with pytest.raises(DataError, match=r"'conversion'.*degenerate: drop \| keep"):
        load(tmp_path)
    dropped = load(tmp_path, degenerate="drop")
    assert list(dropped.targets) == dropped.sources["data"].tasks == ["click"]
    assert "conversion" in dropped.remarks[0]
    assert "conversion" not in dropped.sources["data"].preprocessor.columns
    assert list(load(tmp_path, degenerate="keep").targets) == ["click", "conversion"]
    with pytest.raises(DataError, match="no task is left"):
        load(tmp_path, [CONVERSION], degenerate="drop")


def test_rows_are_a_seeded_sample(table, tmp_path):
    def rows(**spec):
        return load(tmp_path, **spec).sources["data"].splits["train"].rows.tolist()

    assert len(rows(rows={"train": 20})) == 20
    assert rows(rows={"train": 20}) == rows(rows={"train": 20})
    assert rows(rows={"train": 20}) != rows(rows={"train": 20}, seed=1)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"drop": ["wieght"]}, UnknownName, "data.drop: no column 'wieght' .did you mean 'weight'"),
        ({"features": {"citty": "categorical"}}, UnknownName, "did you mean 'city'"),
        ({"features": {"click": "categorical"}}, DataError, "features.click"),
        ({"split": "splt"}, UnknownName, "did you mean 'split'"),
        ({"split": None}, DataError, "its column 'split' would be a feature"),
        ({"table": "shp.csv"}, DataError, "no such file.*did you mean 'shop.csv'"),
        ({"table": None}, MissingInput, "say where the rows are"),
        ({"drop": ["age", "city", "weight"]}, DataError, "no column is left"),
    ],
)
def test_bad_specs_are_one_clear_line(table, tmp_path, spec, error, message):
    with pytest.raises(error, match=message) as raised:
        load(tmp_path, **spec)
    assert isinstance(raised.value, PolytaskError)
    assert "\n" not in str(raised.value)


def test_unknown_label_column_and_source(table, tmp_path):
    with pytest.raises(UnknownName, match=r"tasks\.click: no column 'clik' .did you mean 'click'"):
        load(tmp_path, [Task(name="click", kind="binary", label="clik")])
    with pytest.raises(UnknownName, match="no source 'elsewhere'"):
        load(tmp_path, [Task(name="click", kind="binary", source="elsewhere")])
    sources = {"one": {"table": "shop.csv"}, "two": {"table": "shop.csv"}}
    with pytest.raises(BadValue, match="one of one, two"):
        load(tmp_path, table=None, sources=sources)
    with pytest.raises(UnknownName, match="handed over"):
        load_data(
            DataSpec(table="shop.csv", split="split"), [CLICK], data_dir=tmp_path, beside=None, datasets={"x": table}
        )


def test_labels_outside_the_declared_classes(table, tmp_path):
    with pytest.raises(DataError, match="'c3'"):
        load(tmp_path, [Task(name="city", kind="multiclass", classes=["c0", "c1", "c2"])])


def test_defaults_reach_every_source_and_can_be_replaced(table, tmp_path):
    sources = {"one": {"table": "shop.csv"}, "two": {"table": "shop.csv", "drop": ["age"]}}
    tasks = [Task(name="click", kind="binary", source="one"), Task(name="conversion", kind="binary", source="two")]
    data = load(tmp_path, tasks, table=None, sources=sources, drop=["weight"])
    assert data.sources["one"].preprocessor.columns == ["age", "city"]
    assert data.sources["two"].preprocessor.columns == ["city", "weight"]


def test_zero_and_one_as_floats_with_missing_labels(tmp_path):
    frame = pl.DataFrame({"x": range(20), "a": [0.0, 1.0, None, 1.0] * 5})
    data = load_data(DataSpec(), [Task(name="a", kind="binary")], data_dir=None, beside=None, datasets={"data": frame})
    train = data.sources["data"].splits["train"]
    assert (train.present["a"] == (train.rows % 4 != 2)).all()


def test_the_schema_of_the_recipe_loads_without_heavy_packages():
    code = "import sys, polytask.tasks.data_spec; print([m for m in ('polars', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_rows_that_one_source_trains_on_and_another_is_tested_on_are_named(tmp_path):
    splits = ["train"] * 60 + ["valid"] * 20 + ["test"] * 20
    for name, start in (("a", 0), ("b", 70), ("c", 1000)):
        texts = [f"t{start + i}" for i in range(100)]
        pl.DataFrame({"text": texts, "label": [i % 2 for i in range(100)], "split": splits}).write_csv(
            tmp_path / f"{name}.csv"
        )
    spec = DataSpec(
        sources={name: {"table": f"{name}.csv"} for name in "abc"}, split="split", features={"text": "categorical"}
    )
    tasks = expand_tasks({name: {"kind": "binary", "label": "label", "source": name} for name in "abc"})
    remarks = load_data(spec, tasks, data_dir=None, beside=tmp_path).remarks
    named = "30 of 40 valid and test rows of a are training rows of b"
    assert remarks == [f"sources share rows: {named}; take them out before comparing with single-task models"]
    alone = [task for task in tasks if task.name != "b"]
    assert load_data(spec, alone, data_dir=None, beside=tmp_path).remarks == []
