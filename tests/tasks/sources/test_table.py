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


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_byte_order_marks_and_line_ends(tmp_path, separator, start, end):
    rows = [["x", "y z"], ["1", f'"a{separator}b"'], ["2", '"two\nlines"']]
    text = start + "".join(separator.join(row) + end for row in rows)
    (tmp_path / "x.csv").write_bytes(text.encode())
    table = open_table(tmp_path / "x.csv")
    assert table.read(["x", "y z"]).rows() == [(1, f"a{separator}b"), (2, "two\nlines")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x,y,x\n1,2,3\n", "the header has 'x' twice (columns 1 and 3); rename one"),
        (b"x,y\n1,2\n1,2,3\n", "x.csv, line 3: 3 fields, and the header has 2; a field that contains ',' stands"),
        (b"x,y\n1,M\xe1laga\n", "x.csv, line 2: byte b'\\xe1' is no UTF-8; save the table as UTF-8"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named_with_its_line(tmp_path, content, message):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError) as raised:
        open_table(tmp_path / "x.csv").read(["x", "y"])
    assert message in str(raised.value)


def test_dates_in_a_csv_file_are_dates(tmp_path):
    (tmp_path / "x.csv").write_text("day,at,label\n2024-01-31,2024-01-31T10:30:00,1\n,2024-02-01T00:00:00,0\n")
    schema = open_table(tmp_path / "x.csv").schema
    assert [schema["day"].is_temporal(), schema["at"].is_temporal(), schema["label"].is_integer()] == [True] * 3


def test_a_missing_file_is_looked_for_once_in_each_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"looked for a\.csv\)"):
        resolve("a.csv", None, tmp_path)
