"""What identifies a file's content: its SHA-256, or of a large file that of samples, which costs no second reading."""

import hashlib
from pathlib import Path
from typing import Any

WHOLE = 64 * 2**20
"""Files up to this many bytes are hashed whole."""

SAMPLES, SAMPLE = 256, 65536


def identified(file: Path, *, whole: bool = False) -> dict[str, Any]:
    """{"bytes", "sha256"}, or for a large file {"bytes", "sampled_sha256"}: of its size and 256 samples of
    64 KiB, evenly spaced from its first byte to its last.

    Args:
        file: to be identified.
        whole: hash everything, however large.
    """
    size = file.stat().st_size
    with file.open("rb") as content:
        if whole or size <= WHOLE:
            return {"bytes": size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
        digest = hashlib.sha256(str(size).encode())
        for number in range(SAMPLES):
            content.seek(number * (size - SAMPLE) // (SAMPLES - 1))
            digest.update(content.read(SAMPLE))
    return {"bytes": size, "sampled_sha256": digest.hexdigest()}


def facts_of(content: bytes | Path) -> dict[str, Any]:
    """The same of what a file is to hold, or of a file that is to be copied."""
    if isinstance(content, Path):
        return identified(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
