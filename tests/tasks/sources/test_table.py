import polars as pl
import pytest

from polytask.core.errors import DataError
from polytask.tasks.sources.opening import resolve
from polytask.tasks.sources.table import open_table, read_table

FRAME = pl.DataFrame({"x": range(100), "y": [f"v{i % 3}" for i in range(100)]})


def test_file_directory_and_glob_give_the_same_rows(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    FRAME[:60].write_parquet(folder / "a.parquet")
    FRAME[60:].write_parquet(folder / "b.parquet")
    FRAME.write_csv(tmp_path / "all.csv")
    for path in (folder, folder / "*.parquet", tmp_path / "all.csv"):
        table = open_table(path)
        assert len(table) == 100
        assert table.read(["y", "x"]).equals(FRAME.select("y", "x"))
        assert table.slice(50, 20, ["x"])["x"].to_list() == list(range(50, 70))
        starts, blocks = zip(*table.blocks(30, ["x"]), strict=True)
        assert pl.concat(blocks)["x"].to_list() == list(range(100))
        assert list(starts) == [sum(len(block) for block in blocks[:i]) for i in range(len(blocks))]


def test_damaged_and_mixed_files(tmp_path):
    FRAME.write_parquet(tmp_path / "whole.parquet")
    content = (tmp_path / "whole.parquet").read_bytes()
    for name, damaged, message in (
        ("half.parquet", content[: len(content) // 2], "cut or damaged"),
        ("empty.parquet", b"", "empty"),
        ("text.parquet", b"x,y\n1,2\n", "no parquet file"),
        ("middle.parquet", content[:100] + content[-100:], "cannot be read"),
        ("header.csv", b"x,y\n", "no row"),
        ("rows.json", b"{}", "allowed: .parquet or .csv"),
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=message) as raised:
            open_table(tmp_path / name)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
    folder = tmp_path / "mixed"
    folder.mkdir()
    FRAME.write_parquet(folder / "a.parquet")
    FRAME.write_csv(folder / "b.csv")
    with pytest.raises(DataError, match="mixed"):
        open_table(folder)
    (folder / "b.csv").unlink()
    FRAME.rename({"y": "z"}).write_parquet(folder / "b.parquet")
    with pytest.raises(DataError, match="column 'z' is in one of them only"):
        open_table(folder)


def test_a_missing_file_names_where_it_was_looked_for_and_its_public_source(tmp_path):
    (tmp_path / "censs_income.parquet").touch()
    with pytest.raises(DataError) as raised:
        resolve("census_income.parquet", tmp_path, tmp_path / "recipes")
    message = str(raised.value)
    assert str(tmp_path / "recipes" / "census_income.parquet") in message
    assert "did you mean 'censs_income.parquet'" in message
    assert "UCI machine learning repository" in message
    assert "--data-dir" in message


def test_the_data_folder_comes_before_the_recipe(tmp_path):
    for folder in ("data", "recipes"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.csv").write_text("a\n1\n")
    assert resolve("x.csv", tmp_path / "data", tmp_path / "recipes") == tmp_path / "data" / "x.csv"
    assert resolve("x.csv", None, tmp_path / "recipes") == tmp_path / "recipes" / "x.csv"
    assert resolve("*.csv", tmp_path / "nowhere", tmp_path / "recipes") == tmp_path / "recipes" / "*.csv"


def test_text_columns_of_a_csv_stay_text(tmp_path):
    (tmp_path / "x.csv").write_text("code,n\n01,1\n02,2\n")
    assert read_table(tmp_path / "x.csv")["code"].to_list() == [1, 2]
    assert read_table(tmp_path / "x.csv", ["code"])["code"].to_list() == ["01", "02"]
