"""Task conditioning: layers that all tasks share, and what each task does to what they give."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import ACTIVATIONS, Activation, Stack, seeded
from polytask.sharing.spec import SharingOptions


class ConditionedOptions(SharingOptions):
    """Attributes: hidden_sizes of the shared layers, the last is the width that the heads read; activation."""

    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
    activation: Activation = "relu"


class Conditioned(Sharing):
    """h_l = activation(c_tl(W_l h_(l-1) + b_l)), c_tl what the task makes of the layer's output.

    A subclass gives `conditioned`, and holds what it needs for that: a scale and a shift, a mask, an embedding.
    Cost: the first shared layer once for any number of tasks, the others once for each named task.
    """

    def __init__(
        self, make_encoder: MakeEncoder, tasks: Iterable[str], options: ConditionedOptions, seed: int = 0
    ) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        with seeded(seed, "layers"):
            sizes = pairwise((self.encoder.width, *options.hidden_sizes))
            self.layers = Stack(nn.Linear(inputs, outputs) for inputs, outputs in sizes)
        self.activation = ACTIVATIONS[options.activation]()
        self.width = options.hidden_sizes[-1]

    def conditioned(self, task: str, layer: int, x: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        """What the task makes of the layer's output."""
        raise NotImplementedError

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first layer reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        x: Tensor = representation
        for number, layer in enumerate(self.layers):
            x = layer(x)  # [B, d] at the first layer, then [T, B, d]
            rows = [x] * len(tasks) if x.dim() == 2 else x.unbind(0)
            x = torch.stack([self.conditioned(task, number, of) for task, of in zip(tasks, rows, strict=True)])
            x = self.activation(x)
        return dict(zip(tasks, x.unbind(0), strict=True))
