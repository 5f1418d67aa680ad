import polars as pl
import pytest

from polytask.core.errors import DataError
from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.draft import draft_recipe
from polytask.tasks.task import expand_tasks

ROWS = 200
WORDS = ["film", "book", "story", "music", "sea", "wood", "stone", "river"]


def write(tmp_path, **columns):
    path = tmp_path / "x.csv"
    pl.DataFrame(columns).write_csv(path)
    return path


def test_a_draft_loads_as_it_is(tmp_path):
    path = write(
        tmp_path,
        user_id=range(ROWS),
        age=[i % 60 + 0.5 for i in range(ROWS)],
        city=[f"c{i % 6}" for i in range(ROWS)],
        click=[i % 2 for i in range(ROWS)],
        outcome=[["low", "middle", "high"][i % 3] for i in range(ROWS)],
    )
    draft = draft_recipe(path)
    assert draft.recipe["data"]["drop"] == ["user_id"]
    assert draft.recipe["tasks"] == {"click": {"kind": "binary"}, "outcome": {"kind": "multiclass"}}
    assert draft.recipe["model"]["encoder"]["kind"] == "tabular"
    assert any("user_id" in remark for remark in draft.remarks)
    tasks = expand_tasks(draft.recipe["tasks"])
    data = load_data(DataSpec(**draft.recipe["data"]), tasks, data_dir=None, beside=tmp_path)
    assert data.sources["data"].preprocessor.columns == ["age", "city"]


def test_split_column_text_and_the_last_column(tmp_path):
    texts = [" ".join(WORDS[(i * k) % 8] for k in (1, 3, 5)) + f" {i}" for i in range(ROWS)]
    path = write(
        tmp_path, text=texts, split=["train", "valid"] * (ROWS // 2), spam=["no", "no", "no", "yes"] * (ROWS // 4)
    )
    draft = draft_recipe(path)
    assert draft.recipe["data"]["split"] == "split"
    assert draft.recipe["data"]["features"] == {"text": {"kind": "text"}}
    assert draft.recipe["tasks"] == {"spam": {"kind": "binary", "positive": "yes"}}
    assert draft.recipe["model"]["encoder"]["kind"] == "transformer"


def test_molecules_missing_labels_and_numbers(tmp_path):
    smiles = ["C" * (i + 1) + "(=O)O" for i in range(ROWS)]
    path = write(tmp_path, molecule=smiles, target=[None if i % 4 == 0 else i / 7 for i in range(ROWS)])
    draft = draft_recipe(path)
    assert draft.recipe["data"]["features"]["molecule"]["kind"] == "morgan"
    assert draft.recipe["tasks"] == {"target": {"kind": "regression"}}
    assert any("50 of 200 labels are missing" in remark for remark in draft.remarks)


def test_a_table_without_anything_like_a_label(tmp_path):
    with pytest.raises(DataError, match="no column looks like a label"):
        draft_recipe(write(tmp_path, name=[f"n{i}" for i in range(ROWS)]))
