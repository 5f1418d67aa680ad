"""Tensors and nested state in safetensors files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polytask.core.errors import CheckpointError


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file. A tensor that shares its memory with an earlier one is stored once and listed as tied."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and memory in owners:
            tied[name] = owners[memory]
            continue
        owners[memory] = name
        kept[name] = tensor.detach().cpu().contiguous()
    return save(
        {name: tensor.clone() for name, tensor in kept.items()},
        # one entry where possible: safetensors writes several in random order, and equal models have equal files
        {"format": "pt", **(metadata or {}), **({"tied": json.dumps(tied)} if tied else {})},
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, tied ones included."""
    tensors, metadata = _opened(path)
    for name, owner in json.loads(metadata.get("tied", "{}")).items():
        tensors[name] = tensors[owner]
    return tensors


def state_bytes(state: Any) -> bytes:
    """Nested dicts, lists, numbers, strings and tensors as one safetensors file, exactly."""
    tensors: dict[str, Tensor] = {}
    plain = _without_tensors(state, tensors)
    return save(tensors, {"state": json.dumps(plain)})


def read_state(path: Path) -> Any:
    """What `state_bytes` was given (tuples come back as lists, dict keys as the strings or ints that they were)."""
    tensors, metadata = _opened(path)
    if "state" not in metadata:
        raise CheckpointError(f"{path}: no saved state, though a readable safetensors file")
    return _with_tensors(json.loads(metadata["state"]), tensors)


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # the file itself is no mapping
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from None


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"items": [[key, _without_tensors(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, tensors) for item in value]
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _with_tensors(item, tensors) for key, item in value["items"]}
    return value
