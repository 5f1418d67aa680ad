"""Small models on disk, and the jobs that merge them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from polytask.core.noise import Noise
from polytask.merging.contract import Pipeline, find_method
from polytask.merging.jobs import Source, Take, TensorJob
from polytask.merging.weights.interface import Weights
from polytask.merging.weights.safetensors import open_safetensors

SHAPES = {"embed.weight": (300, 70), "layers.0.weight": (300, 1000), "layers.0.bias": (150,), "norm.weight": (7,)}


def values(seed: int, shapes: Mapping[str, Sequence[int]] = SHAPES, scale: float = 1.0) -> dict[str, Tensor]:
    drawn = {name: Noise(seed, name).normal(torch.Size(shape).numel()) for name, shape in shapes.items()}
    return {name: torch.from_numpy(drawn[name]).view(*shape).float() * scale for name, shape in shapes.items()}


def models(folder: Path, *, tasks: int = 3, dtype: torch.dtype = torch.bfloat16, **options: Any) -> dict[str, Path]:
    """ "base" and tasks a, b, c ...: directories with a model.safetensors; the base plus a tenth of something else."""
    base = values(0, **options)
    found = {}
    for number, name in enumerate(["base", *"abcdefgh"[:tasks]]):
        delta = values(number, scale=0.1 if number else 0.0, **options)
        directory = folder / name
        directory.mkdir(parents=True)
        tensors = {key: (base[key] + delta[key]).to(dtype) for key in base}
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        found[name] = directory
    return found


def opened(paths: Mapping[str, Path]) -> dict[str, Weights]:
    return {name: open_safetensors(path) for name, path in paths.items()}


def jobs(
    weights: Mapping[str, Weights], pipeline: Pipeline | Take | str, *, dtype: torch.dtype | None = None, **options: Any
) -> list[TensorJob]:
    """A job for each tensor of the models; a name is that method with `options` as parameters."""
    chosen = find_method(pipeline)(**options) if isinstance(pipeline, str) else pipeline
    first = next(iter(weights.values()))
    names = first.names()
    return [
        TensorJob(
            name=name,
            shape=first.shape(name),
            dtype=dtype or first.dtype(name),
            inputs={task: Source(found, name) for task, found in weights.items() if task != "base"},
            base=Source(weights["base"], name) if "base" in weights else None,
            pipeline=chosen,
            group=name.rpartition(".")[0],
            depth=number / max(len(names) - 1, 1),
        )
        for number, name in enumerate(names)
    ]


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
