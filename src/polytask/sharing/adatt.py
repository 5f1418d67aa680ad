"""Adaptive task-to-task fusion: at every level each task mixes the experts of all tasks, and adds its own once more."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts, mixed, run_together
from polytask.sharing.gates import Scores
from polytask.sharing.layers import Activation, Stack, TaskModules, seeded
from polytask.sharing.selection import Softmax
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_experts, note_gate, numbered


class AdaTT(Sharing):
    """Per level h_t = sum over all experts of softmax(W_t x_t)_e f_e(x of e's owner) + sum over own of v_te f_e(x_t).

    Source: Li et al. 2023, arXiv:2304.04959; without shared experts its AdaTT-sp.
    Departures: the weights v of the native experts start at 1 / their number; a shared unit reads and passes on a
    stream of its own and has no residual, and at the last level it only lends its experts.
    Cost: all experts of every level for any number of named tasks; at the last level only the named tasks' gates.
    """

    isolated = False

    class Options(SharingOptions):
        """Attributes: levels; task_experts of each task and shared_experts in each level; hidden_sizes of an expert."""

        kind: Literal["adatt"] = "adatt"
        levels: PositiveInt = 2
        task_experts: PositiveInt = 2
        shared_experts: NonNegativeInt = 0
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks = list(tasks)
        self.encoder = make_encoder()
        width, levels = self.encoder.width, []
        for level in range(options.levels):
            last = level + 1 == options.levels
            levels.append(FusionLevel(f"level.{level}", self.tasks, width, options, seed, last=last))
            width = options.hidden_sizes[-1]
        self.levels, self.width = Stack(levels), width

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which every unit of the first level reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        units = len(self.tasks) + (self.levels[0].shared is not None)
        streams = [representation] * units
        for level in self.levels:
            wanted = tasks if level is self.levels[-1] else self.tasks
            streams = level(streams, wanted)
        return dict(zip(tasks, streams, strict=True))


class FusionLevel(nn.Module):
    """One level: the experts of all units, and a fusion for each task (and for the shared unit, unless it is last)."""

    def __init__(
        self, name: str, tasks: list[str], width: int, options: AdaTT.Options, seed: int, *, last: bool
    ) -> None:
        super().__init__()
        self.name, self.tasks = name, tasks
        sizes, activation = options.hidden_sizes, options.activation
        self.names = [name for task in tasks for name in numbered(task, options.task_experts)]
        self.names += numbered("shared", options.shared_experts)
        every = len(self.names)
        self.own: TaskModules[Experts] = TaskModules()
        self.gates: TaskModules[Scores] = TaskModules()
        self.native: TaskModules[NativeWeights] = TaskModules()
        for task in tasks:
            with seeded(seed, name, task):
                self.own[task] = Experts(options.task_experts, width, sizes, activation=activation)
                self.gates[task] = Scores(every, width, Softmax())
                self.native[task] = NativeWeights(options.task_experts)
        self.shared = self.shared_gate = None
        if options.shared_experts:
            with seeded(seed, name, "shared"):
                self.shared = Experts(options.shared_experts, width, sizes, activation=activation)
                self.shared_gate = None if last else Scores(every, width, Softmax())

    def forward(self, streams: list[Tensor], wanted: list[str]) -> list[Tensor]:
        """The wanted tasks' streams, then the shared unit's if it goes on; `streams` are all tasks', then its."""
        banks = [*self.own.values(), *([self.shared] if self.shared is not None else [])]
        same = all(stream is streams[0] for stream in streams)
        experts = run_together(banks, streams[0] if same else streams)  # [E, B, width]
        note_experts(self.name, self.names, experts)
        of = dict(zip(self.tasks, streams, strict=False))
        weights = [self.gates[task](of[task]).softmax(-1) for task in wanted]
        for task, given in zip(wanted, weights, strict=True):
            note_gate(self.name, task, self.names, given)
        if self.shared_gate is not None:
            weights.append(self.shared_gate(streams[-1]).softmax(-1))
        fused = list(mixed(torch.stack(weights, dim=1), experts).unbind(1))
        n = len(self.own[self.tasks[0]])
        for place, task in enumerate(wanted):
            first = self.tasks.index(task) * n
            native = torch.tensordot(self.native[task].weights.to(experts), experts[first : first + n], dims=1)
            fused[place] = fused[place] + native
        return fused


class NativeWeights(nn.Module):
    """The weights of a task's own experts in its residual."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((experts,), 1 / experts))
