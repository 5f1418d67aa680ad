"""Writes the output directory: shards laid out first and filled from any thread, the directory renamed at the end.

Everything happens in a working directory beside the output, which has the output's name only when it is complete. A
shard is `NAME.partial` until every byte of it is on the disk. A merge that was killed leaves the working directory; the
same merge finds it again by the fingerprint in it, keeps the finished shards and does the others; another merge to the
same place starts it anew.
"""

import ctypes
import dataclasses
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from polytask.checkpoints.directory import TEMPORARY, flush, json_bytes, replace_directory
from polytask.core.errors import CheckpointError
from polytask.merging.jobs import TensorJob
from polytask.merging.layout import Shard
from polytask.merging.outcome import TensorReport

_AHEAD = 32 << 20  # bytes that are written before the disk is told
_PLAN, _LOCK, _PARTIAL, _REPORT = "merge.json", "lock", ".partial", ".report.json"


class Workspace:
    """The working directory of one merge; a context manager that holds its lock.

    Args:
        out: the directory that it becomes.
        fingerprint: of everything that decides the output's bytes.
    """

    def __init__(self, out: Path, fingerprint: str) -> None:
        self.out = Path(out)
        self.path = self.out.parent / f"{TEMPORARY}{self.out.name}-merge"
        self.fingerprint = fingerprint
        self._lock = -1

    def __enter__(self) -> "Workspace":
        with failing(self.out):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise CheckpointError(f"{self.out}: another merge is writing to it; wait for it or stop it") from None
            self._resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def finished(self, shard: Shard) -> bool:
        """Whether an earlier run wrote the shard: it has its name and its size."""
        path = self.path / shard.file
        return path.exists() and path.stat().st_size == shard.bytes and self._report(shard).exists()

    def report(self, shard: Shard) -> Any:
        """What was measured when the shard was written."""
        return json.loads(self._report(shard).read_bytes())

    def require_space(self, shards: Sequence[Shard]) -> None:
        """CheckpointError if the disk has no room for the shards that are still to be written."""
        wanted = sum(shard.bytes for shard in shards)
        # What a killed run left of a shard is overwritten, so its room counts as free.
        partial = sum(path.stat().st_blocks * 512 for path in self.path.glob(f"*{_PARTIAL}"))
        free = shutil.disk_usage(self.path).free + partial
        if wanted > free:
            self.forget_if_empty()
            raise CheckpointError(f"{self.out}: the merge needs {wanted:,} bytes of disk, and {free:,} are free")

    def complete(self, files: Mapping[str, bytes | Path]) -> None:
        """Adds the other files, flushes them and gives the directory its name."""
        with failing(self.out):
            for name, content in files.items():
                target = self.path / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    target.write_bytes(content)
                else:
                    shutil.copyfile(content, target)
                flush(target)
            for left in [_PLAN, *(path.name for path in self.path.glob(f"*{_REPORT}"))]:
                (self.path / left).unlink(missing_ok=True)
            (self.path / _LOCK).unlink(missing_ok=True)
            flush(self.path)
            replace_directory(self.out, self.path)
            flush(self.out.parent)
        shutil.rmtree(self.path, ignore_errors=True)  # what had the name before

    def forget_if_empty(self) -> None:
        """Removes the working directory if no shard in it is finished."""
        if not any(self.path.glob("*.safetensors")):
            shutil.rmtree(self.path, ignore_errors=True)

    def keep(self, shard: Shard, report: Any) -> None:
        """Notes what was measured for a shard, before the shard gets its name."""
        with failing(self.out):
            self._report(shard).write_bytes(json_bytes(report))
            flush(self._report(shard))

    def _report(self, shard: Shard) -> Path:
        return self.path / f"{shard.file}{_REPORT}"

    def _resume(self) -> None:
        """Empties the directory unless it was left by this very merge."""
        plan = self.path / _PLAN
        with suppress(OSError, ValueError):
            if json.loads(plan.read_bytes()) == {"fingerprint": self.fingerprint}:
                return
        for left in sorted(self.path.iterdir()):
            if left.name != _LOCK:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        plan.write_bytes(json_bytes({"fingerprint": self.fingerprint}))
        flush(plan)


class ShardFile:
    """One shard while it is written; `write` may be called from any thread, each byte once."""

    def __init__(self, workspace: Workspace, shard: Shard) -> None:
        self.workspace, self.shard = workspace, shard
        self._path = workspace.path / f"{shard.file}{_PARTIAL}"
        with failing(workspace.out):
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                _reserve(self._file, shard.bytes)
            except OSError:
                self.discard()
                raise
            _write(self._file, memoryview(shard.header), 0)
        self._begun = self._written = 0  # bytes that are on their way to the disk, and all

    def write(self, content: memoryview, offset: int) -> None:
        with failing(self.workspace.out):
            _write(self._file, content, offset)
        self._written += len(content)  # a hint, which two threads may get wrong
        if self._written - self._begun >= _AHEAD:
            self._begun = self._written
            _begin_flushing(self._file)

    def finish(self, report: Any) -> None:
        """Flushes the file and gives it its name."""
        with failing(self.workspace.out):
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
            self.workspace.keep(self.shard, report)
            os.replace(self._path, self.workspace.path / self.shard.file)
            flush(self.workspace.path)

    def discard(self) -> None:
        """Removes what was written of it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._path.unlink(missing_ok=True)


class Output:
    """The shards of a merge while they are written; a context manager that opens them and removes what is unfinished.

    A shard whose last tensor is done is flushed and gets its name at once.
    """

    def __init__(self, workspace: Workspace, shards: Sequence[Shard]) -> None:
        self.workspace, self.shards = workspace, list(shards)
        self.kept = [shard for shard in shards if workspace.finished(shard)]
        self.todo = [shard for shard in shards if shard not in self.kept]
        self._reports = {report["name"]: report for shard in self.kept for report in workspace.report(shard)}
        self._files: dict[str, ShardFile] = {}
        self._home = {job.name: shard for shard in self.todo for job in shard.jobs}
        self._left = {shard.file: len(shard.jobs) for shard in self.todo}

    def __enter__(self) -> "Output":
        self.workspace.require_space(self.todo)
        try:
            for shard in self.todo:
                self._files[shard.file] = ShardFile(self.workspace, shard)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.discard()
        self._files.clear()

    def wants(self, job: TensorJob) -> bool:
        """Whether the tensor is still to be written."""
        return job.name in self._home

    def write(self, job: TensorJob, start: int, values: Tensor) -> None:
        """Elements of a tensor from `start` on, in its type; called from any thread."""
        shard = self._home[job.name]
        offset = shard.offsets[job.name] + start * job.dtype.itemsize
        if values.numel():
            self._files[shard.file].write(memoryview(values.view(torch.uint8).numpy()), offset)

    def done(self, report: TensorReport) -> None:
        """Every element of the tensor has been written."""
        shard = self._home[report.name]
        self._reports[report.name] = dataclasses.asdict(report)
        self._left[shard.file] -= 1
        if self._left[shard.file] == 0:
            self._files[shard.file].finish([self._reports[other.name] for other in shard.jobs])

    def reports(self, jobs: Sequence[TensorJob]) -> list[TensorReport]:
        return [TensorReport(**self._reports[job.name]) for job in jobs]


@contextmanager
def failing(out: Path) -> Iterator[None]:
    """A failed write as the one error that says so."""
    try:
        yield
    except OSError as error:
        message = (
            f"{out}: could not be written ({error.strerror or error}); finished shards are kept, nothing has its name"
        )
        raise CheckpointError(message) from error


def _begin_flushing(file: int) -> None:
    """What was written starts on its way to the disk, so that little is left for the flush at the end to wait for."""
    begin = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
    if begin is not None:
        everything = ctypes.c_int64(0)
        begin(file, everything, everything, 2)  # SYNC_FILE_RANGE_WRITE


def _reserve(file: int, size: int) -> None:
    """Room for the whole file, so that a full disk shows at once and not in the middle."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.ftruncate(file, size)


def _write(file: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
