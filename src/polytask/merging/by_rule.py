"""What a data-free merge makes of models in memory or mapped: the streaming driver's own result, in float32."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from polytask.merging import driver
from polytask.merging.contract import find_method
from polytask.merging.jobs import Source, TensorJob
from polytask.merging.layers import depths, layer_of
from polytask.merging.vectors import Stored, Vectors
from polytask.merging.weights.memory import MemoryWeights
from polytask.merging.weights.safetensors import open_safetensors


def merged_by(vectors: Vectors, rule: str | Mapping[str, Any], *, seed: int = 0) -> Mapping[str, Tensor]:
    """name -> merged tensor, mapped from a file that has no name any more.

    Args:
        vectors: the models.
        rule: a merge method's name, or {kind: name, and its parameters}.
        seed: of random rules.
    """
    options = {"kind": rule} if isinstance(rule, str) else dict(rule)
    pipeline = find_method(options.pop("kind"))(**options)
    place = depths(vectors.names)
    base = MemoryWeights({name: vectors.base(name) for name in vectors.names}, "the base")
    models = {
        task: MemoryWeights(
            {n: vectors.model(task, n) for n in vectors.names if vectors.has(task, n)}, f"task {task!r}"
        )
        for task in vectors.tasks
    }
    jobs = [
        TensorJob(
            name,
            tuple(vectors.shape(name)),
            torch.promote_types(base.dtype(name), torch.float32),
            {task: Source(models[task], name) for task in vectors.tasks if vectors.has(task, name)},
            pipeline,
            Source(base, name) if pipeline.of != "models" else None,
            layer_of(name),
            place[name],
        )
        for name in vectors.names
    ]
    with TemporaryDirectory() as folder:
        out = Path(folder) / "merged"
        driver.merge(jobs, out, seed=seed, measure=False)
        weights = open_safetensors(out)
        return Stored({name: Source(weights, name) for name in vectors.names})  # the map outlives the file's name
