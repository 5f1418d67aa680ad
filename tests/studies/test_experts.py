"""Experts for merging: one start, an expert a task on its share of the joint run, nothing done twice."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.training.runs import job, recipe, table

import polytask
from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import BadValue, CheckpointError
from polytask.core.noise import Noise
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.studies.experts import JOINT, Experts, train_experts

TASKS = {"click": "binary", "topic": "multiclass"}
SMALL = {"tasks": TASKS, "data__drop": ["buy", "price"], "train__epochs": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experts]:
    out = tmp_path_factory.mktemp("experts") / "out"
    return out, train_experts(job(**SMALL, model__sharing="mmoe"), out, joint=True)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return dict(read_checkpoint(resolve(run)).tensors())


def test_every_expert_begins_at_the_base_and_has_its_own_head_alone(trained: tuple[Path, Experts]) -> None:
    _, experts = trained
    base = tensors(experts.base)
    assert list(experts.tasks) == list(TASKS)
    for task, run in experts.tasks.items():
        own = tensors(run)
        assert {name.split(".")[1] for name in own if name.startswith("heads.")} == {task}
        moved = [name for name, value in own.items() if not torch.equal(value, base[name])]
        assert moved
        # a few steps of 0.01 leave weights near where they began, which another start would not
        assert all((own[name] - base[name]).abs().max() <= 0.1 for name in own)


def test_the_joint_run_keeps_its_architecture_and_the_experts_share_an_encoder(trained: tuple[Path, Experts]) -> None:
    _, experts = trained
    assert experts.joint is not None
    assert experts.results[JOINT]["sharing"] == "mmoe"
    assert [experts.results[task]["sharing"] for task in TASKS] == ["hard", "hard"]
    assert list(experts.results["click"]["test"]) == ["click"]


def test_the_experts_merge_and_predict(trained: tuple[Path, Experts], tmp_path: Path) -> None:
    _, experts = trained
    models = {task: str(run) for task, run in experts.tasks.items()}
    polytask.merge({"base": str(experts.base), "tasks": models, "rule": "ties"}, out=tmp_path / "merged")
    assert set(polytask.load(tmp_path / "merged").targets) == set(TASKS)


@pytest.mark.parametrize("chosen", [["topic"], ["topic", "price"], ["click", "topic", "price"]])
def test_any_of_the_experts_of_tasks_with_sources_of_their_own_merge(tmp_path: Path, chosen: list[str]) -> None:
    """An expert's description names every source of the run it was split from, and the model reads its own alone."""
    columns = ["x0", "x1", "x2"]
    of_task = {"click": "left", "topic": "middle", "price": "right"}
    tasks = {"click": {"kind": "binary"}, "topic": {"kind": "multiclass"}, "price": {"kind": "regression"}}
    rows = table(60)
    sources = {source: {name: rows[name] for name in [*columns, task]} for task, source in of_task.items()}
    given = {task: {**tasks[task], "source": source} for task, source in of_task.items()}
    values = recipe(tasks=given, train__epochs=None, train__steps=2)
    experts = train_experts(make_job(read_recipe(values), data=sources), tmp_path / "out")
    models = {task: str(experts.tasks[task]) for task in chosen}
    polytask.merge({"base": str(experts.base), "tasks": models, "rule": "linear"}, out=tmp_path / "merged")
    found = polytask.load(tmp_path / "merged").predict(
        pl.DataFrame({name: rows[name] for name in columns}), tasks=chosen
    )
    assert {name.partition(".")[0] for name in found.columns} == set(chosen)


def tangents(folder: Path) -> pl.DataFrame:
    """Three numbers, each of other directions of the same six, and noise; written to x.csv."""
    noise, rows = Noise(1, "tangents"), 240
    x = noise.child("x").normal(6 * rows).reshape(rows, 6)
    directions = noise.child("directions").normal(18).reshape(6, 3)
    y = np.tanh(x @ directions) + 0.1 * noise.child("error").normal(3 * rows).reshape(rows, 3)
    columns = {f"x{i}": x[:, i] for i in range(6)} | {f"y{t}": y[:, t] for t in range(3)}
    frame = pl.DataFrame({**columns, "split": ["train", "train", "train", "valid", "test", "test"] * (rows // 6)})
    frame.write_csv(folder / "x.csv")
    return frame.filter(pl.col("split") == "test")


def test_experts_held_near_their_start_add_up_better(tmp_path: Path) -> None:
    """ITA's claim, on fine-tunes that are long for what they start from: their sum loses what the start knew, and that
    of fine-tunes under a penalty, plain or by Fisher information, does not."""
    held_out = tangents(tmp_path)
    data = {"table": "x.csv", "split": "split"}
    model = {"encoder": {"kind": "tabular", "hidden_sizes": [16]}}
    whole = {"version": 1, "data": data, "tasks": {f"y{t}": "regression" for t in range(3)}, "model": model}
    settings = {"threads": 1, "batch_size": 40, "checkpoint_every": "end", "evaluate_every": 1000}

    def explained(directory: Path) -> float:
        """The mean share of the variance."""
        found = polytask.load(directory).predict(held_out)
        return float(np.mean([1 - (held_out[y] - found[y]).pow(2).mean() / held_out[y].var() for y in whole["tasks"]]))

    first = {**settings, "steps": 40, "optimizer": {"kind": "adam", "lr": 0.01}}
    polytask.train({**whole, "train": first}, out=tmp_path / "start", data_dir=tmp_path)
    start, sums = explained(tmp_path / "start"), {}
    for name, regularizer in {
        "free": None,
        "l2_sp": {"kind": "l2_sp", "strength": 0.1},
        "fisher": {"kind": "fisher", "strength": 30.0, "rows": 60},
    }.items():
        further = {**settings, "steps": 100, "optimizer": {"kind": "adam", "lr": 0.02}, "regularizer": regularizer}
        tuned = {**whole, "model": {**model, "init_from": str(tmp_path / "start")}, "train": further}
        found = polytask.experts(tuned, out=tmp_path / name, data_dir=tmp_path)
        polytask.merge({**found, "rule": "task_arithmetic"}, out=tmp_path / f"{name}-merged")
        sums[name] = explained(tmp_path / f"{name}-merged")
    assert sums["free"] < start - 0.2
    assert sums["fisher"] > sums["free"] + 0.2
    assert sums["l2_sp"] > sums["free"] + 0.2


def test_a_second_call_trains_nothing_again(trained: tuple[Path, Experts]) -> None:
    out, experts = trained
    events: list[str] = []
    again = train_experts(
        job(**SMALL, model__sharing="mmoe"), out, joint=True, listeners=[lambda event: events.append(event["event"])]
    )
    assert events == ["run"] * 3
    assert again == experts


def test_another_recipe_is_refused(trained: tuple[Path, Experts]) -> None:
    out, _ = trained
    with pytest.raises(CheckpointError, match="another recipe"):
        train_experts(job(**SMALL, train__batch_size=16), out)


def test_a_task_is_not_called_as_the_run_on_all_tasks(tmp_path: Path) -> None:
    """Which would take its place: its expert would not be trained."""
    named = job(**{**SMALL, "tasks": {JOINT: {"kind": "binary", "label": "click"}, "topic": "multiclass"}})
    with pytest.raises(BadValue, match="experts: the name of a task is 'joint'"):
        train_experts(named, tmp_path / "out", joint=True)
