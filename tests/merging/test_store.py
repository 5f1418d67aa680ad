"""Stores: what is packed comes back as the formulas say, and small."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merging.families import write_family, write_model
from polytask.core.errors import BadValue, CheckpointError, MissingInput, NotFinite, UnknownName
from polytask.merging.store import get, pack
from polytask.merging.weights.sequential import SequentialFile, from_bits, to_bits


def stored(folder: Path, kind: str, tasks: str = "abc", **options: Any) -> dict:
    models = {task: str(folder / task) for task in tasks}
    return pack(str(folder / "base"), models, folder / kind, kind=kind, **options)


def restored(folder: Path, kind: str, task: str) -> dict[str, Tensor]:
    get(folder / kind, task, folder / f"{kind}-{task}")
    return load_file(folder / f"{kind}-{task}" / "model.safetensors")


@pytest.mark.parametrize("kind", ["tall_masks", "emr"])
def test_a_task_comes_back_as_the_formula_says(tmp_path: Path, kind: str) -> None:
    family = write_family(tmp_path, "abc")
    about = stored(tmp_path, kind)
    base = {name: value.double().numpy() for name, value in family["base"].items()}
    deltas = {task: {n: family[task][n].double().numpy() - base[n] for n in base} for task in "abc"}
    stacks = {name: np.stack([deltas[task][name] for task in "abc"]) for name in base}
    if kind == "tall_masks":
        merged = {name: stack.sum(0) for name, stack in stacks.items()}
        masks = {name: np.abs(stack) >= 0.4 * np.abs(merged[name] - stack) for name, stack in stacks.items()}
        factors = dict.fromkeys("abc", 1.0)
    else:
        signs = {name: np.sign(stack.sum(0)) for name, stack in stacks.items()}
        merged = {name: signs[name] * (stack * signs[name]).max(0) for name, stack in stacks.items()}
        masks = {name: stack * merged[name] > 0 for name, stack in stacks.items()}
        factors = {
            task: sum(np.abs(deltas[task][name]).sum() for name in base)
            / sum(np.abs(masks[name][row] * merged[name]).sum() for name in base)
            for row, task in enumerate("abc")
        }
    for row, task in enumerate("abc"):
        found = restored(tmp_path, kind, task)
        assert list(found) == list(load_file(tmp_path / task / "model.safetensors"))
        error = size = 0.0
        for name in base:
            wanted = base[name] + factors[task] * masks[name][row] * merged[name]
            np.testing.assert_allclose(found[name].double().numpy(), wanted, rtol=0, atol=2e-6)
            error += np.square(wanted - base[name] - deltas[task][name]).sum()
            size += np.square(deltas[task][name]).sum()
        assert about["tasks"][task]["factor"] == pytest.approx(factors[task], rel=1e-5)
        assert about["tasks"][task]["relative_error"] == pytest.approx((error / size) ** 0.5, rel=1e-4)
        ones = sum(mask[row].sum() for mask in masks.values())
        assert about["tasks"][task]["ones"] == pytest.approx(ones / about["tasks"][task]["parameters"])
    assert (tmp_path / f"{kind}-a" / "config.json").read_bytes() == (tmp_path / "a" / "config.json").read_bytes()


def test_one_task_is_kept_exactly_as_far_as_its_sum_is(tmp_path: Path) -> None:
    family = write_family(tmp_path, "a")
    about = stored(tmp_path, "tall_masks", "a")
    assert about["tasks"]["a"]["ones"] == 1.0
    for name, value in restored(tmp_path, "tall_masks", "a").items():
        torch.testing.assert_close(value, family["a"][name], rtol=0, atol=1e-6)


def test_heads_counters_and_other_shapes_are_kept_as_they_were(tmp_path: Path) -> None:
    write_family(tmp_path, "ab")
    extra = {
        "a": {"head.weight": torch.randn(2, 4), "steps": torch.tensor(3), "odd": torch.randn(5).bfloat16()},
        "b": {"head.weight": torch.randn(7, 4), "steps": torch.tensor(9)},
    }
    for task, more in extra.items():
        file = tmp_path / task / "model.safetensors"
        save_file({**load_file(file), **more}, file)
    base = tmp_path / "base" / "model.safetensors"
    save_file({**load_file(base), "steps": torch.tensor(1), "head.weight": torch.randn(2, 4)}, base)
    about = stored(tmp_path, "tall_masks", "ab")
    assert {task: about["tasks"][task]["own_tensors"] for task in "ab"} == {"a": 3, "b": 2}
    for task, more in extra.items():
        found = restored(tmp_path, "tall_masks", task)
        assert sorted(found) == sorted(load_file(tmp_path / task / "model.safetensors"))
        assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in more.items())


def test_a_store_of_four_is_under_half_of_the_models(tmp_path: Path) -> None:
    """base and merged, and a bit for each of 16: (2 + 4 / 16) / 4 of bfloat16 models."""
    base = {"w": torch.randn(256, 256).bfloat16()}
    write_model(tmp_path / "base", base)
    for task in "abcd":
        write_model(tmp_path / task, {"w": base["w"] + torch.randn(256, 256).bfloat16() / 100})
    about = stored(tmp_path, "tall_masks", "abcd")
    assert about["bytes"] / about["bytes_of_models"] == pytest.approx(2.25 / 4, abs=0.01)


def test_bad_input(tmp_path: Path) -> None:
    write_family(tmp_path, "ab")
    with pytest.raises(UnknownName, match=r"no kind of store 'tal_masks'.*did you mean 'tall_masks'"):
        stored(tmp_path, "tal_masks", "ab")
    with pytest.raises(BadValue, match=r"--mask-scale is -1; allowed: a number in \[0, inf\)"):
        stored(tmp_path, "tall_masks", "ab", mask_scale=-1)
    with pytest.raises(MissingInput, match="--task NAME=MODEL at least once"):
        stored(tmp_path, "tall_masks", "")
    with pytest.raises(BadValue, match="the name of a task is 'x/y'"):
        pack(str(tmp_path / "base"), {"x/y": str(tmp_path / "a")}, tmp_path / "s")
    stored(tmp_path, "tall_masks", "ab")
    with pytest.raises(UnknownName, match="no task 'c'; allowed: a, b"):
        get(tmp_path / "tall_masks", "c", tmp_path / "c")
    with pytest.raises(CheckpointError, match="no store"):
        get(tmp_path / "a", "a", tmp_path / "c")
    with pytest.raises(CheckpointError, match="is there already"):
        get(tmp_path / "tall_masks", "a", tmp_path / "b")
    with pytest.raises(CheckpointError, match="is there already"):
        pack(str(tmp_path / "base"), {"a": str(tmp_path / "a")}, tmp_path / "b")
    other = {"x": torch.ones(3)}
    write_model(tmp_path / "other", other)
    with pytest.raises(CheckpointError, match="no tensor that o all have in the same shape"):
        pack(str(tmp_path / "base"), {"o": str(tmp_path / "other")}, tmp_path / "s")
    file = tmp_path / "a" / "model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(file).items()}, file)
    with pytest.raises(NotFinite, match="not finite, in the base or the model of task 'a'"):
        pack(str(tmp_path / "base"), {"a": str(tmp_path / "a")}, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_bits_and_files_round_trip(tmp_path: Path) -> None:
    for size in (0, 1, 7, 8, 9, 1000):
        mask = torch.arange(size) % 3 == 0
        assert len(to_bits(mask)) == -(-size // 8)
        assert torch.equal(from_bits(to_bits(mask), size), mask)
    values = {"a": torch.randn(3, 2).bfloat16(), "b": torch.zeros(0, 4), "c": torch.tensor(5), "d": torch.tensor(True)}
    layout = {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}
    with SequentialFile(tmp_path / "x.safetensors", layout, {"format": "pt"}) as file:
        for value in values.values():
            file.write(value)
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in values.items())


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from polytask.cli import app

    write_family(tmp_path, "ab")
    tasks = [part for task in "ab" for part in ("--task", f"{task}={tmp_path / task}")]
    pack_it = ["store", "pack", "--base", str(tmp_path / "base"), *tasks, "--out", str(tmp_path / "s")]
    app(pack_it, standalone_mode=False)
    said = capsys.readouterr().out
    assert "mask bits set" in said
    assert "% of the models'" in said
    app(["store", "get", str(tmp_path / "s"), "a", "--out", str(tmp_path / "again"), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["task"] == "a"
    assert (tmp_path / "again" / "model.safetensors").is_file()
