"""Experts that all tasks share, mixed for each task by a gate."""

from collections.abc import Iterable, Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts, mixed
from polytask.sharing.gates import GateChoice, GateOptions, Gates
from polytask.sharing.layers import Activation, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_experts, numbered


class MixtureOptions(SharingOptions):
    """Attributes: experts, their number; hidden_sizes of each, the last is the width that the heads read; gate."""

    experts: PositiveInt = 8
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
    activation: Activation = "relu"
    gate: GateChoice = GateOptions()


class ExpertMixture(Sharing):
    """h_t = sum_e g_t(z)_e f_e(z), z the encoder's output.

    Cost: the experts once for any number of tasks, and B x width x E multiply-adds for each named task's gate.
    """

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: MixtureOptions, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        width = self.encoder.width
        with seeded(seed, "experts"):
            self.experts = Experts(options.experts, width, options.hidden_sizes, activation=options.activation)
        tasks, self.names = list(tasks), numbered("shared", options.experts)
        self.gates = Gates("experts", tasks, width, dict.fromkeys(tasks, self.names), options.gate, seed)
        self.width = self.experts.width

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which experts and gates read."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        experts = self.experts(representation)
        note_experts("experts", self.names, experts)
        weights = torch.stack([self.gates(task, representation) for task in tasks], dim=1)
        return dict(zip(tasks, mixed(weights, experts).unbind(dim=1), strict=True))
