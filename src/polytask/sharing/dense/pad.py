"""Prediction and distillation: between the decoders each task takes from the others what its own map lets through."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.dense.frame import Dense
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_features


class PAD(Dense):
    """F_t <- F_t + sigmoid(V_t F_t) * sum over u != t of W_tu F_u, with 3x3 convolutions V and W.

    Source: Xu et al. 2018, arXiv:1805.04409 (PAD-Net), its attention-guided distillation (module C).
    Departures: the paper's full text was not at hand when this was written; the maps before the exchange are supervised
    by the heads beside the model (`decoder.auxiliary`), as its intermediate predictions are; after the exchange there
    is the interpolation to the output's size, and no second decoder.
    Cost: every task's decoder whichever tasks are named; for each named task 9 x T x width^2 multiply-adds a pixel.
    """

    isolated = False

    class Options(SharingOptions):
        """No options."""

        kind: Literal["pad"] = "pad"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.messages: TaskModules[nn.Conv2d] = TaskModules()
        self.gates: TaskModules[nn.Conv2d] = TaskModules()
        others = len(self.tasks) - 1
        for task in self.tasks if others else ():
            with seeded(seed, "exchange", task):
                self.messages[task] = nn.Conv2d(others * self.width, self.width, 3, padding=1)
                self.gates[task] = nn.Conv2d(self.width, self.width, 3, padding=1)

    @property
    def auxiliary(self) -> dict[str, int]:
        return {**self.decoders.auxiliary, "before": self.width}

    def exchange(self, maps: dict[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        found = {}
        for task in tasks:
            own, others = maps[task], [each for other, each in maps.items() if other != task]
            if self.training:
                note_features("before", task, own)
            if others:
                own = own + self.gates[task](own).sigmoid() * self.messages[task](torch.cat(others, dim=1))
            found[task] = own
        return found
