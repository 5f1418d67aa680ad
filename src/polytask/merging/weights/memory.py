"""Tensors in memory, for what a merge has computed instead of read."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor


class OpenTensors:
    """What `Weights` asks of tensors that are at hand whole, in memory or mapped."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._tensors[name].reshape(-1)[start:stop]


class MemoryWeights(OpenTensors):
    """Args: tensors: by name; not copied. where: what they are, for messages."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        super().__init__({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        self._where = where

    def where(self, name: str) -> str:
        return self._where

    def files(self) -> Sequence[Path]:
        return []

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self._tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def hashes(self) -> dict[str, str]:
        return {}

    def close(self) -> None:
        """Nothing to close."""
