"""A checkpoint directory: everything needed to go from raw rows to predictions, and to know where it came from.

model.safetensors   the parameters and buffers
config.json         how to rebuild the model
inputs.json         how to turn raw rows into its inputs
recipe.yaml         the resolved recipe
card.json           tasks, metrics, versions, seed, and the size and SHA-256 of every file but the next
README.md           the same in words, for people
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

from polytask.checkpoints.directory import atomic_directory, json_bytes, read_json, write_file
from polytask.checkpoints.hashing import identified
from polytask.checkpoints.model_card import model_card
from polytask.checkpoints.tensors import read_state, read_tensors, state_bytes, tensor_bytes
from polytask.core.errors import CheckpointError

MODEL, STATE, CARD, README = "model.safetensors", "state.safetensors", "card.json", "README.md"


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
        path = self.path / "recipe.yaml"
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, OSError) as error:
            raise CheckpointError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: not a recipe, which is a mapping")
        return values

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
        **(extra_files or {}),
    }
    if state is not None:
        files[STATE] = state_bytes(state)
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    files |= {CARD: json_bytes({**card, "files": listed}), README: model_card(card).encode()}
    with atomic_directory(path) as temporary:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)


def update_card(path: Path, changes: Mapping[str, Any]) -> None:
    """Changes entries of card.json (and README.md): each file is at every moment the old one or the new one."""
    path = Path(path)
    card = {**read_checkpoint(path).card, **changes}
    write_file(path / CARD, json_bytes(card))
    write_file(path / README, model_card(card).encode())


def read_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint directory after checking that every listed file is there and of its size."""
    path = Path(path)
    if not (path / CARD).exists():
        raise CheckpointError(f"{path}: not a checkpoint directory (no {CARD}); expected what 'polytask train' writes")
    card = read_json(path / CARD)
    for name, size in _listed(card, path, "bytes").items():
        file = path / name
        if not file.exists():
            raise CheckpointError(f"{path}: {name} is missing")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, expected {size}: damaged or cut short")
    return Checkpoint(path, card)


def verify_checkpoint(path: Path) -> Checkpoint:
    """As read_checkpoint, and every file's content against its SHA-256 (of a merge's large files: that of samples)."""
    checkpoint = read_checkpoint(path)
    for name, facts in checkpoint.card["files"].items():
        key = next((key for key in ("sha256", "sampled_sha256") if key in facts), "sha256")
        if key not in facts:
            raise _no_list(checkpoint.path, key)
        found, expected = identified(checkpoint.path / name, whole=key == "sha256").get(key, ""), facts[key]
        if found != expected:
            raise CheckpointError(
                f"{checkpoint.path / name}: content changed (SHA-256 {found[:12]}..., expected {expected[:12]}...)"
            )
    return checkpoint


def _listed(card: Any, path: Path, what: str) -> dict[str, Any]:
    """File name -> what the card says of it."""
    try:
        return {name: facts[what] for name, facts in card["files"].items()}
    except (KeyError, TypeError, AttributeError):
        raise _no_list(path, what) from None


def _no_list(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path / CARD}: not a checkpoint's card: it lists no files with their {what}")
