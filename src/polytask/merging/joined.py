"""The description of one polytask model that has the tasks of several: config.json, inputs.json, recipe.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from polytask.checkpoints.checkpoint import Checkpoint, read_checkpoint
from polytask.checkpoints.directory import json_bytes
from polytask.core.errors import Inconsistent
from polytask.merging.inputs import Inputs
from polytask.merging.opening import Opened


def joined(inputs: Inputs, donor: Opened) -> dict[str, bytes | Path]:
    """name -> content, or the file to copy; the merged directory then predicts every task of every input."""
    checkpoints = {name: read_checkpoint(model.path) for name, model in inputs.tasks.items()}
    outputs: dict[str, Any] = {}
    heads: dict[str, list[int]] = {}
    for name, checkpoint in checkpoints.items():
        for task, schema in checkpoint.config["outputs"].items():
            hidden = checkpoint.config["heads"][task]
            if outputs.setdefault(task, schema) != schema or heads.setdefault(task, hidden) != hidden:
                raise Inconsistent(f"{name}: its head of task {task!r} is not like that of an input before it")
    sources, origins = _sources(checkpoints)
    stored = [checkpoint.inputs for checkpoint in checkpoints.values()]
    targets = {task: inner["targets"][task] for inner in reversed(stored) for task in inner["targets"]}
    described = {**stored[0], "sources": sources, "targets": {task: targets[task] for task in outputs}}
    config = {**donor.config, "outputs": outputs, "heads": heads, **_read_by(checkpoints, sources, origins)}
    recipe = {"version": 1, **_recipe(checkpoints, origins), "model": donor.config["model"]}
    files: dict[str, bytes | Path] = {
        "config.json": json_bytes(config),
        "inputs.json": json_bytes(described),
        "recipe.yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode(),
    }
    return files | _tokenizers(checkpoints)


Origins = dict[str, tuple[str, str]]
"""source of the output -> (input, source there)."""


def _sources(checkpoints: Mapping[str, Checkpoint]) -> tuple[dict[str, Any], Origins]:
    """The inputs' sources; one that reads rows as an earlier one does is the same source."""
    sources: dict[str, Any] = {}
    origins: Origins = {}
    for name, checkpoint in checkpoints.items():
        earlier = [task for known in sources.values() for task in known["tasks"]]
        for source, values in checkpoint.inputs["sources"].items():
            if source not in checkpoint.config["schemas"]:  # of the run's, and an expert reads its own task's alone
                continue
            tasks = [task for task in values["tasks"] if task not in earlier]
            alike = next((own for own, known in sources.items() if _features(known) == _features(values)), None)
            if alike is not None:
                sources[alike]["tasks"] += tasks
                continue
            own = source if source not in sources else f"{source}-{name}"
            if own != source and checkpoint.config["model"].get("stems") is not None:
                raise Inconsistent(f"{name}: reads the source {source!r}, which has a stem, unlike an input before it")
            sources[own] = {**values, "source": own, "tasks": tasks}
            origins[own] = (name, source)
    return {name: values for name, values in sources.items() if values["tasks"]}, origins


def _read_by(
    checkpoints: Mapping[str, Checkpoint], sources: Mapping[str, Any], origins: Origins
) -> dict[str, dict[str, Any]]:
    """The entries of config.json that say what is read for which task."""
    schemas = {own: checkpoints[origins[own][0]].config["schemas"][origins[own][1]] for own in sources}
    read: dict[str, list[str]] = {}
    for own, values in sources.items():
        for task in values["tasks"]:
            read.setdefault(task, []).append(own)
    return {"schemas": schemas, "sources": {task: of[0] if len(of) == 1 else of for task, of in read.items()}}


def _features(values: Mapping[str, Any]) -> Any:
    return {key: value for key, value in values.items() if key not in ("source", "tasks")}


def _recipe(checkpoints: Mapping[str, Checkpoint], origins: Origins) -> dict[str, Any]:
    """The inputs' data and tasks, side by side."""
    data: dict[str, Any] = {}
    for own, (name, source) in origins.items():
        described = checkpoints[name].recipe.get("data") or {}
        several = described.get("sources")
        data[own] = several[source] if several else {k: v for k, v in described.items() if k != "sources"}
    tasks: dict[str, Any] = {}
    for checkpoint in checkpoints.values():
        for task, values in (checkpoint.recipe.get("tasks") or {}).items():
            tasks.setdefault(task, values)
    if len(data) == 1:
        return {"data": next(iter(data.values())), "tasks": tasks}
    return {"data": {"sources": data}, "tasks": tasks}


def _tokenizers(checkpoints: Mapping[str, Checkpoint]) -> dict[str, bytes | Path]:
    found: dict[str, bytes | Path] = {}
    for name, checkpoint in checkpoints.items():
        for file in sorted(checkpoint.path.glob("tokenizer*")):
            known = found.setdefault(file.name, file)
            if isinstance(known, Path) and known.read_bytes() != file.read_bytes():
                raise Inconsistent(f"{name}: {file.name} is not that of an input before it")
    return found
