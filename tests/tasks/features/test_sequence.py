"""Lists of values in order: their indices, their padding, and a session model trained on them."""

import json

import numpy as np
import polars as pl
import pytest
import torch

import polytask
from polytask.core.errors import DataError
from polytask.core.noise import Noise
from polytask.tasks.features.choose import choose_features
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import SequenceOptions
from polytask.tasks.preprocess import Preprocessor

TRAIN = pl.DataFrame(
    {
        "items": [["b", "a"], ["a", "a", "c"], [], None, ["b"]],
        "brands": [[7, 7], [8, None, 7], [], None, [9]],
    }
)


def fit(frame=TRAIN, **options):
    said = {column: SequenceOptions(**options) for column in frame.columns}
    half = len(frame) // 2
    parts = [(frame[:half], Place("t")), (frame[half:], Place("t"))]
    return Preprocessor(choose_features(frame, said, where="t"), "data").fit(parts)


def padded(preprocessor, frame):
    return preprocessor.transform(frame)["sequence"].padded(torch.arange(len(frame))).tolist()


def test_indices_come_after_padding_unseen_and_missing():
    fitted = fit()
    assert fitted.schema.sequences == (3 + 3, 3 + 3)
    assert fitted.schema.longest == 50
    rows = pl.DataFrame({"items": [["c", "z"], ["a"], None, []], "brands": [[9, 8], [None], None, [None]]})
    assert padded(fitted, rows) == [[[5, 5], [1, 4]], [[3, 2], [0, 0]], [[2, 2], [0, 0]], [[2, 2], [0, 0]]]
    assert padded(fitted, pl.DataFrame({"items": [None], "brands": [[]]})) == [[[2, 2]]]


def test_what_is_rare_counts_as_unseen_and_the_end_of_a_long_list_is_kept():
    fitted = fit(TRAIN.select("items"), minimum_count=2, max_length=2)
    assert fitted.schema.sequences == (2 + 3,)
    rows = pl.DataFrame({"items": [["a", "b", "c"], ["b"]]})
    assert padded(fitted, rows) == [[[4], [1]], [[4], [0]]]
    assert fitted.remarks("data") == [
        "data: column 'items': 1 of 2 lists are longer than 2 and lost their beginning (option `max_length`)"
    ]


def test_texts_with_a_separator_and_arrays_are_lists():
    text = fit(pl.DataFrame({"items": ["a b", "b", None]}), separator=" ")
    assert padded(text, pl.DataFrame({"items": ["b a", ""]})) == [[[4], [3]], [[2], [0]]]
    array = fit(pl.DataFrame({"items": np.array([[1, 2], [2, 3]])}))
    assert padded(array, pl.DataFrame({"items": np.array([[3, 1]])})) == [[[5], [3]]]


def test_read_back_it_gives_the_same():
    fitted = fit(max_length=3)
    again = Preprocessor.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again.schema == fitted.schema
    assert padded(again, TRAIN) == padded(fitted, TRAIN)


def test_what_is_no_sequence():
    with pytest.raises(
        DataError, match=r"t: column 'items' has type String; kind sequence takes lists, or text with a"
    ):
        fit(pl.DataFrame({"items": ["a b", "b"]}))
    with pytest.raises(DataError, match="t: column 'items' has no value in training"):
        fit(pl.DataFrame({"items": [[], None]}, schema={"items": pl.List(pl.String)}))
    with pytest.raises(DataError, match="new: column 'items' has type Int64; kind sequence takes lists"):
        fit(TRAIN.select("items")).transform(pl.DataFrame({"items": [1, 2]}), Place("new"))
    rows = pl.DataFrame({"items": [["a"], ["a", "b"]], "brands": [[7], [7]]})
    with pytest.raises(DataError, match="new, row 1: columns 'items' and 'brands' have 2 and 1 elements; allowed: seq"):
        fit().transform(rows, Place("new"))
    options = {"items": SequenceOptions(max_length=3), "brands": SequenceOptions()}
    with pytest.raises(
        DataError, match=r"max_length of the sequences is \{'items': 3, 'brands': 50\}; allowed: one for"
    ):
        Preprocessor(choose_features(TRAIN, options, where="t"))


def sessions(rows=400):
    """Twelve items in three categories; the next item is the one after the last seen, within its category."""
    noise = Noise(0, "sessions")
    lengths, items = 1 + noise.integers(rows, 6), noise.child("items").integers(rows * 6, 12).reshape(rows, 6)
    seen = [row[:length].tolist() for row, length in zip(items, lengths, strict=True)]
    following = [4 * (row[-1] // 4) + (row[-1] + 1) % 4 for row in seen]
    return {
        "items": [[f"item {item}" for item in row] for row in seen],
        "categories": [[item // 4 for item in row] for row in seen],
        "next_item": [f"item {item}" for item in following],
        "next_category": [str(item // 4) for item in following],
        "split": ["train"] * (rows - 100) + ["valid"] * 50 + ["test"] * 50,
    }


def test_a_session_model_learns_the_next_item_and_its_category(tmp_path):
    recipe = {
        "version": 1,
        "data": {"split": "split", "features": {"items": "sequence", "categories": "sequence"}},
        "task_defaults": {"metric": "accuracy"},
        "tasks": {"next_item": "multiclass", "next_category": "multiclass"},
        "model": {"encoder": {"kind": "sequence", "width": 32}, "sharing": {"kind": "m2trec", "layers": 1}},
        "train": {"steps": 250, "batch_size": 50, "optimizer": {"kind": "adamw", "lr": 0.01}},
    }
    results = polytask.train(recipe, out=tmp_path / "run", data={"data": sessions()})
    assert results["test"]["next_category"]["accuracy"] > 0.9  # by chance 1 / 3
    assert results["test"]["next_item"]["accuracy"] > 0.6  # 1 / 12
    trained = polytask.load(tmp_path / "run")
    new = {"items": [["item 3", "item 9"], [], ["never seen"]], "categories": [[0, 2], [], [None]]}
    together = trained.predict(new)
    alone = trained.predict({column: values[:1] for column, values in new.items()})
    assert together["next_category"].to_list()[0] == "2"
    assert alone["next_category"].to_list() == together["next_category"].to_list()[:1]
