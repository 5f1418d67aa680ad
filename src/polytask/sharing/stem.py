"""Shared and task-specific embeddings: an encoder a task beside a shared one; gates only look at the others'."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from polytask.sharing.contract import MakeEncoder, ReadsApart
from polytask.sharing.encoders.contract import Encoder
from polytask.sharing.experts import Experts, mixed, run_together
from polytask.sharing.gates import GateChoice, GateOptions, Gates
from polytask.sharing.layers import Activation, TaskModules, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_experts, numbered


class STEM(ReadsApart):
    """Experts read the embeddings of their owner; a task's gate mixes the experts of all, and its gradient reaches its
    own and the shared ones only.

    Source: Su et al. 2023, arXiv:2308.13537, STEM-Net: an embedding table a task and a shared one, and its gating "all
    forward, task-specific backward".
    Departures: what each task has of its own is a whole encoder (an encoder without hidden layers is an embedding
    table); all encoders start from the same values; the gate reads the sum of the task's and the shared encoder's
    output.
    Cost: an encoder and its experts for every task and the shared ones, whichever tasks are named.
    """

    isolated = False
    reading = "sharing 'stem' has an encoder a task beside the shared one"

    class Options(SharingOptions):
        """Attributes: shared_experts and task_experts, their numbers (the second for each task); hidden_sizes of each;
        gate.
        """

        kind: Literal["stem"] = "stem"
        shared_experts: PositiveInt = 2
        task_experts: PositiveInt = 2
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"
        gate: GateChoice = GateOptions()

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks = list(tasks)
        self.encoder = make_encoder()
        width, sizes, activation = self.encoder.width, options.hidden_sizes, options.activation
        with seeded(seed, "experts"):
            self.shared = Experts(options.shared_experts, width, sizes, activation=activation)
        self.encoders: TaskModules[Encoder] = TaskModules()
        self.own: TaskModules[Experts] = TaskModules()
        for task in self.tasks:
            self.encoders[task] = make_encoder()
            with seeded(seed, "experts", task):
                self.own[task] = Experts(options.task_experts, width, sizes, activation=activation)
        self.names = [name for task in self.tasks for name in numbered(task, options.task_experts)]
        self.names += numbered("shared", options.shared_experts)
        choices = dict.fromkeys(self.tasks, self.names)
        self.gates = Gates("experts", self.tasks, width, choices, options.gate, seed)
        self.width = self.shared.width

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        shared = self.encoder(inputs)
        streams = [self.encoders[task](inputs) for task in self.tasks]
        banks = [*(self.own[task] for task in self.tasks), self.shared]
        experts = run_together(banks, [*streams, shared])  # [E, B, width], task after task, then the shared
        note_experts("experts", self.names, experts)
        seen, n = experts.detach(), len(self.own[self.tasks[0]])
        outputs = {}
        for task in tasks:
            place = self.tasks.index(task)
            first, last = place * n, len(self.tasks) * n
            own = [seen[:first], experts[first : first + n], seen[first + n : last], experts[last:]]
            weights = self.gates(task, streams[place] + shared).unsqueeze(1)
            outputs[task] = mixed(weights, torch.cat(own)).squeeze(1)
        return outputs
