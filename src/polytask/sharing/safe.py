"""Safe multi-task learning: a shared encoder beside one a task, and a learned share of each."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, ReadsApart
from polytask.sharing.encoders.contract import Encoder
from polytask.sharing.layers import TaskModules
from polytask.sharing.spec import SharingOptions


class Safe(ReadsApart):
    """h_t = a_t f(x) + (1 - a_t) f_t(x) with a_t in (0, 1) learnt: a task that sharing hurts can leave it.

    Source: Yue, Ye, Chen and Zhang 2021, arXiv:2111.10601 (DSMTL): public and private encoders combined by a gate a
    task; its joint learning strategy.
    Departures: a_t is the sigmoid of a number; the strategy that trains the private part first is two stages of a
    recipe (`trainable: [sharing.encoders, heads]`, then all).
    Cost: the shared encoder once, and an encoder for each named task.
    """

    reading = "sharing 'safe' has an encoder a task beside the shared one"

    class Options(SharingOptions):
        """Attributes: start of a_t, the share of the shared encoder."""

        kind: Literal["safe"] = "safe"
        start: float = Field(default=0.5, gt=0, lt=1)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.width = self.encoder.width
        self.encoders: TaskModules[Encoder] = TaskModules()
        self.gates: TaskModules[Share] = TaskModules()
        for task in tasks:
            self.encoders[task] = make_encoder()
            self.gates[task] = Share(options.start)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        shared = self.encoder(inputs)
        return {task: torch.lerp(self.encoders[task](inputs), shared, self.gates[task](shared)) for task in tasks}


class Share(nn.Module):
    """A number in (0, 1)."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.logit(torch.tensor(start)))

    def forward(self, like: Tensor) -> Tensor:
        return self.logit.sigmoid().to(like.dtype)
