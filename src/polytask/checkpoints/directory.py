"""A directory appears whole or not at all: written under a temporary name, flushed to the disk, renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polytask.core.errors import CheckpointError

TEMPORARY = ".unfinished-"


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path` that takes its name when the block ends without an error.

    A directory that has the name already is replaced; whatever happens in between, one of the two is there whole.
    A full disk or another failed write raises CheckpointError and leaves nothing behind but what was there before.
    """
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _flush(file)
        _flush(temporary)
        _replace(path, temporary)
        _flush(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path}: could not be written ({error.strerror or error}); what was there before is kept"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """A file appears whole or not at all."""
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY}{path.name}-{os.getpid()}"
    try:
        temporary.write_bytes(content)
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise CheckpointError(f"{path}: could not be written ({error.strerror or error})") from error


def json_bytes(value: Any) -> bytes:
    """Readable JSON that is the same for the same value."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None


def _replace(path: Path, temporary: Path) -> None:
    if path.is_symlink() or not path.exists():
        os.replace(temporary, path)
        return
    old = path.parent / f"{TEMPORARY}old-{path.name}-{os.getpid()}"
    os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
