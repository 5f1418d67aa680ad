"""The reader of safetensors against the format's own library, and every way in which a file can be damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from polytask.core.errors import CheckpointError, UnknownName
from polytask.merging.weights.interface import Weights
from polytask.merging.weights.safetensors import DTYPES, open_safetensors


def written(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, dtype: str = "F32", shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize("dtype", list(DTYPES.values()))
def test_every_type_is_read_as_the_library_wrote_it(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.arange(24).view(4, 6).to(dtype)
    save_file({"x": values, "empty": torch.zeros(0, 3), "number": torch.tensor(2.5)}, tmp_path / "model.safetensors")
    weights = open_safetensors(tmp_path)
    assert isinstance(weights, Weights)
    assert sorted(weights.names()) == ["empty", "number", "x"]
    assert (weights.shape("x"), weights.dtype("x"), weights.shape("number")) == ((4, 6), dtype, ())
    assert torch.equal(weights.read("x", 5, 19).view(torch.uint8), values.flatten()[5:19].view(torch.uint8))
    assert weights.read("number", 0, 1).item() == 2.5
    assert weights.read("empty", 0, 0).shape == (0,)
    with pytest.raises(UnknownName, match="no tensor 'y'"):
        weights.shape("y")


def test_shards_are_one_model(tmp_path: Path) -> None:
    for file, name in (("one.safetensors", "x"), ("two.safetensors", "y")):
        save_file({name: torch.ones(3)}, tmp_path / file, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"y": "two.safetensors", "x": "one.safetensors"}}))
    weights = open_safetensors(tmp_path)
    assert set(weights.names()) == {"x", "y"}
    assert weights.where("y") == str(tmp_path / "two.safetensors")
    assert weights.metadata() == {"format": "pt"}
    before = weights.fingerprint()
    assert open_safetensors(index).fingerprint() == before
    save_file({"y": torch.ones(4)}, tmp_path / "two.safetensors")
    assert open_safetensors(tmp_path).fingerprint() != before


@pytest.mark.parametrize("header, data, match", [
    ({"x": entry(0, 8)}, b"\0" * 7, "cut short: 7[0-9] bytes, its header says"),
    ({"x": entry(0, 8)}, b"\0" * 9, "has bytes that belong to no tensor"),
    ({"x": entry(0, 8), "y": entry(4, 12)}, b"\0" * 12, "'x' and 'y' overlap"),
    ({"x": entry(0, 8), "y": entry(12, 20)}, b"\0" * 20, "'x' and 'y' leave a gap"),
    ({"x": entry(4, 12)}, b"\0" * 12, "the header and 'x' leave a gap"),
    ({"x": entry(0, 8, "F31")}, b"\0" * 8, "tensor 'x' has the type 'F31'; known: BOOL, U8"),
    ({"x": entry(0, 8, shape=(3,))}, b"\0" * 8, r"tensor 'x': \[3\] of F32 do not fit offsets 0 to 8"),
    ({"x": entry(0, 8, shape=(-2,))}, b"\0" * 8, "do not fit offsets"),
    ({"x": {"dtype": "F32", "shape": [2]}}, b"\0" * 8, "the entry of 'x' lacks its dtype, shape or offsets"),
    ({"x": 3}, b"", "the entry of 'x' lacks"),
    ({"__metadata__": {"a": 1}}, b"", "__metadata__ is not a mapping of strings"),
    ([], b"", "the header is not a JSON object"),
    (b"{not json", b"", "the header is not JSON"),
    (b'{"x": 1, "x": 2}', b"", "the header has 'x' twice"),
])  # fmt: skip
def test_a_damaged_file_is_one_clear_error(header: Any, data: bytes, match: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=match) as raised:
        open_safetensors(tmp_path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


def test_a_header_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for content, match in [
        (b"", "0 bytes: too short"),
        (b"1234567", "7 bytes: too short"),
        ((10**9).to_bytes(8, "little"), "a header of 1000000000 bytes, more than 100000000"),
        ((50).to_bytes(8, "little") + b"{}", "cut short: 10 bytes, and the header alone has 50"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=match):
            open_safetensors(path)
    with pytest.raises(CheckpointError, match="No such file"):
        open_safetensors(tmp_path / "missing.safetensors")


def test_what_does_not_make_one_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no safetensors model"):
        open_safetensors(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for content, match in [
        ("[]", "not an index of shards"),
        ('{"weight_map": {"x": "two.safetensors"}}', "names two.safetensors, which is missing"),
        ('{"weight_map": {"x": "../one.safetensors"}}', "names the file '../one.safetensors'"),
        ('{"weight_map": {"x": "one.safetensors", "z": "one.safetensors"}}', "no tensor 'z'"),
    ]:
        index.write_text(content)
        with pytest.raises(CheckpointError, match=match):
            open_safetensors(tmp_path)
    save_file({"x": torch.ones(3), "y": torch.ones(2)}, tmp_path / "one.safetensors")
    index.write_text('{"weight_map": {"x": "one.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"holds 'y', which model.safetensors.index.json does not name"):
        open_safetensors(tmp_path)
    save_file({"x": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="one of them is left from another model"):
        open_safetensors(tmp_path)
