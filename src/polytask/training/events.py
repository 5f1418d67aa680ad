"""The event stream of a run: one JSON object a line, read by progress bars and the report."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polytask.core.errors import CheckpointError

Listener = Callable[[Mapping[str, Any]], None]


class EventLog:
    """Appends events to a file and passes them to listeners.

    Nothing is buffered: an event is with the system when `write` returns, so a killed process loses none.

    Args:
        path: events.jsonl; None on a process other than the first, whose events nobody sees.
        listeners: called with every event.
    """

    def __init__(self, path: Path | None, listeners: Sequence[Listener] = ()) -> None:
        self.path = path
        self.listeners = tuple(listeners) if path is not None else ()
        self._file = open(path, "ab", buffering=0) if path is not None else None  # noqa: SIM115 (closed by __exit__)

    def write(self, event: str, **values: Any) -> None:
        record = {"event": event, **values}
        if self._file is not None:
            line = (json.dumps(record, allow_nan=False) + "\n").encode()
            with self._reported():
                written = self._file.write(line)
            if written != len(line):
                raise CheckpointError(f"{self.path}: could not be written (no space left on device)")
        for listener in self.listeners:
            listener(record)

    def position(self) -> int:
        """Bytes written so far, safely on the disk: what a checkpoint remembers."""
        if self._file is None:
            return 0
        with self._reported():
            os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"{self.path}: could not be written ({error.strerror or error})") from error


def cut(path: Path, position: int) -> None:
    """Empties the stream, or cuts it back to where a checkpoint left it."""
    if position and (not path.exists() or path.stat().st_size < position):
        raise CheckpointError(f"{path}: shorter than the checkpoint says ({position} bytes): the run cannot be resumed")
    try:
        path.touch()
        os.truncate(path, position)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error.strerror or error})") from error
