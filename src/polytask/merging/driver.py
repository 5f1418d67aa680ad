"""The streaming driver: reads models piece by piece, merges, writes. A setting bounds memory, not the model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from polytask.merging.jobs import TensorJob
from polytask.merging.outcome import MergeReport

MEMORY = 300 * 2**20
SHARD = 5 * 10**9

Files = Callable[[MergeReport], Mapping[str, bytes | Path]]


def merge(
    jobs: Sequence[TensorJob],
    out: Path,
    *,
    seed: int = 0,
    memory: int = MEMORY,
    threads: int | None = None,
    shard_size: int = SHARD,
    metadata: Mapping[str, str] | None = None,
    files: Files | None = None,
    measure: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Writes the merged model into the directory `out`: model.safetensors, or shards with their index.

    The same call after an interruption redoes the unfinished shards only; the bytes are those of an uninterrupted run.
    They do not depend on `memory`, `threads` or the order of a job's inputs' files.

    Args:
        jobs: a tensor each, in the order of the output.
        out: a directory that takes its name when it is complete; one that was there is replaced.
        seed: of random transforms and rules.
        memory: anonymous bytes beyond the interpreter's; a rule on matrices needs its largest matrix besides.
        threads: default: the processors this process may use.
        shard_size: most bytes of tensors in a file (one tensor may exceed it).
        metadata: of the safetensors files, beside {"format": "pt"}.
        files: given the report, what else belongs in the directory: name -> content, or a file to copy.
        measure: whether norms, cosines and sign conflicts are measured.
        progress: called with (bytes of output done, bytes of output in all), from any thread.

    Raises:
        NotFinite: NaN or infinity in an input, naming file, tensor and index.
        CheckpointError: a full disk (before anything is written where that can be known), or another failed write.
    """
    raise NotImplementedError
