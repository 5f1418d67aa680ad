"""Blocks that encoders, sharing architectures and heads are built from."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Generic, Literal, TypeVar, cast
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from polytask.core.errors import UnknownName
from polytask.core.noise import Noise

Activation = Literal["relu", "gelu", "silu", "tanh"]
Normalization = Literal["none", "batch", "layer"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
NORMALIZATIONS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def dense_layers(
    width: int,
    hidden_sizes: tuple[int, ...],
    *,
    activation: Activation = "relu",
    dropout: float = 0.0,
    normalization: Normalization = "none",
) -> nn.Sequential:
    """[B, width] -> [B, hidden_sizes[-1]]: linear, normalisation, activation, dropout, by size."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((width, *hidden_sizes)):
        layers.append(nn.Linear(inputs, outputs))
        if normalization != "none":
            layers.append(NORMALIZATIONS[normalization](outputs))
        layers.append(ACTIVATIONS[activation]())
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


@contextmanager
def seeded(seed: int, *keys: int | str) -> Iterator[None]:
    """Inside, the CPU generator is seeded from (seed, keys) alone; outside, the global random state is as it was."""
    with torch.random.fork_rng(devices=[]):
        # The CPU generator only: torch.manual_seed would reseed every accelerator's generator, which nothing restores.
        torch.default_generator.manual_seed(Noise(seed, *keys).torch_seed())
        yield


M = TypeVar("M", bound=nn.Module)


@cache
def _stored(name: str) -> str:
    """Kept, since it is asked for several times in each forward pass."""
    key = name.replace("%", "%25").replace(".", "%2E")
    return f"%{ord(key[0]):02X}{key[1:]}" if key[:1] < "\x7f" and hasattr(nn.ModuleDict(), key) else key


class NamedModules(nn.ModuleDict, Generic[M]):
    """Modules of one type under any names.

    torch forbids module names with a dot or that are attributes of the container ("type"); those characters are stored
    percent-encoded, and the rest of the interface takes and gives the names as they are.
    """

    def __getitem__(self, name: str) -> M:
        if name not in self:
            raise UnknownName("module", name, self.keys())
        return cast(M, super().__getitem__(self.key(name)))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(self.key(key), module)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(self.key(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(self.key(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> KeysView[str]:
        return self._by_name().keys()

    def values(self) -> ValuesView[M]:
        return self._by_name().values()

    def items(self) -> ItemsView[str, M]:
        return self._by_name().items()

    def _by_name(self) -> dict[str, M]:
        return {unquote(key): cast(M, self._modules[key]) for key in self._modules}

    @staticmethod
    def key(name: str) -> str:
        """The name under which a module is stored, so also its part of a parameter's name."""
        return _stored(name)


class TaskModules(NamedModules[M]):
    """A module for each task: what lies here belongs to that task, and is counted as its own."""


class Stack(nn.ModuleList, Generic[M]):
    """A list of modules of one type."""

    def __iter__(self) -> Iterator[M]:
        return cast(Iterator[M], super().__iter__())


class Head(nn.Module):
    """One task's outputs from its features: optional hidden layers (ReLU), then a linear layer.

    Returns [B] for one output and [B, outputs] otherwise.
    Cost: B x width x outputs multiply-adds without hidden layers.
    """

    def __init__(self, width: int, outputs: int, hidden_sizes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.width = width
        self.outputs = outputs
        self.hidden = dense_layers(width, hidden_sizes)
        self.output = nn.Linear((width, *hidden_sizes)[-1], outputs)

    def forward(self, features: Tensor) -> Tensor:
        outputs = self.output(self.hidden(features))
        return outputs.squeeze(-1) if self.outputs == 1 else outputs
