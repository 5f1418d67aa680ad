"""Runs on generated scenes: architectures on a pyramid with every kind of rule, and heads that help in training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.sharing.models import CASES, on_pictures, options_of
from tests.training.runs import weights

import polytask
from polytask.core.errors import BadValue, UnknownName
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.sharing.tape import listen
from polytask.tasks.data_spec import SceneSpec
from polytask.tasks.mixture import Mixture, MixtureSpec
from polytask.tasks.sources.scenes import scenes
from polytask.training.devices import Devices
from polytask.training.losses import task_losses

KINDS = [case for case in CASES if on_pictures(case)]
RULES: dict[str, Any] = {
    "loss": "uncertainty",
    "gram": "pcgrad",
    "elementwise": "graddrop",
    "representation": {"kind": "mgda", "engine": {"kind": "representation"}},
}


def data() -> dict[str, Any]:
    """Scenes whose depth is NaN at some pixels and in the whole of most rows, so that batches lack the task."""
    frame = scenes(SceneSpec(size=(8, 12), objects=2, missing=0.2), {"train": 12, "valid": 4, "test": 4}, 0)
    columns = {name: frame[name].to_numpy() for name in frame.columns}
    depth = np.where(columns["depth"] == 0, np.nan, columns["depth"])
    depth[:9] = np.nan
    return {"data": {**columns, "depth": depth}}


def recipe(case: str, rule: Any = "equal", **settings: Any) -> dict[str, Any]:
    return read_recipe(
        {
            "version": 1,
            "data": {"split": "split", "features": {"image": "image"}},
            "tasks": {
                "segmentation": {"kind": "segmentation", "classes": [0, 1, 2, 3, 4], "ignore": -1},
                "depth": {"kind": "dense_regression"},
                "normals": {"kind": "surface_normals", "ignore": 0},
                "edges": {"kind": "segmentation", "classes": [0, 1], "ignore": -1},
            },
            "model": {
                "encoder": {"kind": "pyramid", "channels": [4, 8], "convolutions": 1},
                "sharing": options_of(case),
                "decoder": {"width": 4},
            },
            "train": {"rule": rule, "steps": 2, "batch_size": 3, "threads": 1},
        },
        settings,
    ).values


@pytest.mark.parametrize("case", KINDS)
def test_every_architecture_trains_by_every_kind_of_rule_and_predicts(case: str, tmp_path: Path) -> None:
    given = data()
    for name, rule in RULES.items():
        nothing_shared = case == "single on a pyramid" or (case == "film inside a pyramid" and name == "representation")
        if name != "loss" and nothing_shared:
            continue
        found = polytask.train(recipe(case, rule), out=tmp_path / name, data=given)
        assert all(np.isfinite(list(found["test"][task].values())).all() for task in ("depth", "normals")), name
    images = given["data"]["image"][:3]
    predicted = polytask.load(tmp_path / "loss").predict({"image": images})
    assert predicted["normals"].to_numpy().shape == (3, 8, 12, 3)
    alone = polytask.load(tmp_path / "loss").predict({"image": images}, tasks=["depth"])
    np.testing.assert_allclose(alone["depth"].to_numpy(), predicted["depth"].to_numpy(), rtol=1e-5, atol=1e-5)


def test_labels_of_another_size_than_a_tasks_outputs(tmp_path: Path) -> None:
    message = r"task 'depth': the shape of a label is '\[8, 12\]'; allowed: maps of 4 x 6, as its decoder gives them"
    with pytest.raises(BadValue, match=message):
        polytask.train(recipe("hard", **{"model.decoder.strides": {"depth": 2}}), out=tmp_path / "run", data=data())
    assert not (tmp_path / "run").exists()


def test_a_task_of_half_the_resolution_trains(tmp_path: Path) -> None:
    given = data()
    given["data"]["depth"] = given["data"]["depth"][:, ::2, ::2]
    polytask.train(recipe("pad", **{"model.decoder.strides": {"depth": 2}}), out=tmp_path, data=given)
    predicted = polytask.load(tmp_path).predict({"image": given["data"]["image"][:2]})
    assert predicted["depth"].to_numpy().shape == (2, 4, 6)


@pytest.mark.parametrize("case", ["hard on a pyramid", "facexformer on a pyramid", "oneformer"])
def test_a_label_a_row_beside_maps_trains_helped_by_inner_maps_and_predicts(case: str, tmp_path: Path) -> None:
    given = data()
    given["data"]["brightness"] = given["data"]["image"].mean(axis=(1, 2, 3))
    asked = recipe(case)
    asked["tasks"]["brightness"] = {"kind": "regression"}
    found = polytask.train(asked, out=tmp_path, data=given)
    assert np.isfinite(list(found["test"]["brightness"].values())).all()
    images = given["data"]["image"][:3]
    predicted = polytask.load(tmp_path).predict({"image": images}, tasks=["brightness", "depth"])
    assert predicted["brightness"].to_numpy().shape == (3,)
    assert predicted["depth"].to_numpy().shape == (3, 8, 12)


# ---- heads that help in training


def losses(weight: float, **settings: Any) -> tuple[Any, dict[str, float]]:
    """The run's first stage, and the losses of a step."""
    from polytask.training.stage import Stage

    run = make_job(read_recipe(recipe("pad", **{"model.decoder.auxiliary": weight}, **settings)), data=data())
    devices, model = Devices(run.run), run.build()
    splits = {name: source.splits["train"] for name, source in run.data.sources.items()}
    stage = Stage(run, 0, model, [name for name, _ in model.named_parameters()], splits, splits, devices)
    pieces = next(iter(Mixture(splits, MixtureSpec(), 12, seed=0).batches(0)))
    with devices.settings(None):
        found = task_losses(stage.trained, pieces, run.targets, devices).losses
    return stage, {task: loss.item() for task, loss in found.items()}


def test_auxiliary_heads_add_the_mean_of_their_losses_to_the_tasks() -> None:
    without, plain = losses(0.0)
    stage, helped = losses(0.5)
    assert without.trained is without.model
    run = make_job(read_recipe(recipe("pad", **{"model.decoder.auxiliary": 0.5})), data=data())
    split = run.data.sources["data"].splits["train"]
    (batch,) = next(iter(Mixture({"data": split}, MixtureSpec(), 12, seed=0).batches(0)))
    with listen() as tape:
        stage.model(batch.inputs, ["depth"])
    present = batch.present["depth"]
    guesses = []
    for place in ("level.1", "before"):
        head = stage.trained.beside.places["depth"][place]
        small = tape.features[place, "depth"].movedim(1, -1) @ head.output.weight[0] + head.output.bias
        large = torch.nn.functional.interpolate(small[:, None], size=(8, 12), mode="bilinear")[:, 0]
        guesses.append((large - batch.labels["depth"])[present].abs().mean())
    expected = plain["depth"] + 0.5 * sum(guess.item() for guess in guesses) / 2
    assert helped["depth"] == pytest.approx(expected, rel=1e-5)


def test_auxiliary_heads_are_trained_and_not_saved(tmp_path: Path) -> None:
    found = {}
    for weight in (0.0, 0.7):
        polytask.train(recipe("hard", **{"model.decoder.auxiliary": weight}), out=tmp_path / str(weight), data=data())
        found[weight] = weights(tmp_path / str(weight))
    assert found[0.0].keys() == found[0.7].keys()
    assert not [name for name in found[0.7] if "auxiliary" in name or "places" in name]
    assert found[0.0]["sharing.encoder.levels.0.0.0.weight"] != found[0.7]["sharing.encoder.levels.0.0.0.weight"]


def test_a_resumed_run_has_its_auxiliary_heads_back(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint" and event["step"] == 2:
            killed.append(event)
        elif killed:
            raise Killed

    killed: list[Any] = []
    settings = recipe("pad", **{"train.steps": 4, "train.checkpoint_every": 1, "train.log_every": 1})
    polytask.train(settings, out=tmp_path / "straight", data=data())
    with pytest.raises(Killed):
        polytask.train(settings, out=tmp_path / "killed", data=data(), listeners=[kill])
    polytask.train(settings, out=tmp_path / "killed", data=data(), resume=True)
    assert weights(tmp_path / "straight") == weights(tmp_path / "killed")


def test_a_stride_of_a_task_that_is_none() -> None:
    with pytest.raises(UnknownName, match=r"model\.decoder\.strides: no task 'dept' \(did you mean 'depth'"):
        recipe("hard", **{"model.decoder.strides": {"dept": 2}})
