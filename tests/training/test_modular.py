"""Sources with different tasks train one transformer of experts, of which a task's part is then taken out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import polytask
from polytask.checkpoints import read_checkpoint, resolve, verify_checkpoint
from polytask.cli import app
from polytask.core.errors import BadValue, UnknownName

SQUAD = {"kind": "mod_squad", "layers": 1, "heads": 6, "experts": 6, "k": 1, "information": 1.0}
PLACES = ["layer.0.attention", "layer.0.network"]


def rows(seed: int, label: str, count: int = 120) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(count, 4))
    return {**{f"x{column}": x[:, column] for column in range(4)}, label: x[:, seed] > 0}


CLICKS, LIKES, BUYS = rows(0, "click"), rows(1, "like"), rows(2, "buy")


def train(out: Path, tasks: dict[str, str], data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    sources = {name: {"split": {"fractions": [0.6, 0.2, 0.2], "seed": 0}} for name in data}
    recipe = {
        "version": 1,
        "data": {"sources": sources},
        "tasks": {task: {"kind": "binary", "source": source} for task, source in tasks.items()},
        "model": {"encoder": {"kind": "columns", "width": 6}, "sharing": SQUAD, **changes.pop("model", {})},
        "train": {"steps": 6, "batch_size": 24, "rule": "equal", "optimizer": {"kind": "adamw", "lr": 0.02}, **changes},
    }
    return polytask.train(recipe, out=out, data=data)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("modular") / "run"
    train(out, {"click": "pages", "like": "films"}, {"pages": CLICKS, "films": LIKES})
    return out


def uses(path: Path) -> dict[str, dict[str, list[int]]]:
    return read_checkpoint(resolve(path)).config["model"]["sharing"]["uses"]


def same(one: Path, other: Path) -> bool:
    """Whether what both directories have is the same bit by bit."""
    first, second = (read_checkpoint(resolve(path)).tensors() for path in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first if name in second)


def test_the_report_says_who_uses_whom_and_both_tasks_are_remembered(run: Path) -> None:
    gates = json.loads((run / "results.json").read_text())["gates"]
    assert list(gates) == PLACES
    for place in gates.values():
        assert [sum(place["use"][task]) for task in ("click", "like")] == pytest.approx([1, 1])
    tensors = read_checkpoint(resolve(run)).tensors()
    remembered = {name: tensor for name, tensor in tensors.items() if ".uses." in name}
    assert len(remembered) == 2 * len(PLACES)
    assert not any(torch.equal(tensor, torch.full((6,), 1 / 6)) for tensor in remembered.values())


def test_a_tasks_part_is_taken_out_and_a_later_task_joins_it(run: Path, tmp_path: Path) -> None:
    pages = polytask.heads.trim(run, CLICKS, tmp_path / "pages", source="pages")
    trimmed = polytask.heads.trim(pages, LIKES, tmp_path / "trimmed", source="films")
    assert verify_checkpoint(trimmed)
    assert len(uses(pages)["like"][PLACES[0]]) == 6 > len(uses(trimmed)["like"][PLACES[0]])
    for task, of in (("click", CLICKS), ("like", LIKES)):
        assert polytask.load(trimmed).predict(of, [task]).equals(polytask.load(run).predict(of, [task]))
    alone = polytask.heads.detach(trimmed, ["like"], tmp_path / "alone")
    assert list(uses(alone)) == ["click"]
    assert polytask.load(alone).predict(CLICKS).equals(polytask.load(run).predict(CLICKS, ["click"]))
    sizes = [read_checkpoint(resolve(path)).card["parameters"]["parameters"] for path in (run, trimmed, alone)]
    assert sizes == sorted(set(sizes), reverse=True)
    kept = {**SQUAD, "uses": uses(alone)}
    later = {"init_from": str(alone), "sharing": kept}
    train(tmp_path / "new", {"buy": "shop"}, {"shop": BUYS}, model=later, trainable=["own"])
    both = polytask.heads.attach(alone, tmp_path / "new", tmp_path / "both")
    assert same(alone, both)
    assert same(tmp_path / "new", both)
    assert polytask.load(both).predict(CLICKS, ["click"]).equals(polytask.load(run).predict(CLICKS, ["click"]))
    own = polytask.load(both).model.sharing.uses()
    assert all(set(own["buy"][place]) == set(own["click"][place]) for place in PLACES)


def test_the_command_line_trims(run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **CLICKS)
    made = [str(run), "--data", str(tmp_path / "rows.npz"), "--out", str(tmp_path / "out"), "--threshold", "0.4"]
    found = CliRunner().invoke(app, ["heads", "trim", *made])
    assert found.exit_code == 0, found.output
    assert all(len(numbers) <= 2 for by_place in uses(tmp_path / "out").values() for numbers in by_place.values())


def test_the_command_line_finds_the_images_of_the_rows(tmp_path: Path) -> None:
    """They start from the table's folder, or from --root."""
    (tmp_path / "pictures").mkdir()
    for number in range(24):
        Image.new("L", (8, 8), 9 * number).save(tmp_path / "pictures" / f"{number}.png")
    for prefix, file in (("pictures/", "index.csv"), ("", "bare.csv")):
        lines = "".join(f"{prefix}{number}.png,{number % 2}\n" for number in range(24))
        (tmp_path / file).write_text("path,odd\n" + lines)
    recipe = {
        "version": 1,
        "data": {"images": "index.csv", "features": {"path": "image"}, "split": {"fractions": [0.5, 0.25, 0.25]}},
        "tasks": {"odd": "binary"},
        "model": {"encoder": {"kind": "patches", "width": 6}, "sharing": SQUAD},
        "train": {"steps": 1, "batch_size": 8},
    }
    polytask.train(recipe, out=tmp_path / "run", data_dir=tmp_path)
    line = ["heads", "trim", str(tmp_path / "run"), "--data"]
    index, bare = (str(tmp_path / name) for name in ("index.csv", "bare.csv"))
    for out, given in (("one", [index]), ("other", [bare, "--root", str(tmp_path / "pictures")])):
        found = CliRunner().invoke(app, [*line, *given, "--out", str(tmp_path / out)])
        assert found.exit_code == 0, found.output
    assert uses(tmp_path / "one") == uses(tmp_path / "other")


def test_what_does_not_fit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no source 'page' \(did you mean 'pages'"):
        polytask.heads.trim(run, CLICKS, tmp_path / "out", source="page")
    with pytest.raises(BadValue, match="threshold is 1; allowed: a number from 0, below 1"):
        polytask.heads.trim(run, CLICKS, tmp_path / "out", threshold=1)
    assert not (tmp_path / "out").exists()
