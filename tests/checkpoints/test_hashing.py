import hashlib
from pathlib import Path

import pytest

from polytask.checkpoints import hashing
from polytask.checkpoints.hashing import facts_of, identified


def test_small_files_are_hashed_whole(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    expected = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert identified(file) == facts_of(b"abc") == facts_of(file) == expected


def test_samples_of_a_large_file_see_its_size_its_ends_and_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "WHOLE", 1000)
    monkeypatch.setattr(hashing, "SAMPLE", 16)
    file, content = tmp_path / "x", bytes(range(256)) * 64
    file.write_bytes(content)
    facts = identified(file)
    assert sorted(facts) == ["bytes", "sampled_sha256"]
    assert "sha256" in identified(file, whole=True)
    for position in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[position] ^= 255
        file.write_bytes(changed)
        seen = identified(file) != facts
        assert seen or position == len(content) // 2  # between two samples here
    file.write_bytes(content + b"\0")
    assert identified(file) != facts
