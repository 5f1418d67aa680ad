"""A checkpoint directory: everything needed to go from raw rows to predictions, and to know where it came from.

model.safetensors   the parameters and buffers
config.json         how to rebuild the model
inputs.json         how to turn raw rows into its inputs
card.json           tasks, metrics, versions, seed, and the size and SHA-256 of every other file
recipe.yaml         the resolved recipe
README.md           the model card for people
state.safetensors   optional: what a resumed training run needs
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from polytask.checkpoints.directory import atomic_directory, json_bytes, read_json
from polytask.checkpoints.model_card import model_card
from polytask.checkpoints.tensors import read_state, read_tensors, state_bytes, tensor_bytes
from polytask.core.errors import CheckpointError

MODEL, STATE = "model.safetensors", "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A directory that has been opened; files are read when asked for."""

    path: Path
    card: dict[str, Any] = field(repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    @cached_property
    def inputs(self) -> dict[str, Any]:
        return read_json(self.path / "inputs.json")

    @cached_property
    def recipe(self) -> dict[str, Any]:
        return yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8"))

    def tensors(self) -> dict[str, Tensor]:
        return read_tensors(self.path / MODEL)

    def state(self) -> Any:
        if not (self.path / STATE).exists():
            raise CheckpointError(
                f"{self.path}: no {STATE}: this directory is a model, not a point to resume training from"
            )
        return read_state(self.path / STATE)


def write_checkpoint(
    path: Path,
    *,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    card: Mapping[str, Any],
    recipe: Mapping[str, Any],
    state: Any = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a checkpoint directory, whole or not at all."""
    files = {
        MODEL: tensor_bytes(tensors),
        "config.json": json_bytes(config),
        "inputs.json": json_bytes(inputs),
        "recipe.yaml": yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).encode(),
        "README.md": model_card(card).encode(),
        **(extra_files or {}),
    }
    if state is not None:
        files[STATE] = state_bytes(state)
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    files["card.json"] = json_bytes({**card, "files": listed})
    with atomic_directory(path) as temporary:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint directory after checking that every listed file is there and of its size."""
    path = Path(path)
    if not (path / "card.json").exists():
        raise CheckpointError(
            f"{path}: not a checkpoint directory (no card.json); expected what 'polytask train --out' writes"
        )
    card = read_json(path / "card.json")
    for name, listed in card["files"].items():
        file = path / name
        if not file.exists():
            raise CheckpointError(f"{path}: {name} is missing")
        if file.stat().st_size != listed["bytes"]:
            raise CheckpointError(
                f"{file}: {file.stat().st_size} bytes, expected {listed['bytes']}: damaged or cut short"
            )
    return Checkpoint(path, card)


def verify_checkpoint(path: Path) -> Checkpoint:
    """As read_checkpoint, and every file's content against its SHA-256."""
    checkpoint = read_checkpoint(path)
    for name, listed in checkpoint.card["files"].items():
        found = hashlib.sha256((checkpoint.path / name).read_bytes()).hexdigest()
        if found != listed["sha256"]:
            raise CheckpointError(
                f"{checkpoint.path / name}: content changed "
                f"(SHA-256 {found[:12]}..., expected {listed['sha256'][:12]}...)"
            )
    return checkpoint
