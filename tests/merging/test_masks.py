"""Masks and values of a plan: what they do to a merge, and what does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import polytask
from merging.models import SHAPES, models
from polytask.core.errors import PolytaskError


def plan(paths: dict[str, Path], **changes: Any) -> dict[str, Any]:
    tasks = {task: {"model": str(path)} for task, path in paths.items() if task != "base"}
    return {"base": str(paths["base"]), "tasks": tasks, "rule": "task_arithmetic", "dtype": "float32", **changes}


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    small = {name: tuple(min(size, 40) for size in shape) for name, shape in SHAPES.items()}
    return models(tmp_path, tasks=2, dtype=torch.float32, shapes=small)


def tensors(paths: dict[str, Path]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(path / "model.safetensors") for name, path in paths.items()}


def test_masks_of_tasks_and_of_the_result(paths: dict[str, Path], tmp_path: Path) -> None:
    """base + whole * (mask_a * (a - base) + (b - base)), in a tensor that the masks have, and no mask in another."""
    known = tensors(paths)
    name, other = list(known["base"])[:2]
    shape = known["base"][name].shape
    of_a, whole = (torch.linspace(start, 1.5, shape.numel()).view(shape) for start in (0.0, -1.0))
    save_file({name: of_a}, tmp_path / "a.safetensors")
    save_file({name: whole > 0}, tmp_path / "whole.safetensors")  # truth values are numbers too
    given = plan(paths, mask=str(tmp_path / "whole.safetensors"))
    given["tasks"]["a"]["mask"] = str(tmp_path / "a.safetensors")
    polytask.merge(given, out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    base, a, b = (known[key][name].double() for key in ("base", "a", "b"))
    expected = base + (whole > 0) * (of_a.double() * (a - base) + (b - base))
    torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-6)
    plain = known["a"][other] + known["b"][other] - known["base"][other]
    torch.testing.assert_close(found[other], plain, rtol=1e-5, atol=1e-6)


def test_values_are_taken_over(paths: dict[str, Path], tmp_path: Path) -> None:
    name = next(iter(tensors(paths)["base"]))
    values = {name: torch.full_like(tensors(paths)["base"][name], 7.0)}
    save_file(values, tmp_path / "values.safetensors")
    found = polytask.merge(plan(paths, values=str(tmp_path / "values.safetensors")), out=tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], values[name])
    assert any("taken over from the plan's values" in note for note in found["notes"])


@pytest.mark.parametrize("key", ["mask", "values", "task"])
@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"beside\.safetensors: no such file"),
        ({"no.such": (2,)}, r"beside\.safetensors: no tensor of the .* 'no\.such'"),
        ({"norm.weight": (2,)}, r"the shape of the \w+ 'norm\.weight' is \(2,\); allowed: \(7,\), as the tensor"),
    ],
)
def test_what_does_not_fit_is_refused(
    paths: dict[str, Path], tmp_path: Path, key: str, content: dict[str, tuple[int, ...]] | None, message: str
) -> None:
    file = tmp_path / "beside.safetensors"
    if content is not None:
        save_file({name: torch.ones(shape) for name, shape in content.items()}, file)
    given = plan(paths, **({} if key == "task" else {key: str(file)}))
    if key == "task":
        given["tasks"]["a"]["mask"] = str(file)
    with pytest.raises(PolytaskError, match=message):
        polytask.merge(given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mask_is_of_changes_not_of_models(paths: dict[str, Path], tmp_path: Path) -> None:
    save_file({"norm.weight": torch.ones(7)}, tmp_path / "mask.safetensors")
    given = plan(paths, rule="linear", mask=str(tmp_path / "mask.safetensors"))
    with pytest.raises(PolytaskError, match="a mask is of what fine-tuning changed; rule 'linear' sees models"):
        polytask.merge(given, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
