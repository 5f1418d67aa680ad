import json

import pytest
from pydantic import ValidationError

from polytask.core.errors import BadValue, MissingInput, PolytaskError, UnknownName
from polytask.tasks.kinds import KINDS
from polytask.tasks.losses import GROUPED_LOSSES, LOSSES
from polytask.tasks.metrics import METRICS
from polytask.tasks.task import Task, expand_tasks


def test_defaults_come_from_the_kind_and_the_name():
    task = Task(name="income", kind="binary")
    assert (task.label, task.loss, task.metric) == ("income", "binary_cross_entropy", "auroc")
    assert (task.role, task.priority, task.head.hidden_sizes) == ("target", 1.0, ())


def test_the_labels_and_where_are_the_columns_of_a_task():
    assert Task(name="buy", kind="binary", label="conversion", where="click").columns == ("conversion", "click")
    assert Task(name="toxic", kind="multilabel", labels=["a", "b"]).columns == ("a", "b")


def test_a_task_survives_json_and_cannot_be_changed():
    task = Task(name="digit", kind="multiclass", classes=[3, 1, 2], head={"hidden_sizes": [8]}, index=2)
    assert Task(**json.loads(json.dumps(task.model_dump(mode="json", exclude_none=True)))) == task
    assert {task: 1}[task] == 1
    with pytest.raises(ValidationError):
        task.name = "other"


def test_classes_keep_their_type():
    assert [type(value) for value in Task(name="t", kind="multiclass", classes=[1, "1", True]).classes] == [
        int,
        str,
        bool,
    ]


@pytest.mark.parametrize("name", KINDS.names())
def test_every_name_that_a_kind_offers_exists(name):
    kind = KINDS.find(name)
    assert set(kind.losses) <= {*LOSSES, *GROUPED_LOSSES}
    assert {*kind.metrics, *kind.companions} <= set(METRICS)


def test_expansion_keeps_the_recipe_order_and_fills_in_defaults():
    tasks = expand_tasks(
        {
            "sum": "regression",
            "assays": {"kind": "binary", "labels": ["NR-AR", "SR-p53"], "priority": 2},
            "left": {"kind": "multiclass", "label": "left_digit", "role": "target"},
        },
        defaults={"role": "auxiliary"},
    )
    assert [task.name for task in tasks] == ["sum", "NR-AR", "SR-p53", "left"]
    assert [task.label for task in tasks] == ["sum", "NR-AR", "SR-p53", "left_digit"]
    assert [task.role for task in tasks] == ["auxiliary", "auxiliary", "auxiliary", "target"]
    assert [task.group for task in tasks] == [None, "assays", "assays", None]
    assert tasks[1].priority == 2


def test_a_multilabel_task_keeps_its_labels():
    (task,) = expand_tasks({"toxic": {"kind": "multilabel", "labels": ["a", "b"]}})
    assert task.label is None
    assert task.labels == ("a", "b")


BAD = {
    "unknown kind": ({"a": "binry"}, UnknownName, "tasks.a: no kind 'binry' (did you mean 'binary'?)"),
    "unknown key": ({"a": {"kind": "binary", "metrc": "f1"}}, UnknownName, "no key 'metrc' (did you mean 'metric'?)"),
    "unknown head key": ({"a": {"kind": "binary", "head": {"hidden_size": [1]}}}, UnknownName, "'hidden_sizes'?"),
    "another kind's metric": (
        {"a": {"kind": "binary", "metric": "r2"}},
        UnknownName,
        "no metric of a binary task 'r2'",
    ),
    "another kind's loss": ({"a": {"kind": "binary", "loss": "l1"}}, UnknownName, "allowed: binary_cross_entropy"),
    "another kind's option": (
        {"a": {"kind": "regression", "positive": 1}},
        BadValue,
        "positive is 1; allowed: nothing",
    ),
    "no kind": ({"a": {"label": "b"}}, MissingInput, "tasks.a: a task needs a kind; allowed: binary, "),
    "no mapping": ({"a": 3}, BadValue, "a task is 3"),
    "no tasks": ({}, BadValue, "at least one task"),
    "no labels": ({"a": {"kind": "multilabel"}}, BadValue, "labels is None"),
    "label of a multilabel task": ({"a": {"kind": "multilabel", "label": "x"}}, BadValue, "labels is 'x'"),
    "labels that are no list": ({"a": {"kind": "binary", "labels": "x"}}, BadValue, "labels is 'x'"),
    "one class": ({"a": {"kind": "multiclass", "classes": [1]}}, BadValue, "2 or more values"),
    "a class twice": ({"a": {"kind": "multiclass", "classes": ["x", "x"]}}, BadValue, "each once"),
    "negative priority": ({"a": {"kind": "binary", "priority": -1}}, BadValue, "priority is -1"),
    "unknown role": ({"a": {"kind": "binary", "role": "helper"}}, BadValue, "'auxiliary'"),
    "a dot in a name": ({"a.b": "binary"}, BadValue, "tasks.a.b: a task's name is 'a.b'"),
    "a name twice": (
        {"a": "binary", "b": {"kind": "binary", "labels": ["a"]}},
        BadValue,
        "tasks.b: the name of a task",
    ),
}


@pytest.mark.parametrize("tasks, error, message", BAD.values(), ids=BAD)
def test_a_mistake_is_one_typed_line(tasks, error, message):
    with pytest.raises(error) as caught:
        expand_tasks(tasks)
    assert message in str(caught.value)
    assert isinstance(caught.value, PolytaskError)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_defaults_says_so():
    with pytest.raises(UnknownName, match="task_defaults: no key 'rol'"):
        expand_tasks({"a": "binary"}, {"rol": "target"})


@pytest.mark.parametrize(
    "fields, error, message",
    [
        ({"kind": "ranking"}, MissingInput, "kind 'ranking' compares rows within groups; group_by names their column"),
        ({"kind": "binary", "metric": "grouped_auroc"}, MissingInput, "metric 'grouped_auroc' is taken within groups"),
        ({"kind": "ranking", "group_by": "t"}, BadValue, "group_by.*neither label nor"),
        ({"kind": "binary", "positive": 1, "at_least": 4}, BadValue, "at_least.*nothing beside `positive`"),
        ({"kind": "regression", "at_least": 4}, BadValue, "kind 'regression' has no such option"),
    ],
)
def test_groups_and_thresholds_that_do_not_fit(fields, error, message):
    with pytest.raises(error, match=message):
        expand_tasks({"t": fields})


def test_a_group_is_read_and_is_no_label():
    task = Task(name="order", kind="ranking", label="stars", group_by="user")
    assert task.columns == ("stars",)
    assert task.read_columns == ("stars", "user")
