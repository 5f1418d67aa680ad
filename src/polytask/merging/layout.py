"""Where every output tensor goes: which file, at which offset. Known before the first value is read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from polytask.core.errors import BadValue
from polytask.merging.jobs import TensorJob
from polytask.merging.weights.safetensors import CODES, MODEL


@dataclass(frozen=True)
class Shard:
    """One output file.

    Attributes:
        file: its name.
        jobs: its tensors, in the order in which they lie in it.
        metadata: of the file.
    """

    file: str
    jobs: tuple[TensorJob, ...]
    metadata: Mapping[str, str]

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes: the length of the header, and the header, padded so that values are aligned."""
        entries: dict[str, Any] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        offset = 0
        for job in self.jobs:
            stop = offset + size(job)
            entries[job.name] = {"dtype": CODES[job.dtype], "shape": list(job.shape), "data_offsets": [offset, stop]}
            offset = stop
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Tensor -> its first byte in the file."""
        found, offset = {}, len(self.header)
        for job in self.jobs:
            found[job.name] = offset
            offset += size(job)
        return found

    @cached_property
    def bytes(self) -> int:
        return len(self.header) + sum(map(size, self.jobs))


def size(job: TensorJob) -> int:
    """Bytes of an output tensor."""
    return job.elements * job.dtype.itemsize


def shards_of(jobs: Sequence[TensorJob], shard_size: int, metadata: Mapping[str, str]) -> list[Shard]:
    """The files, each filled in the order of the jobs up to `shard_size` bytes of tensors.

    Within a file, types with long elements come first, so that every tensor is aligned to its element.
    """
    for job in jobs:
        if job.dtype not in CODES:
            raise BadValue(f"the output type of {job.name!r}", str(job.dtype), ", ".join(map(str, CODES)))
    groups: list[list[TensorJob]] = [[]]
    filled = 0
    for job in jobs:
        if groups[-1] and filled + size(job) > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(job)
        filled += size(job)
    ordered = [tuple(sorted(group, key=lambda job: -job.dtype.itemsize)) for group in groups]
    if len(ordered) == 1:
        return [Shard(MODEL, ordered[0], metadata)]
    count = len(ordered)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return [Shard(name, group, metadata) for name, group in zip(names, ordered, strict=True)]


def index_bytes(shards: Sequence[Shard]) -> bytes:
    """model.safetensors.index.json for these shards."""
    weight_map = {job.name: shard.file for shard in shards for job in shard.jobs}
    total = sum(size(job) for shard in shards for job in shard.jobs)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
