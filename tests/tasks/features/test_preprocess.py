import json

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import TypeAdapter

from polytask.core.errors import DataError, UnknownName
from polytask.tasks.examples import Ragged
from polytask.tasks.features.choose import choose_features
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import AnyOptions, PiecewiseLinearOptions
from polytask.tasks.preprocess import Preprocessor

TRAIN = pl.DataFrame(
    {
        "amount": [1.0, None, 3.0, float("nan"), 0.1],
        "colour": ["red", "blue", None, "red", "green"],
        "yes": [True, False, True, None, True],
        "tags": [["b", "a"], ["a"], [], None, ["c", "a"]],
        "spectrum": [[1.0, 2.0], [3.0, 2.0], [5.0, 2.0], [1.0, 2.0], [0.0, 2.0]],
        "code": [7, 8, 7, 9, 7],
    }
)


def fit(frame=TRAIN, chunks=1, **said):
    options = {column: TypeAdapter(AnyOptions).validate_python(value) for column, value in said.items()}
    size = max(-(-len(frame) // chunks), 1)
    parts = [
        (frame.slice(start, size), Place("t", np.arange(start, min(start + size, len(frame)))))
        for start in range(0, len(frame), size)
    ]
    return Preprocessor(choose_features(frame, options, where="t"), "data").fit(parts)


def bits(inputs):
    return {k: (x.values if isinstance(x, Ragged) else x).numpy().tobytes() for k, x in inputs.items()}


def test_numbers_are_standardised_and_missing_ones_marked():
    inputs = fit(TRAIN.select("amount")).transform(pl.DataFrame({"amount": [1.0, None]}))
    known = np.array([1.0, 3.0, 0.1])
    expected = [[(1 - known.mean()) / known.std(), 0], [0, 1]]
    np.testing.assert_allclose(inputs["numeric"], expected, rtol=1e-6)


def test_without_missing_values_in_training_there_is_no_indicator():
    preprocessor = fit(pl.DataFrame({"x": [1, 2, 3]}))
    assert preprocessor.schema.shapes == {"numeric": (1,)}
    assert preprocessor.transform(pl.DataFrame({"x": [None, 2]}))["numeric"].tolist() == [[0], [0]]


def test_categories_are_sorted_behind_unseen_and_missing():
    preprocessor = fit(TRAIN.select("colour", "yes"))
    assert preprocessor.schema.cardinalities == (5, 4)
    rows = pl.DataFrame({"colour": ["blue", "green", "red", None, "pink"], "yes": [False, True, None, None, True]})
    assert preprocessor.transform(rows)["categorical"].tolist() == [[2, 2], [3, 3], [4, 1], [1, 1], [0, 3]]


def test_rare_values_count_as_unseen():
    preprocessor = fit(TRAIN.select("colour"), colour={"kind": "categorical", "minimum_count": 2})
    assert preprocessor.schema.cardinalities == (3,)
    assert preprocessor.transform(TRAIN)["categorical"].flatten().tolist() == [2, 0, 1, 2, 0]


def test_integers_declared_categorical_are_read_from_other_types_too():
    preprocessor = fit(TRAIN.select("code"), code="categorical")
    for codes in ([9, 7], [9.0, 7.0], ["9", "7"]):
        assert preprocessor.transform(pl.DataFrame({"code": codes}))["categorical"].flatten().tolist() == [4, 2]
    with pytest.raises(DataError, match="row 1: column 'code' is 'x'"):
        preprocessor.transform(pl.DataFrame({"code": ["9", "x"]}))


def test_lists_of_values_and_of_numbers():
    preprocessor = fit(TRAIN.select("tags", "spectrum"))
    assert preprocessor.schema.shapes == {"numeric": (2,), "bits": (3,)}
    rows = pl.DataFrame({"tags": [["a", "z"], None], "spectrum": [[2.0, 2.0], [0.0, 3.0]]})
    inputs = preprocessor.transform(rows)
    assert inputs["bits"].tolist() == [[1, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(inputs["numeric"][:, 1], [0, 1])  # constant in training: std 1
    with pytest.raises(DataError, match="row 1: column 'spectrum' has 3 numbers; expected 2"):
        preprocessor.transform(rows.with_columns(spectrum=pl.Series([[1.0, 2.0], [1.0, 2.0, 3.0]])))
    few = fit(TRAIN.select("tags"), tags={"kind": "multi_hot", "most": 1})
    assert few.schema.shapes == {"bits": (1,)}
    assert "1 most frequent of 3" in few.remarks("data")[0]


def test_text_with_a_separator_is_a_list_of_values():
    frame = pl.DataFrame({"genres": ["War Drama", "Drama", None, " War  Comedy"]})
    fitted = fit(frame, genres={"kind": "multi_hot", "separator": " "})
    assert fitted.transform(frame)["bits"].tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    again = Preprocessor.from_json(json.loads(json.dumps(fitted.to_json())))
    assert bits(again.transform(frame)) == bits(fitted.transform(frame))
    with pytest.raises(DataError, match=r"column 'genres' has type String; .*text with a separator"):
        fit(frame, genres="multi_hot")
    with pytest.raises(DataError, match=r"column 'tags' .*with a separator takes text"):
        fit(TRAIN.select("tags"), tags={"kind": "multi_hot", "separator": " "})


def test_chunks_give_the_same_fit_as_one_frame():
    one, many = fit(), fit(chunks=3)
    for key, values in one.transform(TRAIN).items():
        torch.testing.assert_close(values, many.transform(TRAIN)[key])


def test_json_is_exact():
    """A third is no short decimal, so the fitted statistics use all bits."""
    fitted = fit(TRAIN.with_columns(third=pl.Series([1 / 3, 2 / 7, 1e-300, 1e100, -5.1])))
    back = Preprocessor.from_json(json.loads(json.dumps(fitted.to_json())))
    assert back.to_json() == fitted.to_json()
    assert back.schema == fitted.schema
    rows = TRAIN.with_columns(third=pl.Series([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert bits(back.transform(rows)) == bits(fitted.transform(rows))


def test_rows_do_not_depend_on_one_another():
    fitted = fit()
    whole = fitted.transform(TRAIN)
    for row in range(len(TRAIN)):
        for key, values in fitted.transform(TRAIN[row : row + 1]).items():
            assert (values[0] == whole[key][row]).all()


def test_new_rows_without_a_needed_column():
    with pytest.raises(UnknownName, match=r"new rows.*no column 'colour' \(did you mean 'color'\?\)"):
        fit(TRAIN.select("colour")).transform(pl.DataFrame({"color": ["red"]}))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("amount", ["1", "many"], "row 1: column 'amount' is 'many', which is no number"),
        ("amount", [1.0, float("inf")], "row 1: column 'amount' is infinite"),
    ],
)
def test_values_that_cannot_be_used_name_their_row(column, values, message):
    with pytest.raises(DataError, match=message):
        fit(TRAIN.select(column)).transform(pl.DataFrame({column: values}))


def test_columns_that_cannot_be_features_say_what_to_do():
    names = pl.DataFrame({"id": [f"m{i}" for i in range(100)]})
    with pytest.raises(DataError, match=r"'id' has 100 distinct values in 100 training rows.*drop: \[id\]"):
        fit(names)
    with pytest.raises(DataError, match="no value in training"):
        fit(pl.DataFrame({"x": pl.Series([None, None], dtype=pl.Float64)}))
    with pytest.raises(DataError, match="too large"):
        fit(pl.DataFrame({"x": [1e300, -1e300, 0.0]}))
    with pytest.raises(DataError, match="which is no feature"):
        fit(pl.DataFrame({"x": [{"a": 1}]}))
    with pytest.raises(DataError, match="no column is left"):
        fit(pl.DataFrame())


def test_dates_count_in_seconds():
    fitted = fit(pl.DataFrame({"day": ["1970-01-02", "1970-01-04"]}).select(pl.col("day").str.to_date()))
    assert fitted.features[0].mean == 2 * 86400
    assert (
        fitted.transform(pl.DataFrame({"day": ["1970-01-04"]}).select(pl.col("day").str.to_datetime()))["numeric"] == 1
    )


def test_the_schema_says_which_number_marks_which_as_missing() -> None:
    """A number with gaps, one without, a vector, and a piecewise-linear one with gaps: two intervals and a marker."""
    frame = pl.DataFrame(
        {"gaps": [1.0, None, 3.0], "whole": [1.0, 2.0, 4.0], "pair": [[1.0, 2.0]] * 3, "coded": [None, 1.0, 5.0]},
        schema_overrides={"pair": pl.Array(pl.Float64, 2)},
    )
    said = {"coded": PiecewiseLinearOptions(bins=1)}
    fitted = Preprocessor(choose_features(frame, said, where="here")).fit([(frame, Place("here"))])
    markers = fitted.schema.markers
    numbers = fitted.transform(frame)["numeric"]
    assert len(markers) == numbers.shape[1]
    missing = {place for place in markers if place >= 0}
    assert missing == {1, len(markers) - 1}
    assert markers[:3] == (1, 1, -1)
    assert numbers[:, 1].tolist() == [0, 1, 0]
    assert numbers[:, -1].tolist() == [1, 0, 0]
    assert Preprocessor.from_json(fitted.to_json()).schema.markers == markers
    whole = frame.select("whole")
    assert Preprocessor(choose_features(whole, {}, where="here")).fit([(whole, Place("here"))]).schema.markers == ()
