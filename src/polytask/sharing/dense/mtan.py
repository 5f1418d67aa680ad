"""Multi-task attention network: a mask a task over the shared maps, level after level."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.dense.decoders import resized
from polytask.sharing.dense.frame import Dense
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.encoders.pyramid import block, normalisation
from polytask.sharing.layers import Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class MTAN(Dense):
    """Level j of task t is a_j * p_j with the mask a_j = sigmoid(h(relu(g([p_j, f(a_(j-1) p_(j-1))])))).

    Source: Liu, Johns and Davison 2019, arXiv:1803.10704, the attention modules of the shared network's way down.
    Departures: the paper's full text was not at hand when this was written; a level of any pyramid gives one map, so
    the mask reads the map that it masks, where the paper's reads an earlier one of the same block; group normalisation
    for batch normalisation; f brings the masked map to the next level's size by interpolation, not by max-pooling; the
    way up is the decoder, without attention modules.
    Cost: for each named task and level 2 x channels^2 and 9 x channels x channels of the next level multiply-adds a
    pixel, beside its decoder.
    """

    class Options(SharingOptions):
        """No options."""

        kind: Literal["mtan"] = "mtan"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        channels = [shape[0] for shape in self.shapes]
        self.attention: TaskModules[Stack[Mask]] = TaskModules()
        for task in self.tasks:
            with seeded(seed, "attention", task):
                self.attention[task] = Stack(
                    Mask(before, own) for before, own in zip([0, *channels[:-1]], channels, strict=True)
                )

    def pyramids(self, levels: Levels, tasks: list[str]) -> dict[str, Levels]:
        found = {}
        for task in tasks:
            masked: Levels = []
            for mask, level in zip(self.attention[task], levels, strict=True):
                masked.append(mask(level, masked[-1] if masked else None))
            found[task] = masked
        return found


class Mask(nn.Module):
    """A level masked by numbers between 0 and 1, which are read from it and from the masked level before."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.onward = block(before, channels) if before else None  # f
        self.inner = block(2 * channels if before else channels, channels, kernel=1)  # g
        self.outer = nn.Conv2d(channels, channels, 1)  # h
        self.norm = normalisation(channels)

    def forward(self, level: Tensor, before: Tensor | None) -> Tensor:
        read = level
        if self.onward is not None and before is not None:
            read = torch.cat([level, resized(self.onward(before), (level.shape[2], level.shape[3]))], dim=1)
        return level * self.norm(self.outer(self.inner(read))).sigmoid()
