"""Reads a store: a task's tensors one by one, or its model as a directory."""

import math
from pathlib import Path
from shutil import copytree
from types import TracebackType
from typing import Any

from torch import Tensor

from polytask.checkpoints.directory import atomic_directory, json_bytes, read_json
from polytask.checkpoints.hashing import identified
from polytask.checkpoints.model_card import model_card
from polytask.core.errors import CheckpointError, UnknownName
from polytask.merging.stores.names import KINDS
from polytask.merging.weights.safetensors import SafetensorsWeights, open_safetensors
from polytask.merging.weights.sequential import sequential_file

VERSION = 1
DESCRIPTION, BASE, MERGED = "store.json", "base", "merged.safetensors"


class StoredTask:
    """One task of a store; a context manager that closes the files.

    Args:
        store: the store's directory.
        task: one of its tasks.
    """

    def __init__(self, store: Path, task: str) -> None:
        self.store, self.task = Path(store), task
        if not (self.store / DESCRIPTION).is_file():
            raise CheckpointError(f"{store}: no store ({DESCRIPTION} is not there)")
        about = read_json(self.store / DESCRIPTION)
        if not isinstance(about, dict) or about.get("version") != VERSION:
            raise CheckpointError(f"{self.store / DESCRIPTION}: not a description of a store of version {VERSION}")
        if task not in about["tasks"]:
            raise UnknownName("task", task, about["tasks"], str(store))
        self.about: dict[str, Any] = {"kind": about["kind"], **about["parameters"], **about["tasks"][task]}
        self._kind = KINDS.find(about["kind"])
        self._base = open_safetensors(self.store / BASE)
        self._own = open_safetensors(self.store / f"{task}.safetensors")
        self._merged = open_safetensors(self.store / MERGED) if (self.store / MERGED).is_file() else None
        self._parts: dict[str, dict[str, str]] = {}  # tensor -> part -> its name in the file
        for name in self._own.names():
            part, _, tensor = name.partition(":")
            self._parts.setdefault(tensor, {})[part] = name

    def __enter__(self) -> "StoredTask":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._base, self._own, self._merged):
            if file is not None:
                file.close()

    def tensor(self, name: str) -> Tensor:
        """One of the task's model."""
        stored = {part: _whole(self._own, place) for part, place in self._parts[name].items()}
        if "" in stored:
            return stored[""]
        merged = None if self._merged is None else _whole(self._merged, name)
        return self._kind.restored(name, _whole(self._base, name), stored, merged, self.about)

    def layout(self) -> dict[str, Any]:
        """name -> (type, shape): the tensors that are shared with the base, then the task's own."""
        shared = {name: (self._base.dtype(name), self._base.shape(name)) for name in self._base.names()}
        own = {tensor: parts[""] for tensor, parts in self._parts.items() if "" in parts}
        return shared | {tensor: (self._own.dtype(place), self._own.shape(place)) for tensor, place in own.items()}


def get(store: Path, task: str, out: Path) -> dict[str, Any]:
    """Writes a task's model as a directory of its own; returns its size in bytes."""
    out = Path(out)
    with StoredTask(store, task) as stored:
        require_free(out)
        with atomic_directory(out) as folder:
            if (stored.store / task).is_dir():
                copytree(stored.store / task, folder, dirs_exist_ok=True)
            with sequential_file(folder / "model.safetensors", stored.layout(), {"format": "pt"}) as write:
                for name in stored.layout():
                    write(stored.tensor(name))
            if (folder / "card.json").is_file():
                _describe(folder, stored)
            written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"task": task, "out": str(out), "bytes": written}


def require_free(out: Path, mark: str = "") -> None:
    """Only a directory that is empty, or that is what is written again, is replaced."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (mark and (out / mark).is_file())):
        raise CheckpointError(f"{out}: is there already, and not empty; name another directory")


def _describe(folder: Path, stored: StoredTask) -> None:
    """The card of a model that came back: its files as they are now, and no scores, which were the original's."""
    card = read_json(folder / "card.json")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "card.json"]
    listed = {str(file.relative_to(folder)): identified(file, whole=True) for file in files}
    came = {key: stored.about[key] for key in ("kind", "model", "relative_error")}
    card |= {"metrics": {}, "stored": came, "files": listed}
    (folder / "card.json").write_bytes(json_bytes(card))
    (folder / "README.md").write_bytes(model_card(card).encode())


def _whole(weights: SafetensorsWeights, name: str) -> Tensor:
    shape = weights.shape(name)
    return weights.read(name, 0, math.prod(shape)).view(shape)
