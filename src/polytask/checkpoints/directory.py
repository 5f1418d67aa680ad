"""A directory appears whole or not at all: written under a temporary name, flushed to the disk, renamed."""

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polytask.core.errors import CheckpointError

TEMPORARY = ".unfinished-"


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path` that takes its name when the block ends without an error.

    A directory that has the name already is replaced; on Linux one of the two has the name at every moment.
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
            flush(file)
        flush(temporary)
        replace_directory(path, temporary)
        flush(path.parent)
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
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
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


def remove_directory(path: Path) -> None:
    """The directory is gone from its name at once, however long deleting its files takes."""
    path = Path(path)
    leaving = path.parent / f"{TEMPORARY}old-{path.name}-{os.getpid()}"
    os.replace(path, leaving)
    shutil.rmtree(leaving)


def remove_unfinished(folder: Path) -> None:
    """Removes what a process that was killed while writing here has left."""
    for left in sorted(Path(folder).glob(f"{TEMPORARY}*")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def replace_directory(path: Path, temporary: Path) -> None:
    """Gives `temporary` the name `path`; `temporary` is then what had the name before, or gone."""
    if path.is_symlink() or not path.exists():
        os.replace(temporary, path)
    elif not _exchanged(path, temporary):
        old = path.parent / f"{TEMPORARY}old-{path.name}-{os.getpid()}"
        os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old)


def _exchanged(path: Path, other: Path) -> bool:
    """Swaps two names in one step, where the system can (Linux); else there is a moment when neither has the name."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(path), here, os.fsencode(other), exchange) == 0


def flush(path: Path) -> None:
    """A file's or a directory's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
