"""Writes a store.

STORE/{store.json, base/model.safetensors, merged.safetensors (of some kinds), TASK.safetensors, TASK/ (config ...)}

A task's file has what the kind keeps of each shared tensor, as "PART:NAME", and the task's other tensors, such as its
head, as they were, as ":NAME".
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from shutil import copyfile
from typing import Any

from polytask.checkpoints.checkpoint import read_checkpoint
from polytask.checkpoints.directory import atomic_directory, json_bytes
from polytask.core.constraints import check_parameters, parameters_of
from polytask.core.documents import parsed_settings
from polytask.core.errors import BadValue, CheckpointError, MissingInput
from polytask.merging.carried import CARRIED, NOT_CARRIED
from polytask.merging.opening import Opened, open_model
from polytask.merging.stores.contract import Kind, Vectors
from polytask.merging.stores.names import KINDS
from polytask.merging.stores.unpacking import BASE, DESCRIPTION, MERGED, VERSION, StoredTask, require_free
from polytask.merging.weights.sequential import growing_file, sequential_file

_METADATA = {"format": "pt"}


def pack(
    base: str,
    tasks: Mapping[str, str],
    out: Path,
    *,
    kind: str = "tall_masks",
    settings: Mapping[str, Any] | Sequence[str] = (),
    offline: bool = False,
) -> dict[str, Any]:
    """Writes a store, reads every task back from it, and says how near that is.

    Args:
        base: what the tasks' models were fine-tuned from; a directory, a file or a hub id.
        tasks: name -> model.
        out: the directory to write.
        kind: a name of `stores.names`.
        settings: the kind's parameters, {"density": 0.01} or ["density=0.01"].
        offline: never asks the hub, only its cache.
    Returns: sizes in bytes, and for each task its model's directory, its numbers and the relative error of its vector.
    """
    made = KINDS.find(kind)
    where = f"kind of store {kind!r}"
    parameters = check_parameters(parameters_of(made.__init__), parsed_settings(settings, "density=0.01"), where)
    if not tasks:
        raise MissingInput("a store needs --task NAME=MODEL at least once")
    for task in tasks:
        if not task or task in (BASE, "merged") or Path(task).name != task:
            raise BadValue("the name of a task", task, "a file's name, and not 'base' or 'merged'")
    require_free(Path(out), DESCRIPTION)
    with ExitStack() as opened:
        below = _open(opened, base, None, offline)
        models = {task: _open(opened, model, below, offline) for task, model in tasks.items()}
        whole = {task: sum(file.stat().st_size for file in model.weights.files()) for task, model in models.items()}
        names = _shared(below, models)
        vectors = Vectors(below.weights, {task: model.weights for task, model in models.items()}, names)
        about: dict[str, Any] = {"version": VERSION, "kind": kind, "parameters": parameters, "base": base}
        with atomic_directory(Path(out)) as folder:
            own = _write_tensors(folder, vectors, made(vectors, **parameters), about, models)
            _write_base(folder / BASE, vectors)
            (folder / DESCRIPTION).write_bytes(json_bytes(about))
            errors = {task: _error(StoredTask(folder, task), vectors) for task in models}
            for task, facts in about["tasks"].items():
                _carry(models[task], folder / task)
                facts |= {"relative_error": errors[task], "own_tensors": len(own[task])}
            (folder / DESCRIPTION).write_bytes(json_bytes(about))
            sizes = {task: (folder / f"{task}.safetensors").stat().st_size for task in models}
            written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        **about,
        "out": str(out),
        "bytes": written,
        "bytes_of_tasks": sizes,
        "bytes_of_models": whole,
        "paths": {task: str(model.path) for task, model in models.items() if model.kind == "polytask"},
    }


def _open(opened: ExitStack, reference: str, base: Opened | None, offline: bool) -> Opened:
    model = open_model(reference, base=base, offline=offline)
    opened.callback(model.weights.close)
    return model


def _write_tensors(
    folder: Path, vectors: Vectors, kind: Kind, about: dict[str, Any], models: Mapping[str, Opened]
) -> dict[str, list[str]]:
    """The tasks' files and the merged vector's; `about` gets the tasks' numbers.

    Returns: task -> its tensors that are kept as they were.
    """
    shared = dict.fromkeys(vectors.names)
    own = {task: [name for name in model.weights.names() if name not in shared] for task, model in models.items()}
    with ExitStack() as files:
        merged = files.enter_context(growing_file(folder / MERGED, _METADATA))
        writers = [files.enter_context(growing_file(folder / f"{task}.safetensors", _METADATA)) for task in models]
        for name in vectors.names:
            packed = kind.packed(name)
            if packed.merged is not None:
                merged(name, packed.merged)
            for write, parts in zip(writers, packed.parts, strict=True):
                for part, values in parts.items():
                    write(f"{part}:{name}", values)
        for write, (task, model) in zip(writers, models.items(), strict=True):
            for name in own[task]:
                shape = tuple(model.weights.shape(name))
                write(f":{name}", model.weights.read(name, 0, math.prod(shape)).view(shape))
    elements = sum(map(vectors.elements, vectors.names))
    numbers = zip(models.items(), kind.about(), strict=True)
    about["tasks"] = {
        task: {"model": model.reference, "parameters": elements, **facts} for (task, model), facts in numbers
    }
    return own


def _write_base(folder: Path, vectors: Vectors) -> None:
    folder.mkdir()
    layout = {name: (vectors.base.dtype(name), vectors.shape(name)) for name in vectors.names}
    with sequential_file(folder / "model.safetensors", layout, _METADATA) as write:
        for name in vectors.names:
            write(vectors.below(name))


def _error(stored: StoredTask, vectors: Vectors) -> float:
    """|what comes back - the task's| / |the task's - the base's|, over the shared tensors."""
    missed = moved = 0.0
    with stored:
        for name in vectors.names:
            found, below = stored.tensor(name).double(), vectors.below(name).double()
            wanted = vectors.models[stored.task].read(name, 0, vectors.elements(name)).view(found.shape).double()
            missed += float((found - wanted).square().sum())
            moved += float((wanted - below).square().sum())
    return math.sqrt(missed / moved) if moved else 0.0


def _shared(base: Opened, models: Mapping[str, Opened]) -> list[str]:
    """The tensors of the base that every task has in the same shape, and that are no whole numbers."""
    tables = [(model.weights, frozenset(model.weights.names())) for model in models.values()]
    shared = [
        name
        for name in base.weights.names()
        if base.weights.dtype(name).is_floating_point
        and all(name in known and weights.shape(name) == base.weights.shape(name) for weights, known in tables)
    ]
    if not shared:
        raise CheckpointError(f"{base.reference}: no tensor that {', '.join(models)} all have in the same shape")
    return shared


def _carry(model: Opened, folder: Path) -> None:
    """The config, tokenizer and description beside a model's tensors."""
    if not model.path.is_dir():
        return
    if model.kind == "polytask":
        listed = [name for name in read_checkpoint(model.path).card["files"] if not name.endswith(".safetensors")]
        names = [*listed, "card.json"]
    else:
        names = [file.name for file in sorted(model.path.iterdir()) if file.is_file() and _carried(file.name)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copyfile(model.path / name, folder / name)


def _carried(name: str) -> bool:
    wanted = any(fnmatch(name, pattern) for pattern in CARRIED)
    return wanted and not any(fnmatch(name, pattern) for pattern in NOT_CARRIED)
