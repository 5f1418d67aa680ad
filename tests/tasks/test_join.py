"""Columns of a second table, found by a column of both."""

from pathlib import Path

import polars as pl
import pytest

from polytask.core.errors import DataError, UnknownName
from polytask.tasks.data import load_data
from polytask.tasks.data_spec import DataSpec
from polytask.tasks.sources.join import joined
from polytask.tasks.sources.table import TableRows, open_table
from polytask.tasks.task import expand_tasks


def table(path: Path, **columns: list[object]) -> TableRows:
    pl.DataFrame(columns).write_csv(path)
    return open_table(path)


def test_each_row_finds_its_partner_whatever_the_order(tmp_path: Path) -> None:
    rows = table(tmp_path / "a.csv", key=["x", "y", "x", "z"], n=[1, 2, 3, 4])
    other = table(tmp_path / "b.csv", key=["z", "y", "x", "unused"], m=[30, 20, 10, 0])
    both = joined(rows, other, "key")
    assert both.read(["n", "m"]).rows() == [(1, 10), (2, 20), (3, 10), (4, 30)]
    assert both.slice(1, 2, ["m"])["m"].to_list() == [20, 10]
    assert [frame["m"].to_list() for _, frame in both.blocks(3, ["m"])] == [[10, 20, 10], [30]]
    assert list(both.schema) == ["key", "n", "m"]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    rows = table(tmp_path / "a.csv", key=["x", "y"], n=[1, 2])
    for columns, error, said in (
        ({"kex": ["x", "y"], "m": [1, 2]}, UnknownName, "did you mean 'kex'"),
        ({"key": [1, 2], "m": [1, 2]}, DataError, "two types"),
        ({"key": ["x", "y"], "n": [1, 2]}, DataError, "column 'n' is in both"),
        ({"key": ["x", "y", "x"], "m": [1, 2, 3]}, DataError, "'x' stands 2 times in column 'key'"),
        ({"key": ["x"], "m": [1]}, DataError, r"row 1: key 'y' is not in .*b.csv \(1 such rows\)"),
    ):
        with pytest.raises(error, match=said):
            joined(rows, table(tmp_path / "b.csv", **columns), "key")


def test_a_recipe_splits_by_a_column_of_the_other_table(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", key=list(range(8)), x=[0.5 * i for i in range(8)], up=[0, 1] * 4)
    table(tmp_path / "b.csv", key=list(range(8))[::-1], part=[2, 2, 1, 1, 0, 0, 0, 0])
    split = {"column": "part", "train": 0, "valid": 1, "test": 2}
    spec = DataSpec.model_validate({"table": "a.csv", "join": {"b.csv": "key"}, "split": split, "drop": ["key"]})
    data = load_data(spec, expand_tasks({"up": "binary"}), data_dir=tmp_path, beside=None)
    assert {name: len(rows) for name, rows in data.sources["data"].splits.items()} == {
        "train": 4,
        "valid": 2,
        "test": 2,
    }


def test_join_needs_a_table() -> None:
    with pytest.raises(ValueError, match="join goes with table or images"):
        DataSpec.model_validate({"arrays": "a.npz", "join": {"b.csv": "key"}})
