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
from polytask.core.noise import Noise
from polytask.merging import stores
from polytask.merging.stores.names import KINDS
from polytask.merging.stores.packing import pack
from polytask.merging.stores.unpacking import get
from polytask.merging.weights.sequential import from_bits, growing_file, sequential_file, to_bits


def stored(folder: Path, kind: str, tasks: str = "abc", **settings: Any) -> dict:
    models = {task: str(folder / task) for task in tasks}
    return pack(str(folder / "base"), models, folder / kind, kind=kind, settings=settings)


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
        assert about["tasks"][task].get("factor", 1.0) == pytest.approx(factors[task], rel=1e-5)
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
    assert about["bytes"] / sum(about["bytes_of_models"].values()) == pytest.approx(2.25 / 4, abs=0.01)


def deltas(family: dict[str, dict[str, Tensor]], task: str) -> dict[str, np.ndarray]:
    base = {name: value.double().numpy() for name, value in family["base"].items()}
    return {name: family[task][name].double().numpy() - base[name] for name in base}


@pytest.mark.parametrize("scope", ["all", "tensor"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_a_graft_is_the_expert_where_it_moved_furthest(tmp_path: Path, density: float, scope: str) -> None:
    family = write_family(tmp_path, "ab")
    about = stored(tmp_path, "sparse", "ab", density=density, scope=scope)
    for task in "ab":
        moved = deltas(family, task)
        together = {name: [name] for name in moved} if scope == "tensor" else {key: [*moved] for key in moved}
        found, kept, missed, size = restored(tmp_path, "sparse", task), 0, 0.0, 0.0
        for name, delta in moved.items():
            ranked = np.sort(np.concatenate([np.abs(moved[other]).ravel() for other in together[name]]))[::-1]
            threshold = ranked[max(int(density * len(ranked)), 1) - 1]
            mask = torch.from_numpy(np.abs(delta) >= threshold)
            assert torch.equal(found[name], torch.where(mask, family[task][name], family["base"][name]))
            kept += int(mask.sum())
            missed += np.square(delta[~mask.numpy()]).sum()
            size += np.square(delta).sum()
        assert about["tasks"][task]["kept"] == kept / about["tasks"][task]["parameters"]
        assert about["tasks"][task]["relative_error"] == pytest.approx((missed / size) ** 0.5, rel=1e-5, abs=1e-9)


def test_a_graft_finds_its_place_in_a_long_tensor(tmp_path: Path) -> None:
    """Longer than the 65,536 elements after which places begin anew, and than a block."""
    base = {"w": torch.zeros(600, 1000).bfloat16(), "v": torch.zeros(3).bfloat16()}
    tuned = {name: value.clone() for name, value in base.items()}
    places = torch.tensor([0, 65_535, 65_536, 262_143, 262_144, 599_999])
    tuned["w"].view(-1)[places] = torch.tensor([1, -2, 3, -4, 5, -6]).bfloat16()
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "a", tuned)
    about = stored(tmp_path, "sparse", "a", density=1e-5)
    assert about["tasks"]["a"]["relative_error"] == 0
    assert about["tasks"]["a"]["kept"] == 6 / 600_003
    assert about["bytes_of_tasks"]["a"] < 1000
    assert torch.equal(restored(tmp_path, "sparse", "a")["w"], tuned["w"])


def test_low_rank_is_the_nearest_of_its_rank(tmp_path: Path) -> None:
    family = write_family(tmp_path, "ab", tokens=12)
    about = stored(tmp_path, "low_rank", "ab", rank=1)
    found = restored(tmp_path, "low_rank", "b")
    for name, delta in deltas(family, "b").items():
        got = found[name].double().numpy() - family["base"][name].double().numpy()
        if delta.ndim < 2:
            assert torch.equal(found[name], family["b"][name])
            continue
        U, S, Vh = np.linalg.svd(delta, full_matrices=False)
        np.testing.assert_allclose(got, S[0] * np.outer(U[:, 0], Vh[0]), atol=1e-6)
    matrices = sum(value.numel() for value in family["base"].values() if value.dim() == 2)
    assert about["tasks"]["b"]["factored"] == matrices / about["tasks"]["b"]["parameters"]


def test_a_change_of_low_rank_comes_back_and_is_small(tmp_path: Path) -> None:
    """Kernels of a convolution are a matrix with a row a channel; a change of rank 2 is kept to rounding."""
    generator = torch.Generator().manual_seed(0)
    base = {"conv": torch.randn(32, 16, 3, 3, generator=generator), "zero": torch.randn(40, 40, generator=generator)}
    change = torch.randn(32, 2, generator=generator) @ torch.randn(2, 144, generator=generator)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "a", {**base, "conv": base["conv"] + change.view(32, 16, 3, 3)})
    about = stored(tmp_path, "low_rank", "a", rank=2)
    assert about["tasks"]["a"]["relative_error"] < 1e-6
    assert about["bytes_of_tasks"]["a"] < 0.4 * about["bytes_of_models"]["a"]
    assert torch.equal(restored(tmp_path, "low_rank", "a")["zero"], base["zero"])


def test_seeded_is_the_best_of_its_random_matrices(tmp_path: Path) -> None:
    """Of one A_i and one B_j the best product is <D, A B^T> / |A B^T|^2 of it; the matrices follow from the seed."""
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(6, 5, generator=generator), "v": torch.randn(4, generator=generator)}
    tuned = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "a", tuned)
    stored(tmp_path, "seeded", "a", bases=1, rank=2, seed=3)
    A = Noise(3, "store", "seeded", "w", "left").normal(12).reshape(6, 2)
    B = Noise(3, "store", "seeded", "w", "right").normal(10).reshape(5, 2)
    product, delta = A @ B.T, tuned["w"].double().numpy() - base["w"].double().numpy()
    best = (delta * product).sum() / (product**2).sum() * product
    found = restored(tmp_path, "seeded", "a")
    np.testing.assert_allclose(found["w"].double().numpy(), base["w"].double().numpy() + best, atol=1e-6)
    assert torch.equal(found["v"], tuned["v"])


def test_seeded_keeps_what_its_matrices_span(tmp_path: Path) -> None:
    """A change that is made of the seed's own matrices comes back; more of them keep more of any change."""
    generator = torch.Generator().manual_seed(1)
    base = {"w": torch.randn(30, 20, generator=generator)}
    sides = [("left", 30), ("right", 20)]
    A, B = (
        np.einsum("kmr,k->mr", Noise(0, "store", "seeded", "w", side).normal(3 * n * 2).reshape(3, n, 2), [1, -2, 0.5])
        for side, n in sides
    )
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "a", {"w": base["w"] + torch.from_numpy(A @ B.T).float()})
    write_model(tmp_path / "b", {"w": base["w"] + torch.randn(30, 20, generator=generator)})
    assert stored(tmp_path, "seeded", "a", bases=3, rank=2)["tasks"]["a"]["relative_error"] < 1e-3
    errors = []
    for bases in (1, 8, 64):
        about = pack(
            str(tmp_path / "base"),
            {"b": str(tmp_path / "b")},
            tmp_path / str(bases),
            kind="seeded",
            settings={"bases": bases},
        )
        errors.append(about["tasks"]["b"]["relative_error"])
    assert 1 > errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("kind", KINDS.names())
def test_every_kind_gives_back_what_was_not_moved_and_repeats_its_bytes(tmp_path: Path, kind: str) -> None:
    family = write_family(tmp_path, "ab")
    file = tmp_path / "a" / "model.safetensors"
    save_file({**family["base"], "head.bias": torch.ones(3), "steps": torch.tensor(3)}, file)
    first, again = (
        pack(str(tmp_path / "base"), {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}, tmp_path / out, kind=kind)
        for out in ("first", "again")
    )
    assert {**first, "out": ""} == {**again, "out": ""}
    for path in sorted((tmp_path / "first").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "first")).read_bytes()
    get(tmp_path / "first", "a", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found.pop("head.bias"), torch.ones(3))
    assert int(found.pop("steps")) == 3
    if kind != "tall_masks":  # whose sum reaches into a task that did not move, where |0| >= 0.4 |sum| does not hold
        assert first["tasks"]["a"]["relative_error"] == 0
    for name, value in found.items():
        torch.testing.assert_close(value, family["base"][name], rtol=0, atol=1e-6)


def test_the_table_of_kinds_names_every_file() -> None:
    folder = Path(stores.__path__[0])
    others = {"__init__", "names", "contract", "packing", "unpacking"}
    assert sorted(KINDS.names()) == sorted(path.stem for path in folder.glob("*.py") if path.stem not in others)
    assert all(KINDS.find(name).__name__.lower() == name.replace("_", "") for name in KINDS.names())


def test_bad_input(tmp_path: Path) -> None:
    write_family(tmp_path, "ab")
    with pytest.raises(UnknownName, match=r"no kind of store 'tal_masks'.*did you mean 'tall_masks'"):
        stored(tmp_path, "tal_masks", "ab")
    with pytest.raises(BadValue, match=r"mask_scale is -1; allowed: a number in \[0, inf\)"):
        stored(tmp_path, "tall_masks", "ab", mask_scale=-1)
    for kind, bad in (("sparse", "density"), ("low_rank", "rank"), ("seeded", "bases")):
        with pytest.raises(BadValue, match=f"kind of store '{kind}': {bad} is 0; allowed: a number in"):
            stored(tmp_path, kind, "ab", **{bad: 0})
    with pytest.raises(UnknownName, match=r"no parameter 'densty' \(did you mean 'density'\?\)"):
        stored(tmp_path, "sparse", "ab", densty=0.5)
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
    with pytest.raises(NotFinite, match=r"a/model.safetensors: tensor 'lm_head.weight' is nan at index 0"):
        pack(str(tmp_path / "base"), {"a": str(tmp_path / "a")}, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_bits_and_files_round_trip(tmp_path: Path) -> None:
    for size in (0, 1, 7, 8, 9, 1000):
        mask = torch.arange(size) % 3 == 0
        assert len(to_bits(mask)) == -(-size // 8)
        assert torch.equal(from_bits(to_bits(mask), size), mask)
    values = {"a": torch.randn(3, 2).bfloat16(), "b": torch.zeros(0, 4), "c": torch.tensor(5), "d": torch.tensor(True)}
    layout = {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}
    with sequential_file(tmp_path / "x.safetensors", layout, {"format": "pt"}) as write:
        for value in values.values():
            write(value)
    with growing_file(tmp_path / "y.safetensors", {"format": "pt"}) as write_named:
        for name, value in values.items():
            write_named(name, value)
    assert (tmp_path / "y.safetensors").read_bytes() == (tmp_path / "x.safetensors").read_bytes()
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], value) for name, value in values.items())
    with growing_file(tmp_path / "none.safetensors"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", "y.safetensors"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from polytask.cli import app

    write_family(tmp_path, "ab")
    tasks = [part for task in "ab" for part in ("--task", f"{task}={tmp_path / task}")]
    pack_it = ["store", "pack", "--base", str(tmp_path / "base"), *tasks, "--out", str(tmp_path / "s")]
    app(pack_it, standalone_mode=False)
    said = capsys.readouterr().out
    assert "of the mask's bits set" in said
    assert "% of the models'" in said
    app(["store", "get", str(tmp_path / "s"), "a", "--out", str(tmp_path / "again"), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["task"] == "a"
    assert (tmp_path / "again" / "model.safetensors").is_file()
