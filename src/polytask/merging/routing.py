"""Merged models that keep a router: shared weights, and for each row a mixture of what the experts have beyond them.

What an expert has beyond the shared weights of a linear layer is kept as two thin factors, so a row's own weights are
never formed: its inputs pass the factors of every expert, which are added up with the row's numbers. The router reads
the row's embedding under the shared weights: what the first layer of a head reads.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polytask.core.errors import Inconsistent, MissingInput

FILE = "router.safetensors"
_LEFT, _RIGHT = "left:", "right:"
_ROUTER = ("router.hidden.weight", "router.hidden.bias", "router.output.weight", "router.output.bias")


@dataclass(frozen=True)
class Router:
    """Attributes:
    factors: weight of a linear layer -> left [T, out, rank] and right [T, rank, in] of the experts.
    layers: the router's own: hidden weight [h, d] and bias, ReLU, output weight [T, h] and bias, softmax.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    layers: tuple[Tensor, Tensor, Tensor, Tensor]

    def weights(self, embedding: Float[Tensor, "B d"]) -> Float[Tensor, "B T"]:
        """Of each expert for each row; they sum to 1."""
        return scores(self.layers, embedding).softmax(1)

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        left = {f"{_LEFT}{name}": pair[0] for name, pair in self.factors.items()}
        right = {f"{_RIGHT}{name}": pair[1] for name, pair in self.factors.items()}
        return {**dict(zip(_ROUTER, self.layers, strict=True)), **left, **right}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Router":
        """What `tensors` gave."""
        names = [name.removeprefix(_LEFT) for name in tensors if name.startswith(_LEFT)]
        factors = {name: (tensors[_LEFT + name], tensors[_RIGHT + name]) for name in names}
        hidden, hidden_bias, output, output_bias = (tensors[name] for name in _ROUTER)
        return cls(factors, (hidden, hidden_bias, output, output_bias))


def scores(layers: tuple[Tensor, ...], embedding: Float[Tensor, "B d"]) -> Float[Tensor, "B T"]:
    """Of each expert for each row, before the softmax."""
    hidden, hidden_bias, output, output_bias = layers
    return (embedding.to(hidden) @ hidden.T + hidden_bias).relu() @ output.T + output_bias


class Routed(nn.Module):
    """A model with its router, called as the model is; rows are along the first axis of every layer's inputs.

    Cost: two forward passes, and in the second rank (in + out) multiply-adds a layer, expert and row besides.

    Args:
        model: with the shared weights.
        router: of its merge.
    """

    def __init__(self, model: nn.Module, router: Router) -> None:
        super().__init__()
        self.model, self.router = model, router

    def forward(self, *arguments: Any, **options: Any) -> Any:
        with embedding(self.model, self.router.factors) as seen:
            self.model(*arguments, **options)
        with mixed(self.model, self.router, self.router.weights(embedding_of(seen))):
            return self.model(*arguments, **options)


@contextmanager
def embedding(module: nn.Module, merged: Iterable[str]) -> Iterator[list[Tensor]]:
    """What the first linear layer reads whose weight is not among `merged` in the passes meanwhile: an entry a pass."""
    known, seen = dict.fromkeys(merged), list[Tensor]()
    finished = [True]

    def start(module: nn.Module, inputs: Any) -> None:
        finished[0] = False

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not finished[0]:
            finished[0] = True
            rows = inputs[0].detach()
            seen.append(rows.flatten(1, -2).mean(1) if rows.dim() > 2 else rows)

    with ExitStack() as hooks:
        hooks.callback(module.register_forward_pre_hook(start).remove)
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear) and f"{name}.weight" not in known:
                hooks.callback(layer.register_forward_pre_hook(look).remove)
        yield seen


def embedding_of(seen: list[Tensor]) -> Tensor:
    """The one that a pass has left; MissingInput where the model has no layer of its own to read it."""
    if not seen:
        raise MissingInput("the model has no linear layer that is not merged (a head), whose input the router reads")
    return seen[-1]


@contextmanager
def mixed(module: nn.Module, router: Router, weights: Float[Tensor, "B T"]) -> Iterator[None]:
    """The module computes each row with the shared weights and the row's mixture of the experts'."""
    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear) and f"{name}.weight" in router.factors:
                added = partial(_added, name, router.factors[f"{name}.weight"], weights)
                hooks.callback(layer.register_forward_hook(added).remove)
        yield


def _added(
    name: str,
    factors: tuple[Tensor, Tensor],
    weights: Tensor,
    layer: nn.Module,
    inputs: tuple[Tensor, ...],
    out: Tensor,
) -> Tensor:
    """The layer's outputs with the mixture's."""
    rows = inputs[0]
    if len(rows) != len(weights):
        raise Inconsistent(f"layer {name!r} reads {len(rows)} rows where the router has seen {len(weights)}")
    for left, right, own in zip(*factors, weights.T, strict=True):
        share = own.to(rows).view(-1, *[1] * (rows.dim() - 1))
        out = out + share * (rows @ right.to(rows).T @ left.to(rows).T)
    return out
