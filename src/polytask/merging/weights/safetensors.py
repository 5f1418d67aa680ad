"""Safetensors, in one file or in shards with an index: headers are read and checked, values are memory-mapped.

The format: 8 bytes with the header's length (little-endian), the header (JSON: name -> dtype, shape and the offsets of
its bytes after the header; "__metadata__" -> strings), then the values, without gaps or overlaps.
"""

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.core.errors import CheckpointError, UnknownName, nearest

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
# A private mapping may be written to, which is what torch demands of a buffer; nobody does, so no memory is reserved.
_PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
_LONGEST_HEADER = 100_000_000  # as in the format's own library


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: bytes start ... stop - 1 of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """One file, memory-mapped.

    Raises: CheckpointError for a file that is cut short, or whose header is not what the format demands.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                header = _header_bytes(self.path, file.read(8), status.st_size, file)
                self._memory = mmap.mmap(file.fileno(), 0, flags=_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:
            raise CheckpointError(f"{self.path}: could not be read ({error.strerror or error})") from None
        self.entries, self.metadata = _parsed(self.path, header, status.st_size)
        self._identity = (
            str(self.path.resolve()),
            status.st_size,
            status.st_mtime_ns,
            hashlib.sha256(header).hexdigest(),
        )

    def read(self, name: str, start: int, stop: int) -> Tensor:
        entry = self.entries[name]
        if start == stop:
            return torch.empty(0, dtype=entry.dtype)
        offset = entry.start + start * entry.dtype.itemsize
        assert start >= 0
        assert offset + (stop - start) * entry.dtype.itemsize <= entry.stop
        return torch.frombuffer(self._memory, dtype=entry.dtype, count=stop - start, offset=offset)

    def identity(self) -> tuple[Any, ...]:
        """Changes when the file does."""
        return self._identity

    def sha256(self) -> str:
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class SafetensorsWeights:
    """A model in safetensors: `Weights` over one file or several (see `open_safetensors`)."""

    def __init__(self, files: Mapping[Path, SafetensorsFile], index: Path | None = None) -> None:
        self._files = dict(files)
        self._index = index
        self._home = {name: file for file in self._files.values() for name in file.entries}

    def names(self) -> list[str]:
        return list(self._home)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._home[name].read(name, start, stop)

    def where(self, name: str) -> str:
        self._entry(name)
        return str(self._home[name].path)

    def files(self) -> list[Path]:
        return [*([self._index] if self._index else []), *self._files]

    def metadata(self) -> dict[str, str]:
        """The metadata of all files together."""
        return {key: value for file in self._files.values() for key, value in file.metadata.items()}

    def fingerprint(self) -> str:
        facts = sorted(file.identity() for file in self._files.values())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def hashes(self) -> dict[str, str]:
        return {path.name: file.sha256() for path, file in self._files.items()}

    def close(self) -> None:
        """Forgets the files; a mapping goes when the last tensor that looks at it does."""
        self._home.clear()
        self._files.clear()

    def _entry(self, name: str) -> Entry:
        if name not in self._home:
            raise UnknownName("tensor", name, self._home, str(next(iter(self._files), "closed")))
        return self._home[name].entries[name]


def open_safetensors(path: Path) -> SafetensorsWeights:
    """Opens a file, an index, or a directory that holds either `model.safetensors` or its index and shards."""
    path = Path(path)
    if path.is_dir():
        single, index = path / MODEL, path / INDEX
        if single.exists() and index.exists():
            message = f"{path}: both {MODEL} and {INDEX}: one of them is left from another model"
            raise CheckpointError(f"{message}; remove it")
        if not single.exists() and not index.exists():
            raise CheckpointError(f"{path}: no safetensors model (neither {MODEL} nor {INDEX})")
        path = single if single.exists() else index
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    return SafetensorsWeights({path: SafetensorsFile(path)})


def _open_shards(index: Path) -> SafetensorsWeights:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        homes = {str(name): str(file) for name, file in weight_map.items()}
    except OSError as error:
        raise CheckpointError(f"{index}: could not be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: not an index of shards: a JSON object with a weight_map") from None
    files: dict[Path, SafetensorsFile] = {}
    for name in dict.fromkeys(homes.values()):
        if Path(name).name != name:
            raise CheckpointError(f"{index}: names the file {name!r}; allowed: a file beside the index")
        if not (index.parent / name).exists():
            raise CheckpointError(f"{index}: names {name}, which is missing")
        files[index.parent / name] = SafetensorsFile(index.parent / name)
    for name, home in homes.items():
        entries = files[index.parent / home].entries
        if name not in entries:
            raise CheckpointError(
                f"{index.parent / home}: no tensor {name!r}{nearest(name, entries)}, which {index.name} names"
            )
    for path, file in files.items():
        for name in file.entries:
            if homes.get(name) != path.name:
                raise CheckpointError(f"{path}: holds {name!r}, which {index.name} {_elsewhere(homes.get(name))}")
    return SafetensorsWeights(files, index)


def _elsewhere(home: str | None) -> str:
    return "does not name" if home is None else f"says is in {home}"


def _header_bytes(path: Path, start: bytes, size: int, file: Any) -> bytes:
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise CheckpointError(f"{path}: {size} bytes: too short for a safetensors file")
    if length > _LONGEST_HEADER:
        raise CheckpointError(
            f"{path}: a header of {length} bytes, more than {_LONGEST_HEADER}: not a safetensors file"
        )
    if 8 + length > size:
        raise CheckpointError(f"{path}: cut short: {size} bytes, and the header alone has {length}")
    return file.read(length)


def _parsed(path: Path, header: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """name -> entry in the order of the file, and the metadata."""
    try:
        values = json.loads(header, object_pairs_hook=lambda pairs: _unique(path, pairs))
    except CheckpointError:  # which is a ValueError too
        raise
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the header is not JSON: not a safetensors file, or damaged") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object: not a safetensors file, or damaged")
    metadata = values.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a mapping of strings: damaged")
    data = 8 + len(header)
    entries = {name: _entry(path, name, facts, data) for name, facts in values.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    end, before = data, "the header"
    for name, entry in ordered.items():
        if entry.start != end:
            what = "overlap" if entry.start < end else "leave a gap"
            raise CheckpointError(f"{path}: {before} and {name!r} {what}: damaged")
        end, before = entry.stop, repr(name)
    if end != size:
        what = "cut short" if end > size else "has bytes that belong to no tensor"
        raise CheckpointError(f"{path}: {what}: {size} bytes, its header says {end}")
    return ordered, metadata


def _entry(path: Path, name: str, facts: Any, data: int) -> Entry:
    try:
        code, shape, (start, stop) = facts["dtype"], facts["shape"], facts["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"{path}: the entry of {name!r} lacks its dtype, shape or offsets: damaged") from None
    if code not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has the type {code!r}; known: {', '.join(DTYPES)}")
    if not sound or stop - start != math.prod(shape) * DTYPES[code].itemsize:
        raise CheckpointError(
            f"{path}: tensor {name!r}: {shape} of {code} do not fit offsets {start} to {stop}: damaged"
        )
    return Entry(DTYPES[code], tuple(shape), data + start, data + stop)


def _unique(path: Path, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise CheckpointError(f"{path}: the header has {key!r} twice: damaged")
        found[key] = value
    return found
