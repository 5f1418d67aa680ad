"""Feature-wise linear modulation by task: a scale and a shift for each channel."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from polytask.sharing.conditioning import Conditioned, ConditionedOptions
from polytask.sharing.contract import MakeEncoder
from polytask.sharing.layers import Stack, TaskModules, seeded


class Film(Conditioned):
    """Each shared layer's output x becomes g_tl * x + s_tl before the activation.

    Source: Perez et al. 2018, arXiv:1709.07871 (FiLM), its scale and shift of each channel.
    Departures: the condition is the task, so the numbers are parameters, where the paper's come from a network that
    reads a question; no batch normalisation before.
    Cost: that of the shared layers, and a multiply-add a row and channel.
    """

    class Options(ConditionedOptions):
        """Attributes: deviation of the scales from 1 and of the shifts from 0 at the start."""

        kind: Literal["film"] = "film"
        deviation: float = Field(default=0.02, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.modulations: TaskModules[Stack[Modulation]] = TaskModules()
        for task in tasks:
            with seeded(seed, "film", task):
                self.modulations[task] = Stack(Modulation(size, options.deviation) for size in self.widths)

    def conditioned(self, task: str, place: int, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return self.modulations[task][place](x)

    def condition(self, task: str) -> str:
        return f"scales and shifts of {' + '.join(map(str, self.widths))} channels"


class Modulation(nn.Module):
    """A scale and a shift for each channel."""

    def __init__(self, width: int, deviation: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + deviation * torch.randn(width))
        self.shift = nn.Parameter(deviation * torch.randn(width))

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return x * self.scale.to(x.dtype) + self.shift.to(x.dtype)
