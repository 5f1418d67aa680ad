"""A directory or file appears whole or not at all."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polytask.checkpoints import atomic_directory, remove_directory, remove_unfinished
from polytask.checkpoints.directory import json_bytes, read_json, write_file
from polytask.core.errors import CheckpointError


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, a file cannot grow beyond `size` bytes: what a full disk looks like to the one who writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_appears_with_all_its_files(tmp_path):
    with atomic_directory(tmp_path / "deep" / "new") as temporary:
        (temporary / "inside").mkdir()
        (temporary / "inside" / "a.txt").write_text("a")
        assert not (tmp_path / "deep" / "new").exists()
    assert (tmp_path / "deep" / "new" / "inside" / "a.txt").read_text() == "a"
    assert names(tmp_path / "deep") == ["new"]


def test_an_error_inside_leaves_what_was_there(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old.txt").write_text("old")

    def fail_inside() -> None:
        with atomic_directory(tmp_path / "kept") as temporary:
            (temporary / "new.txt").write_text("new")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail_inside()
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["old.txt"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:  # a system that cannot swap two names in one step
        monkeypatch.setattr("polytask.checkpoints.directory._exchanged", lambda path, other: False)
    for content in ("first", "second"):
        with atomic_directory(tmp_path / "d") as temporary:
            (temporary / f"{content}.txt").write_text(content)
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["second.txt"]


def test_replacing_swaps_names_in_one_step_on_linux(tmp_path, monkeypatch):
    """No rename is left in which neither directory has the name."""
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "old.txt").write_text("old")
    renamed = []
    monkeypatch.setattr("os.replace", lambda *paths: renamed.append(paths))
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "new.txt").write_text("new")
    assert renamed == []
    assert names(tmp_path / "d") == ["new.txt"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    for write in (write_directory, write_single_file):
        write(tmp_path / "d", b"old")
        with (
            pytest.raises(CheckpointError, match=r"d.*could not be written \(File too large\)"),
            largest_file(1000),
        ):
            write(tmp_path / "d", b"new" * 1000)
        assert names(tmp_path) == ["d"]
        content = tmp_path / "d" / "a.bin" if (tmp_path / "d").is_dir() else tmp_path / "d"
        assert content.read_bytes() == b"old"
        remove_directory(tmp_path / "d") if (tmp_path / "d").is_dir() else (tmp_path / "d").unlink()


def write_directory(path: Path, content: bytes) -> None:
    with atomic_directory(path) as temporary:
        (temporary / "a.bin").write_bytes(content)


def write_single_file(path: Path, content: bytes) -> None:
    write_file(path, content)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory"):
        write_file(tmp_path / "file" / "below.json", b"{}")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_directory(tmp_path / "file" / "below", b"")


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".unfinished-step-3-1").mkdir()
    (tmp_path / ".unfinished-step-3-1" / "model").write_text("half")
    (tmp_path / ".unfinished-results.json-1").write_text("half")
    os.symlink("nowhere", tmp_path / ".unfinished-last-1")
    (tmp_path / "step-2").mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["step-2"]


def test_json_is_stable_and_refuses_what_json_has_not():
    assert json_bytes({"b": [1, "é"], "a": None}) == '{\n  "b": [\n    1,\n    "é"\n  ],\n  "a": null\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_bytes(float("nan"))


def test_reading_json_that_is_missing_or_cut(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": ')
    with pytest.raises(CheckpointError, match=r"a\.json: not readable as JSON"):
        read_json(tmp_path / "a.json")
