"""The trainer's side of the engines: what it hands to the balancer, what it refuses, and resuming in between."""

from dataclasses import replace

import pytest
import torch
import yaml
from tests.training.distributed import CONV, images
from tests.training.runs import assert_resumes, events, job, outcome, recipe, table, train, train_until

import polytask
from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import BadValue, CheckpointError, Inconsistent, MissingInput, UnknownName
from polytask.tasks.mixture import Mixture, MixtureSpec
from polytask.training.losses import drawn_rows

ENGINES = ["representation", {"kind": "interval", "every": 4}, {"kind": "subset", "fraction": 0.4}]


@pytest.mark.parametrize("sharing", ["hard", {"kind": "mmoe", "experts": 2, "hidden_sizes": [4]}])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_ends(tmp_path, engine, sharing):
    rule = {"kind": "upgrad", "engine": engine}
    results = train(tmp_path / "run", train__rule=rule, model__sharing=sharing)
    assert results["steps"] == 6
    steps = events(tmp_path / "run", "step")
    fresh = [step for step in steps if "cosines" in step]
    assert len(fresh) == (2 if "every" in engine else 6)
    assert all(len(step["weights"]) == 4 for step in steps)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_equals_a_straight_one(tmp_path, engine):
    assert_resumes(tmp_path, 3, train__rule={"kind": "upgrad", "engine": engine})


def test_a_timing_of_engines_is_written_into_the_recipe(tmp_path):
    """A run continues by its recipe, whether or not that knows what was chosen, as if it had not been broken off."""
    tune = {"kind": "auto", "tune": True}
    settings = {"train__rule": {"kind": "upgrad", "engine": tune}, "train__epochs": 4, "train__checkpoint_every": 1}
    train(tmp_path / "straight", **settings)
    train_until(9, tmp_path / "run", **settings)
    # the layers are small, all engines take the same route, and the first of them is kept at once
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["stages"][0]["rule"]["engine"]["chosen"] == "auto"
    train(tmp_path / "run", resume=True, **settings)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")
    settings["train__rule"] = {"kind": "upgrad", "engine": {**tune, "chosen": "auto"}}
    train(tmp_path / "run", resume=True, **settings)
    settings["train__rule"] = {"kind": "upgrad", "engine": {**tune, "chosen": "exact"}}
    with pytest.raises(
        CheckpointError, match=r"written by another recipe: stages\.0\.rule\.engine\.chosen is 'auto' there"
    ):
        train(tmp_path / "run", resume=True, **settings)
    (said,) = [event["text"] for event in events(tmp_path / "straight", "message")]
    assert said == "engine auto, tuned: 'auto' was the fastest"


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
    with pytest.raises(Inconsistent, match="fraction belongs to subset, not to interval"):
        job(train__rule={"kind": "upgrad", "engine": {"kind": "interval", "fraction": 0.5}})
    with pytest.raises(Inconsistent, match="tune belongs to auto, not to exact"):
        job(train__rule={"kind": "upgrad", "engine": {"kind": "exact", "tune": True}})
    with pytest.raises(Inconsistent, match="chosen is what tune: true has found"):
        job(train__rule={"kind": "upgrad", "engine": {"kind": "auto", "chosen": "exact"}})
    with pytest.raises(BadValue, match="tune is True; allowed: false: rule 'equal' has one route"):
        job(train__rule={"kind": "equal", "engine": {"kind": "auto", "tune": True}})


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


def test_the_drawn_rows_have_a_label_for_each_task():
    run = job()
    piece = next(
        iter(Mixture({"data": run.data.sources["data"].splits["train"]}, MixtureSpec(), 32, seed=0).batches(0))
    )[0]
    first = {task: torch.zeros_like(present) for task, present in piece.present.items()}
    for row, present in enumerate(first.values()):
        present[row] = True
    rare = replace(piece, present=first)
    for seed in range(5):
        (part,) = drawn_rows([rare], 0.1, seed)
        assert 4 <= len(part) <= 4 + len(first)
        assert all(part.present[task].sum() == 1 for task in first)
        assert torch.equal(part.rows, drawn_rows([rare], 0.1, seed)[0].rows)
    assert torch.equal(drawn_rows([rare], 1.0, 0)[0].rows, rare.rows)
    assert len(drawn_rows([rare.at(slice(0, 0))], 0.5, 0)[0]) == 0


def test_the_running_statistics_see_a_batch_once(tmp_path):
    """With every row in the part it is the exact engine, and BatchNorm counts the batch once."""
    settings = {
        "tasks": {"left": "binary", "whole": "regression"},
        "model__encoder": CONV,
        "data__features": {"image": {"kind": "image"}},
    }
    for name, engine in (("exact", "exact"), ("subset", {"kind": "subset", "fraction": 1.0})):
        rule = {"kind": "upgrad", "engine": engine}
        train(tmp_path / name, data=images(), train__rule=rule, train__optimizer={"kind": "sgd", "lr": 0.1}, **settings)
    exact, subset = (read_checkpoint(resolve(tmp_path / name)).tensors() for name in ("exact", "subset"))
    for name, tensor in exact.items():
        torch.testing.assert_close(subset[name], tensor, rtol=1e-3, atol=1e-5)
