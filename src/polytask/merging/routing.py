"""Merged models that keep a router: shared weights, and for each row a mixture of what the experts have beyond them.

A row's own weights are never formed: the inputs of a linear layer pass what every expert has beyond the shared one, and
the outcomes are added up with the row's shares. Where shares come from is a router's own (`merging.routers`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from polytask.core.errors import Inconsistent, MissingInput, UnknownName

FILE = "router.safetensors"
MASK = "attention_mask"
"""What models call the mask of a row's own positions, whether it is an argument or among the inputs."""

Shares = Callable[[str, Tensor], Tensor]
"""(layer, its inputs [B, ..., in]) -> [B, T]: how much of each expert a row gets there."""


@runtime_checkable
class Experts(Protocol):
    """What the experts have beyond the shared linear layer."""

    def outputs(self, rows: Float[Tensor, "B ... in"]) -> Iterator[Float[Tensor, "B ... out"]]:
        """What each expert adds to the layer's outputs."""
        ...


@runtime_checkable
class Router(Protocol):
    """What a merge keeps beside the shared weights."""

    @property
    def experts(self) -> Mapping[str, Experts]:
        """Weight of a linear layer -> the experts there."""
        ...

    @property
    def reads_heads(self) -> bool:
        """Whether shares depend on what a head reads, so that each task's rows need passes of their own."""
        ...

    def mixing(self, model: nn.Module, run: Callable[[], object]) -> AbstractContextManager[None]:
        """In it the model computes each row with its mixture. `run` is the pass to come, which it may make before."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        ...

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Router":
        """What `tensors` gave."""
        ...


@dataclass(frozen=True)
class ThinExperts:
    """left [T, out, rank] and right [T, rank, in], whose products are added to the weight."""

    left: Float[Tensor, "T out rank"]
    right: Float[Tensor, "T rank in"]

    def outputs(self, rows: Float[Tensor, "B ... in"]) -> Iterator[Float[Tensor, "B ... out"]]:
        for left, right in zip(self.left, self.right, strict=True):
            yield rows @ right.to(rows).T @ left.to(rows).T


@dataclass(frozen=True)
class WholeExperts:
    """weight [T, out, in] and bias [T, out], which are added to the layer's; the bias is None where it has none."""

    weight: Float[Tensor, "T out in"]
    bias: Float[Tensor, "T out"] | None

    def outputs(self, rows: Float[Tensor, "B ... in"]) -> Iterator[Float[Tensor, "B ... out"]]:
        for number, weight in enumerate(self.weight):
            yield F.linear(rows, weight.to(rows), None if self.bias is None else self.bias[number].to(rows))


class Routed(nn.Module):
    """A model with its router, called as the model is; rows are along the first axis of every layer's inputs.

    Cost: the router's passes, and in them what the experts add to each layer (`merging.routers`).

    Args:
        model: with the shared weights.
        router: of its merge; it moves with the model to a device or a type.

    Raises: UnknownName if the model lacks one of the router's layers.
    """

    def __init__(self, model: nn.Module, router: Router) -> None:
        super().__init__()
        known = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        for name in router.experts:
            if name not in known:
                raise UnknownName("linear layer with the weight", name, known, "the routed model")
        self.model, self.router = model, router

    def forward(self, *arguments: Any, **options: Any) -> Any:
        run = partial(self.model, *arguments, **options)
        with self.router.mixing(self.model, run):
            return run()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Routed":
        self.router = type(self.router).of_tensors({name: fn(own) for name, own in self.router.tensors().items()})
        return super()._apply(fn, recurse)


@contextmanager
def mixed(module: nn.Module, experts: Mapping[str, Experts], shares: Shares) -> Iterator[None]:
    """The module computes each row with the shared weights and the row's mixture of the experts'."""
    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear) and f"{name}.weight" in experts:
                added = partial(_added, name, experts[f"{name}.weight"], shares)
                hooks.callback(layer.register_forward_hook(added).remove)
        yield


def _added(
    name: str, experts: Experts, shares: Shares, layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor
) -> Tensor:
    """The layer's outputs with the mixture's."""
    rows = inputs[0]
    weights = shares(name, rows)
    if len(rows) != len(weights):
        raise Inconsistent(f"layer {name!r} reads {len(rows)} rows where the router has seen {len(weights)}")
    for each, own in zip(experts.outputs(rows), weights.T, strict=True):
        out = out + own.to(rows).view(-1, *[1] * (rows.dim() - 1)) * each
    return out


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
            seen.append(mean_of_positions(inputs[0].detach(), masks[0]))

    with ExitStack() as hooks:
        masks = hooks.enter_context(positions(module))
        hooks.callback(module.register_forward_pre_hook(start).remove)
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear) and f"{name}.weight" not in known:
                hooks.callback(layer.register_forward_pre_hook(look).remove)
        yield seen


def embedding_of(seen: list[Tensor]) -> Tensor:
    """The one that a pass has left; MissingInput where the model has no layer of its own to read it."""
    if not seen:
        raise MissingInput(
            "the router reads the input of a linear layer that is not merged, and the model has none: keep one, a head "
            "say, out of the merge (the plan's `keep`), or take a rule without a router"
        )
    return seen[-1]


@contextmanager
def positions(module: nn.Module) -> Iterator[list[Tensor | None]]:
    """One entry, of the pass under way: the mask [B, L] of positions that the module is given, or None."""
    found: list[Tensor | None] = [None]

    def look(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = [each for each in (options, *arguments, *options.values()) if isinstance(each, Mapping)]
        masks = [each[MASK] for each in given if isinstance(each.get(MASK), Tensor)]
        found[0] = next((mask for mask in masks if mask.dim() == 2), None)

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def mean_of_positions(values: Float[Tensor, "B ... d"], mask: Tensor | None) -> Float[Tensor, "B d"]:
    """The mean over those positions of a row that the mask marks, over all of them where it is not of this length."""
    if values.dim() == 2:
        return values
    if mask is None or mask.shape != values.shape[:-1]:
        return values.flatten(1, -2).mean(1)
    weights = mask.to(values)
    return (values * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
