"""Tasks that several sources have labels of, and pairs of a source and a task that no training row had."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.runs import recipe, table
from torch import Tensor, nn

import polytask
from polytask.core.errors import BadValue, DataError, MissingInput, UnknownName
from polytask.evaluation.scores import outputs_on
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.sharing.tape import note_penalty
from polytask.studies.baseline import single_task
from polytask.tasks.examples import Batch
from polytask.tasks.target import Target
from polytask.tasks.task import Task
from polytask.training.devices import Devices
from polytask.training.job import Job
from polytask.training.losses import task_losses
from polytask.training.spec import RunSpec

COLUMNS = {"left": ["x0", "x1", "click", "price"], "right": ["x0", "x1", "x3", "kind", "price", "click", "topic"]}
TASKS = {
    "click": {"kind": "binary", "source": "left", "held_out": ["right"]},
    "price": {"kind": "regression", "source": ["left", "right"]},
    "topic": {"kind": "multiclass", "source": "right"},
}
STEMS = {"stems": {"width": 6, "default": {"kind": "tabular", "hidden_sizes": [8]}}, "encoder": "mlp"}


def sources() -> dict[str, dict[str, Any]]:
    rows = {"left": table(90), "right": table(120, seed=1)}
    return {name: {column: rows[name][column] for column in columns} for name, columns in COLUMNS.items()}


def values(**settings: Any) -> dict[str, Any]:
    return recipe(**{"tasks": TASKS, "model": STEMS, **settings})


def job(**settings: Any) -> Job:
    return make_job(read_recipe(values(**settings)), data=sources())


# ---- losses


class Scaled(nn.Module):
    """Outputs of one task, with a term of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, inputs: dict[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        x = inputs["numeric"][:, 0]
        note_penalty("price", x.sum())
        return dict.fromkeys(tasks, x * self.scale)


def piece(source: str, x: list[float], labels: list[float], present: list[bool]) -> Batch:
    numbers = torch.arange(len(x))
    of_task = {"price": torch.tensor(labels)}, {"price": torch.tensor(present)}
    return Batch({"numeric": torch.tensor(x)[:, None]}, *of_task, numbers, source)


def test_a_loss_is_the_mean_over_the_labels_of_all_sources() -> None:
    pieces = [piece("left", [1.0, 2.0], [1.0, 9.0], [True, False]), piece("right", [1.0, 3.0], [2.0, 3.0], [True] * 2)]
    target = {"price": Target(Task(name="price", kind="regression"))}
    found = task_losses(Scaled(), pieces, target, Devices(RunSpec(device="cpu")))
    # Errors 2 - 1, then 2 - 2 and 6 - 3: (1 + 0 + 9) / 3. The terms, 3 and 4, by the shares of the labels, 1/3 and 2/3.
    assert found.counts == {"price": 3}
    assert float(found.losses["price"].detach()) == pytest.approx(10 / 3 + 3 / 3 + 4 * 2 / 3)


def test_engines_agree_where_a_task_is_read_through_two_stems(tmp_path: Path) -> None:
    models = []
    for engine in ("exact", "layerwise"):
        settings = {"train__rule": {"kind": "upgrad", "engine": engine}, "train__epochs": None, "train__steps": 4}
        polytask.train(values(**settings), out=tmp_path / engine, data=sources())
        models.append(polytask.load(tmp_path / engine).model.state_dict())
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=1e-4, atol=1e-5)


# ---- data


def test_a_target_is_fitted_on_the_training_rows_of_all_its_sources() -> None:
    data = job().data
    labels = []
    for source in ("left", "right"):
        rows = data.sources[source].splits["train"].rows.numpy()
        labels.append(sources()[source]["price"][rows])
    every = np.concatenate(labels)
    assert data.targets["price"].mean == pytest.approx(np.nanmean(every))
    assert data.targets["price"].std == pytest.approx(np.nanstd(every))
    assert data.sources["left"].tasks == ["click", "price"]
    assert data.sources["right"].tasks == ["price", "topic"]


def test_labels_that_are_held_out_are_in_the_test_split_only() -> None:
    splits = job().data.sources["right"].splits
    assert {split: sorted(rows.labels) for split, rows in splits.items()} == {
        "train": ["price", "topic"],
        "valid": ["price", "topic"],
        "test": ["click", "price", "topic"],
    }
    assert "click" not in job().data.sources["right"].preprocessor.columns


def test_held_out_labels_change_no_weight(tmp_path: Path) -> None:
    """What they are takes no part in training or selection."""
    other = sources()
    other["right"]["click"] = 1 - other["right"]["click"]
    one = polytask.train(values(), out=tmp_path / "one", data=sources())
    two = polytask.train(values(), out=tmp_path / "two", data=other)
    before, after = (polytask.load(tmp_path / name).model.state_dict() for name in ("one", "two"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (one["score"], one["valid"], one["test"]) == (two["score"], two["valid"], two["test"])
    first, second = (run["test_by_source"]["click"]["right"]["auroc"] for run in (one, two))
    assert first == pytest.approx(1 - second)


# ---- scores


def test_scores_by_source_and_over_all(tmp_path: Path) -> None:
    results = polytask.train(values(), out=tmp_path / "run", data=sources())
    by_source = results["test_by_source"]
    assert {task: list(scores) for task, scores in by_source.items()} == {
        "click": ["left", "right"],
        "price": ["left", "right"],
    }
    assert results["tasks"]["click"]["held_out"] == ["right"]
    assert results["test"]["click"] == by_source["click"]["left"]  # the held-out source takes no part
    trained, data = polytask.load(tmp_path / "run"), job().data
    rows = data.sources["right"].splits["test"].rows.numpy()
    part = {name: column[rows] for name, column in sources()["right"].items()}
    scored = trained.evaluate(part, ["click", "price"], source="right")
    for task, scores in scored.items():
        assert scores == pytest.approx(by_source[task]["right"])
    left = {"left": data.sources["left"].splits["test"]}
    found = outputs_on(trained.model, left, {"price": data.targets["price"]}, 64)
    assert found.by_source() == {}
    assert found.metrics()["price"] == pytest.approx(by_source["price"]["left"])


def test_a_task_of_several_sources_is_predicted_from_the_one_that_is_named(tmp_path: Path) -> None:
    polytask.train(values(), out=tmp_path / "run", data=sources())
    trained = polytask.load(tmp_path / "run")
    rows = sources()["right"]
    with pytest.raises(MissingInput, match=r"'price' has several sources, left, right: .*source='left'"):
        trained.predict(rows, ["price"])
    assert trained.columns(["price"], "left") == ["x0", "x1"]
    one, other = (trained.predict(rows, ["price"], source=source)["price"] for source in ("left", "right"))
    assert not np.allclose(one.to_numpy(), other.to_numpy())
    model, inputs = trained.model, {"numeric": torch.zeros(2, 2)}
    with pytest.raises(MissingInput, match=r"task 'price' has several stems \(left, right\): say which"):
        model(inputs, ["price"])
    with pytest.raises(MissingInput, match="several stems"):
        model.representation(inputs, ["price"])


def test_one_encoder_reads_all_sources_where_their_inputs_are_alike(tmp_path: Path) -> None:
    data = {name: {column: rows[column] for column in COLUMNS["left"]} for name, rows in sources().items()}
    tasks = {name: TASKS[name] for name in ("click", "price")}
    results = polytask.train(values(tasks=tasks, model={"encoder": "tabular"}), out=tmp_path / "run", data=data)
    assert list(results["test_by_source"]["click"]) == ["left", "right"]


# ---- baselines, merges


def test_a_baseline_reads_its_sources_through_their_stems() -> None:
    base = job(train__batch_size=30)
    alone = single_task(base, "price")
    model = alone.build()
    assert set(model.stems.stems) == {"left", "right"}
    assert alone.stages[0].batch_size == 30
    assert set(single_task(base, "topic").build().stems.stems) == {"right"}


def test_merged_runs_keep_all_sources_of_a_task(tmp_path: Path) -> None:
    start = polytask.train(values(train__epochs=1), out=tmp_path / "start", data=sources())
    assert start["steps"] > 0
    for seed in (1, 2):
        model = {**STEMS, "init_from": str(tmp_path / "start")}
        polytask.train(values(model=model, train__seed=seed), out=tmp_path / str(seed), data=sources())
    runs = {name: str(tmp_path / name) for name in ("1", "2")}
    plan = {"base": str(tmp_path / "start"), "tasks": runs, "rule": "task_arithmetic"}
    polytask.merge(plan, out=tmp_path / "merged")
    merged = polytask.load(tmp_path / "merged")
    assert merged.sources_of(["price"]) == ["left", "right"]
    assert merged.predict(sources()["right"], ["price"], source="right").height == 120


# ---- tasks that have one label in training


def test_of_sources_that_disagree_about_such_a_task_the_strictest_decides() -> None:
    rows = sources()
    for columns in rows.values():
        columns["price"] = np.ones(len(columns["price"]))
    strict = {"sources": {"left": {"degenerate": "keep"}, "right": {"degenerate": "error"}}}
    with pytest.raises(DataError, match=r"'price'.*degenerate: drop \| keep"):
        make_job(read_recipe(values(data=strict)), data=rows)
    dropping = {"sources": {"left": {"degenerate": "keep"}, "right": {"degenerate": "drop"}}}
    assert list(make_job(read_recipe(values(data=dropping)), data=rows).data.targets) == ["click", "topic"]


def test_a_source_that_no_task_is_left_of_is_said_to_be_left_out() -> None:
    rows = sources()
    rows["right"] |= {"price": np.ones(120), "topic": np.array(["one"] * 120)}
    tasks = {"click": {"kind": "binary", "source": "left"}, "topic": {"kind": "multiclass", "source": "right"}}
    settings = {"tasks": tasks, "data": {"degenerate": "drop"}}
    data = make_job(read_recipe(values(**settings)), data=rows).data
    assert list(data.sources) == ["left"]
    assert re.search("'topic'.*the task is dropped", data.remarks[-2])
    assert data.remarks[-1] == "source 'right' has no task left and is not used"


# ---- mistakes


@pytest.mark.parametrize(
    "changed, kind, message",
    [
        ({"source": []}, BadValue, r"source is \[\]; allowed: one or more sources, each once"),
        ({"source": ["left", "left"]}, BadValue, r"source is \['left', 'left'\]; allowed: one or more sources"),
        ({"source": ["left", "rihgt"]}, UnknownName, r"tasks.price: no source 'rihgt' \(did you mean 'right'"),
        ({"held_out": ["left"]}, BadValue, "held_out is .*allowed: sources that `source` does not name, each once"),
        ({"source": "left", "held_out": ["rigt"]}, UnknownName, r"tasks.price.held_out.*'rigt' \(did you mean 'right'"),
    ],
)
def test_mistakes(changed: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        job(tasks={**TASKS, "price": {**TASKS["price"], **changed}})


def test_the_source_that_is_meant_without_being_named_cannot_be_held_out() -> None:
    tasks = {"click": {"kind": "binary", "held_out": ["left"]}}
    with pytest.raises(
        BadValue, match=r"tasks.click: held_out is \['left'\]; allowed: not left, which it is trained on"
    ):
        make_job(read_recipe(values(tasks=tasks)), data={"left": sources()["left"]})
