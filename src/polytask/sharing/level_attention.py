"""Attention over the channels of several levels, one a task: each finds the levels and channels that it needs."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import ACTIVATIONS, Activation, Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class LevelAttention(Sharing):
    """c joins the outputs of all shared layers; task t's features are activation(P_t (c * a_t)) with channel attention
    a_t = sigmoid(U_t relu(V_t c)).

    Source: Qin et al. 2023, arXiv:2308.11509 (SwinFace), its multi-level channel attention in each task's subnet.
    Departures: the levels are layers above an encoder that gives a vector, where the paper's are the stages of a Swin
    transformer, pooled; the attention is the squeeze-and-excitation form (Hu et al. 2018), the paper's text not being
    at hand.
    Cost: the shared layers once; for each named task B x c x (2 c / reduction + width) with c channels in all.
    """

    class Options(SharingOptions):
        """Attributes: hidden_sizes of the shared layers; width of the result; reduction, by which the attention's inner
        layer is narrower than what it reads.
        """

        kind: Literal["level_attention"] = "level_attention"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
        activation: Activation = "relu"
        width: PositiveInt = 64
        reduction: PositiveInt = 4

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder, self.width = make_encoder(), options.width
        self.activation = ACTIVATIONS[options.activation]()
        with seeded(seed, "layers"):
            sizes = pairwise((self.encoder.width, *options.hidden_sizes))
            self.layers = Stack(nn.Linear(inputs, outputs) for inputs, outputs in sizes)
        channels = self.encoder.width + sum(options.hidden_sizes)
        self.subnets: TaskModules[Subnet] = TaskModules()
        for task in tasks:
            with seeded(seed, "subnet", task):
                self.subnets[task] = Subnet(channels, options)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, the first level."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        levels = [representation]
        for layer in self.layers:
            levels.append(self.activation(layer(levels[-1])))
        channels = torch.cat(levels, dim=1)
        return {task: self.activation(self.subnets[task](channels)) for task in tasks}


class Subnet(nn.Module):
    """A task's attention over the channels, and what it makes of them."""

    def __init__(self, channels: int, options: LevelAttention.Options) -> None:
        super().__init__()
        inner = max(1, channels // options.reduction)
        self.inwards, self.outwards = nn.Linear(channels, inner), nn.Linear(inner, channels)
        self.projection = nn.Linear(channels, options.width)

    def forward(self, channels: Float[Tensor, "B c"]) -> Float[Tensor, "B width"]:
        attention = torch.sigmoid(self.outwards(torch.relu(self.inwards(channels))))
        return self.projection(channels * attention)
