import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from numpy.testing import assert_allclose

from polytask.core.errors import BadValue, DataError, NotFinite, UnknownName
from polytask.tasks.target import Target
from polytask.tasks.task import Task

NAN = float("nan")


def encoded(target, frame):
    labels, present = target.encode(frame)
    return labels.tolist(), present.tolist()


@pytest.mark.parametrize(
    "values, positive, labels, present",
    [
        ([True, None, False], None, [1, 0, 0], [True, False, True]),
        ([1, 0, None], None, [1, 0, 0], [True, True, False]),
        ([1.0, NAN, 0.0, None], None, [1, 0, 0, 0], [True, False, True, False]),
        (["yes", "no", None, "never"], "yes", [1, 0, 0, 0], [True, True, False, True]),
        ([-1, 1, -1], 1, [0, 1, 0], [True, True, True]),
        ([True, False], False, [0, 1], [True, True]),
    ],
)
def test_binary_labels(values, positive, labels, present):
    frame = pl.DataFrame({"y": values})
    target = Target.fit(Task(name="t", kind="binary", label="y", positive=positive), frame)
    assert encoded(target, frame) == (labels, present)
    assert target.outputs == 1
    assert target.encode(frame)[0].dtype == torch.float32


def test_labels_of_categorical_and_decimal_columns():
    frame = pl.DataFrame({"c": ["a", "b", None], "d": [1, 0, None]}).with_columns(
        pl.col("c").cast(pl.Categorical), pl.col("d").cast(pl.Decimal(10, 2))
    )
    assert encoded(Target.fit(Task(name="c", kind="binary", positive="b"), frame), frame)[0] == [0, 1, 0]
    assert encoded(Target.fit(Task(name="d", kind="binary"), frame), frame)[0] == [1, 0, 0]


@pytest.mark.parametrize("wrap", [np.array, torch.tensor, list])
def test_a_frame_may_be_a_mapping_of_arrays(wrap):
    frame = {"y": wrap([2, 0, 1, 1])}
    target = Target.fit(Task(name="y", kind="multiclass"), frame)
    assert target.classes == (0, 1, 2)
    assert encoded(target, frame)[0] == [2, 0, 1, 1]


def test_missing_values_in_arrays_of_objects():
    frame = {"y": np.array(["a", None, "b", NAN], dtype=object)}
    labels, present = encoded(Target.fit(Task(name="y", kind="multiclass"), frame), frame)
    assert (labels, present) == ([0, 0, 1, 0], [True, False, True, False])


def test_ignore_and_where_make_labels_absent():
    frame = pl.DataFrame({"buy": [1, 0, 1, -1, 1], "click": [1, 1, 0, 1, None]})
    task = Task(name="buy", kind="binary", where="click", ignore=-1)
    assert encoded(Target.fit(task, frame), frame) == ([1, 0, 0, 0, 0], [True, True, False, False, False])


def test_where_accepts_booleans_and_refuses_strings():
    frame = pl.DataFrame({"y": [1, 0, 1], "b": [True, True, False], "s": ["yes", "no", "no"]})
    assert encoded(Target.fit(Task(name="y", kind="binary", where="b"), frame), frame)[1] == [True, True, False]
    with pytest.raises(DataError, match="column 's': `where` needs true/false or numbers; found 'no', 'yes'"):
        Target.fit(Task(name="y", kind="binary", where="s"), frame)


def test_multiclass_classes_are_sorted_or_as_declared():
    frame = pl.DataFrame({"y": ["b", "a", None, "c"]})
    found = Target.fit(Task(name="y", kind="multiclass"), frame)
    declared = Target.fit(Task(name="y", kind="multiclass", classes=["c", "b", "a", "d"]), frame)
    assert found.classes == ("a", "b", "c")
    assert encoded(found, frame) == ([1, 0, 0, 2], [True, True, False, True])
    assert encoded(declared, frame)[0] == [1, 2, 0, 0]
    assert (found.outputs, declared.outputs) == (3, 4)
    assert found.encode(frame)[0].dtype == torch.int64


def test_whole_numbers_stored_as_floats_are_classes_and_others_are_not():
    frame = pl.DataFrame({"y": [1.0, 3.0, NAN], "z": [1.0, 2.5, 3.0]})
    assert Target.fit(Task(name="y", kind="multiclass"), frame).classes == (1, 3)
    assert encoded(Target.fit(Task(name="y", kind="multiclass", classes=[3, 1]), frame), frame)[0] == [1, 0, 0]
    chunks = iter([{"y": [1, 2]}, {"y": ["a"]}])
    with pytest.raises(DataError, match="classes 1, 2, 'a'; allowed: values of one type"):
        Target.fit(Task(name="y", kind="multiclass"), chunks)
    with pytest.raises(DataError, match=r"class labels 2\.5; allowed: whole numbers"):
        Target.fit(Task(name="z", kind="multiclass"), frame)


def test_multilabel_columns_have_their_own_missing_labels():
    frame = pl.DataFrame({"a": [1.0, 0.0, None], "b": [None, 1.0, 0.0]})
    target = Target.fit(Task(name="t", kind="multilabel", labels=["a", "b"]), frame)
    assert encoded(target, frame) == ([[1, 0], [0, 1], [0, 0]], [[True, False], [True, True], [False, True]])
    assert target.outputs == 2


def test_regression_is_standardised_with_training_statistics():
    train, test = pl.DataFrame({"y": [1.0, 2.0, NAN, 3.0, None]}), pl.DataFrame({"y": [2.0, 8.0]})
    target = Target.fit(Task(name="y", kind="regression"), train)
    assert_allclose([target.mean, target.std], [2.0, math.sqrt(2 / 3)])
    assert_allclose(target.encode(test)[0], [0.0, 6 / math.sqrt(2 / 3)], rtol=1e-6)
    assert_allclose(target.decode(target.encode(test)[0])["y"], [2.0, 8.0], rtol=1e-6)


def test_chunks_give_the_statistics_of_the_whole():
    values = 1e9 + np.random.default_rng(0).normal(size=1000)
    chunks = [pl.DataFrame({"y": part}) for part in np.split(values, [1, 10, 10, 700])]
    target = Target.fit(Task(name="y", kind="regression"), iter(chunks))
    assert_allclose([target.mean, target.std], [values.mean(), values.std()], rtol=1e-8)
    classes = [pl.DataFrame({"y": part}) for part in ([3, 1], [2, 1])]
    assert Target.fit(Task(name="y", kind="multiclass"), iter(classes)).classes == (1, 2, 3)
    assert Target.fit(Task(name="y", kind="binary"), [pl.DataFrame({"y": [v, v]}) for v in (0, 1)]).degenerate is None


def test_predictions():
    frame = pl.DataFrame({"b": [0, 1], "c": ["x", "y"], "m": [1, 0], "n": [0, 1]})
    binary = Target.fit(Task(name="b", kind="binary"), frame)
    assert_allclose(binary.decode(torch.tensor([0.0, math.log(3.0)]))["b"], [0.5, 0.75])
    multiclass = Target.fit(Task(name="c", kind="multiclass"), frame)
    columns = multiclass.decode(torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(4.0)]]))
    assert columns["c"].tolist() == ["x", "y"]
    assert_allclose(columns["c.x"], [0.75, 0.2])
    assert_allclose(columns["c.y"], [0.25, 0.8])
    multilabel = Target.fit(Task(name="t", kind="multilabel", labels=["m", "n"]), frame)
    columns = multilabel.decode(torch.tensor([[0.0, math.log(3.0)]]))
    assert {name: values.tolist() for name, values in columns.items()} == {"t.m": [0.5], "t.n": [pytest.approx(0.75)]}


ALL_KINDS = [
    Task(name="b", kind="binary", group_by="g"),
    Task(name="c", kind="multiclass"),
    Task(name="t", kind="multilabel", labels=["b", "m"]),
    Task(name="r", kind="regression", loss="huber"),
    Task(name="o", kind="ranking", label="r", group_by="g"),
]
FRAME = pl.DataFrame(
    {"b": [0, 1, 1, 0], "c": [0, 1, 2, 2], "m": [1, 0, None, 1], "r": [1.0, 2.0, 5.0, None]}
).with_columns(g=pl.Series(["u", "u", "v", "v"]))


@pytest.mark.parametrize("task", ALL_KINDS, ids=lambda task: task.kind)
def test_a_target_survives_json(task):
    target = Target.fit(task, FRAME)
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


@pytest.mark.parametrize("task", ALL_KINDS, ids=lambda task: task.kind)
def test_scores_begin_with_the_declared_metric(task):
    target = Target.fit(task.model_copy(update={"metric": task.behaviour.metrics[-1]}), FRAME)
    labels, present = target.encode(FRAME)
    outputs = torch.randn(4, target.outputs, generator=torch.Generator().manual_seed(0))
    outputs = outputs if target.task.kind.startswith("multi") else outputs[:, 0]
    scores = target.score(outputs, labels, present, target.groups(FRAME))
    assert next(iter(scores)) == task.behaviour.metrics[-1]
    assert set(scores) == set(task.behaviour.companions)
    assert all(value is None or math.isfinite(value) for value in scores.values())
    if target.task.kind == "binary":
        assert set(scores) - set(target.score(outputs, labels, present)) == {"grouped_auroc"}


def test_regression_scores_are_in_the_labels_units():
    target = Target.fit(Task(name="r", kind="regression"), FRAME)
    labels, present = target.encode(FRAME)
    assert target.score(labels + 2 / target.std, labels, present)["mae"] == pytest.approx(2.0, rel=1e-6)


def test_the_selection_score_is_higher_for_the_better():
    task = Task(name="r", kind="regression", metric="rmse")
    assert Target(task).selection_score({"rmse": 2.0}) == -2.0
    assert Target(task).selection_score({"rmse": None}) is None
    assert Target(Task(name="r", kind="regression")).selection_score({"r2": 0.5}) == 0.5


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_outputs_that_are_not_finite_are_an_error_naming_the_task(value):
    target = Target.fit(Task(name="b", kind="binary"), FRAME)
    labels, present = target.encode(FRAME)
    with pytest.raises(NotFinite, match="task 'b': 1 of 4 outputs"):
        target.score(torch.tensor([value, 0.0, 0.0, 0.0]), labels, present)
    present[0] = False  # a row without a label is not read
    assert target.score(torch.tensor([value, 0.0, 0.0, 0.0]), labels, present)["auroc"] == 0.5


DEGENERATE = {
    "binary": ({"kind": "binary"}, [1, 1, None], "2 of 2 labels are positive"),
    "no label": ({"kind": "binary"}, [None, None], "0 of 0 labels are positive"),
    "positive nowhere": ({"kind": "binary", "positive": "yes"}, ["yess", "no"], "did you mean 'yess'?"),
    "multiclass": ({"kind": "multiclass", "classes": [1, 2]}, [2, 2], "found 2"),
    "multilabel": ({"kind": "multilabel", "labels": ["y"]}, [0, 0], "0 of 2 labels are positive"),
    "regression": ({"kind": "regression"}, [3.0, 3.0], r"found 2 labels, all 3\.0"),
    "regression without labels": ({"kind": "regression"}, [None, NAN], "found no label"),
}


@pytest.mark.parametrize("options, values, message", DEGENERATE.values(), ids=DEGENERATE)
def test_one_class_in_training_is_an_error_unless_allowed(options, values, message):
    label = {} if options["kind"] == "multilabel" else {"label": "y"}
    task, frame = Task(name="t", **label, **options), pl.DataFrame({"y": values}, strict=False)
    with pytest.raises(DataError, match=f"^x.csv: task 't', column 'y'.*{message}.*degenerate: drop | keep"):
        Target.fit(task, frame, place="x.csv")
    target = Target.fit(task, frame, allow_degenerate=True)
    assert message.replace("\\", "") in target.degenerate
    labels, present = target.encode(frame)
    assert torch.isfinite(labels).all()
    assert present.shape == labels.shape


BAD_LABELS = {
    "binary strings": ({"kind": "binary"}, ["a", "b"], DataError, "binary labels 'a', 'b'; allowed: true/false, 0/1"),
    "binary numbers": ({"kind": "binary"}, [0, 1, 2], DataError, "binary labels 2; allowed: true/false, 0/1, or set"),
    "positive of another type": (
        {"kind": "binary", "positive": 1},
        ["1", "0"],
        BadValue,
        "positive is 1; allowed: a str",
    ),
    "ignore of another type": ({"kind": "binary", "ignore": "?"}, [1, 0], BadValue, "ignore is '?'; allowed: a number"),
    "undeclared class": (
        {"kind": "multiclass", "classes": ["cat", "dog"]},
        ["cat", "dgo"],
        DataError,
        "classes 'dgo' (did you mean 'dog'?); allowed: 'cat', 'dog'",
    ),
    "classes of another type": ({"kind": "multiclass", "classes": [False, True]}, ["no", "yes"], BadValue, "a string"),
    "text for a number": ({"kind": "regression"}, ["1", "2"], DataError, "type String: '1', '2'; allowed: numbers"),
    "infinite": ({"kind": "regression"}, [1.0, math.inf], DataError, "1 of 2 labels are infinite"),
    "lists": ({"kind": "regression"}, [[1.0], [2.0]], DataError, "labels are of type List"),
}


@pytest.mark.parametrize("options, values, error, message", BAD_LABELS.values(), ids=BAD_LABELS)
def test_a_wrong_label_is_one_typed_line(options, values, error, message):
    with pytest.raises(error) as caught:
        Target.fit(Task(name="t", label="y", **options), pl.DataFrame({"y": values}), place="x.csv")
    assert str(caught.value).startswith("x.csv: task 't', column 'y': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_training_lacks_is_an_error_later():
    target = Target.fit(Task(name="y", kind="multiclass"), pl.DataFrame({"y": [1, 2]}))
    with pytest.raises(
        DataError, match=r"classes 3; allowed: 1, 2 .those of the training split; `classes` can declare"
    ):
        target.encode(pl.DataFrame({"y": [1, 3]}))


def test_an_unknown_column_names_the_nearest():
    with pytest.raises(UnknownName, match=r"task 'y', column 'lable': no column 'lable' .did you mean 'label'"):
        Target.fit(Task(name="y", kind="binary", label="lable"), pl.DataFrame({"label": [0, 1]}))


def test_a_number_from_which_on_a_label_counts():
    frame = pl.DataFrame({"stars": [5.0, 4, 3.5, None], "text": ["a", "b", "a", "b"]})
    target = Target.fit(Task(name="liked", kind="binary", label="stars", at_least=4), frame)
    assert encoded(target, frame) == ([1, 1, 0, 0], [True, True, True, False])
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
    with pytest.raises(BadValue, match=r"at_least.*column holds String"):
        Target.fit(Task(name="text", kind="binary", at_least=4), frame)


def test_groups_are_the_same_in_every_chunk_and_none_is_missing():
    task = Task(name="order", kind="ranking", label="stars", group_by="user")
    frame = pl.DataFrame({"user": ["u", "v", "u", "w"], "stars": [1, 2, 3, 4]})
    target = Target.fit(task, frame)
    groups = target.groups(frame)
    assert groups[0] == groups[2]
    assert len(groups.unique()) == 3
    assert torch.equal(groups[2:], target.groups(frame[2:]))
    assert Target.fit(Task(name="stars", kind="regression"), frame).groups(frame) is None
    with pytest.raises(DataError, match="column 'user': 1 of 2 rows have no value; allowed: a group in each"):
        target.groups(pl.DataFrame({"user": ["u", None], "stars": [1, 2]}))


def test_a_ranking_is_trained_and_scored_within_groups():
    """Two groups; by hand: in the first 5 > 3 and 5 > 1 and 3 > 1, of which outputs order two; the second has a tie."""
    frame = pl.DataFrame({"user": [1, 2, 1, 1, 2, 2], "stars": [5, 4, 3, 1, 4, 2]})
    target = Target.fit(Task(name="order", kind="ranking", label="stars", group_by="user"), frame)
    (labels, present), groups = target.encode(frame), target.groups(frame)
    outputs = torch.tensor([2.0, 0.0, 3.0, -1.0, 1.0, 0.0])
    numerator, count = target.loss(outputs, labels, present, groups)
    margins = [2 - 3, 2 + 1, 3 + 1, 0 - 0, 1 - 0]
    assert count == 5
    assert numerator.item() == pytest.approx(sum(math.log(1 + math.exp(-margin)) for margin in margins))
    assert target.score(outputs, labels, present, groups)["grouped_auroc"] == pytest.approx((2 / 3 + 1.5 / 2) / 2)
    assert target.decode(outputs)["order"].tolist() == outputs.tolist()
