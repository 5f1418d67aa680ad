import json
from pathlib import Path

import pytest
import torch

from polytask.core.errors import CheckpointError
from polytask.merging.opening import open_model

VALUES = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


class Shell:
    """A pickle of it would call a function when it is read."""

    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize("wrapped", [None, "state_dict", "model"])
@pytest.mark.parametrize("old", [False, True])
def test_tensors_alone_or_beside_other_things(tmp_path: Path, wrapped: str | None, old: bool) -> None:
    content = VALUES if wrapped is None else {wrapped: VALUES, "epoch": 3}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not old)
    weights = open_model(str(tmp_path / "model.pt")).weights
    assert list(weights.names()) == list(VALUES)
    assert weights.shape("a.weight") == (2, 3)
    assert weights.dtype("a.bias") is torch.bfloat16
    assert torch.equal(weights.read("a.weight", 1, 5), torch.arange(1.0, 5.0))
    weights.close()


def test_a_sharded_directory(tmp_path: Path) -> None:
    shards = {"a.weight": "pytorch_model-00001-of-00002.bin", "a.bias": "pytorch_model-00002-of-00002.bin"}
    for name, file in shards.items():
        torch.save({name: VALUES[name]}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    weights = open_model(str(tmp_path)).weights
    assert sorted(weights.names()) == sorted(VALUES)
    assert weights.where("a.bias").endswith("00002-of-00002.bin")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"names pytorch_model-00002-of-00002\.bin, which is missing"):
        open_model(str(tmp_path))


def test_a_tensor_that_is_not_contiguous(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "x.pt")
    weights = open_model(str(tmp_path / "x.pt")).weights
    assert weights.shape("x") == (3, 2)
    assert weights.read("x", 0, 6).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(2), "x": Shell()}, "bad.bin")
    with pytest.raises(CheckpointError, match=r"bad\.bin: this pickle would run code of its own, so it was not read"):
        open_model("bad.bin")
    assert not Path("touched").exists()


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x80\x04}q\x00."])
def test_damaged_files_are_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.bin: "):
        open_model(str(tmp_path / "x.bin"))


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="'epoch' is a int; allowed: tensors by name"):
        open_model(str(tmp_path / "x.pt"))
    torch.save([1], tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="holds no parameters by name, but a list"):
        open_model(str(tmp_path / "y.pt"))
