"""TaskExpert: at each level experts split the shared map, and each task puts together its own, with a memory."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.dense.decoders import resized
from polytask.sharing.dense.frame import Dense
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.encoders.pyramid import block
from polytask.sharing.gates import Embedding, GateChoice, GateOptions, Gates
from polytask.sharing.layers import Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import numbered


class TaskExpert(Dense):
    """From the coarsest level to the finest: x_t = sum_e g_te E_e(level) + g_t0 R(m_t), then m_t <- m_t + U(x_t).

    Experts E of a level serve all tasks; a task's gate g reads the means of level and memory over the picture; the
    memory m is also an expert, through R. The decoder reads the memory after the finest level.

    Source: Ye and Xu 2023, arXiv:2307.15324 (TaskExpert): experts at several layers of the backbone, dynamic gates, and
    a multi-task feature memory that is one more expert, is updated at each layer and makes the last prediction.
    Departures: the paper's full text was not at hand when this was written: E and R are 1x1 convolutions and U a 3x3
    one, each with group normalisation and relu; the paper's layers have one size, here a pyramid's are visited from
    the coarsest on and the memory is interpolated; it starts as a learned vector a task.
    Cost: a level's experts once, experts x channels x width multiply-adds a pixel; for each named task 10 x width^2 a
    pixel of each level.
    """

    class Options(SharingOptions):
        """Attributes: experts of each level; width of what they give and of the memory; gate."""

        kind: Literal["task_expert"] = "task_expert"
        experts: PositiveInt = 4
        width: PositiveInt = 32
        gate: GateChoice = GateOptions()

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.memories: TaskModules[Embedding] = TaskModules()
        for task in self.tasks:
            with seeded(seed, "memory", task):
                self.memories[task] = Embedding(options.width)
        self.levels = Stack(
            ExpertLevel(level, self.tasks, shape[0], options, seed) for level, shape in enumerate(self.shapes)
        )

    def decoder_channels(self, options: SharingOptions) -> list[int]:
        assert isinstance(options, TaskExpert.Options)
        return [options.width]

    def pyramids(self, levels: Levels, tasks: list[str]) -> dict[str, Levels]:
        memories = {
            task: self.memories[task].vector[None, :, None, None].to(levels[0]).expand(levels[0].shape[0], -1, 1, 1)
            for task in tasks
        }
        for place in reversed(range(len(levels))):
            memories = self.levels[place](levels[place], memories)
        return {task: [memory] for task, memory in memories.items()}


class ExpertLevel(nn.Module):
    """What reads one level: its experts, and each task's gate, reading and writing of its memory."""

    def __init__(self, level: int, tasks: list[str], channels: int, options: TaskExpert.Options, seed: int) -> None:
        super().__init__()
        place, width = f"level.{level}", options.width
        shared = numbered("shared", options.experts)
        names = {task: [*shared, *numbered(task, 1)] for task in tasks}  # the memory is the task's own expert
        with seeded(seed, place, "experts"):
            self.experts = Stack(block(channels, width, kernel=1) for _ in range(options.experts))
        self.gates = Gates(place, tasks, channels + width, names, options.gate, seed)
        self.read: TaskModules[nn.Module] = TaskModules()
        self.write: TaskModules[nn.Module] = TaskModules()
        for task in tasks:
            with seeded(seed, place, "memory", task):
                self.read[task], self.write[task] = block(width, width, kernel=1), block(width, width)

    def forward(self, level: Float[Tensor, "B C h w"], memories: dict[str, Tensor]) -> dict[str, Tensor]:
        experts = torch.stack([expert(level) for expert in self.experts], dim=1)  # [B, E, width, h, w]
        seen, found = level.mean(dim=(2, 3)), {}
        for task, before in memories.items():
            memory = resized(before, (level.shape[2], level.shape[3]))
            weights = self.gates(task, torch.cat([seen, memory.mean(dim=(2, 3)).to(seen)], dim=1)).to(experts)
            every = torch.cat([experts, self.read[task](memory).unsqueeze(1)], dim=1)
            found[task] = memory + self.write[task](torch.einsum("be,bechw->bchw", weights, every))
        return found
