"""`polytask.train`, `polytask.compare` and `polytask.load` say from Python what the commands say."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

import polytask
from cli.small_recipe import recipe, table
from polytask.checkpoints import read_checkpoint
from polytask.core import rules
from polytask.core.errors import BadValue, DataError, MissingInput, UnknownName
from polytask.core.rules import RuleSpec, rule

ROWS = 60
TASKS = {"side": {"kind": "binary"}, "length": {"kind": "regression"}}
TRAIN = {"steps": 3, "batch_size": 16, "threads": 1}


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    x = random.normal(size=(ROWS, 4)).astype(np.float32)
    return {"x": x, "side": (x[:, 0] > 0).astype(np.int64), "length": np.linalg.norm(x, axis=1)}


class Rows(torch.utils.data.Dataset):
    """What a PyTorch user has: an item is (inputs, labels by task)."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, position: int) -> tuple[torch.Tensor, dict[str, float]]:
        whole = arrays()
        return torch.from_numpy(whole["x"][position]), {task: float(whole[task][position]) for task in TASKS}


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "tasks": TASKS,
        "model": {"encoder": {"kind": "mlp", "hidden_sizes": [8]}},
        "train": TRAIN,
    } | changes


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint((run / "best").resolve()).tensors()


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_mapping_of_arrays(tmp_path: Path) -> None:
    data, wanted = arrays(), spec()
    before, wanted_before = copy.deepcopy(data), copy.deepcopy(wanted)
    results = polytask.train(wanted, data={"data": data}, out=tmp_path / "run")
    assert results == json.loads((tmp_path / "run/results.json").read_text())
    assert wanted == wanted_before
    assert all(np.array_equal(data[name], before[name]) for name in before)
    predicted = polytask.load(tmp_path / "run").predict({"x": data["x"]})
    assert predicted.columns == ["side", "length"]
    assert predicted.height == ROWS


def test_a_dataset_of_items(tmp_path: Path) -> None:
    results = polytask.train(spec(), data={"data": Rows()}, out=tmp_path / "run")
    assert set(results["test"]) == set(TASKS)


def test_rows_that_are_split_already(tmp_path: Path) -> None:
    whole = arrays()
    parts = {"train": slice(0, 40), "valid": slice(40, 50), "test": slice(50, 60)}
    data = {split: {name: values[rows] for name, values in whole.items()} for split, rows in parts.items()}
    results = polytask.train(spec(), data={"data": data}, out=tmp_path / "run")
    trained = polytask.load(tmp_path / "run")
    scores = trained.evaluate(data["test"])
    assert scores["length"]["rmse"] == pytest.approx(results["test"]["length"]["rmse"])


def test_a_factory_is_called_anew_for_every_run(tmp_path: Path) -> None:
    made: list[torch.nn.Module] = []

    def factory() -> torch.nn.Module:
        made.append(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh()))
        return made[-1]

    wanted = spec(model={"sharing": "hard"})
    polytask.train(wanted, data={"data": arrays()}, encoder=factory, out=tmp_path / "one")
    polytask.train(wanted, data={"data": arrays()}, encoder=factory, out=tmp_path / "two")
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    assert len({id(module) for module in made}) == len(made) >= 2
    with pytest.raises(MissingInput, match="pass the same factory"):
        polytask.load(tmp_path / "one")
    predicted = polytask.load(tmp_path / "one", encoder=factory).predict({"x": arrays()["x"]})
    assert predicted["side"].is_between(0, 1).all()


def test_a_name_of_data_that_no_source_has(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no source 'dta' \(did you mean 'data'\?\)"):
        polytask.train(spec(data={"table": "x.csv"}), data={"dta": arrays()}, out=tmp_path / "run")


def quarter(gram: torch.Tensor) -> torch.Tensor:
    """A rule of the user's own."""
    return torch.full((len(gram),), 0.25, dtype=gram.dtype)


def test_a_rule_of_ones_own_in_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules._catalogue, "_added", dict(rules._catalogue._added))  # other tests do not see it
    mine: RuleSpec = rule("a_quarter_each", source="this test", needs=("gram",), scale="sum")(quarter)
    events: list[str] = []
    results = polytask.compare(
        spec(),
        data={"data": arrays()},
        rules=["equal", mine],
        seeds=2,
        learning_rate_multiples=[1],
        out=tmp_path / "study",
        listeners=[lambda event: events.append(event["event"])],
    )
    assert [row["name"] for row in results["rows"]] == ["single", "equal", "a_quarter_each"]
    assert results == json.loads((tmp_path / "study/results.json").read_text())
    assert events.count("run") == (len(TASKS) + 2) * 2
    assert (tmp_path / "study/report.html").exists()
    singles = results["rows"][0]["runs"][0]["parameters"]["total"]
    assert singles > results["rows"][1]["runs"][0]["parameters"]["total"]


def test_train_and_one_stage_give_the_same_bits_and_so_does_the_resolved_recipe(tmp_path: Path) -> None:
    """The command writes the resolved recipe into the run; it is a recipe and gives the same model."""
    table().write_csv(tmp_path / "x.csv")
    short = recipe()
    stage = {key: value for key, value in short["train"].items() if key != "threads"}
    long = {key: value for key, value in short.items() if key != "train"} | {"stages": [stage], "run": {"threads": 1}}
    for name, wanted in (("short", short), ("long", long)):
        polytask.train(wanted, data_dir=tmp_path, out=tmp_path / name)
    resolved = yaml.safe_load((tmp_path / "short/recipe.yaml").read_text())
    polytask.train(resolved, data_dir=tmp_path, out=tmp_path / "resolved")
    assert_same_weights(tmp_path / "short", tmp_path / "long")
    assert_same_weights(tmp_path / "short", tmp_path / "resolved")
    other = polytask.train(short, data_dir=tmp_path, out=tmp_path / "other", settings={"train.seed": 1})
    assert other["seed"] == 1
    assert any(not torch.equal(weights(tmp_path / "short")[n], t) for n, t in weights(tmp_path / "other").items())


def test_a_loaded_model_takes_a_frame_or_a_mapping(tmp_path: Path) -> None:
    table().write_csv(tmp_path / "x.csv")
    polytask.train(recipe(), data_dir=tmp_path, out=tmp_path / "run")
    trained = polytask.load(tmp_path / "run")
    rows = table().select("a", "b", "colour").head(5)
    assert trained.predict(rows).equals(trained.predict(rows.to_dict(as_series=False)))
    assert trained.predict(rows, tasks=["size"]).columns == ["size", "size.L", "size.M", "size.S"]
    assert trained.predict(rows)["sold"].dtype == pl.Float64
    with pytest.raises(UnknownName, match="no column 'colour'"):
        trained.predict(rows.drop("colour"))


def test_rows_that_are_no_source_and_encoders_that_are_no_factory(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": [i / 7 for i in range(60)], "y": [i % 2 for i in range(60)]})
    recipe = {"version": 1, "tasks": {"y": "binary"}, "model": {"encoder": "mlp"}, "train": {"steps": 1}}
    assert polytask.train(recipe, out=tmp_path / "a", data=frame)["steps"] == 1
    for wrong in (frame["x"].to_numpy(), {"x": frame["x"].to_numpy(), "y": frame["y"].to_numpy()}):
        with pytest.raises(DataError, match=r"is a ndarray; allowed: a frame, .*data=.'data': columns"):
            polytask.train(recipe, out=tmp_path / "b", data=wrong)
    with pytest.raises(BadValue, match="encoder is 'Linear'; allowed: a factory: a class or function that returns"):
        polytask.train(recipe, out=tmp_path / "b", data=frame, encoder=torch.nn.Linear(1, 4))
