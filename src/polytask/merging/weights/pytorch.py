"""PyTorch files, one or several, opened with weights_only=True: a pickle that would run code is refused, not run."""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.core.errors import CheckpointError
from polytask.merging.weights.files import fingerprint, hashes
from polytask.merging.weights.memory import OpenTensors

INSIDE = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts put the parameters beside other things."""


class PytorchWeights(OpenTensors):
    """The tensors of `.bin`, `.pt`, `.pth` or `.ckpt` files; memory-mapped where the format allows.

    Args:
        files: each with parameters of its own.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        super().__init__({})
        self._files = list(files)
        self._where: dict[str, Path] = {}
        for file in self._files:
            for name, tensor in _state(file).items():
                if name in self._tensors:
                    raise CheckpointError(f"{file}: {name!r} is in {self._where[name]} too")
                self._tensors[name], self._where[name] = tensor.detach(), file

    def where(self, name: str) -> str:
        return str(self._where[name])

    def files(self) -> list[Path]:
        return list(self._files)

    def fingerprint(self) -> str:
        return fingerprint(self._files)

    def hashes(self) -> dict[str, str]:
        return hashes(self._files)

    def close(self) -> None:
        self._tensors.clear()


def _state(file: Path) -> dict[str, Tensor]:
    loaded = _loaded(file)
    if isinstance(loaded, Mapping):
        for key in INSIDE:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"{file}: holds no parameters by name, but a {type(loaded).__name__}")
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file}: {name!r} is a {type(value).__name__}; allowed: tensors by name, alone or under "
                + ", ".join(INSIDE)
            )
    return {str(name): value for name, value in loaded.items()}


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6


def _loaded(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of an unusual protocol: what cannot be read is an error below
            return _unpickled(file)
    except pickle.UnpicklingError as error:
        reason = "would run code of its own" if "weights" in str(error).lower() else "is damaged"
        raise CheckpointError(
            f"{file}: this pickle {reason}, so it was not read; save its tensors alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: damaged or cut short ({(str(error) or 'it ends at once').splitlines()[0]})"
        ) from error
