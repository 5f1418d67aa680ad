"""Many tasks in one small directory: the base, one merged vector, and one bit an element for each task.

A task's model comes back as base + factor * mask * merged (tensors that all tasks share with the base), and its other
tensors, such as its head, as they were.

    STORE/{store.json, base/, merged.safetensors, TASK.safetensors (packed masks, own tensors), TASK/ (config ...)}

Kinds:      tall_masks: Wang et al. 2024, arXiv:2405.07813: merged is the sum of the task vectors, the mask of a task is
            where |x_t| >= mask_scale |merged - x_t|, the factor is 1.
            emr: Huang et al. 2024, arXiv:2405.17461: merged is the rule `emr`'s vector, the mask is where a task's sign
            agrees with it, the factor is the task's sum of magnitudes over that of what its mask leaves of merged.
Departures  merged is rounded to the base's type before a task's error is measured. The paper chooses mask_scale for
            each task on held-out data.
Cost        one pass over all models, a tensor at a time: 4 (T + 3) bytes an element of the largest tensor.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import Tensor

from polytask.checkpoints.directory import atomic_directory, json_bytes, read_json
from polytask.core.constraints import Interval
from polytask.core.errors import BadValue, CheckpointError, MissingInput, NotFinite, UnknownName
from polytask.merging.carried import CARRIED, NOT_CARRIED
from polytask.merging.opening import Opened, open_model
from polytask.merging.rules.consensus import tall_masks
from polytask.merging.rules.emr import emr
from polytask.merging.weights.safetensors import open_safetensors
from polytask.merging.weights.sequential import SequentialFile, from_bits, to_bits

KINDS = ("tall_masks", "emr")
DESCRIPTION, MERGED, MASK = "store.json", "merged.safetensors", "mask:"


def pack(
    base: str,
    tasks: Mapping[str, str],
    out: Path,
    *,
    kind: str = "tall_masks",
    mask_scale: float = 0.4,
    offline: bool = False,
) -> dict[str, Any]:
    """Writes a store.

    Args:
        base: what the tasks' models were fine-tuned from; a directory, a file or a hub id.
        tasks: name -> model.
        out: the directory to write.
        kind: tall_masks or emr.
        mask_scale: of TALL-masks, the paper's lambda.
        offline: never asks the hub, only its cache.
    Returns: sizes in bytes, and for each task the share of ones in its mask and the relative error of its task vector.
    """
    if kind not in KINDS:
        raise UnknownName("kind of store", kind, KINDS, "--kind")
    if not Interval(0).allows(mask_scale):
        raise BadValue("--mask-scale", mask_scale, str(Interval(0)))
    if not tasks:
        raise MissingInput("a store needs --task NAME=MODEL at least once")
    for task in tasks:
        if not task or task in ("base", "merged") or Path(task).name != task:
            raise BadValue("the name of a task", task, "a file's name, and not 'base' or 'merged'")
    _require_free(Path(out), DESCRIPTION)
    opened = {"base": open_model(base, offline=offline)}
    opened |= {task: open_model(model, base=opened["base"], offline=offline) for task, model in tasks.items()}
    try:
        return _packed(opened, Path(out), kind, mask_scale)
    finally:
        for model in opened.values():
            model.weights.close()


def get(store: Path, task: str, out: Path) -> dict[str, Any]:
    """Writes a task's model as a directory of its own; returns its size in bytes."""
    store, out = Path(store), Path(out)
    if not (store / DESCRIPTION).is_file():
        raise CheckpointError(f"{store}: no store ({DESCRIPTION} is not there)")
    _require_free(out)
    about = read_json(store / DESCRIPTION)
    if task not in about["tasks"]:
        raise UnknownName("task", task, about["tasks"], str(store))
    base, merged, own = (open_safetensors(store / name) for name in ("base", MERGED, f"{task}.safetensors"))
    kept = [name for name in own.names() if not name.startswith(MASK)]
    layout = {name: (base.dtype(name), base.shape(name)) for name in merged.names()}
    layout |= {name: (own.dtype(name), own.shape(name)) for name in kept}
    factor = about["tasks"][task]["factor"]
    with atomic_directory(out) as folder:
        with SequentialFile(folder / "model.safetensors", layout, {"format": "pt"}) as file:
            for name in merged.names():
                vector = _whole(merged, name).float()
                mask = from_bits(_whole(own, MASK + name), vector.numel()).view(vector.shape)
                value = _whole(base, name).float() + factor * (mask * vector)
                file.write(value.to(base.dtype(name)))
            for name in kept:
                file.write(_whole(own, name))
        if (store / task).is_dir():
            for extra in sorted((store / task).iterdir()):
                copyfile(extra, folder / extra.name)
    return {"task": task, "out": str(out), "bytes": _bytes_in(out)}


def _packed(opened: Mapping[str, Opened], out: Path, kind: str, mask_scale: float) -> dict[str, Any]:
    base = opened["base"]
    experts = {task: model for task, model in opened.items() if task != "base"}
    shared = _shared(base, experts)
    known = dict.fromkeys(shared)
    own = {task: [name for name in model.weights.names() if name not in known] for task, model in experts.items()}
    sums = {task: _Sums() for task in experts}
    with atomic_directory(out) as folder:
        (folder / "base").mkdir()
        layout = {name: (base.weights.dtype(name), base.weights.shape(name)) for name in shared}
        with ExitStack() as open_files:
            base_file, merged_file, *files = (
                open_files.enter_context(SequentialFile(folder / name, content, {"format": "pt"}))
                for name, content in [
                    ("base/model.safetensors", layout),
                    (MERGED, layout),
                    *((f"{task}.safetensors", _task_layout(experts[task], shared, own[task])) for task in experts),
                ]
            )
            for name in shared:
                below = _whole(base.weights, name)
                vector, masks, stack = _compressed(below, experts, name, kind, mask_scale)
                base_file.write(below)
                merged_file.write(vector)
                for row, task in enumerate(experts):
                    sums[task].add(stack[row], masks[row], vector.float())
                    files[row].write(to_bits(masks[row]))
            for file, task in zip(files, experts, strict=True):
                for name in own[task]:
                    file.write(_whole(experts[task].weights, name))
        for task, model in experts.items():
            _carry(model, folder / task)
        about = {
            "version": 1,
            "kind": kind,
            "mask_scale": mask_scale if kind == "tall_masks" else None,
            "base": base.reference,
            "tasks": {
                task: {
                    **sums[task].described(kind, experts[task].reference),
                    "parameters": sums[task].elements,
                    "own_tensors": len(own[task]),
                }
                for task in experts
            },
        }
        (folder / DESCRIPTION).write_bytes(json_bytes(about))
    models = {task: _bytes_of(model) for task, model in experts.items()}
    return {**about, "out": str(out), "bytes": _bytes_in(out), "bytes_of_models": sum(models.values())}


def _compressed(
    below: Tensor, experts: Mapping[str, Opened], name: str, kind: str, mask_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One tensor's merged vector in the base's type, the masks [T, ...] and the task vectors."""
    stack = torch.stack([_whole(model.weights, name).float() for model in experts.values()]) - below.float()
    for task, delta in zip(experts, stack, strict=True):
        if not bool(delta.isfinite().all()):
            raise NotFinite(f"{name}: a value that is not finite, in the base or the model of task {task!r}")
    vector = stack.sum(0) if kind == "tall_masks" else emr(stack)
    masks = tall_masks(stack, vector, mask_scale) if kind == "tall_masks" else stack * vector > 0
    return vector.to(below.dtype), masks, stack


class _Sums:
    """What the factor and the error of one task need, over all tensors."""

    def __init__(self) -> None:
        self.ones = self.elements = 0
        self.magnitude = self.left = self.square = self.inner = self.kept = 0.0

    def add(self, delta: Tensor, mask: Tensor, merged: Tensor) -> None:
        part = (mask * merged).double()
        delta = delta.double()
        self.ones += int(mask.sum())
        self.elements += mask.numel()
        self.magnitude += float(delta.abs().sum())
        self.left += float(part.abs().sum())
        self.square += float(delta.square().sum())
        self.inner += float((delta * part).sum())
        self.kept += float(part.square().sum())

    def described(self, kind: str, model: str) -> dict[str, Any]:
        factor = self.magnitude / self.left if kind == "emr" and self.left else 1.0
        error = max(self.square - 2 * factor * self.inner + factor**2 * self.kept, 0.0)
        return {
            "model": model,
            "factor": factor,
            "ones": self.ones / max(self.elements, 1),
            "relative_error": math.sqrt(error / self.square) if self.square else 0.0,
        }


def _shared(base: Opened, experts: Mapping[str, Opened]) -> list[str]:
    """The tensors of the base that every task has in the same shape, and that are no whole numbers."""
    tables = {task: frozenset(model.weights.names()) for task, model in experts.items()}
    shared = []
    for name in base.weights.names():
        holders = [task for task in experts if name in tables[task]]
        same = [task for task in holders if experts[task].weights.shape(name) == base.weights.shape(name)]
        if len(same) == len(experts) and base.weights.dtype(name).is_floating_point:
            shared.append(name)
    if not shared:
        raise CheckpointError(f"{base.reference}: no tensor that {', '.join(experts)} all have in the same shape")
    return shared


def _task_layout(model: Opened, shared: list[str], own: list[str]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    bits = {MASK + name: (torch.uint8, (-(-math.prod(model.weights.shape(name)) // 8),)) for name in shared}
    return bits | {name: (model.weights.dtype(name), model.weights.shape(name)) for name in own}


def _whole(weights: Any, name: str) -> Tensor:
    shape = weights.shape(name)
    return weights.read(name, 0, math.prod(shape)).view(shape)


def _carry(model: Opened, folder: Path) -> None:
    """The config, tokenizer and description beside a model's tensors."""
    if not model.path.is_dir():
        return
    folder.mkdir()
    for file in sorted(model.path.iterdir()):
        carried = any(fnmatch(file.name, pattern) for pattern in CARRIED)
        carried = carried and not any(fnmatch(file.name, pattern) for pattern in NOT_CARRIED)
        described = model.kind == "polytask" and file.suffix != ".safetensors"
        if file.is_file() and (carried or described):
            copyfile(file, folder / file.name)


def _require_free(out: Path, mark: str = "") -> None:
    """Only a directory that is empty, or that is what is written again, is replaced."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (mark and (out / mark).is_file())):
        raise CheckpointError(f"{out}: is there already, and not empty; name another directory")


def _bytes_of(model: Opened) -> int:
    return sum(file.stat().st_size for file in model.weights.files())


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
