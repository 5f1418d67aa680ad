"""Tasks that leave a trained model, and tasks that join it from another one: nothing else changes by a bit.

polytask train new.yaml --out new          # init_from: the old model, trainable: [own]; learns a task of its own
polytask heads attach old --from new --out both
polytask heads detach both --tasks click --out smaller
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.checkpoints.checkpoint import MODEL, STATE, Checkpoint, read_checkpoint, write_checkpoint
from polytask.checkpoints.runs import resolve
from polytask.core.errors import BadValue, CheckpointError, UnknownName
from polytask.evaluation.routed import RoutedModel
from polytask.evaluation.trained import Trained, load, model_of
from polytask.sharing import MultiTaskModel, describe
from polytask.sharing.model import sharing_tasks_of
from polytask.sharing.trimming import trimmed

_OWN_FILES = (MODEL, STATE, "config.json", "inputs.json", "recipe.yaml", "card.json", "README.md")

EncoderFactory = Callable[..., nn.Module]


def detach(
    directory: str | Path, tasks: Iterable[str], out: str | Path, *, encoder: EncoderFactory | None = None
) -> Path:
    """Writes the model without these tasks and without what is theirs alone; what others read of them stays.

    Args:
        directory: a run or checkpoint.
        tasks: those that leave; at least one must stay.
        out: the new directory.
        encoder: the factory that the model was trained with, where it came from Python.

    Raises:
        UnknownName: a task that the model lacks.
        BadValue: no task is left, or a product is left without a factor.
    """
    checkpoint = read_checkpoint(resolve(Path(directory)))
    config, leaving = checkpoint.config, list(dict.fromkeys(tasks))
    for task in leaving:
        if task not in config["outputs"]:
            raise UnknownName("task", task, config["outputs"], str(directory))
    staying = [task for task in config["outputs"] if task not in leaving]
    if not staying:
        raise BadValue("tasks to detach", leaving, "all but at least one of the model's")
    parts = _of_tasks(checkpoint, staying)
    model = _model(load(checkpoint.path, encoder=encoder))
    sharing_tasks = sharing_tasks_of(model, staying)
    parts["config"] |= {"sharing_tasks": sharing_tasks, "model": _spec_of(model, sharing_tasks or staying)}
    return _write(out, checkpoint.tensors(), parts, model_of(parts["config"], encoder, str(out)), [checkpoint])


def trim(
    model: str | Path | Trained,
    rows: Any,
    out: str | Path,
    *,
    threshold: float = 0.0,
    source: str | None = None,
    encoder: EncoderFactory | None = None,
) -> Path:
    """Writes the model without the experts that its tasks do not use on these rows; see `polytask.sharing.trimming`.

    Args:
        model: a run or checkpoint with sharing `mod_squad`, or what `polytask.load` gave for it, which knows where
            the rows' images are (`images_from`).
        rows: a frame or mapping with the columns that the model reads; each task's rows are all of them.
        source: of which the rows are; the tasks of others keep all their experts. None: of every source.
        threshold: the share of a task's tokens that an expert must be used by, and more, to stay.
        out, encoder: as for `detach`; a model that was loaded has its encoder.
    """
    trained = model if isinstance(model, Trained) else load(model, encoder=encoder)
    smaller = trimmed(_model(trained), trained.pieces(rows, source), threshold=threshold)
    checkpoint = read_checkpoint(trained.path)
    parts = _of_tasks(checkpoint, list(checkpoint.config["outputs"]))
    parts["config"]["model"] = _spec_of(smaller, smaller.sharing_tasks)
    return _write(out, checkpoint.tensors(), parts, smaller, [checkpoint])


def attach(
    directory: str | Path,
    other: str | Path,
    out: str | Path,
    *,
    tasks: Iterable[str] | None = None,
    encoder: EncoderFactory | None = None,
) -> Path:
    """Writes the model with tasks of another one that has learnt them above the same shared part.

    Args:
        directory: the model that gets tasks.
        other: one that started from it (`init_from`) and trained what is its tasks' alone (`trainable: [own]`).
        tasks: of the other model; None is all that the first lacks.
        out, encoder: as for `detach`.

    Raises:
        CheckpointError: the models differ in what they share: in a tensor, the configuration, or how inputs are made.
        BadValue: the architecture is one in which the model's tasks would read the new ones, or the new ones in this
            model would read other tasks than where they were learnt.
    """
    checkpoint, second = (read_checkpoint(resolve(Path(path))) for path in (directory, other))
    own, theirs = checkpoint.config["outputs"], second.config["outputs"]
    joining = [task for task in theirs if task not in own] if tasks is None else list(dict.fromkeys(tasks))
    for task in joining:
        if task not in theirs:
            raise UnknownName("task", task, theirs, str(other))
        if task in own:
            raise BadValue(f"{directory}: a task to attach", task, f"none that the model has: {', '.join(own)}")
    if not joining:
        raise BadValue(f"{other}: tasks to attach", list(theirs), "at least one that the first model lacks")
    for part in ("model", "python_encoder", "attachments"):
        if checkpoint.config.get(part) != second.config.get(part):
            raise CheckpointError(f"{other}: its {part} in config.json is not that of {directory}")
    first, learnt = (_model(load(each.path, encoder=encoder)) for each in (checkpoint, second))
    parts = _joined(_of_tasks(checkpoint, list(own)), _of_tasks(second, joining), str(other))
    sharing_tasks = [
        *first.sharing_tasks,
        *(task for task in learnt.read_by(joining) if task not in first.sharing_tasks),
    ]
    model = model_of({**parts["config"], "sharing_tasks": sharing_tasks}, encoder, str(out))
    parts["config"]["sharing_tasks"] = sharing_tasks_of(model, [*own, *joining])
    _require_same_reads(own, first, model)
    _require_same_reads(joining, learnt, model)
    tensors, added = checkpoint.tensors(), second.tensors()
    for name, tensor in added.items():
        if name in tensors and not torch.equal(tensors[name], tensor):
            raise CheckpointError(
                f"{other}: {name!r} is not that of {directory}: train only what is the new tasks' alone "
                "(trainable: [own])"
            )
    return _write(out, {**added, **tensors}, parts, model, [checkpoint, second])


def _model(trained: Trained) -> MultiTaskModel:
    if isinstance(trained.model, RoutedModel):
        raise CheckpointError(f"{trained.path}: keeps a router, which knows its tasks; merge the experts anew")
    return trained.model


def _spec_of(model: MultiTaskModel, tasks: Sequence[str]) -> dict[str, Any]:
    """What config.json says of the model when it has these tasks alone."""
    assert model.spec is not None  # it was built from one
    spec = model.spec.model_copy(update={"sharing": model.spec.sharing.of_tasks(tasks)})
    return {**spec.model_dump(mode="json"), "init_from": None}


def _require_same_reads(tasks: Iterable[str], before: MultiTaskModel, after: MultiTaskModel) -> None:
    """BadValue where one of these tasks would read the parts of other tasks in `after` than it did before."""
    for task in tasks:
        known, found = before.read_by([task]), after.read_by([task])
        if found != known:
            kind = "" if after.spec is None else f"sharing {after.spec.sharing.kind!r}: "
            raise BadValue(f"{kind}the tasks that {task!r} would read", found, f"those that it learnt with, {known}")


def _of_tasks(checkpoint: Checkpoint, tasks: list[str]) -> dict[str, Any]:
    """config.json, inputs.json and card.json of these tasks alone."""
    config, inputs, card = checkpoint.config, checkpoint.inputs, checkpoint.card
    sources = {name: [task for task in about["tasks"] if task in tasks] for name, about in inputs["sources"].items()}
    kept = [name for name, own in sources.items() if own]
    of = {task: config["sources"][task] for task in tasks if task in config["sources"]}
    return {
        "config": {
            **config,
            "schemas": {name: schema for name, schema in config["schemas"].items() if name in kept},
            "sources": of,
            "outputs": {task: config["outputs"][task] for task in tasks},
            "heads": {task: sizes for task, sizes in config["heads"].items() if task in tasks},
            "products": _products(config, tasks),
        },
        "inputs": {
            **inputs,
            "sources": {name: {**inputs["sources"][name], "tasks": sources[name]} for name in kept},
            "targets": {task: target for task, target in inputs["targets"].items() if task in tasks},
        },
        "card": {
            **{key: value for key, value in card.items() if key != "files"},
            "tasks": {task: about for task, about in card["tasks"].items() if task in tasks},
            "metrics": {
                split: {task: value for task, value in values.items() if task in tasks}
                for split, values in card["metrics"].items()
            },
        },
    }


def _products(config: Mapping[str, Any], tasks: list[str]) -> dict[str, list[str]]:
    """Those of these tasks that are products; BadValue where a factor would be left behind."""
    products = {task: factors for task, factors in config.get("products", {}).items() if task in tasks}
    for task, factors in products.items():
        for factor in factors:
            if factor not in tasks:
                raise BadValue(f"the factors of task {task!r} without {factor!r}", tasks, f"{', '.join(factors)} too")
    return products


def _joined(first: Mapping[str, Any], second: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Both parts as one; CheckpointError for a source of both whose rows they turn into inputs in different ways."""
    sources = dict(first["inputs"]["sources"])
    for name, about in second["inputs"]["sources"].items():
        if name in sources:
            if {**sources[name], "tasks": None} != {**about, "tasks": None}:
                raise CheckpointError(f"{where}: source {name!r} makes other inputs of its rows than the first model's")
            about = {**about, "tasks": [*sources[name]["tasks"], *about["tasks"]]}
        sources[name] = about
    both = {
        part: {key: {**first[part][key], **second[part][key]} for key in keys}
        for part, keys in (("config", ("schemas", "sources", "outputs", "heads", "products")), ("inputs", ("targets",)))
    }
    splits = list(dict.fromkeys([*first["card"]["metrics"], *second["card"]["metrics"]]))
    metrics = {
        split: {**first["card"]["metrics"].get(split, {}), **second["card"]["metrics"].get(split, {})}
        for split in splits
    }
    tasks = {**first["card"]["tasks"], **second["card"]["tasks"]}
    return {
        "config": {**first["config"], **both["config"]},
        "inputs": {**first["inputs"], **both["inputs"], "sources": sources},
        "card": {**first["card"], "tasks": tasks, "metrics": metrics},
    }


def _write(
    out: str | Path,
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, Any],
    model: MultiTaskModel,
    from_: list[Checkpoint],
) -> Path:
    """The directory of the model, which `parts` describe, with those of the tensors that it has."""
    wanted = list(model.state_dict())
    lacking = [name for name in wanted if name not in tensors]
    if lacking:
        raise CheckpointError(f"{out}: neither model has {lacking[0]!r}, which these tasks need")
    extra: dict[str, bytes] = {}
    for checkpoint in reversed(from_):
        extra |= {
            name: (checkpoint.path / name).read_bytes() for name in checkpoint.card["files"] if name not in _OWN_FILES
        }
    write_checkpoint(
        Path(out),
        tensors={name: tensors[name] for name in wanted},
        config=parts["config"],
        inputs=parts["inputs"],
        card={**parts["card"], "parameters": describe(model)},
        recipe=from_[0].recipe,
        extra_files=extra,
    )
    return Path(out)
