"""A model of a plan, opened: where it is, what kind of directory that is, its tensors, its config."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from polytask.checkpoints.directory import read_json
from polytask.checkpoints.runs import resolve
from polytask.core.errors import CheckpointError, MissingInput
from polytask.merging.references import locate, parse
from polytask.merging.routing import FILE as ROUTER
from polytask.merging.weights.interface import Weights
from polytask.merging.weights.lora import LoraWeights, base_of, is_adapter
from polytask.merging.weights.pytorch import PytorchWeights
from polytask.merging.weights.safetensors import SafetensorsFile, SafetensorsWeights, open_safetensors

SAFETENSORS = ("model.safetensors", "adapter_model.safetensors")
BINS = ("pytorch_model.bin", "adapter_model.bin")
NO_MODEL = ("training_args.bin", "optimizer.pt", "scheduler.pt", "optimizer.bin", "scheduler.bin", "scaler.pt")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

Kind = Literal["polytask", "huggingface", "files"]


@dataclass(frozen=True)
class Opened:
    """A model.

    Attributes:
        reference: as the plan has it.
        path: the directory or file; of an adapter, its base's.
        kind: polytask: what `polytask train` writes; huggingface: a directory with a config.json; files: tensors alone.
        weights: its tensors.
        config: of config.json; empty where there is none.
        adapter: the directory of the LoRA on top.
        revision: the hub's commit, where it came from there.
    """

    reference: str
    path: Path
    kind: Kind
    weights: Weights
    config: dict[str, Any] = field(default_factory=dict)
    adapter: Path | None = None
    revision: str | None = None


def open_model(text: str, places: Sequence[Path] = (), *, base: Opened | None = None, offline: bool = False) -> Opened:
    """Opens a reference; headers are read, values are not.

    Args:
        text: the reference.
        places: folders from which relative paths start.
        base: the plan's base, which an adapter that stands alone belongs to.
        offline: never asks the hub, only its cache.
    """
    found = parse(text, places)
    path = locate(found, places, offline=offline)
    if path.is_dir() and is_adapter(path):
        return _adapted(text, path, _base_for(path, base, places, offline))
    opened = _opened(text, path)
    if found.adapter is None:
        return opened
    adapter = locate(found.adapter, places, offline=offline)
    if not (adapter.is_dir() and is_adapter(adapter)):
        raise CheckpointError(f"{adapter}: no adapter_config.json, so no LoRA to put on {found.model}")
    return _adapted(text, adapter, base if base is not None and base.path == opened.path else opened)


def _base_for(path: Path, base: Opened | None, places: Sequence[Path], offline: bool) -> Opened:
    if base is not None:
        return base
    named = base_of(path)
    if not named:
        raise MissingInput(f"{path}: is a LoRA and names no base; give one, base: DIR, or MODEL+{path}")
    return open_model(named, places, offline=offline)


def _adapted(text: str, path: Path, base: Opened) -> Opened:
    weights = LoraWeights(path, _weights_in(path), base.weights)
    return Opened(text, base.path, base.kind, weights, base.config, path, base.revision)


def _opened(text: str, path: Path) -> Opened:
    if path.is_file():
        return Opened(text, path, "files", _weights_of([path]))
    if not (path / "config.json").is_file() and ((path / "best").exists() or (path / "last").exists()):
        path = resolve(path)  # a run: its best checkpoint
    if (path / ROUTER).is_file():
        raise CheckpointError(f"{path}: keeps a router ({ROUTER}), which a merge would lose; merge its experts instead")
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    kind: Kind = "polytask" if (path / "card.json").is_file() and "python_encoder" in config else "huggingface"
    weights = _weights_in(path)
    return Opened(text, path, kind if config else "files", weights, config, None, _commit(path))


def _weights_in(directory: Path) -> Weights:
    """The tensors of a directory: safetensors before pickles, what an index or a usual name says before the rest."""
    for suffix, usual in ((".safetensors", SAFETENSORS), (".bin", BINS)):
        indexes = sorted(directory.glob(f"*{suffix}.index.json"))
        if len(indexes) > 1:
            raise CheckpointError(f"{directory}: has {len(indexes)} indexes ({indexes[0].name}, {indexes[1].name})")
        named = [directory / name for name in usual if (directory / name).is_file()]
        if indexes and named:
            raise CheckpointError(f"{directory}: both {named[0].name} and {indexes[0].name}; remove what is left over")
        if indexes:
            return open_safetensors(indexes[0]) if suffix == ".safetensors" else PytorchWeights(_shards(indexes[0]))
        if named:
            return _weights_of(named[:1])
    listed = sorted(directory.iterdir())
    found = [file for file in listed if file.suffix == ".safetensors"]
    found = found or [file for file in listed if file.suffix in PICKLES and file.name not in NO_MODEL]
    if not found:
        raise CheckpointError(f"{directory}: no weights here; expected *.safetensors, or {', '.join(PICKLES)}")
    return _weights_of(found)


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{index}: has no weight_map, {{tensor: file}}")
    files = [index.parent / name for name in dict.fromkeys(table.values())]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{index}: names {file.name}, which is missing")
    return files


def _weights_of(files: list[Path]) -> Weights:
    if all(file.suffix in PICKLES for file in files):
        return PytorchWeights(files)
    if files[0].suffix != ".safetensors":
        raise CheckpointError(f"{files[0]}: no known weights; allowed: .safetensors, {', '.join(PICKLES)}")
    opened = {file: SafetensorsFile(file) for file in files}
    homes: dict[str, Path] = {}
    for path, file in opened.items():
        for name in file.entries:
            if homes.setdefault(name, path) != path:
                raise CheckpointError(f"{path}: {name!r} is in {homes[name].name} too")
    return SafetensorsWeights(opened)


def _commit(path: Path) -> str | None:
    """The hub's commit, which is the name of the folder in its cache."""
    return path.name if path.parent.name == "snapshots" else None
