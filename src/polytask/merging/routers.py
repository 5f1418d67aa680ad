"""Where a row's shares of the experts come from, and the file in which a merge keeps it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.checkpoints.tensors import read_tensors
from polytask.core.errors import CheckpointError, Inconsistent
from polytask.core.noise import Noise
from polytask.merging.routing import (
    Router,
    ThinExperts,
    WholeExperts,
    embedding,
    embedding_of,
    mean_of_positions,
    mixed,
    positions,
)

Layers = tuple[Tensor, Tensor, Tensor, Tensor]
"""A router's own: hidden weight [h, d] and bias, ReLU, output weight [T, h] and bias."""

_LAYERS = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
_LEFT, _RIGHT = "left:", "right:"


@dataclass(frozen=True)
class EmbeddingRouter:
    """One row of shares for all layers, from the row's embedding under the shared weights: what a head reads first.

    Cost: two forward passes, and in the second rank (in + out) multiply-adds a layer, expert and row besides.

    Attributes:
        experts: weight of a linear layer -> its experts.
        layers: the router's own, with a softmax over experts.
    """

    experts: Mapping[str, ThinExperts]
    layers: Layers
    reads_heads = True

    def weights(self, embedding: Float[Tensor, "B d"]) -> Float[Tensor, "B T"]:
        """Of each expert for each row; they sum to 1."""
        return scores(self.layers, embedding).softmax(1)

    @contextmanager
    def mixing(self, model: nn.Module, run: Callable[[], object]) -> Iterator[None]:
        with embedding(model, self.experts) as seen:
            run()
        weights = self.weights(embedding_of(seen))
        with mixed(model, self.experts, lambda name, rows: weights):
            yield

    def tensors(self) -> dict[str, Tensor]:
        left = {f"{_LEFT}{name}": own.left for name, own in self.experts.items()}
        right = {f"{_RIGHT}{name}": own.right for name, own in self.experts.items()}
        return {**_named("router.", self.layers), **left, **right}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "EmbeddingRouter":
        names = [name.removeprefix(_LEFT) for name in tensors if name.startswith(_LEFT)]
        experts = {name: ThinExperts(tensors[_LEFT + name], tensors[_RIGHT + name]) for name in names}
        return cls(experts, _layers("router.", tensors))


@dataclass(frozen=True)
class ModuleRouters:
    """A router for each of some modules, which reads what the module's first linear layer reads, position by position;
    its scores, their mean over positions, are the shares.

    Cost: one forward pass, and in it in x out multiply-adds a layer, expert and position besides.

    Attributes:
        experts: weight of a linear layer -> its experts.
        modules: the same weight -> the number of its router.
        routers: each one's own layers.
    """

    experts: Mapping[str, WholeExperts]
    modules: Mapping[str, int]
    routers: Sequence[Layers]
    reads_heads = False

    @contextmanager
    def mixing(self, model: nn.Module, run: Callable[[], object]) -> Iterator[None]:
        with self.mixture(model):
            yield

    @contextmanager
    def mixture(self, model: nn.Module) -> Iterator[None]:
        """In it the model computes each row with its mixture."""
        first, shares = dict[int, str](), dict[int, Tensor]()
        with positions(model) as masks:

            def of_layer(name: str, rows: Tensor) -> Tensor:
                number = self.modules[f"{name}.weight"]
                if first.setdefault(number, name) == name:
                    width = self.routers[number][0].shape[1]
                    if rows.shape[-1] != width:
                        raise Inconsistent(
                            f"layer {name!r} is the first of its module that runs, and reads {rows.shape[-1]} numbers, "
                            f"its router {width}: of the module's layers the first to run must be the first made"
                        )
                    shares[number] = mean_of_positions(scores(self.routers[number], rows), masks[0])
                return shares[number]

            with mixed(model, self.experts, of_layer):
                yield

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, layers in enumerate(self.routers):
            found |= _named(f"router:{number}:", layers)
        for name, own in self.experts.items():
            found[f"expert:{self.modules[name]}:{name}"] = own.weight
            if own.bias is not None:
                found[f"bias:{self.modules[name]}:{name}"] = own.bias
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "ModuleRouters":
        experts, modules = {}, {}
        for key, weight in tensors.items():
            kind, number, name = key.split(":", 2)
            if kind == "expert":
                modules[name] = int(number)
                experts[name] = WholeExperts(weight, tensors.get(f"bias:{number}:{name}"))
        count = 1 + max(modules.values(), default=-1)
        return cls(experts, modules, [_layers(f"router:{number}:", tensors) for number in range(count)])


def router_of(tensors: Mapping[str, Tensor]) -> Router:
    """The router whose tensors these are."""
    kind = EmbeddingRouter if "router.hidden.weight" in tensors else ModuleRouters
    return kind.of_tensors(tensors)


def read_router(path: str | Path) -> Router:
    """Of a merge's router.safetensors; CheckpointError where there is none, or what is there is none."""
    tensors = read_tensors(Path(path))
    try:
        return router_of(tensors)
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: holds no router; its first tensor is {next(iter(tensors), None)!r}") from None


def scores(layers: Layers, rows: Float[Tensor, "B ... d"]) -> Float[Tensor, "B ... T"]:
    """Of each expert for each row or position."""
    hidden, hidden_bias, output, output_bias = layers
    return (rows.to(hidden) @ hidden.T + hidden_bias).relu() @ output.T + output_bias


def drawn(noise: Noise, rows: int, columns: int) -> Float[Tensor, "rows columns"]:
    """A normal start of variance 1 / columns."""
    values = torch.from_numpy(noise.normal(rows * columns)).view(rows, columns) / columns**0.5
    return values.float().requires_grad_()


def detached(layers: Layers) -> Layers:
    """What was learned."""
    hidden, hidden_bias, output, output_bias = (own.detach() for own in layers)
    return hidden, hidden_bias, output, output_bias


def _named(prefix: str, layers: Layers) -> dict[str, Tensor]:
    return {f"{prefix}{name}": own for name, own in zip(_LAYERS, layers, strict=True)}


def _layers(prefix: str, tensors: Mapping[str, Tensor]) -> Layers:
    hidden, hidden_bias, output, output_bias = (tensors[f"{prefix}{name}"] for name in _LAYERS)
    return hidden, hidden_bias, output, output_bias
