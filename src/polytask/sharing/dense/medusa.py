"""Medusa: each task masks the shared maps for itself, and weighs the scales when it puts them together."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.dense.decoders import resized
from polytask.sharing.dense.frame import Dense
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.encoders.pyramid import block
from polytask.sharing.layers import Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class MultiScale(nn.Module):
    """Each level as a map of the same width and size; for each pixel and number the levels are weighed by a softmax."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(block(each, width, kernel=1) for each in channels)
        self.scores = nn.Conv2d(len(channels) * width, len(channels) * width, 1)
        self.mix = block(width, width)

    def forward(self, levels: Levels) -> tuple[Float[Tensor, "B width h w"], Levels]:
        maps = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        large = [resized(each, (maps[0].shape[2], maps[0].shape[3])) for each in maps]
        weights = self.scores(torch.cat(large, dim=1)).unflatten(1, (len(large), -1)).softmax(dim=1)
        return self.mix((weights * torch.stack(large, dim=1)).sum(dim=1)), maps


class Medusa(Dense):
    """Shared feature attention, then a multi-scale attention head, a task.

    Source: Spencer, Bowden and Hadfield 2022, arXiv:2204.05698: tasks have nothing of each other's, so that one joins a
    trained model without touching the rest.
    Departures: the paper's full text was not at hand when this was written: the shared feature attention is a sigmoid
    of a 1x1 convolution of each level times that level; the multi-scale attention is the softmax over levels above.
    Cost: for each named task channels^2 multiply-adds a pixel of each level, and levels^2 x width^2 and 9 x width^2 a
    pixel of the finest.
    """

    decoder: ClassVar[type[nn.Module]] = MultiScale

    class Options(SharingOptions):
        """No options."""

        kind: Literal["medusa"] = "medusa"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.attention: TaskModules[Stack[nn.Conv2d]] = TaskModules()
        for task in self.tasks:
            with seeded(seed, "attention", task):
                self.attention[task] = Stack(nn.Conv2d(shape[0], shape[0], 1) for shape in self.shapes)

    def pyramids(self, levels: Levels, tasks: list[str]) -> dict[str, Levels]:
        return {
            task: [level * mask(level).sigmoid() for mask, level in zip(self.attention[task], levels, strict=True)]
            for task in tasks
        }
