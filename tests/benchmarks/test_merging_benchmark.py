"""The benchmark of merges: its models and plans are what both tools read, and its words say what was measured."""

from pathlib import Path

import pytest
import torch
from benchmarks.merging import floor, models
from benchmarks.merging.methods import METHODS, OWN, own_plan
from safetensors.torch import load_file

import polytask
from benchmarks import merging_words
from polytask.merging.weights.safetensors import open_safetensors


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"HIDDEN": 16, "INNER": 32, "VOCABULARY": 40, "HEADS": 2}.items():
            patch.setattr(models, name, size)
        models.make(folder, 2)
    return folder


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_polytask_reads_what_mergekit_is_given(method, small: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(method.mergekit(small))
    found = polytask.merge(plan, out=tmp_path / "out", dry_run=True)
    assert found


@pytest.mark.parametrize("name", OWN)
def test_what_polytask_does_alone_is_a_plan(name: str, small: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(own_plan(OWN[name], small))
    polytask.merge(plan, out=tmp_path / "out")
    assert open_safetensors(tmp_path / "out").names()


def test_the_numpy_floor_is_the_mean_that_polytask_computes(small: Path, tmp_path: Path) -> None:
    floor.mean(small, tmp_path / "numpy")
    floor.copy(small, tmp_path / "copy")
    plan = tmp_path / "plan.yaml"
    plan.write_text(METHODS[0].mergekit(small))
    polytask.merge(plan, out=tmp_path / "out")
    ours, theirs = (
        {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}
        for folder in (tmp_path / "out", tmp_path / "numpy")
    )
    for name, value in ours.items():
        apart = (value.view(torch.int16).int() - theirs[name].view(torch.int16).int()).abs()
        assert apart.max() <= 1, name
    for path in sorted((small / "base").glob("*.safetensors")):
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes()


def run(seconds: float, anonymous: int = 350 * 2**20) -> dict[str, object]:
    return {"seconds": seconds, "anonymous": anonymous, "runs": [seconds]}


def test_the_words_tell_what_was_measured() -> None:
    results = {
        "parameters": 502e6,
        "parameters_of_the_larger": 1004e6,
        "threads": 2,
        "mergekit": "0.1.5",
        "repeats": 3,
        "torch_imported": run(1.0, 150 * 2**20),
        "floor": {"copy": run(0.9), "mean": run(2.5)},
        "methods": [
            {"name": "linear", "goal": 0.5, "mergekit": run(7), "polytask": run(3), "polytask_larger": run(5)},
            {"name": "ties", "goal": 0.1, "mergekit": run(50), "polytask": run(6), "polytask_larger": run(5)},
        ],
        "own": [{"name": "ties over all", "polytask": run(7), "polytask_larger": run(12, 460 * 2**20)}],
        "matrices": {"rule": "iso_c", "decompositions": run(10), "polytask": run(13)},
        "goals": {"memory": 300 * 2**20, "matrices": 1.2},
    }
    sentences, table = merging_words.blocks(results)
    assert "met by `linear`" in sentences
    assert "**Not met** by `ties` (0.12, goal 0.10)" in sentences
    assert "held at most 310 MiB" in sentences
    assert "at most 300 MiB: **not met**" in sentences
    assert "1.30 times as long" in sentences
    assert "| `linear` | 7.0 s | 3.0 s | 0.429 | 0.500 | 200 MiB | 200 MiB | 5.0 s, 200 MiB |" in table
    assert len(table.splitlines()) == 5
