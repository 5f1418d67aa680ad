"""What is checked before the first tensor is merged: that the models fit one another, and the output the disk.

All from configs, headers and tokenizers, but for the last check, `check_parents`, which reads a sample of the values.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from polytask.core.errors import CheckpointError, Inconsistent
from polytask.merging.inputs import Inputs
from polytask.merging.jobs import Source, TensorJob
from polytask.merging.plan import MergePlan

SAME = (
    "model_type",
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "hidden_size",
    "d_model",
    "n_embd",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
)
"""Entries of config.json that models must share to be merged whole."""

PARENT_COSINE = 0.5
"""A fine-tune stays close to what it started from: the cosine of their weights is near 1 (0.99 is usual), that of two
models trained apart near 0. Below this, in the median over sampled matrices, the base is not the parent."""

SAMPLED_TENSORS, SAMPLED_ELEMENTS = 32, 4096


def check_configs(plan: MergePlan, inputs: Inputs) -> None:
    """Inconsistent where the architectures differ, or a model is quantised."""
    for name, model in inputs.named.items():
        if model.config.get("quantization_config"):
            raise Inconsistent(f"{name} ({model.path}): is quantised; merge the models before quantising")
    (first, model), *others = inputs.named.items()
    keys = [key for key in SAME if not plan.slices or key not in ("num_hidden_layers", "num_layers", "n_layer")]
    for name, other in others:
        if {model.kind, other.kind} == {"polytask", "huggingface"}:
            raise Inconsistent(f"{name} is a {other.kind} directory and {first} a {model.kind} one: {other.path}")
        for key in keys:
            _same(model.config, other.config, key, first, name)
        if model.kind == "polytask":
            for key in ("model", "attachments", "sharing_tasks"):
                _same(model.config, other.config, key, first, name)
            _same_schemas(model.config, other.config, first, name)


def _same(one: Mapping[str, Any], other: Mapping[str, Any], key: str, first: str, name: str) -> None:
    if key in one and key in other and one[key] != other[key]:
        path, ours, theirs = _where_they_differ(key, one[key], other[key])
        raise Inconsistent(f"config.json: {path} is {ours!r} in {first} and {theirs!r} in {name}: not the same model")


def _same_schemas(one: Mapping[str, Any], other: Mapping[str, Any], first: str, name: str) -> None:
    """What polytask's models read: one encoder reads every source alike; with stems, a source as its stem does."""
    by_stem = one.get("model", {}).get("stems") is not None
    for source, schema in other.get("schemas", {}).items():
        ours = one.get("schemas", {})
        known = ours.get(source) if by_stem else next(iter(ours.values()), None)
        if known is not None:
            _same({"inputs": known}, {"inputs": schema}, "inputs", first, name)


def _where_they_differ(path: str, one: Any, other: Any) -> tuple[str, Any, Any]:
    """The innermost entry that differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            if one.get(key) != other.get(key):
                return _where_they_differ(f"{path}.{key}", one.get(key), other.get(key))
    return path, one, other


def output_bytes(jobs: Sequence[TensorJob]) -> int:
    """Of the output's tensors."""
    return sum(job.elements * job.dtype.itemsize for job in jobs)


def check_space(jobs: Sequence[TensorJob], out: Path) -> None:
    """CheckpointError where the disk has no room for the output's tensors."""
    needed = output_bytes(jobs)
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(f"{out}: needs {needed:,} bytes and {folder} has {free:,} free")


def check_parents(plan: MergePlan, inputs: Inputs, jobs: Sequence[TensorJob]) -> None:
    """Inconsistent where the base is not what a task was fine-tuned from, by a sample of the values."""
    if inputs.base is None or plan.parent == "accept":
        return
    matrices = [job for job in jobs if job.base is not None and len(job.shape) > 1]
    largest = sorted(matrices, key=lambda job: -job.elements)[:SAMPLED_TENSORS]
    for task, model in inputs.tasks.items():
        if model.adapter is not None or plan.slices:
            continue
        sampled = [
            _cosine(job.base, job.inputs[task]) for job in largest if task in job.inputs and job.base is not None
        ]
        cosines = [cosine for cosine in sampled if cosine is not None]
        if cosines and median(cosines) < PARENT_COSINE:
            raise Inconsistent(
                f"{task} ({model.reference}) was not fine-tuned from the base {inputs.base.reference}: the median "
                f"cosine of their weights is {median(cosines):.2f}, of a fine-tune it is near 1 (allowed: at least "
                f"{PARENT_COSINE}); parent: accept merges it all the same"
            )


def _cosine(base: Source, other: Source) -> float | None:
    """Of the first elements of both; None where one is zero."""
    count = min(SAMPLED_ELEMENTS, math.prod(base.weights.shape(base.name)))
    ours = base.weights.read(base.name, 0, count).to(torch.float64)
    theirs = other.weights.read(other.name, 0, count).to(torch.float64)
    lengths = float(ours.norm() * theirs.norm())
    return float(ours @ theirs) / lengths if lengths > 0 and math.isfinite(lengths) else None
