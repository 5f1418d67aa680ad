"""A small vision transformer whose every other layer sends tokens to experts, by a router a task."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.sharing.contract import MakeEncoder
from polytask.sharing.dense.frame import Dense
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.gates import GateChoice, GateOptions, Gates
from polytask.sharing.layers import Stack, seeded
from polytask.sharing.selection import TopK
from polytask.sharing.sequences import Places
from polytask.sharing.sparse_experts import Networks, precise
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_penalty, numbered
from polytask.sharing.transformer_blocks import Attention, Block


class M3ViT(Dense):
    """The pixels of the coarsest map are tokens of a transformer; layers 2, 4, ... send each to k experts, which a
    task's own router chooses. A task's decoder reads what its tokens have become, beside the finer maps.

    Source: Liang et al. 2022, arXiv:2210.14793 (M3ViT): mixture-of-experts layers in a vision transformer, a router a
    task, experts of 1 / k of the inner width; one task runs its own path only.
    Departures: the paper's full text was not at hand when this was written; tokens are the pixels of a pyramid's
    coarsest map in place of patches; no noise is added to the routers' scores; the term that evens out the experts' use
    is the squared coefficient of variation of their weights (Shazeer et al. 2017, arXiv:1701.06538), a task at a time.
    Cost: the first layer once; for each named task every other layer, whose experts read k tokens for each: 8 x
    feedforward / 4 x width^2 multiply-adds a token whatever their number, and L x experts x width for the routers.
    """

    class Options(SharingOptions):
        """Attributes: layers; heads of the attention; feedforward, how many times as wide as a token the inner layer
        is, or the k experts of a token together; experts of each routed layer; gate; balance, weight of the term.
        """

        kind: Literal["m3vit"] = "m3vit"
        layers: int = Field(default=2, ge=2)
        heads: PositiveInt = 4
        feedforward: PositiveInt = 2
        experts: PositiveInt = 4
        gate: GateChoice = GateOptions(select=TopK(k=2))
        balance: float = Field(default=0.01, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        width = self.shapes[-1][0]
        with seeded(seed, "places"):
            self.places = Places(self.shapes[-1])
        self.layers: Stack[Block | Routed] = Stack()
        for layer in range(options.layers):
            with seeded(seed, "layer", layer):
                self.layers.append(
                    Routed(f"layer.{layer}", self.tasks, width, options, seed)
                    if layer % 2
                    else Block(width, options.heads, options.feedforward, 0.0, "sharing 'm3vit'")
                )
        self.norm = nn.LayerNorm(width)

    def pyramids(self, levels: Levels, tasks: list[str]) -> dict[str, Levels]:
        *finer, coarsest = levels
        first, *others = self.layers
        start = first(self.places(coarsest), None)
        found = {}
        for task in tasks:
            x = start
            for layer in others:
                x = layer(x, task) if isinstance(layer, Routed) else layer(x, None)
            found[task] = [*finer, self.norm(x).transpose(1, 2).reshape(coarsest.shape)]
        return found


class Routed(Attention):
    """Attention, then for each token the weighted sum of what its experts make of it, added to it."""

    def __init__(self, place: str, tasks: list[str], width: int, options: M3ViT.Options, seed: int) -> None:
        super().__init__(width, options.heads, 0.0, "sharing 'm3vit'")
        self.balance, self.network_norm = options.balance, nn.LayerNorm(width)
        inner = options.feedforward * width // getattr(options.gate.select, "k", 1)
        if inner == 0:
            raise BadValue("sharing 'm3vit': feedforward x width of a token / k", 0, "at least 1")
        self.numbers = range(1, options.experts + 1)
        self.network = Networks(self.numbers, width, inner, place, seed)
        choices = dict.fromkeys(tasks, numbered("shared", options.experts))
        self.gates = Gates(place, tasks, width, choices, options.gate, seed)

    def forward(self, x: Float[Tensor, "B L d"], task: str) -> Float[Tensor, "B L d"]:
        x = self.read(x)
        read = self.network_norm(x)
        with torch.autocast(x.device.type, enabled=False):
            weights = self.gates(task, precise(read.flatten(0, 1)))
        if listening() and self.training and self.balance > 0:
            use = weights.sum(0)
            note_penalty(task, self.balance * use.var(correction=0) / use.mean().square())
        return x + self.network(read, weights.to(read.dtype), self.numbers)
