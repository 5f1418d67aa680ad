"""Levels of experts among which each task, not each row, chooses."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts
from polytask.sharing.gates import GateChoice, GateOptions, Gates
from polytask.sharing.layers import Activation, Stack, seeded
from polytask.sharing.selection import Hard
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_experts, numbered


class TaskMoE(Sharing):
    """At each level h_t <- sum_e g_tle f_le(h_t), with weights that depend on the task alone, by its embedding.

    Source: Ye, Zha and Ren 2022, arXiv:2205.12701: layers of experts and a router that chooses for a task, softly or
    one expert a layer.
    Departures: levels stand above the encoder; one expert is chosen by the largest score with the softmax's gradient,
    where the paper draws with Gumbel noise; a task's embedding starts at random, and of the task's examples where the
    gate `reads: examples`; the two-speed learning rate is a matter of the optimiser.
    Cost: the first level's experts once, and those of each further level for each named task.
    """

    class Options(SharingOptions):
        """Attributes: levels of experts; hidden_sizes of an expert; gate, which reads the task's embedding."""

        kind: Literal["task_moe"] = "task_moe"
        levels: PositiveInt = 2
        experts: PositiveInt = 4
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"
        gate: GateChoice = GateOptions(select=Hard(), reads="embedding")

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        tasks = list(tasks)
        self.encoder = make_encoder()
        self.width = options.hidden_sizes[-1]
        self.names = numbered("shared", options.experts)
        widths = [self.encoder.width, *[self.width] * (options.levels - 1)]
        choices = dict.fromkeys(tasks, self.names)
        self.experts: Stack[Experts] = Stack()
        self.gates: Stack[Gates] = Stack()
        for level, width in enumerate(widths):
            with seeded(seed, f"level.{level}", "experts"):
                self.experts.append(
                    Experts(options.experts, width, options.hidden_sizes, activation=options.activation)
                )
            self.gates.append(Gates(f"level.{level}", tasks, width, choices, options.gate, seed))

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first level reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        streams = dict.fromkeys(tasks, representation)
        for level, (experts, gates) in enumerate(zip(self.experts, self.gates, strict=True)):
            rows = representation if level == 0 else torch.cat([streams[task] for task in tasks])
            outputs = experts(rows)  # [E, B, width] at the first level, then [E, T B, width]
            note_experts(f"level.{level}", self.names, outputs)
            parts = [outputs] * len(tasks) if level == 0 else outputs.unflatten(1, (len(tasks), -1)).unbind(1)
            streams = {
                task: torch.einsum("be,ebd->bd", gates(task, streams[task]).to(part.dtype), part)
                for task, part in zip(tasks, parts, strict=True)
            }
        return streams
