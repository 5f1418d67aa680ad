"""Tiny recipes and data that the tests of training and studies share, and what two runs are compared by."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polytask
from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.documents import changed
from polytask.core.noise import Noise
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.training.job import Job

ROWS = 160
VARYING = ("seconds", "peak_memory_mb", "provenance")  # what may differ between two equal runs


def table(rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    """Two binary tasks, one with labels for half of the rows, three classes, and a number with gaps."""
    noise = Noise(seed, "table")
    x = noise.normal(4 * rows).reshape(rows, 4)
    missing = noise.child("missing").uniform(2 * rows).reshape(2, rows) < 0.5
    return {
        **{f"x{i}": x[:, i].astype(np.float32) for i in range(4)},
        "kind": np.array(["u", "v", "w"])[noise.child("kind").integers(rows, 3)],
        "click": (x[:, 0] + x[:, 1] > 0).astype(np.int64),
        "buy": np.where(missing[0], np.nan, (x[:, 0] - x[:, 2] > 0).astype(np.float64)),
        "topic": np.array(["a", "b", "c"])[np.digitize(x[:, 3], [-0.5, 0.5])],
        "price": np.where(missing[1], np.nan, x[:, 1] * 3 + 10),
    }


RECIPE: dict[str, Any] = {
    "version": 1,
    "data": {"split": {"fractions": [0.6, 0.2, 0.2], "seed": 0}},
    "tasks": {"click": "binary", "buy": "binary", "topic": "multiclass", "price": "regression"},
    "model": {"encoder": {"kind": "tabular", "embedding": 2, "hidden_sizes": [8]}},
    "train": {"epochs": 2, "batch_size": 32, "optimizer": {"kind": "adamw", "lr": 0.01}, "threads": 1, "log_every": 1},
}


def recipe(**settings: Any) -> dict[str, Any]:
    """RECIPE with changes: `train__rule="dwa"` sets train.rule; `stages=[...]` replaces `train`."""
    values: dict[str, Any] = RECIPE
    if "stages" in settings:
        values = {
            **{key: value for key, value in RECIPE.items() if key != "train"},
            "run": {"threads": 1, "log_every": 1},
        }
    for path, value in settings.items():
        values = changed(values, path.replace("__", "."), value)
    return values


def job(data: Any = None, **settings: Any) -> Job:
    return make_job(read_recipe(recipe(**settings)), data={"data": table() if data is None else data})


def train(out: Path, *, data: Any = None, resume: bool = False, listeners: Any = (), **settings: Any) -> dict[str, Any]:
    given = {"data": table() if data is None else data}
    return polytask.train(recipe(**settings), out=out, data=given, resume=resume, listeners=listeners)


class Stopped(Exception):
    """What a run is broken off with."""


def train_until(step: int, out: Path, **settings: Any) -> None:
    """Trains, and breaks off in that step."""

    def stop(event: Mapping[str, Any]) -> None:
        if event.get("step") == step:
            raise Stopped

    with pytest.raises(Stopped):
        train(out, listeners=[stop], **settings)


def assert_resumes(folder: Path, step: int, **settings: Any) -> None:
    """A run that is broken off in a step and goes on (folder/broken) equals a straight one (folder/straight)."""
    settings = {"train__checkpoint_every": 1, **settings}
    train(folder / "straight", **settings)
    train_until(step, folder / "broken", **settings)
    train(folder / "broken", resume=True, **settings)
    assert outcome(folder / "broken") == outcome(folder / "straight")


def events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The run's events without the seconds."""
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in event.items() if key != "seconds"}
        for event in found
        if kind is None or event["event"] == kind
    ]


def weights(run: Path) -> dict[str, bytes]:
    """name -> the bytes of the best model's tensor."""
    tensors = read_checkpoint(resolve(run)).tensors()
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def outcome(run: Path) -> dict[str, Any]:
    """All that must be the same in two runs of one recipe: weights and states by their bytes, events, results."""
    results = json.loads((run / "results.json").read_text())
    stored = {
        f"{name}/{file}": (run / name / file).read_bytes()
        for name in ("best", "last")
        if (run / name).exists()
        for file in ("model.safetensors", "config.json", "inputs.json")
    }
    return {
        "files": stored,
        "best": (run / "best").resolve().name,
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "events": events(run),
        "results": {key: value for key, value in results.items() if key not in VARYING},
    }
