"""What a merge cannot do without: reading four models and writing one; and a mean in NumPy, block by block, one thread.

`python -m benchmarks.merging.floor WHAT FOLDER OUT`, WHAT being copy, mean or svd. No torch but for svd.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

NAMES = ("base", "a", "b", "c")
CHUNK = 1 << 20


def copy(folder: Path, out: Path) -> None:
    """Reads every byte of four models, and writes those of the first."""
    out.mkdir(parents=True, exist_ok=True)
    buffer = bytearray(CHUNK)
    for name in NAMES:
        for path in sorted((folder / name).glob("*.safetensors")):
            target = out / path.name if name == NAMES[0] else Path(os.devnull)
            with open(path, "rb", buffering=0) as source, open(target, "wb", buffering=0) as sink:
                while size := source.readinto(buffer):
                    sink.write(memoryview(buffer)[:size])


def mean(folder: Path, out: Path) -> None:
    """The mean of the three fine-tunes: bfloat16 to float32, summed, rounded to nearest even."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / "a").glob("*.safetensors")):
        files = [np.memmap(folder / name / path.name, dtype=np.uint8, mode="r") for name in NAMES[1:]]
        start = 8 + int(files[0][:8].view(np.uint64)[0])
        with open(out / path.name, "wb") as target:
            target.write(files[0][:start])
            for first in range(start, len(files[0]), CHUNK):
                blocks = [file[first : first + CHUNK].view(np.uint16) for file in files]
                total = sum((block.astype(np.uint32) << 16).view(np.float32) for block in blocks)
                bits = (total / np.float32(3)).view(np.uint32)
                target.write(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def svd(folder: Path, threads: int) -> None:
    """The decompositions that Iso-C needs: one of each matrix's summed task vectors, as many threads as a merge has."""
    import torch

    torch.set_num_threads(1)

    def decompose(values: list[np.ndarray]) -> None:
        base, *tuned = (torch.from_numpy(value.copy()).view(torch.bfloat16).float() for value in values)
        torch.linalg.svd(torch.stack([value - base for value in tuned]).sum(0), full_matrices=False)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decompose, _matrices(folder)))


def _matrices(folder: Path) -> Iterator[list[np.ndarray]]:
    """Every matrix of the four models, int16 bits."""
    for path in sorted((folder / "base").glob("*.safetensors")):
        files = [np.memmap(folder / name / path.name, dtype=np.uint8, mode="r") for name in NAMES]
        length = int(files[0][:8].view(np.uint64)[0])
        header = json.loads(bytes(files[0][8 : 8 + length]))
        for name, entry in header.items():
            if name != "__metadata__" and len(entry["shape"]) == 2:
                start, stop = (8 + length + offset for offset in entry["data_offsets"])
                yield [file[start:stop].view(np.int16).reshape(entry["shape"]) for file in files]


if __name__ == "__main__":
    what, source, target = sys.argv[1:4]
    if what == "svd":
        svd(Path(source), int(target))
    else:
        {"copy": copy, "mean": mean}[what](Path(source), Path(target))
