"""Multi-gate mixture of experts."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts
from polytask.sharing.layers import Activation, TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class MMoE(Sharing):
    """Experts that all tasks share, mixed for each task by its own gate: h_t = sum_e softmax(W_t z)_e f_e(z).

    Source: Ma et al. 2018 ("Modeling task relationships in multi-task learning with multi-gate
    mixture-of-experts", KDD), equations 5 to 7.
    Departures: gates and experts read the encoder's output z, where the paper's read the embedded input (an encoder
    without hidden layers gives that); experts may have several layers.
    Cost: the experts once for any number of tasks, and B x width x E multiply-adds for each named task's gate.
    """

    class Options(SharingOptions):
        """Attributes: experts, their number; hidden_sizes of each, the last is the width that the heads read."""

        kind: Literal["mmoe"] = "mmoe"
        experts: PositiveInt = 8
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        width = self.encoder.width
        with seeded(seed, "experts"):
            self.experts = Experts(options.experts, width, options.hidden_sizes, activation=options.activation)
        self.gates = TaskModules()
        for task in tasks:
            with seeded(seed, "gate", task):
                self.gates[task] = nn.Linear(width, options.experts, bias=False)
        self.width = self.experts.width

    @property
    def representation_width(self) -> int:
        return self.encoder.width

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which experts and gates read."""
        return self.encoder(inputs)

    def mixture(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> Float[Tensor, "B T E"]:
        """What the gates of these tasks make of each expert; the weights of a row and task sum to 1."""
        return torch.stack([self.gates[task](representation) for task in tasks], dim=1).softmax(dim=-1)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        experts = self.experts(representation).transpose(0, 1)  # [B, E, width]
        mixed = self.mixture(representation, tasks).to(experts.dtype) @ experts  # [B, T, width]
        return dict(zip(tasks, mixed.unbind(dim=1), strict=True))
