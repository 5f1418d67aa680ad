import numpy as np
import polars as pl
import pytest

from polytask.core.errors import DataError, UnknownName
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


def test_label_columns_that_are_named(tmp_path):
    path = write(
        tmp_path, a=[i / 3 for i in range(ROWS)], b=[i % 2 for i in range(ROWS)], c=[i / 7 for i in range(ROWS)]
    )
    draft = draft_recipe(path, ["b", "c"])
    assert draft.recipe["tasks"] == {"b": {"kind": "binary"}, "c": {"kind": "regression"}}
    assert not any(remark.startswith("tasks:") for remark in draft.remarks)
    with pytest.raises(UnknownName, match="--tasks: no column 'd'"):
        draft_recipe(path, ["d"])
    with pytest.raises(DataError, match="no column is left to predict from"):
        draft_recipe(path, ["a", "b", "c"])


@pytest.mark.parametrize("amount", [None, 0.0])
def test_a_feature_that_gives_a_label_away_is_named(tmp_path, amount):
    click = [int(i % 3 == 0) for i in range(ROWS)]
    path = write(
        tmp_path,
        spent=[5.0 + i if one else amount for i, one in enumerate(click)],
        rare=[1.5 if i == 7 else None for i in range(ROWS)],
        age=[None if i % 4 == 0 else i % 50 + 0.5 for i in range(ROWS)],
        click=click,
    )
    remarks = [remark for remark in draft_recipe(path).remarks if "gives click away" in remark]
    shown = "empty" if amount is None else "0.0"
    assert [remark.partition(", so")[0] for remark in remarks] == [
        f"data.features: 'spent' is {shown} wherever click is 0, and hardly elsewhere"
    ]


def test_columns_beside_a_molecule_are_labels(tmp_path):
    smiles = [None if i == 5 else "C" * (i + 1) + "(=O)O" for i in range(ROWS)]
    assay = [None if i % 3 == 0 else i % 2 for i in range(ROWS)]
    draft = draft_recipe(write(tmp_path, toxic=assay, mol_id=[f"M{i}" for i in range(ROWS)], smiles=smiles, safe=assay))
    assert list(draft.recipe["tasks"]) == ["toxic", "safe"]
    assert draft.recipe["data"]["drop"] == ["mol_id"]
    assert draft.recipe["data"]["features"]["smiles"]["invalid"] == "drop"


def test_files_of_images_and_arrays(tmp_path):
    path = write(tmp_path, file=[f"pictures/{i}.PNG" for i in range(ROWS)], light=[i / 7 for i in range(ROWS)])
    draft = draft_recipe(path)
    assert draft.origin == "images"
    assert draft.recipe["data"]["images"] == "x.csv"
    assert draft.recipe["data"]["features"] == {"file": {"kind": "image"}}
    assert draft.recipe["tasks"] == {"light": {"kind": "regression"}}
    np.savez(tmp_path / "x.npz", pixels=np.zeros((40, 8, 8), np.uint8), label=np.arange(40) % 2)
    draft = draft_recipe(tmp_path / "x.npz")
    assert draft.recipe["data"]["arrays"] == "x.npz"
    assert draft.recipe["model"]["encoder"] == {"kind": "conv"}
    tasks = expand_tasks(draft.recipe["tasks"])
    data = load_data(DataSpec(**draft.recipe["data"]), tasks, data_dir=None, beside=tmp_path)
    assert data.sources["data"].schema.shapes == {"image": (1, 8, 8)}


def test_numbers_that_name_something_rows_that_are_counted_and_dates(tmp_path):
    (tmp_path / "x.csv").write_text(
        ",user_id,day,age,Y1,Y2\n"
        + "".join(
            f"{i},{i % 9},2024-01-{i % 28 + 1:02d},{'?' if i == 3 else i % 40},{i / 7},{i / 3}\n" for i in range(90)
        )
    )
    draft = draft_recipe(tmp_path / "x.csv")
    assert draft.recipe["data"]["drop"] == [""]
    assert draft.recipe["data"]["features"] == {"user_id": {"kind": "categorical"}}
    assert list(draft.recipe["tasks"]) == ["Y1", "Y2"]
    found = "\n".join(draft.remarks)
    for words in (
        "{time: day}",
        "{group: user_id}",
        "'' counts the rows",
        "'age' is text because of values such as '?'",
    ):
        assert words in found


def test_labels_with_words_for_nothing_names_that_no_task_can_have_and_one_value(tmp_path):
    path = write(
        tmp_path,
        x=[i / 3 for i in range(ROWS)],
        empty=[None] * ROWS,
        **{"label_a.b": ["NA" if i % 5 == 0 else str(i % 2) for i in range(ROWS)], "label_one": [1] * ROWS},
    )
    draft = draft_recipe(path)
    assert draft.recipe["tasks"]["label_a_b"] == {
        "kind": "binary",
        "positive": "1",
        "label": "label_a.b",
        "ignore": "NA",
    }
    assert "tasks.label_one: only the value 1, so there is nothing to learn; take it out" in draft.remarks
    assert "data.drop: 'empty' is empty in every row" in draft.remarks
    data = load_data(
        DataSpec(**draft.recipe["data"], degenerate="keep"),
        expand_tasks(draft.recipe["tasks"]),
        data_dir=None,
        beside=tmp_path,
    )
    labels, present = data.targets["label_a_b"].encode(pl.read_csv(path))
    assert int(present.sum()) == ROWS * 4 // 5
    assert int(labels[present].sum()) == ROWS * 2 // 5
