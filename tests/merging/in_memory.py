"""A plan merged in memory, tensor by tensor: what files must hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.core.task_vectors import TaskVectors
from polytask.merging.assembly import Assembly, assemble
from polytask.merging.contract import Pipeline
from polytask.merging.inputs import open_inputs
from polytask.merging.jobs import Source, TensorJob
from polytask.merging.memory import apply
from polytask.merging.plan_file import read_plan


def assembled(folder: Path, plan: Mapping[str, Any], **options: Any) -> Assembly:
    """The jobs of a plan whose models lie in a folder."""
    read = read_plan(plan, **options)
    return assemble(read.plan, open_inputs(read.plan, [folder], offline=True))


def values(source: Source) -> Tensor:
    shape = torch.Size(source.weights.shape(source.name))
    return source.weights.read(source.name, 0, shape.numel()).reshape(shape)


def merged(assembly: Assembly, seed: int = 0) -> dict[str, Tensor]:
    """name -> tensor of the output."""
    by_pipeline: dict[int, list[TensorJob]] = {}
    found: dict[str, Tensor] = {}
    for job in assembly.jobs:
        if isinstance(job.pipeline, Pipeline):
            by_pipeline.setdefault(id(job.pipeline), []).append(job)
        else:
            found[job.name] = values(next(iter(job.inputs.values()))).to(job.dtype)
    for jobs in by_pipeline.values():
        found |= _together(jobs, seed)
    return {job.name: found[job.name] for job in assembly.jobs}


def _together(jobs: list[TensorJob], seed: int) -> dict[str, Tensor]:
    pipeline = jobs[0].pipeline
    assert isinstance(pipeline, Pipeline)
    bases = {job.name: values(job.base).float() for job in jobs if job.base is not None}
    deltas = pipeline.of in ("deltas", "either")
    stacks = {
        job.name: torch.stack(
            [values(source).float() - (bases[job.name] if deltas and job.base else 0) for source in job.inputs.values()]
        )
        for job in jobs
    }
    combined = apply(
        pipeline,
        TaskVectors(list(jobs[0].inputs), stacks),
        base=bases,
        seed=seed,
        groups={job.name: job.group for job in jobs},
        depths={job.name: job.depth for job in jobs if job.depth is not None},
    )
    added = {name: bases[name] if deltas and name in bases else 0 for name in combined}
    return {job.name: (combined[job.name] + added[job.name]).to(job.dtype) for job in jobs}
