"""The trainer's side of the engines: what it hands to the balancer, what it refuses, and resuming in between."""

import pytest
from tests.training.runs import events, job, outcome, recipe, table, train

import polytask
from polytask.core.errors import BadValue, Inconsistent, MissingInput, UnknownName

ENGINES = ["representation", {"kind": "interval", "every": 4}]


@pytest.mark.parametrize("sharing", ["hard", {"kind": "mmoe", "experts": 2, "hidden_sizes": [4]}])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_ends(tmp_path, engine, sharing):
    rule = {"kind": "upgrad", "engine": engine}
    results = train(tmp_path / "run", train__rule=rule, model__sharing=sharing)
    assert results["steps"] == 6
    steps = events(tmp_path / "run", "step")
    fresh = [step for step in steps if "cosines" in step]
    assert len(fresh) == (6 if engine == "representation" else 2)
    assert all(len(step["weights"]) == 4 for step in steps)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_equals_a_straight_one(tmp_path, engine):
    settings = {"train__rule": {"kind": "upgrad", "engine": engine}, "train__checkpoint_every": 1}
    train(tmp_path / "straight", **settings)

    def stop(event):
        if event["event"] == "step" and event["step"] == 3:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "broken", listeners=[stop], **settings)
    train(tmp_path / "broken", resume=True, **settings)
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "straight")


def test_nothing_to_share(tmp_path):
    with pytest.raises(MissingInput, match="stage 'train', engine 'representation': the tasks share no representation"):
        train(tmp_path / "run", train__rule={"kind": "upgrad", "engine": "representation"}, model__sharing="single")


def test_sources_that_share_no_row(tmp_path):
    tables = {name: table(40, seed) for seed, name in enumerate(("big", "small"))}
    keep = {"big": ["x0", "x1", "click"], "small": ["x0", "x1", "topic"]}
    data = {name: {column: tables[name][column] for column in columns} for name, columns in keep.items()}
    tasks = {"click": {"kind": "binary", "source": "big"}, "topic": {"kind": "multiclass", "source": "small"}}
    settings = {"tasks": tasks, "train__rule": {"kind": "upgrad", "engine": "representation"}}
    with pytest.raises(Inconsistent, match="tasks of sources big, small have no rows in common"):
        polytask.train(recipe(**settings), out=tmp_path / "run", data=data)


def test_options_are_checked_when_the_recipe_is_read():
    with pytest.raises(Inconsistent, match="every belongs to interval, not to exact"):
        job(train__rule={"kind": "upgrad", "engine": {"kind": "exact", "every": 3}})


def test_clusters_of_a_recipe(tmp_path):
    """The rule and the events name clusters; by index they follow the tasks' own, and predicting names tasks."""
    pairs = {"shop": ["click", "buy"], "rest": ["topic", "price"]}
    train(tmp_path / "named", train__rule={"kind": "pcgrad", "clusters": pairs})
    assert all(list(event["losses"]) == list(pairs) for event in events(tmp_path / "named", "step"))
    assert sorted(polytask.load(tmp_path / "named").targets) == ["buy", "click", "price", "topic"]
    index = {"click": 11, "buy": 1, "topic": 10, "price": 2}
    kinds = {"click": "binary", "buy": "binary", "topic": "multiclass", "price": "regression"}
    tasks = {task: {"kind": kinds[task], "index": place} for task, place in index.items()}
    train(tmp_path / "found", tasks=tasks, train__rule={"kind": "upgrad", "clusters": {"kind": "index", "number": 2}})
    assert list(events(tmp_path / "found", "step")[0]["losses"]) == ["buy..price", "topic..click"]


@pytest.mark.parametrize(
    "clusters, error, message",
    [
        ("shop", BadValue, r"rule\.clusters is 'shop'; allowed: {cluster: \[tasks\]}"),
        ({"shop": "click"}, BadValue, r"rule\.clusters\.shop is 'click'; allowed: a list of tasks"),
        ({"shop": ["click", "clock"]}, UnknownName, r"clusters, shop: no task 'clock' \(did you mean 'click'"),
        ({"kind": "indx", "number": 2}, BadValue, r"rule\.clusters\.kind is 'indx'"),
        ({"kind": "index", "number": 0}, BadValue, r"rule\.clusters\.number is 0"),
        ({"kind": "index", "number": 9}, BadValue, "number is 9; allowed: .* that of the tasks, 4"),
        ({"kind": "index", "nubmer": 2}, UnknownName, r"rule\.clusters: no key 'nubmer' \(did you mean 'number'"),
    ],
)
def test_bad_clusters_of_a_recipe(clusters, error, message):
    with pytest.raises(error, match=message):
        job(train__rule={"kind": "upgrad", "clusters": clusters})
